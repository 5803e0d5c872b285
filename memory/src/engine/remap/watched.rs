//! The way of granules whose writers write-protection holds off: files in
//! memory.

use std::thread;

use rustix::io::Errno;

use super::RemapEngine;
use crate::engine::hooks::{Inject, Point};
use crate::engine::hurry::Waiters;
use crate::engine::{Step, TRIES, outcome_of, runs};
use crate::hva::HvaRange;
use crate::migrate::Outcome;
use crate::uffd::Modes;

impl RemapEngine {
    /// The way of granules that the guest has mapped.
    pub(super) fn transfer_mapped(
        &self,
        steps: &[Step],
        waiters: &Waiters<'_>,
        outcomes: &mut [Outcome],
    ) {
        self.freeze(steps, outcomes);
        // What is still to be copied, and then to be mapped.
        let mut open: Vec<bool> =
            outcomes.iter().map(|outcome| *outcome == Outcome::Moved).collect();
        let mut to_map = vec![false; steps.len()];
        let mut order = waiters.order(steps);
        while let Some(index) = order.next(&open, &to_map) {
            let step = &steps[index];
            if std::mem::take(&mut to_map[index]) {
                waiters.hurry.take(step.granule);
                self.give(&steps[index..=index], &mut outcomes[index..=index]);
                continue;
            }
            open[index] = false;
            if let Err(outcome) = self.copy(step) {
                self.release(self.guest(step.granule));
                outcomes[index] = outcome;
            } else if !step.to_mapped {
                if let Err(outcome) = self.unmap(step) {
                    outcomes[index] = outcome;
                }
            } else if waiters.hurry.take(step.granule) {
                self.give(&steps[index..=index], &mut outcomes[index..=index]);
            } else {
                to_map[index] = true;
            }
        }
        for run in self.runs_of(steps, |index| to_map[index]) {
            self.give(&steps[run.clone()], &mut outcomes[run]);
        }
    }

    fn give(&self, steps: &[Step], outcomes: &mut [Outcome]) {
        self.map_over(steps, outcomes);
        self.watch(steps, outcomes);
        self.map_in(steps, outcomes);
    }

    /// Holds writers of `steps`, whose granules follow one another, off.
    fn freeze(&self, steps: &[Step], outcomes: &mut [Outcome]) {
        for (step, outcome) in steps.iter().zip(outcomes.iter_mut()) {
            if let Inject::Fail(errno) | Inject::Short(errno) =
                self.hook(Point::Freeze, step.granule)
            {
                *outcome = outcome_of(errno);
            }
        }
        let frozen = runs(
            steps,
            self.space.bytes(),
            |index, step| {
                outcomes[index] == Outcome::Moved
                    && self.hook(Point::Freeze, step.granule) != Inject::Omit
            },
            |step| (self.guest(step.granule).start().0, self.guest(step.granule).start().0),
        );
        for run in frozen {
            let start = self.guest(steps[run.start].granule).start();
            let range = HvaRange::new(start, run.len() * self.space.bytes());
            if let Err(errno) = self.protect(range, true) {
                self.release(range);
                outcomes[run].fill(outcome_of(errno));
            }
        }
    }

    pub(super) fn protect(&self, range: HvaRange, on: bool) -> Result<(), Errno> {
        let mut result = self.uffd.write_protect(range, on);
        for _ in 0..TRIES {
            match result {
                Err(Errno::AGAIN) => thread::yield_now(),
                // The mapping was made but could not be watched then.
                Err(Errno::NOENT) => self.uffd.register(range, Modes::WriteProtect)?,
                other => return other,
            }
            result = self.uffd.write_protect(range, on);
        }
        result
    }

    /// Ends the protection of a granule that stays where it is.
    pub(super) fn release(&self, range: HvaRange) {
        let mut result = Ok(());
        for _ in 0..TRIES {
            result = self.uffd.write_protect(range, false);
            match result {
                Err(Errno::AGAIN) => thread::yield_now(),
                // What is not watched was not protected.
                Ok(()) | Err(Errno::NOENT) => return,
                Err(_) => break,
            }
        }
        if let Err(errno) = result {
            (self.fatal)(&format!("writers of guest memory cannot go on: {errno}"));
        }
    }
}
