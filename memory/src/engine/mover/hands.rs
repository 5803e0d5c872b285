//! Taking pages from the guest and giving it others.
#![allow(unsafe_code)]

use rustix::io::Errno;

use super::MoveEngine;
use crate::engine::hooks::Point;
use crate::engine::{Step, memory, outcome_of};
use crate::hva::HvaRange;
use crate::migrate::Outcome;
use crate::uffd::MoveError;

impl MoveEngine {
    /// Takes the pages of `steps` from the guest.
    pub(super) fn take(&self, steps: &[Step], outcomes: &mut [Outcome]) {
        let size = self.space.bytes();
        let mut from = 0;
        while from < steps.len() {
            let chunk = &steps[from..];
            let guest = self.guest(chunk[0].granule);
            let slot = self.slot_at(chunk[0].granule, chunk[0].from);
            let result = self.move_run(chunk, Point::Freeze, guest, slot);
            let arrived = result.map_or_else(|error| error.moved / size, |()| chunk.len());
            for step in &chunk[..arrived] {
                let (row, index) = self.slot(step.granule, step.from);
                row.set_backed(index);
            }
            let Err(MoveError { moved, errno }) = result else { return };
            // Guest memory may be of several VMAs, and no call goes beyond one.
            if errno == Errno::INVAL && chunk.len() - arrived > 1 {
                for index in from + arrived..steps.len() {
                    self.take(&steps[index..=index], &mut outcomes[index..=index]);
                }
                return;
            }
            // A granule of small pages may have come half-way.
            let partial = (moved % size) & !0xfff;
            if partial > 0 {
                let back = HvaRange::new(slot.offset(arrived * size), partial);
                self.must_move(back, guest.offset(arrived * size));
            }
            outcomes[from + arrived] = outcome_of(errno);
            from += arrived + 1;
        }
    }

    /// Gives the copies of `steps` to the guest.
    pub(super) fn give(&self, steps: &[Step], outcomes: &mut [Outcome]) {
        let size = self.space.bytes();
        let void = |step: &Step| self.losses.has_holes(self.slot_at(step.granule, step.to));
        let mut from = 0;
        while from < steps.len() {
            if void(&steps[from]) {
                let step = &steps[from];
                self.give_void(self.slot_at(step.granule, step.to), self.guest(step.granule));
                from += 1;
                continue;
            }
            let sound = steps[from..].iter().position(void).map_or(steps.len(), |n| from + n);
            let chunk = &steps[from..sound];
            let guest = self.guest(chunk[0].granule);
            let slot = self.slot_at(chunk[0].granule, chunk[0].to);
            let Err(MoveError { moved, errno }) = self.move_run(chunk, Point::Arrive, slot, guest)
            else {
                from = sound;
                continue;
            };
            let (arrived, partial) = (moved / size, (moved % size) & !0xfff);
            if errno == Errno::INVAL && chunk.len() - arrived > 1 {
                for index in from + arrived..sound {
                    self.give(&steps[index..=index], &mut outcomes[index..=index]);
                }
                from = sound;
                continue;
            }
            let step = &chunk[arrived];
            if partial > 0 {
                self.take_back(step, partial);
            }
            self.put_back(step);
            outcomes[from + arrived] = match outcome_of(errno) {
                Outcome::NoFrame | Outcome::Busy => Outcome::Busy,
                other => other,
            };
            from += arrived + 1;
        }
    }

    /// Takes the first `len` bytes of a copy from the guest again. The guest
    /// may have written to them, so they count now: they are copied to the
    /// page that goes back.
    fn take_back(&self, step: &Step, len: usize) {
        let slot = self.slot_at(step.granule, step.to);
        self.must_move(HvaRange::new(self.guest(step.granule), len), slot);
        // SAFETY: both pages are out of the guest's reach, in slots that this
        // granule has claimed.
        let copied =
            unsafe { memory::copy(slot, self.slot_at(step.granule, step.from), len, true) };
        if copied.is_err() {
            (self.fatal)("host memory failed while guest memory was put back");
        }
    }

    /// Gives the guest the page back that was taken from it.
    pub(super) fn put_back(&self, step: &Step) {
        let (slot, guest) = (self.slot_at(step.granule, step.from), self.guest(step.granule));
        if !step.from_mapped {
        } else if self.losses.has_holes(slot) {
            self.give_void(slot, guest);
        } else {
            self.must_move(HvaRange::new(slot, self.space.bytes()), guest);
        }
    }
}
