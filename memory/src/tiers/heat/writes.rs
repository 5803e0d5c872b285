//! Writes to granules, where reads are not seen: memory that moves by the
//! `node` engine, which no userfaultfd watches, so that one in asynchronous
//! mode can ([`WriteWatch`]).
//!
//! Nothing that it says of a granule means that nobody reads it. So what it
//! finds used may be promoted, and nothing is demoted because of it
//! ([`Source::sees_reads`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Turn;
use super::meter::Meter;
use super::source::{ADOPTED, Source};
use crate::engine::memory;
use crate::granule::Granule;
use crate::heat::{Price, Seen, Touch};
use crate::hva::HvaRange;
use crate::tiers::core::Core;
use crate::uffd::written::{WriteWatch, WrittenError};

/// The source.
pub(super) struct Writes {
    core: Arc<Core>,
    watch: WriteWatch,
    watched: Vec<Granule>,
    adopt: u32,
    meter: Meter,
}

impl Writes {
    /// Watches all of guest memory.
    ///
    /// # Errors
    /// A kernel that does not note writes.
    pub(super) fn new(core: Arc<Core>) -> Result<Self, WrittenError> {
        let bytes = core.space.bytes();
        let parts = core.space.parts().iter();
        let ranges = parts.map(|part| HvaRange::new(part.hva, part.count as usize * bytes));
        let watch = WriteWatch::new(&[core.uffd.opened().door], ranges)?;
        Ok(Self { core, watch, watched: Vec::new(), adopt: ADOPTED, meter: Meter::default() })
    }

    /// Whether any of it is a huge page, which stays one: some may have been
    /// there before the host's were turned off.
    fn is_huge(&self, granule: Granule) -> bool {
        let range = self.core.space.hva_range(granule, 1);
        range.is_some_and(|range| memory::present(range).is_ok_and(|found| found.huge > 0))
    }
}

impl Source for Writes {
    fn may(&mut self, granule: Granule) -> bool {
        let view = self.core.table.get(granule);
        if self.is_huge(granule) || view.moving || self.core.damaged.contains(granule) {
            return false;
        }
        self.core.can_be_watched(granule, &view, &mut self.adopt)
    }

    fn watch(&mut self, granules: &[Granule]) -> u64 {
        self.adopt = ADOPTED;
        let began = Instant::now();
        for granule in granules {
            if let Some(range) = self.core.space.hva_range(*granule, 1)
                && self.watch.begin(range).is_ok()
            {
                self.watched.push(*granule);
            }
        }
        let watched = self.watched.len() as u32;
        self.meter.aside(began.elapsed(), watched, false);
        watched.into()
    }

    fn harvest(&mut self, _: &Turn<'_>, seen: &mut Vec<Seen>) {
        let (began, count) = (Instant::now(), self.watched.len() as u32);
        for granule in self.watched.drain(..) {
            let Some(range) = self.core.space.hva_range(granule, 1) else { continue };
            // How often is not seen, only whether.
            if let Ok(written) = self.watch.is_written(range) {
                let touch = written.then_some(Touch { count: 1, write: true });
                seen.push(Seen { granule, touch });
            }
        }
        self.meter.back(began.elapsed(), count, false);
    }

    fn price(&self) -> Price {
        // The fault of a writer is the kernel's alone, and no thread wakes up:
        // it is taken to cost as much as the look itself.
        // Nothing is taken from the guest but the right to write, and each page
        // that it writes to gets that anew.
        let Price { idle, again, .. } = self.meter.price(self.core.faults_to_map());
        Price { idle, touched: (2 * idle).max(Duration::from_micros(1)) + again, again }
    }

    fn sees_reads(&self) -> bool {
        false
    }
}
