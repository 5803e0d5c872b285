//! Seeing the next touch of a granule of a file in memory, without taking it
//! from its mapping.
//!
//! The guest's mapping is watched for *minor* faults, and the page table
//! entries of a piece of it are dropped (`MADV_DONTNEED`); the pages stay in
//! the file. The first touch, read or write, finds a page that is there and not
//! mapped, and waits. `UFFDIO_CONTINUE` maps the pages in again and wakes
//! (Documentation/admin-guide/mm/userfaultfd.rst, "Resolving Userfaults").
//!
//! Of a granule of small pages a piece only is dropped, another one each time:
//! the guest would fault in the processor's second-level tables on each page of
//! it. What is seen is then the use of that piece.
//!
//! A watch for minor faults cannot be narrowed, so it stays once it is there,
//! and neighbours that were never watched are mappings of their own until they
//! are. Any page that the kernel unmaps for reasons of its own then makes an
//! event too, which the fault thread answers ([`Glance::map_in`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::io::Errno;

use super::{TRIES, memory};
use crate::granule::Granule;
use crate::hva::HvaRange;
use crate::uffd::{Modes, MoveError, Userfaultfd};

/// Bytes of small pages that are dropped at a time, at the most.
pub(super) const PIECE: usize = 64 << 10;
/// Odd, so that each piece of a granule has its turn.
const STRIDE: usize = 0x9e37_79b1;

/// Granules that are being looked at, with what was dropped of each.
#[derive(Debug, Default)]
pub(super) struct Glance {
    dropped: Mutex<BTreeMap<Granule, HvaRange>>,
    turn: AtomicUsize,
}

impl Glance {
    fn dropped(&self) -> MutexGuard<'_, BTreeMap<Granule, HvaRange>> {
        // Each change is a single one.
        self.dropped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The piece of `guest` whose turn it is; all of it where it is a huge page.
    fn piece(&self, guest: HvaRange, huge: bool) -> HvaRange {
        let pieces = guest.len() / PIECE;
        if huge || pieces <= 1 {
            return guest;
        }
        let turn = self.turn.fetch_add(1, Relaxed).wrapping_mul(STRIDE) % pieces;
        HvaRange::new(guest.start().offset(turn * PIECE), PIECE)
    }

    /// Drops a piece of a granule, which is claimed and mapped at `guest`.
    ///
    /// # Errors
    /// The kernel cannot watch it, ENOMEM for want of mappings; all is as it was.
    pub(super) fn begin(
        &self,
        uffd: &Userfaultfd,
        granule: Granule,
        guest: HvaRange,
        huge: bool,
    ) -> Result<(), Errno> {
        uffd.register(guest, Modes::Minor)?;
        let piece = self.piece(guest, huge);
        // Noted first: from then on nobody has to know how far this came.
        self.dropped().insert(granule, piece);
        memory::drop_pages(piece)
    }

    /// Maps in again what was dropped of a granule, which is claimed.
    pub(super) fn end(&self, uffd: &Userfaultfd, granule: Granule, page: usize) {
        let piece = self.dropped().remove(&granule);
        piece.into_iter().for_each(|piece| Self::map_in(uffd, piece, page));
    }

    /// Maps in those of `range` that the file has and the mapping, in which
    /// nothing changes meanwhile, has not. What cannot be mapped in now makes
    /// another event when it is touched.
    pub(super) fn map_in(uffd: &Userfaultfd, range: HvaRange, page: usize) {
        let (mut done, mut tries) = (0, 0);
        while done < range.len() {
            let rest = HvaRange::new(range.start().offset(done), range.len() - done);
            match uffd.map_cached(rest) {
                Ok(()) => return,
                Err(MoveError { moved, errno: Errno::AGAIN }) if tries < TRIES => {
                    done += moved;
                    tries += 1;
                    thread::yield_now();
                }
                // It is mapped already, or the file has no such page.
                Err(MoveError { moved, errno: Errno::EXIST | Errno::FAULT }) => {
                    done += moved + page;
                }
                // It has failed. Whoever touches it is told so, instead of waiting.
                Err(MoveError { moved, errno: Errno::IO }) => {
                    done += moved;
                    let failed = HvaRange::new(range.start().offset(done), page);
                    if uffd.poison(failed).is_err() {
                        return;
                    }
                    done += page;
                }
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hva::Hva;

    #[test]
    fn every_piece_of_a_granule_has_its_turn_and_a_huge_page_has_one() {
        let glance = Glance::default();
        let guest = HvaRange::new(Hva(4 << 20), 2 << 20);
        let mut starts: Vec<usize> =
            (0..32).map(|_| glance.piece(guest, false).start().0).collect();
        starts.sort_unstable();
        let expected: Vec<usize> = (0..32).map(|n| (4 << 20) + n * PIECE).collect();
        assert_eq!(starts, expected);
        assert_eq!(glance.piece(guest, true), guest);
        let small = HvaRange::new(Hva(4 << 20), 4096);
        assert_eq!(glance.piece(small, false), small);
    }
}
