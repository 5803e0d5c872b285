//! The `move` engine, for private anonymous memory.
//!
//! Every page belongs to a tier for good: a pool's frames have pages of their
//! own, and a granule of RAM keeps its home page. Pages that the guest does
//! not use right now wait in slots outside of its range: a frame's in its
//! pool's row, a home page in the row of home slots, at the granule's number.
//! So a move exchanges no pages between tiers, needs no recycling and finds
//! the home page where it left it:
//!
//! 1. `UFFDIO_MOVE` the page from the guest to its own slot. A touch waits
//!    from now on.
//! 2. Copy from that slot to the slot of the destination.
//! 3. `UFFDIO_MOVE` the copy to the guest, which wakes the waiter.
//!
//! The guest's range is watched for missing pages, the rows only for writes
//! that never are protected: `UFFDIO_MOVE` demands that its destination is
//! watched, and memory that is watched for missing pages gets no huge pages.
//!
//! Invariant: a granule that is not in motion has its page either mapped in
//! the guest or, if it is in a frame of a `private` pool or set aside, in the slot
//! of its place.
#![allow(unsafe_code)]

mod books;
mod copy;
mod hands;
mod pages;

use std::sync::Arc;

use rustix::io::Errno;

use super::hooks::{Hooks, Inject, Point};
use super::hurry::Waiters;
use super::losses::Losses;
use super::memory::{self, Slots};
use super::rows::Row;
use super::{Engine, Fatal, Step, Verdict, Verifier, outcome_of, runs};
use crate::granule::{Granule, PoolId};
use crate::hva::{Hva, HvaRange};
use crate::migrate::Outcome;
use crate::numa::{Placed, Placement, calls};
use crate::space::Space;
use crate::table::Place;
use crate::uffd::{Modes, MoveError, Userfaultfd};

/// The engine with its rows of slots.
#[derive(Debug)]
pub(crate) struct MoveEngine {
    uffd: Arc<Userfaultfd>,
    space: Arc<Space>,
    /// A slot for the home page of each granule.
    home: Slots,
    /// A row for each pool.
    pools: Vec<Slots>,
    /// Whether granules are to be huge pages.
    huge: bool,
    placement: Placed,
    losses: Losses,
    hooks: Arc<dyn Hooks>,
    fatal: Fatal,
}

impl MoveEngine {
    /// An engine with pools of so many frames.
    ///
    /// # Errors
    /// No address space, or memory that this userfaultfd cannot watch.
    pub(crate) fn new(
        uffd: Arc<Userfaultfd>,
        space: Arc<Space>,
        frames: &[u32],
        huge: bool,
        placement: Placement,
        hooks: Arc<dyn Hooks>,
        fatal: Fatal,
    ) -> Result<Self, Errno> {
        let row = |count: u32, nodes: &[u32]| -> Result<Slots, Errno> {
            let slots = Slots::anonymous(count, space.size(), huge)?;
            if !nodes.is_empty() {
                calls::bind(slots.range(), nodes)?;
            }
            uffd.register(slots.range(), Modes::WriteProtect)?;
            Ok(slots)
        };
        let home = row(space.granules(), &placement.home)?;
        let pools = (0..).zip(frames).map(|(id, count)| row(*count, placement.of_pool(PoolId(id))));
        let pools = pools.collect::<Result<_, _>>()?;
        for part in space.parts() {
            let range = HvaRange::new(part.hva, part.count as usize * space.bytes());
            let _ = memory::advise_huge(range, huge);
        }
        let (losses, placement) = (Losses::default(), Placed::new(placement));
        Ok(Self { uffd, space, home, pools, huge, placement, losses, hooks, fatal })
    }

    /// Where the guest sees a granule.
    fn guest(&self, granule: Granule) -> Hva {
        self.space.hva(granule).unwrap_or_else(|| (self.fatal)("a granule outside of guest memory"))
    }

    /// Where the page of `place` waits while the guest does not have it.
    fn slot(&self, granule: Granule, place: Place) -> (&Slots, u32) {
        match place {
            Place::Device { pool, frame } => match self.pools.get(usize::from(pool.0)) {
                Some(row) => (row, frame.0),
                None => (self.fatal)("a frame of no pool"),
            },
            Place::Home | Place::Untouched => (&self.home, granule.0),
        }
    }

    fn slot_at(&self, granule: Granule, place: Place) -> Hva {
        let (row, index) = self.slot(granule, place);
        row.at(index)
    }

    fn hook(&self, point: Point, granule: Granule) -> Inject {
        self.hooks.at(point, granule)
    }

    /// Gets memory for the destination.
    fn prepare(&self, step: &Step) -> Result<(), Outcome> {
        match self.hook(Point::Populate, step.granule) {
            Inject::Fail(errno) | Inject::Short(errno) => return Err(outcome_of(errno)),
            Inject::Nothing | Inject::Omit | Inject::Poison => {}
        }
        let (row, index) = self.slot(step.granule, step.to);
        row.back(index).map_err(|_| Outcome::NoFrame)
    }

    /// The way of a granule with the seeded bug "not taken from the guest
    /// before it is copied".
    fn transfer_unfrozen(&self, step: &Step) -> Outcome {
        if let Err(outcome) = self.copy(step, self.guest(step.granule)) {
            return outcome;
        }
        let guest = HvaRange::new(self.guest(step.granule), self.space.bytes());
        self.must_move(guest, self.slot_at(step.granule, step.from));
        let copy = HvaRange::new(self.slot_at(step.granule, step.to), self.space.bytes());
        self.must_move(copy, self.guest(step.granule));
        Outcome::Moved
    }
}

impl Engine for MoveEngine {
    fn adopt(&self, range: HvaRange) -> Result<(), Errno> {
        memory::populate(range)?;
        if self.huge {
            let small = memory::present(range).is_ok_and(|found| found.huge < range.len() as u64);
            if small {
                // A page that stays small moves all the same, only slower.
                let _ = memory::collapse(range);
            }
        }
        self.uffd.register(range, Modes::Missing)
    }

    fn adopts(&self) -> bool {
        true
    }

    fn exists(&self, granule: Granule) -> bool {
        memory::any_present(HvaRange::new(self.guest(granule), self.space.bytes()))
    }

    fn transfer(&self, steps: &[Step], waiters: &Waiters<'_>, outcomes: &mut Vec<Outcome>) {
        let size = self.space.bytes();
        let first = outcomes.len();
        outcomes.extend(steps.iter().map(|step| match self.prepare(step) {
            Ok(()) => Outcome::Moved,
            Err(outcome) => outcome,
        }));
        let outcomes = &mut outcomes[first..];
        // What is still to be copied, and then to be given.
        let mut open: Vec<bool> =
            outcomes.iter().map(|outcome| *outcome == Outcome::Moved).collect();
        let mut to_give = vec![false; steps.len()];
        for (index, step) in steps.iter().enumerate() {
            if open[index]
                && step.from_mapped
                && self.hook(Point::Freeze, step.granule) == Inject::Omit
            {
                outcomes[index] = self.transfer_unfrozen(step);
                open[index] = false;
            }
        }
        let taken = runs(
            steps,
            size,
            |index, step| open[index] && step.from_mapped,
            |step| (self.guest(step.granule).0, self.slot_at(step.granule, step.from).0),
        );
        for run in taken {
            self.take(&steps[run.clone()], &mut outcomes[run.clone()]);
            for index in run {
                open[index] = outcomes[index] == Outcome::Moved;
            }
        }
        let mut order = waiters.order(steps);
        while let Some(index) = order.next(&open, &to_give) {
            let step = &steps[index];
            if std::mem::take(&mut to_give[index]) {
                waiters.hurry.take(step.granule);
                self.give(&steps[index..=index], &mut outcomes[index..=index]);
                continue;
            }
            open[index] = false;
            if let Err(outcome) = self.copy(step, self.slot_at(step.granule, step.from)) {
                self.put_back(step);
                outcomes[index] = outcome;
            } else if step.to_mapped && waiters.hurry.take(step.granule) {
                self.give(&steps[index..=index], &mut outcomes[index..=index]);
            } else {
                to_give[index] = step.to_mapped;
            }
        }
        let given = runs(
            steps,
            size,
            |index, _| to_give[index],
            |step| (self.slot_at(step.granule, step.to).0, self.guest(step.granule).0),
        );
        for run in given {
            self.give(&steps[run.clone()], &mut outcomes[run]);
        }
    }

    fn watch_first_touch(&self, range: HvaRange) -> Result<(), Errno> {
        self.uffd.register(range, Modes::Missing)
    }

    fn place_first(&self, granule: Granule, to: Place) -> Result<(), Errno> {
        let (row, index) = self.slot(granule, to);
        if row.is_backed(index) {
            // SAFETY: the slot was claimed for this granule and is not mapped
            // in the guest.
            if unsafe { memory::zero(row.slot(index), true) }.is_err() {
                self.losses.place(granule, to);
                return Err(Errno::FAULT);
            }
        } else {
            row.back(index)?;
        }
        let guest = self.guest(granule);
        match self.move_pages(row.slot(index), guest) {
            Ok(()) => Ok(()),
            Err(MoveError { moved: 0, errno }) => Err(errno),
            // The guest may have written to what it has: the rest follows.
            Err(MoveError { moved, .. }) => {
                let rest = HvaRange::new(row.at(index).offset(moved), self.space.bytes() - moved);
                self.must_move(rest, guest.offset(moved));
                Ok(())
            }
        }
    }

    fn sets_aside(&self) -> bool {
        true
    }

    fn set_aside(&self, granule: Granule, place: Place) -> Result<(), Errno> {
        let guest = HvaRange::new(self.guest(granule), self.space.bytes());
        let (row, index) = self.slot(granule, place);
        match self.move_pages(guest, row.at(index)) {
            Ok(()) => {
                row.set_backed(index);
                Ok(())
            }
            Err(MoveError { moved, errno }) => {
                if moved > 0 {
                    self.must_move(HvaRange::new(row.at(index), moved), guest.start());
                }
                Err(errno)
            }
        }
    }

    fn bring_back(&self, granule: Granule, place: Place) {
        let slot = self.slot_at(granule, place);
        if self.losses.has_holes(slot) {
            self.give_void(slot, self.guest(granule));
        } else {
            self.must_move(HvaRange::new(slot, self.space.bytes()), self.guest(granule));
        }
    }

    fn can(&self, _: &Step) -> bool {
        true
    }

    fn release_pool(&self, pool: PoolId) -> Result<u64, Errno> {
        let Some(row) = self.pools.get(usize::from(pool.0)) else { return Ok(0) };
        // A kernel that does not tell has them all the same.
        let bytes = memory::present(row.range()).map_or(0, |present| present.bytes);
        memory::drop_pages(row.range())?;
        row.set_unbacked();
        Ok(bytes)
    }

    fn losses(&self, granules: &mut dyn Iterator<Item = Granule>) -> Vec<(Granule, Place)> {
        self.losses.take_places(granules)
    }

    fn takes(&self, step: &Step) -> u64 {
        self.bytes_taken_by(step)
    }

    fn place_pool(&self, pool: PoolId, node: Option<u32>) -> Result<(), Errno> {
        self.bind_pool(pool, node)
    }

    fn placement(&self) -> Arc<Placement> {
        self.placement.now()
    }

    fn rows(&self) -> Vec<Row<'_>> {
        self.all_rows()
    }

    fn vmas_per_run(&self) -> u64 {
        0
    }

    fn verifier(&self) -> Result<Verifier<'_>, Errno> {
        let bytes = self.space.bytes() as u64;
        let placement = self.placement.now();
        Ok(Box::new(move |granule, place, mapped| {
            let guest = HvaRange::new(self.guest(granule), self.space.bytes());
            let in_guest = memory::present(guest)?;
            let (row, index) = self.slot(granule, place);
            let in_slot = memory::present(row.slot(index))?;
            let all_huge = in_guest.huge + in_slot.huge == bytes;
            let misplaced = |range| placement.misplaced(range, place, all_huge);
            let wrong = match (mapped, in_guest.bytes, in_slot.bytes) {
                (true, found, 0) if found == bytes => misplaced(guest)?,
                (false, 0, found) if found == bytes => misplaced(row.slot(index))?,
                (_, guest, slot) => Some(format!(
                    "{guest} bytes of it are in the guest and {slot} in the slot of {place:?}"
                )),
            };
            Ok(Verdict { wrong, huge: in_guest.huge + in_slot.huge })
        }))
    }
}
