//! The way of granules out of the guest's mapping, to frames where it must not
//! reach them (kind `private`), and home again.
#![allow(unsafe_code)]

use std::thread;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::RemapEngine;
use super::files::FileKind;
use crate::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};
use crate::engine::hooks::{Inject, Point};
use crate::engine::{Step, TRIES, memory, outcome_of};
use crate::hva::HvaRange;
use crate::migrate::Outcome;
use crate::table::Place;
use crate::uffd::{Modes, MoveError};

impl RemapEngine {
    /// Lets a copied granule go from the guest: its home page is punched out.
    pub(super) fn unmap(&self, step: &Step) -> Result<(), Outcome> {
        if let Inject::Fail(errno) | Inject::Short(errno) = self.hook(Point::Arrive, step.granule) {
            self.release(self.guest(step.granule));
            return Err(outcome_of(errno));
        }
        let (guest, home) = (self.guest(step.granule), self.spot(step.granule, Place::Home));
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let size = self.space.bytes();
        let done = self.uffd.register(guest, Modes::Both).and_then(|()| {
            // Watching anew ends no protection, but is not promised to keep it.
            self.protect(guest, true)?;
            fallocate(home.file(), punch, home.offset(size), size as u64)?;
            // Of a large folio that somebody refers to the kernel wipes what
            // it cannot take away. Then the page is to stay.
            let alias = home.area.alias.slot(home.index);
            if memory::any_in_core(alias) {
                let frame = self.spot(step.granule, step.to).alias();
                // SAFETY: both are aliases; writers wait, readers found the
                // page missing or find it again.
                if unsafe { memory::copy(frame, alias.start(), size, false) }.is_err() {
                    (self.fatal)("host memory failed while guest memory was put back");
                }
                return Err(Errno::BUSY);
            }
            Ok(())
        });
        // Writers try again and find the page missing, or there.
        self.release(guest);
        done.map_err(outcome_of)
    }

    /// Brings an unmapped granule home.
    pub(super) fn fill(&self, step: &Step) -> Result<(), Outcome> {
        let guest = self.guest(step.granule);
        for point in [Point::Copy, Point::Arrive] {
            match self.hook(point, step.granule) {
                Inject::Fail(errno) => return Err(outcome_of(errno)),
                Inject::Short(errno) => {
                    let half = (guest.len() / 2) & !(PAGE_SIZE as usize - 1);
                    if half > 0 {
                        // As an error of the kernel's would leave it.
                        let _ = self.fill_from(step, HvaRange::new(guest.start(), half));
                    }
                    return Err(outcome_of(errno));
                }
                Inject::Omit | Inject::Nothing | Inject::Poison => {}
            }
        }
        self.fill_from(step, guest).map_err(|errno| match outcome_of(errno) {
            Outcome::NoFrame => Outcome::NoFrame,
            _ => Outcome::Busy,
        })?;
        let home = self.spot(step.granule, Place::Home);
        home.area.alias.set_backed(home.index);
        Ok(())
    }

    /// Fills the missing pages of `to`, guest memory, from as many bytes at
    /// `from` that nobody else uses, and wakes who waits for them. After an
    /// error it can be called again: what has come is the guest's and stays.
    fn fill_from(&self, step: &Step, to: HvaRange) -> Result<(), Errno> {
        let Step { granule, from: place, .. } = *step;
        let from = self.spot(granule, place).alias();
        let page = match self.homes.first().map(|home| home.kind) {
            Some(FileKind::Hugetlb) => HUGE_PAGE_SIZE as usize,
            _ => PAGE_SIZE as usize,
        };
        let mut done = 0;
        for attempt in 0.. {
            let rest = HvaRange::new(to.start().offset(done), to.len() - done);
            // SAFETY: `to` is guest memory of this engine and `from` as long;
            // the kernel puts nothing over pages that are there.
            match unsafe { self.uffd.copy(from.offset(done), rest) } {
                Ok(()) => break,
                Err(MoveError { moved, errno: Errno::AGAIN }) if attempt < TRIES || moved > 0 => {
                    done += moved;
                    thread::yield_now();
                }
                // That page came at an earlier try.
                Err(MoveError { moved, errno: Errno::EXIST }) => {
                    done += moved + page;
                    if done >= to.len() {
                        self.wake(to);
                        break;
                    }
                }
                // The frame has failed there, and so has what comes home.
                Err(MoveError { moved, errno: Errno::FAULT }) => {
                    done += moved;
                    let marked = self.uffd.poison(HvaRange::new(to.start().offset(done), page));
                    if let Err(errno) = marked {
                        // Before Linux 6.6, and whoever waits would for ever.
                        (self.fatal)(&format!(
                            "guest memory was lost and cannot be marked: {errno}"
                        ));
                    }
                    self.losses.place(granule, place);
                    done += page;
                    if done >= to.len() {
                        break;
                    }
                }
                Err(MoveError { errno, .. }) => return Err(errno),
            }
        }
        Ok(())
    }
}
