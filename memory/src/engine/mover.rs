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

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::hooks::{Hooks, Inject, Point};
use super::hurry::Waiters;
use super::losses::Losses;
use super::memory::{self, Slots};
use super::{Engine, Fatal, Step, TRIES, Verdict, Verifier, outcome_of, runs};
use crate::addr::PAGE_SIZE;
use crate::granule::{Granule, PoolId};
use crate::hva::{Hva, HvaRange};
use crate::migrate::Outcome;
use crate::numa::{Placement, calls};
use crate::poison::Lost;
use crate::space::Space;
use crate::table::Place;
use crate::uffd::{Modes, MoveError, Userfaultfd};

/// How long a page that must go back is tried for: the kernel holds a page
/// for microseconds, unless it is short of memory.
const MUST: Duration = Duration::from_secs(10);

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
    placement: Placement,
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
        let losses = Losses::default();
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

    /// `UFFDIO_MOVE`, tried again while the kernel looks at the pages.
    fn move_pages(&self, from: HvaRange, to: Hva) -> Result<(), MoveError> {
        let mut done = 0;
        for attempt in 0.. {
            let rest = HvaRange::new(from.start().offset(done), from.len() - done);
            // SAFETY: both are slots or guest memory of this engine, which is
            // anonymous and private; all access to them is by vCPUs, by
            // vm-memory's volatile accesses and by this module's copies. `to`
            // is watched: rows since they were made, guest memory since it was
            // adopted.
            match unsafe { self.uffd.move_pages(rest, to.offset(done)) } {
                Ok(()) => break,
                Err(MoveError { moved, errno: Errno::AGAIN }) if attempt < TRIES || moved > 0 => {
                    done += moved;
                    thread::yield_now();
                }
                Err(MoveError { moved, errno }) => {
                    done += moved;
                    let forgotten = match errno {
                        Errno::EXIST => self.forgotten(from, done, to)?,
                        _ => 0,
                    };
                    if forgotten == 0 {
                        return Err(MoveError { moved: done, errno });
                    }
                    done += forgotten;
                    if done == from.len() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes after the first `done` of `from` that were moved although the
    /// kernel does not say so; whoever waits for them is woken.
    ///
    /// Linux since 6.18 does that (`move_pages` in mm/userfaultfd.c): once it
    /// has met a page that it has to try again, it goes back to the start of
    /// what it moves next, finds that it has arrived, and says EEXIST. Nobody
    /// but this engine puts pages into slots, or into guest memory that is
    /// watched, so what is gone here and has come there was moved.
    fn forgotten(&self, from: HvaRange, done: usize, to: Hva) -> Result<usize, MoveError> {
        let failed = |errno| MoveError { moved: done, errno };
        let rest = HvaRange::new(from.start().offset(done), from.len() - done);
        let bytes = memory::moved_ahead(rest, to.offset(done)).map_err(failed)?;
        if bytes > 0 {
            self.uffd.wake(HvaRange::new(to.offset(done), bytes)).map_err(failed)?;
        }
        Ok(bytes)
    }

    /// The same, for pages that must go back to where they were.
    fn must_move(&self, from: HvaRange, to: Hva) {
        let (mut done, since) = (0, Instant::now());
        while done < from.len() {
            let rest = HvaRange::new(from.start().offset(done), from.len() - done);
            match self.move_pages(rest, to.offset(done)) {
                Ok(()) => return,
                Err(MoveError { moved, errno }) => {
                    done += moved;
                    if since.elapsed() > MUST {
                        (self.fatal)(&format!("guest memory could not be put back: {errno}"));
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
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

    /// Moves the pages of `steps`, which follow one another on both sides. An
    /// error that a hook injects at `point` ends the run where the kernel's
    /// would.
    fn move_run(&self, steps: &[Step], point: Point, from: Hva, to: Hva) -> Result<(), MoveError> {
        let size = self.space.bytes();
        let injected = steps.iter().enumerate().find_map(|(index, step)| {
            match self.hook(point, step.granule) {
                Inject::Fail(errno) => Some(MoveError { moved: index * size, errno }),
                Inject::Short(errno) => Some(MoveError { moved: index * size + size / 2, errno }),
                Inject::Nothing | Inject::Omit | Inject::Poison => None,
            }
        });
        let len = injected.map_or(steps.len() * size, |error| error.moved & !0xfff);
        if len > 0 {
            self.move_pages(HvaRange::new(from, len), to)?;
        }
        injected.map_or(Ok(()), Err)
    }

    /// Takes the pages of `steps` from the guest.
    fn take(&self, steps: &[Step], outcomes: &mut [Outcome]) {
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
    fn give(&self, steps: &[Step], outcomes: &mut [Outcome]) {
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

    /// Gives the guest what is sound of a slot, and for the rest pages that
    /// have failed: a touch is a machine check there, as it would have been.
    fn give_void(&self, slot: Hva, guest: Hva) {
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

    /// Gives the guest the page back that was taken from it.
    fn put_back(&self, step: &Step) {
        let (slot, guest) = (self.slot_at(step.granule, step.from), self.guest(step.granule));
        if !step.from_mapped {
        } else if self.losses.has_holes(slot) {
            self.give_void(slot, guest);
        } else {
            self.must_move(HvaRange::new(slot, self.space.bytes()), guest);
        }
    }

    /// Copies one granule; on an error nothing of it counts.
    fn copy(&self, step: &Step, from: Hva) -> Result<(), Outcome> {
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
        let (row, index) = self.slot(step.granule, step.to);
        if row.is_backed(index) { 0 } else { self.space.size().bytes() }
    }

    fn vmas_per_run(&self) -> u64 {
        0
    }

    fn verifier(&self) -> Result<Verifier<'_>, Errno> {
        let bytes = self.space.bytes() as u64;
        Ok(Box::new(move |granule, place, mapped| {
            let guest = HvaRange::new(self.guest(granule), self.space.bytes());
            let in_guest = memory::present(guest)?;
            let (row, index) = self.slot(granule, place);
            let in_slot = memory::present(row.slot(index))?;
            let all_huge = in_guest.huge + in_slot.huge == bytes;
            let misplaced = |range| self.placement.misplaced(range, place, all_huge);
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
