//! Mapping the new place of granules over the old.
//!
//! This file has the only `MAP_FIXED` over guest memory.
#![allow(unsafe_code)]

use std::ops::Range;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::RemapEngine;
use super::files::{FileKind, Spot};
use crate::engine::hooks::{Inject, Point};
use crate::engine::{Step, memory, runs};
use crate::hva::HvaRange;
use crate::migrate::Outcome;
use crate::uffd::Modes;

impl RemapEngine {
    /// Runs of steps whose granules follow one another, and whose new places
    /// do.
    pub(super) fn runs_of(
        &self,
        steps: &[Step],
        alive: impl Fn(usize) -> bool,
    ) -> Vec<Range<usize>> {
        runs(
            steps,
            self.space.bytes(),
            |index, _| alive(index),
            |step| {
                let spot = self.spot(step.granule, step.to);
                (self.guest(step.granule).start().0, spot.alias().0)
            },
        )
    }

    /// Maps the new places of a run over the old ones; [`Self::watch`] follows.
    pub(super) fn map_over(&self, steps: &[Step], outcomes: &mut [Outcome]) {
        let size = self.space.bytes();
        let range = HvaRange::new(self.guest(steps[0].granule).start(), steps.len() * size);
        let spot = self.spot(steps[0].granule, steps[0].to);
        let injected = steps.iter().find_map(|step| match self.hook(Point::Arrive, step.granule) {
            Inject::Fail(errno) | Inject::Short(errno) => Some(errno),
            Inject::Nothing | Inject::Omit | Inject::Poison => None,
        });
        let mapped = match injected {
            Some(errno) => Err(errno),
            None => self.map_fixed(range, spot),
        };
        if let Err(errno) = mapped {
            for step in steps {
                self.release(self.guest(step.granule));
            }
            outcomes.fill(if errno == Errno::NOMEM { Outcome::VmaBudget } else { Outcome::Busy });
        }
    }

    /// Watches a run that was mapped over, and wakes who waits for it.
    pub(super) fn watch(&self, steps: &[Step], outcomes: &[Outcome]) {
        if outcomes.first() != Some(&Outcome::Moved) {
            return;
        }
        let start = self.guest(steps[0].granule).start();
        let range = HvaRange::new(start, steps.len() * self.space.bytes());
        if self.spot(steps[0].granule, steps[0].to).area.is_watched() {
            // Not watched, a granule is whole all the same; the next move of
            // it tries again.
            let _ = self.uffd.register(range, Modes::WriteProtect);
        }
        self.wake(range);
    }

    /// The guest would fault on each small page of what it has now; this is
    /// one call for all.
    pub(super) fn map_in(&self, steps: &[Step], outcomes: &[Outcome]) {
        let small = |step: &Step| self.spot(step.granule, step.to).area.kind == FileKind::Small;
        let moved = |index: usize| outcomes[index] == Outcome::Moved && small(&steps[index]);
        for run in self.runs_of(steps, moved) {
            let start = self.guest(steps[run.start].granule).start();
            let _ = memory::populate(HvaRange::new(start, run.len() * self.space.bytes()));
        }
    }

    pub(super) fn map_fixed(&self, range: HvaRange, spot: Spot<'_>) -> Result<(), Errno> {
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        // The alias has reserved huge pages. Other files get the flags that
        // guest memory began with, or what comes home would not become one
        // mapping with its neighbours that never left.
        if spot.area.kind == FileKind::Hugetlb {
            flags |= MapFlags::NORESERVE;
        }
        // SAFETY: the range is guest memory of this engine, mapped from one of
        // its files already; the new mapping has the same contents, as the
        // caller copied them while writers were held off.
        let mapped = unsafe {
            mmap(
                range.start().as_ptr().cast(),
                range.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                spot.file(),
                spot.offset(self.space.bytes()),
            )
        };
        mapped.map(drop)
    }
}
