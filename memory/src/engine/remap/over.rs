//! Mapping the new place of granules over the old.
//!
//! This file has the only `MAP_FIXED` over guest memory whose contents count.
#![allow(unsafe_code)]

use std::ops::Range;
use std::ptr::null_mut;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mremap_fixed, munmap};

use super::RemapEngine;
use super::files::{FileKind, Spot};
use crate::engine::hooks::{Inject, Point};
use crate::engine::{Step, memory, runs};
use crate::hva::HvaRange;
use crate::migrate::Outcome;
use crate::numa::calls;
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

    /// Maps `spot` over `range`, or leaves what is mapped there.
    pub(super) fn map_fixed(&self, range: HvaRange, spot: Spot<'_>) -> Result<(), Errno> {
        let mapped = match spot.area.kind {
            FileKind::Dax => self.map_by_way(range, spot),
            FileKind::Small | FileKind::Hugetlb => self.map_at_once(range, spot),
        };
        if let Err(errno) = mapped {
            self.must_be_mapped(range, errno);
            return Err(errno);
        }
        if spot.area.kind == FileKind::Hugetlb && !spot.area.nodes.is_empty() {
            // What comes here later; if it cannot be said, verification names
            // what came from elsewhere.
            let _ = calls::bind_new(range, &spot.area.nodes);
        }
        Ok(())
    }

    fn map_at_once(&self, range: HvaRange, spot: Spot<'_>) -> Result<(), Errno> {
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        // The alias has reserved huge pages. Other files get the flags that
        // guest memory began with, or what comes home would not become one
        // mapping with its neighbours that never left.
        if spot.area.kind == FileKind::Hugetlb {
            flags |= MapFlags::NORESERVE;
        }
        let offset = spot.offset(self.space.bytes());
        // SAFETY: the range is guest memory of this engine, mapped from one of
        // its files already; the new mapping has the same contents, as the
        // caller copied them while writers were held off.
        unsafe {
            mmap(range.start().as_ptr().cast(), range.len(), BOTH, flags, spot.file(), offset)
        }
        .map(drop)
    }

    /// Maps a device elsewhere first and moves the mapping. A driver may refuse
    /// (`dax_mmap`, of a device that is being unbound, while copies still work),
    /// and by then the kernel has taken the old mapping away: there would be a
    /// hole in guest memory, for any mapping of this process to land in.
    fn map_by_way(&self, range: HvaRange, spot: Spot<'_>) -> Result<(), Errno> {
        let (len, offset) = (range.len(), spot.offset(self.space.bytes()));
        // SAFETY: a new mapping at an address of the kernel's choice, of which
        // nobody is told.
        let way = unsafe { mmap(null_mut(), len, BOTH, MapFlags::SHARED, spot.file(), offset) }?;
        let to = range.start().as_ptr().cast();
        // SAFETY: `way` was mapped above and nobody has its address; for the
        // range see `map_at_once`.
        let moved = unsafe { mremap_fixed(way, len, len, MremapFlags::MAYMOVE, to) };
        if moved.is_err() {
            // SAFETY: it is still there, and nobody has its address.
            let _ = unsafe { munmap(way, len) };
        }
        moved.map(drop)
    }

    /// Ends the process if a call that failed with `errno` has unmapped `range`.
    fn must_be_mapped(&self, range: HvaRange, errno: Errno) {
        // SAFETY: this puts nothing over what is there.
        if unsafe { shut(range, MapFlags::FIXED_NOREPLACE) }.is_ok() {
            (self.fatal)(&format!("the kernel took guest memory away and mapped nothing: {errno}"));
        }
    }
}

/// How guest memory is mapped.
const BOTH: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Maps memory that nobody can reach: with `FIXED` over what is in `range`, with
/// `FIXED_NOREPLACE` only if nothing is.
///
/// # Safety
/// With `FIXED`, `range` is a mapping of the caller's whose contents are lost.
pub(super) unsafe fn shut(range: HvaRange, fixed: MapFlags) -> Result<(), Errno> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | fixed;
    let start = range.start().as_ptr().cast();
    // SAFETY: the caller's.
    unsafe { mmap_anonymous(start, range.len(), ProtFlags::empty(), flags) }.map(drop)
}
