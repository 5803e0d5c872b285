//! Copying a granule from slot to slot, and what becomes of pages that fail
//! meanwhile.
#![allow(unsafe_code)]

use super::MoveEngine;
use crate::addr::PAGE_SIZE;
use crate::engine::hooks::{Inject, Point};
use crate::engine::{Step, memory};
use crate::hva::{Hva, HvaRange};
use crate::migrate::Outcome;
use crate::poison::Lost;

impl MoveEngine {
    /// Copies one granule; on an error nothing of it counts.
    pub(super) fn copy(&self, step: &Step, from: Hva) -> Result<(), Outcome> {
        let to = self.slot_at(step.granule, step.to);
        let size = self.space.bytes();
        match self.hook(Point::Copy, step.granule) {
            Inject::Fail(_) => return Err(Outcome::CopyFailed),
            Inject::Omit => return Ok(()),
            Inject::Short(_) => {
                // SAFETY: as below, for the first half.
                let _ = unsafe { memory::copy(from, to, size / 2, true) };
                return Err(Outcome::CopyFailed);
            }
            Inject::Poison => self.fail_first_page(from),
            Inject::Nothing => {}
        }
        // SAFETY: `from` holds the granule's page, out of the guest's reach;
        // `to` is a slot of this engine whose frame or home page was claimed
        // for this granule, so nobody else uses it.
        let copied = unsafe { memory::copy(from, to, size, true) };
        match copied {
            Ok(()) => {}
            Err(lost) => self.lose(step, &lost)?,
        }
        self.losses.copied(from, to);
        Ok(())
    }

    /// Notes what was lost while a granule was copied. An error: it cannot go
    /// on and is to be put back.
    fn lose(&self, step: &Step, lost: &[Lost]) -> Result<(), Outcome> {
        let [from, to] = [step.from, step.to]
            .map(|place| self.slot(step.granule, place))
            .map(|(r, i)| r.slot(i));
        let inside =
            |slot: HvaRange, lost: &Lost| (slot.start()..slot.end()).contains(&lost.0.start());
        for lost in lost.iter().filter(|lost| inside(from, lost)) {
            let start = lost.0.start().0 - from.start().0;
            self.losses.hole(from.start(), start..start + lost.0.len());
        }
        if lost.iter().any(|lost| inside(from, lost)) {
            self.losses.place(step.granule, step.from);
        }
        if lost.iter().any(|lost| inside(to, lost)) {
            self.losses.place(step.granule, step.to);
            return Err(Outcome::BadFrame);
        }
        // Where the guest does not have it, whoever touches it waits for it to
        // come: it comes, with what is lost marked.
        if step.from_mapped || !step.to_mapped { Err(Outcome::Poisoned) } else { Ok(()) }
    }

    /// Makes the first page at `from` one that has failed, as a hook wants it.
    fn fail_first_page(&self, from: Hva) {
        let page = HvaRange::new(from, PAGE_SIZE as usize);
        if let Err(errno) = memory::drop_pages(page).and_then(|()| self.uffd.poison(page)) {
            (self.fatal)(&format!("no page can be made to fail: {errno}"));
        }
    }

    /// Gives the guest what is sound of a slot, and for the rest pages that
    /// have failed: a touch is a machine check there, as it would have been.
    pub(super) fn give_void(&self, slot: Hva, guest: Hva) {
        let move_on = |bytes: std::ops::Range<usize>| {
            if !bytes.is_empty() {
                let from = HvaRange::new(slot.offset(bytes.start), bytes.len());
                self.must_move(from, guest.offset(bytes.start));
            }
        };
        let mut at = 0;
        for hole in self.losses.take_holes(slot) {
            move_on(at..hole.start);
            at = hole.end;
            if let Err(errno) =
                self.uffd.poison(HvaRange::new(guest.offset(hole.start), hole.len()))
            {
                (self.fatal)(&format!("guest memory was lost and cannot be marked: {errno}"));
            }
            // What came there in its place is nobody's.
            let _ = memory::drop_pages(HvaRange::new(slot.offset(hole.start), hole.len()));
        }
        move_on(at..self.space.bytes());
    }
}
