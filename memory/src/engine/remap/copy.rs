//! Copying a granule from alias to alias, and what becomes of pages that fail
//! meanwhile.
#![allow(unsafe_code)]

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::RemapEngine;
use super::files::{FileKind, Spot};
use super::over::shut;
use crate::engine::hooks::{Inject, Point};
use crate::engine::{Step, memory};
use crate::hva::HvaRange;
use crate::migrate::Outcome;
use crate::poison::Lost;

impl RemapEngine {
    pub(super) fn copy(&self, step: &Step) -> Result<(), Outcome> {
        let (from, to) = (self.spot(step.granule, step.from), self.spot(step.granule, step.to));
        let size = self.space.bytes();
        let len = match self.hook(Point::Copy, step.granule) {
            Inject::Fail(_) => return Err(Outcome::CopyFailed),
            Inject::Omit => return Ok(()),
            Inject::Short(_) => size / 2,
            Inject::Nothing => size,
            // Memory of a file is not to be had back from UFFDIO_POISON.
            Inject::Poison => {
                self.losses.place(step.granule, step.from);
                return Err(Outcome::Poisoned);
            }
        };
        // SAFETY: both are aliases of this engine; writers to the source wait,
        // and the destination was claimed for this granule.
        if let Err(lost) = unsafe { memory::copy(from.alias(), to.alias(), len, false) } {
            return Err(self.lose(step, &lost));
        }
        if len < size {
            return Err(Outcome::CopyFailed);
        }
        // Whoever gets the place next finds old contents there.
        from.area.alias.set_backed(from.index);
        Ok(())
    }

    /// Puts the aliases right after pages failed while a granule was copied. The
    /// source stays as it is, so that it is met again by whoever tries again; a
    /// page that failed at the destination is given up for a new one.
    pub(super) fn lose(&self, step: &Step, lost: &[Lost]) -> Outcome {
        let mut outcome = Outcome::BadFrame;
        for place in [step.from, step.to] {
            let spot = self.spot(step.granule, place);
            let slot = spot.area.alias.slot(spot.index);
            let inside = |lost: &&Lost| (slot.start()..slot.end()).contains(&lost.0.start());
            let mut any = false;
            for lost in lost.iter().filter(inside) {
                any = true;
                let offset =
                    spot.offset(self.space.bytes()) + (lost.0.start().0 - slot.start().0) as u64;
                let put_right = self.put_right(spot, lost.0, offset, place == step.to);
                if let Err(errno) = put_right {
                    // The call may have left a hole, which other mappings of this
                    // process would land in.
                    // SAFETY: as in `put_right`; what was in the page is lost.
                    let shut = unsafe { shut(lost.0, MapFlags::FIXED) };
                    // There is nothing to map any more, and nobody asks for it.
                    if shut.is_ok() && spot.area.is_gone() {
                        continue;
                    }
                    (self.fatal)(&format!("a page that failed cannot be put right: {errno}"));
                }
            }
            if any {
                self.losses.place(step.granule, place);
                if place == step.from {
                    outcome = Outcome::Poisoned;
                }
            }
        }
        outcome
    }

    /// Maps the file over the empty page that stands in its alias for one that
    /// failed; `give_up`: the file is to have a new page there.
    fn put_right(
        &self,
        spot: Spot<'_>,
        page: HvaRange,
        offset: u64,
        give_up: bool,
    ) -> Result<(), Errno> {
        if give_up && spot.area.kind != FileKind::Dax {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(spot.file(), punch, offset, page.len() as u64)?;
        }
        // SAFETY: the page is the engine's own alias, which this thread alone
        // uses while the granule is claimed.
        let mapped = unsafe {
            mmap(
                page.start().as_ptr().cast(),
                page.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED | MapFlags::NORESERVE,
                spot.file(),
                offset,
            )
        };
        mapped.map(drop)
    }
}
