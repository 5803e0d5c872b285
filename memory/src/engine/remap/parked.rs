//! The way out of frames that nobody can watch, a /dev/dax's: every vCPU is
//! parked for a batch that is short enough ([`pace`](crate::engine::pace)).

use std::time::{Duration, Instant};

use super::RemapEngine;
use crate::engine::pace::{self, Batch, Turn};
use crate::engine::{Step, memory};
use crate::migrate::Outcome;
use crate::park::Parked;

impl RemapEngine {
    /// Whether vCPUs are to be parked while this step is carried out.
    pub(super) fn parks(&self, step: &Step) -> bool {
        step.from_mapped && !self.spot(step.granule, step.from).area.is_watched()
    }

    /// The way of granules that the guest has mapped and that nobody can watch.
    pub(super) fn transfer_parked(&self, steps: &[Step], outcomes: &mut [Outcome]) {
        let mut from = 0;
        while from < steps.len() {
            let batch = from..(from + self.pace.next()).min(steps.len());
            from = batch.end;
            if !self.transfer_batch(&steps[batch.clone()], &mut outcomes[batch]) {
                // Whoever is not to be had will not be for the next batch either,
                // and each try holds up the others.
                let rest = outcomes[from..].iter_mut();
                rest.filter(|outcome| **outcome == Outcome::Moved)
                    .for_each(|outcome| *outcome = Outcome::Busy);
                return;
            }
        }
    }

    /// Parks vCPUs when it is this thread's turn, and says since when they were
    /// asked to. One may wait for a processor, or for somebody else's move: then
    /// all go on, for as long as they were held up.
    fn hold_off(&self) -> Option<(Turn<'_>, Instant, Box<dyn Parked>)> {
        const TRIES: u32 = 4;
        let park = self.park.as_ref()?;
        for _ in 0..TRIES {
            let turn = self.pace.turn();
            let since = Instant::now();
            if let Some(parked) = park.park(pace::LIMIT) {
                return Some((turn, since, parked));
            }
            let held = since.elapsed();
            turn.over(held);
            self.pace.given_up(held);
        }
        None
    }

    /// False if vCPUs could not be parked.
    fn transfer_batch(&self, steps: &[Step], outcomes: &mut [Outcome]) -> bool {
        for step in steps {
            // The alias of a device is mapped when it is first touched, which
            // takes a while; if it cannot be, the copy will say so.
            let (from, to) = (self.spot(step.granule, step.from), self.spot(step.granule, step.to));
            let _ = memory::map_in(from.area.alias.slot(from.index));
            let _ = memory::map_in(to.area.alias.slot(to.index));
        }
        let Some((turn, since, parked)) = self.hold_off() else {
            let open = outcomes.iter_mut().filter(|outcome| **outcome == Outcome::Moved);
            open.for_each(|outcome| *outcome = Outcome::Busy);
            return false;
        };
        let parking = since.elapsed();
        let mut copying = Duration::ZERO;
        let mut granules = 0;
        for (step, outcome) in steps.iter().zip(outcomes.iter_mut()) {
            if *outcome == Outcome::Moved {
                let since = Instant::now();
                if let Err(failed) = self.copy(step) {
                    *outcome = failed;
                }
                copying += since.elapsed();
                granules += 1;
            }
        }
        let copied = Instant::now();
        let runs = self.runs_of(steps, |index| outcomes[index] == Outcome::Moved);
        for run in &runs {
            self.map_over(&steps[run.clone()], &mut outcomes[run.clone()]);
        }
        let mapping = copied.elapsed();
        let vcpus = parked.vcpus();
        // They may go on in this thread's place.
        let stall = since.elapsed();
        drop(parked);
        turn.over(stall);
        self.pace.note(Batch { granules, stall, parking, copying, mapping, vcpus });
        // They are still this mover's: nobody else would want to freeze them.
        for run in runs {
            self.watch(&steps[run.clone()], &outcomes[run]);
        }
        self.map_in(steps, outcomes);
        true
    }
}
