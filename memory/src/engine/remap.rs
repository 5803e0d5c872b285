//! The `remap` engine, for files in memory, memfd and hugetlb, and for /dev/dax.
//!
//! A home file and the file of a pool are each mapped twice: where the guest
//! sees them, and whole as an *alias* that only the engine uses.
//!
//! 1. Write-protect the guest's mapping: readers go on, writers wait.
//! 2. Copy from one alias to the other.
//! 3. Map the new place over the old with `MAP_FIXED`, in one step, so that
//!    nobody ever finds anything but the old contents or the new.
//! 4. Watch the new mapping again (the mapping over dropped that) and wake the
//!    writers.
//!
//! A granule that is to be unmapped (kind `private`) keeps the mapping of its
//! home file, whose pages are punched out: a touch is then a missing page.
//! `UFFDIO_COPY` from the frame's alias brings it home and wakes in one call.
//!
//! Frames of a /dev/dax can be entered like any other, but no userfaultfd
//! watches them: to leave them, every vCPU is parked instead of step 1, for a
//! batch that is short enough ([`pace`](super::pace)). Nothing of the mover's
//! is write-protected then, so no vCPU waits for it inside the guest; a vCPU
//! that waits for another mover and does not come out in time leaves the batch
//! where it is, as busy.
//!
//! This file has the only `MAP_FIXED` over guest memory.
//!
//! Known hole: a granule cannot go from one pool to another if it is unmapped
//! in either; it has to come home in between.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, FileType, SeekFrom, fallocate, fstat, fstatfs, seek};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};

use super::glance::Glance;
use super::hooks::{Hooks, Inject, Point};
use super::hurry::Waiters;
use super::losses::Losses;
use super::memory::{self, Slots};
use super::pace::{self, Batch, Pace};
use super::{Engine, Fatal, Step, TRIES, Verdict, Verifier, outcome_of, runs};
use crate::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};
use crate::granule::{Granule, PoolId};
use crate::hva::{Hva, HvaRange};
use crate::migrate::Outcome;
use crate::park::{Park, Parked, Stalls};
use crate::poison::Lost;
use crate::region::Source;
use crate::space::{Origin, Space};
use crate::table::Place;
use crate::uffd::{Features, Modes, MoveError, Userfaultfd};

/// A file and its alias.
#[derive(Debug)]
pub(crate) struct Area {
    file: OwnedFd,
    alias: Slots,
    /// First granule, for the home of a part; 0 for a pool.
    first: u32,
    kind: FileKind,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileKind {
    /// Of small pages.
    Small,
    /// Of 2 MiB pages.
    Hugetlb,
    /// A device, which is all there, and which nobody can watch.
    Dax,
}

impl FileKind {
    fn of(file: &OwnedFd) -> Result<Self, Errno> {
        if FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::CharacterDevice {
            return Ok(Self::Dax);
        }
        let huge = fstatfs(file)?.f_type as u32 == HUGETLBFS;
        Ok(if huge { Self::Hugetlb } else { Self::Small })
    }
}

/// `HUGETLBFS_MAGIC` in include/uapi/linux/magic.h.
const HUGETLBFS: u32 = 0x9584_58f6;

impl Area {
    /// The alias of `count` granules of `file`.
    ///
    /// # Errors
    /// mmap(2)'s; ENOMEM if huge pages are missing and `reserve` is set.
    pub(crate) fn new(
        file: OwnedFd,
        first: u32,
        count: u32,
        space: &Space,
        reserve: bool,
    ) -> Result<Self, Errno> {
        let source = match reserve {
            true => Source::File(file.as_fd()),
            false => Source::FileUnreserved(file.as_fd()),
        };
        let alias = Slots::map(count, space.size(), source)?;
        let kind = FileKind::of(&file)?;
        if kind == FileKind::Dax {
            // It has its memory, with whatever is in it.
            (0..count).for_each(|index| alias.set_backed(index));
        }
        Ok(Self { file, alias, first, kind })
    }

    /// The same, treated as a device.
    pub(crate) fn unwatched(mut self) -> Self {
        self.kind = FileKind::Dax;
        self
    }

    /// Bytes of a page of it.
    fn page(&self) -> usize {
        match self.kind {
            FileKind::Hugetlb => HUGE_PAGE_SIZE as usize,
            FileKind::Small | FileKind::Dax => PAGE_SIZE as usize,
        }
    }

    /// Whether userfaultfd can watch mappings of it.
    fn is_watched(&self) -> bool {
        self.kind != FileKind::Dax
    }
}

/// Where the contents of a place are.
#[derive(Clone, Copy, Debug)]
struct Spot<'a> {
    area: &'a Area,
    index: u32,
}

impl Spot<'_> {
    fn alias(&self) -> Hva {
        self.area.alias.at(self.index)
    }

    fn offset(&self, bytes: usize) -> u64 {
        u64::from(self.index) * bytes as u64
    }

    fn file(&self) -> BorrowedFd<'_> {
        self.area.file.as_fd()
    }
}

/// The engine with its files.
#[derive(Debug)]
pub(crate) struct RemapEngine {
    uffd: Arc<Userfaultfd>,
    space: Arc<Space>,
    /// The home of each part, in order of granules.
    homes: Vec<Area>,
    pools: Vec<Area>,
    /// There, if any pool is a device.
    park: Option<Arc<dyn Park>>,
    pace: Pace,
    glance: Glance,
    losses: Losses,
    hooks: Arc<dyn Hooks>,
    fatal: Fatal,
}

impl RemapEngine {
    /// An engine over `space`, with a home for each of its parts.
    ///
    /// # Errors
    /// This userfaultfd cannot watch the memory for writes.
    pub(crate) fn new(
        uffd: Arc<Userfaultfd>,
        space: Arc<Space>,
        homes: Vec<Area>,
        pools: Vec<Area>,
        park: Option<Arc<dyn Park>>,
        hooks: Arc<dyn Hooks>,
        fatal: Fatal,
    ) -> Result<Self, Errno> {
        let watched = |origin| match origin {
            Origin::Ram => true,
            Origin::Window(PoolId(id)) => pools.get(usize::from(id)).is_some_and(Area::is_watched),
        };
        for part in space.parts().iter().filter(|part| watched(part.origin)) {
            let range = HvaRange::new(part.hva, part.count as usize * space.bytes());
            uffd.register(range, Modes::WriteProtect)?;
        }
        let (pace, losses, glance) = (Pace::default(), Losses::default(), Glance::default());
        Ok(Self { uffd, space, homes, pools, park, pace, glance, losses, hooks, fatal })
    }

    fn guest(&self, granule: Granule) -> HvaRange {
        let hva = self.space.hva(granule);
        let hva = hva.unwrap_or_else(|| (self.fatal)("a granule outside of guest memory"));
        HvaRange::new(hva, self.space.bytes())
    }

    fn spot(&self, granule: Granule, place: Place) -> Spot<'_> {
        let spot = match place {
            Place::Device { pool, frame } => {
                self.pools.get(usize::from(pool.0)).map(|area| Spot { area, index: frame.0 })
            }
            Place::Home | Place::Untouched => {
                let index = self.homes.partition_point(|home| home.first <= granule.0);
                self.homes
                    .get(index.wrapping_sub(1))
                    .map(|area| Spot { area, index: granule.0 - area.first })
            }
        };
        spot.unwrap_or_else(|| (self.fatal)("a place of no file"))
    }

    fn hook(&self, point: Point, granule: Granule) -> Inject {
        self.hooks.at(point, granule)
    }

    fn prepare(&self, step: &Step) -> Result<(), Outcome> {
        if !self.can(step) {
            return Err(Outcome::WrongKind);
        }
        match self.hook(Point::Populate, step.granule) {
            Inject::Fail(errno) | Inject::Short(errno) => return Err(outcome_of(errno)),
            Inject::Nothing | Inject::Omit | Inject::Poison => {}
        }
        let spot = self.spot(step.granule, step.to);
        // A home page that was punched out comes back with `UFFDIO_COPY`.
        if step.from_mapped {
            spot.area.alias.back(spot.index).map_err(|_| Outcome::NoFrame)?;
        }
        Ok(())
    }

    fn protect(&self, range: HvaRange, on: bool) -> Result<(), Errno> {
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
    fn release(&self, range: HvaRange) {
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

    fn copy(&self, step: &Step) -> Result<(), Outcome> {
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
    fn lose(&self, step: &Step, lost: &[Lost]) -> Outcome {
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

    /// Maps the new places of a run over the old ones; [`Self::watch`] follows.
    fn map_over(&self, steps: &[Step], outcomes: &mut [Outcome]) {
        let size = self.space.bytes();
        let range = HvaRange::new(self.guest(steps[0].granule).start(), steps.len() * size);
        let spot = self.spot(steps[0].granule, steps[0].to);
        let injected = steps.iter().find_map(|step| match self.hook(Point::Arrive, step.granule) {
            Inject::Fail(errno) | Inject::Short(errno) => Some(errno),
            Inject::Nothing | Inject::Omit | Inject::Poison => None,
        });
        let mapped = match injected {
            Some(errno) => Err(errno),
            None => self.map_fixed(range, spot),
        };
        if let Err(errno) = mapped {
            for step in steps {
                self.release(self.guest(step.granule));
            }
            outcomes.fill(if errno == Errno::NOMEM { Outcome::VmaBudget } else { Outcome::Busy });
        }
    }

    /// Watches a run that was mapped over, and wakes who waits for it.
    fn watch(&self, steps: &[Step], outcomes: &[Outcome]) {
        if outcomes.first() != Some(&Outcome::Moved) {
            return;
        }
        let start = self.guest(steps[0].granule).start();
        let range = HvaRange::new(start, steps.len() * self.space.bytes());
        if self.spot(steps[0].granule, steps[0].to).area.is_watched() {
            // Not watched, a granule is whole all the same; the next move of
            // it tries again.
            let _ = self.uffd.register(range, Modes::WriteProtect);
        }
        self.wake(range);
    }

    /// The guest would fault on each small page of what it has now; this is
    /// one call for all.
    fn map_in(&self, steps: &[Step], outcomes: &[Outcome]) {
        let small = |step: &Step| self.spot(step.granule, step.to).area.kind == FileKind::Small;
        let moved = |index: usize| outcomes[index] == Outcome::Moved && small(&steps[index]);
        for run in self.runs_of(steps, moved) {
            let start = self.guest(steps[run.start].granule).start();
            let _ = memory::populate(HvaRange::new(start, run.len() * self.space.bytes()));
        }
    }

    /// Whether vCPUs are to be parked while this step is carried out.
    fn parks(&self, step: &Step) -> bool {
        step.from_mapped && !self.spot(step.granule, step.from).area.is_watched()
    }

    /// The way of granules that the guest has mapped and that nobody can watch.
    fn transfer_parked(&self, steps: &[Step], outcomes: &mut [Outcome]) {
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

    /// Parks vCPUs, and says since when they were asked to. One may wait for a
    /// processor, or for somebody else's move: then all go on for a while.
    fn hold_off(&self) -> Option<(Instant, Box<dyn Parked>)> {
        const TRIES: u32 = 4;
        let park = self.park.as_ref()?;
        for _ in 0..TRIES {
            let since = Instant::now();
            if let Some(parked) = park.park(pace::LIMIT) {
                return Some((since, parked));
            }
            self.pace.given_up();
            thread::yield_now();
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
        let Some((since, parked)) = self.hold_off() else {
            let open = outcomes.iter_mut().filter(|outcome| **outcome == Outcome::Moved);
            open.for_each(|outcome| *outcome = Outcome::Busy);
            return false;
        };
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
        let runs = self.runs_of(steps, |index| outcomes[index] == Outcome::Moved);
        for run in &runs {
            self.map_over(&steps[run.clone()], &mut outcomes[run.clone()]);
        }
        let vcpus = parked.vcpus();
        drop(parked);
        self.pace.note(Batch { granules, stall: since.elapsed(), copying, vcpus });
        // They are still this mover's: nobody else would want to freeze them.
        for run in runs {
            self.watch(&steps[run.clone()], &outcomes[run]);
        }
        self.map_in(steps, outcomes);
        true
    }

    /// Runs of steps whose granules follow one another, and whose new places
    /// do.
    fn runs_of(&self, steps: &[Step], alive: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
        runs(
            steps,
            self.space.bytes(),
            |index, _| alive(index),
            |step| {
                let spot = self.spot(step.granule, step.to);
                (self.guest(step.granule).start().0, spot.alias().0)
            },
        )
    }

    /// The way of granules that the guest has mapped.
    fn transfer_mapped(&self, steps: &[Step], waiters: &Waiters<'_>, outcomes: &mut [Outcome]) {
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

    fn map_fixed(&self, range: HvaRange, spot: Spot<'_>) -> Result<(), Errno> {
        let mut flags = MapFlags::SHARED | MapFlags::FIXED;
        // The alias has reserved huge pages. Other files get the flags that
        // guest memory began with, or what comes home would not become one
        // mapping with its neighbours that never left.
        if spot.area.kind == FileKind::Hugetlb {
            flags |= MapFlags::NORESERVE;
        }
        // SAFETY: the range is guest memory of this engine, mapped from one of
        // its files already; the new mapping has the same contents, as the
        // caller copied them while writers were held off.
        let mapped = unsafe {
            mmap(
                range.start().as_ptr().cast(),
                range.len(),
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                spot.file(),
                spot.offset(self.space.bytes()),
            )
        };
        mapped.map(drop)
    }

    fn wake(&self, range: HvaRange) {
        if let Err(errno) = self.uffd.wake(range) {
            (self.fatal)(&format!("waiters for guest memory cannot be woken: {errno}"));
        }
    }

    /// Lets a copied granule go from the guest: its home page is punched out.
    fn unmap(&self, step: &Step) -> Result<(), Outcome> {
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
    fn fill(&self, step: &Step) -> Result<(), Outcome> {
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
        let page = self.spot(granule, Place::Home).area.page();
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

impl Engine for RemapEngine {
    fn adopt(&self, _: HvaRange) -> Result<(), Errno> {
        Ok(())
    }

    fn adopts(&self) -> bool {
        false
    }

    fn exists(&self, granule: Granule) -> bool {
        let spot = self.spot(granule, self.space.birthplace(granule));
        if spot.area.kind == FileKind::Dax {
            return true;
        }
        if spot.area.kind == FileKind::Hugetlb {
            // mincore(2) tells of page tables there, and such pages stay in them.
            return memory::any_in_core(self.guest(granule))
                || memory::any_in_core(spot.area.alias.slot(spot.index));
        }
        // Not this process's page tables: pages may have been reclaimed.
        let start = spot.offset(self.space.bytes());
        let data = seek(spot.file(), SeekFrom::Data(start));
        data.is_ok_and(|data| data < start + self.space.size().bytes())
    }

    fn transfer(&self, steps: &[Step], waiters: &Waiters<'_>, outcomes: &mut Vec<Outcome>) {
        let first = outcomes.len();
        outcomes.extend(steps.iter().map(|step| match self.prepare(step) {
            Ok(()) => Outcome::Moved,
            Err(outcome) => outcome,
        }));
        let outcomes = &mut outcomes[first..];
        for (index, step) in steps.iter().enumerate() {
            if outcomes[index] == Outcome::Moved
                && !step.from_mapped
                && let Err(outcome) = self.fill(step)
            {
                outcomes[index] = outcome;
            }
        }
        let watched = |step: &Step| step.from_mapped && !self.parks(step);
        for run in runs(steps, 0, |_, step| watched(step), |_| (0, 0)) {
            self.transfer_mapped(&steps[run.clone()], waiters, &mut outcomes[run]);
        }
        // After the others: what they hold off they have let go of.
        for run in runs(steps, 0, |_, step| self.parks(step), |_| (0, 0)) {
            self.transfer_parked(&steps[run.clone()], &mut outcomes[run]);
        }
    }

    fn stalls(&self) -> Option<Stalls> {
        self.pools.iter().any(|pool| !pool.is_watched()).then(|| self.pace.stalls())
    }

    fn watch_first_touch(&self, range: HvaRange) -> Result<(), Errno> {
        self.uffd.register(range, Modes::Both)
    }

    fn place_first(&self, granule: Granule, to: Place) -> Result<(), Errno> {
        let guest = self.guest(granule);
        if to.is_device() {
            let spot = self.spot(granule, to);
            let row = &spot.area.alias;
            if row.is_backed(spot.index) {
                // SAFETY: the frame was claimed for this granule.
                if let Err(lost) = unsafe { memory::zero(row.slot(spot.index), false) } {
                    let step =
                        Step { granule, from: Place::Home, from_mapped: true, to, to_mapped: true };
                    self.lose(&step, &lost);
                    return Err(Errno::FAULT);
                }
            } else {
                row.back(spot.index)?;
            }
            self.map_fixed(guest, spot)?;
            // As in `watch`: it is there, watched or not, as a device's.
            let _ = self.uffd.register(guest, Modes::WriteProtect);
        } else {
            // The mapping stays watched for missing pages, for a watch cannot
            // be narrowed; a page that is in the file is not missing.
            let home = self.spot(granule, Place::Home);
            home.area.alias.back(home.index)?;
        }
        self.wake(guest);
        Ok(())
    }

    fn sets_aside(&self) -> bool {
        let features = self.uffd.opened().features;
        self.homes.iter().chain(&self.pools).all(|area| match area.kind {
            FileKind::Small => features.contains(Features::MINOR_SHMEM),
            FileKind::Hugetlb => features.contains(Features::MINOR_HUGETLB),
            FileKind::Dax => false,
        })
    }

    fn aside_is_mapped(&self) -> bool {
        true
    }

    fn set_aside(&self, granule: Granule, place: Place) -> Result<(), Errno> {
        let huge = self.spot(granule, place).area.kind == FileKind::Hugetlb;
        self.glance.begin(&self.uffd, granule, self.guest(granule), huge)
    }

    fn bring_back(&self, granule: Granule, place: Place) {
        self.glance.end(&self.uffd, granule, self.spot(granule, place).area.page());
        self.wake(self.guest(granule));
    }

    fn map_in(&self, page: Hva) {
        let Some(granule) = self.space.at_hva(page) else { return };
        // Of hugetlb an event is of a whole page, wherever in it the touch was.
        let page = match self.spot(granule, Place::Home).area.kind {
            FileKind::Hugetlb => self.guest(granule),
            FileKind::Small | FileKind::Dax => HvaRange::new(page, PAGE_SIZE as usize),
        };
        Glance::map_in(&self.uffd, page, page.len());
        self.wake(page);
    }

    fn can(&self, step: &Step) -> bool {
        step.from_mapped && step.to_mapped
            || !step.from_mapped && step.to == Place::Home
            || !step.to_mapped && step.from == Place::Home
    }

    fn release_pool(&self, pool: PoolId) -> Result<u64, Errno> {
        let Some(area) = self.pools.get(usize::from(pool.0)) else { return Ok(0) };
        // Huge pages stay reserved: given back, somebody else could take them,
        // and the region would be gone for good. A device has nothing to give.
        if area.kind != FileKind::Small {
            return Ok(0);
        }
        let blocks = || fstat(&area.file).map(|stat| stat.st_blocks);
        let before = blocks()?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&area.file, punch, 0, area.alias.range().len() as u64)?;
        area.alias.set_unbacked();
        Ok(u64::try_from(before - blocks()?).unwrap_or(0) * 512)
    }

    fn losses(&self, granules: &mut dyn Iterator<Item = Granule>) -> Vec<(Granule, Place)> {
        self.losses.take_places(granules)
    }

    fn vmas_per_run(&self) -> u64 {
        2
    }

    fn verifier(&self) -> Result<Verifier<'_>, Errno> {
        let maps = Maps::read()?;
        let bytes = self.space.bytes();
        Ok(Box::new(move |granule, place, mapped| {
            let guest = self.guest(granule);
            let seen = if mapped { place } else { Place::Home };
            let spot = self.spot(granule, seen);
            let expected = (fstat(spot.file())?.st_ino, spot.offset(bytes));
            let found = maps.at(guest.start());
            let wrong = if found != Some(expected) {
                Some(format!("mapped is (inode, offset) {found:x?}, expected {expected:x?}"))
            } else if !mapped && memory::any_in_core(guest) {
                Some("pages of it are at home, where none should be".to_owned())
            } else {
                None
            };
            let huge = memory::present(guest).map_or(0, |found| found.huge);
            Ok(Verdict { wrong, huge })
        }))
    }
}

/// The mappings of this process: start -> (end, inode, offset).
struct Maps(BTreeMap<usize, (usize, u64, u64)>);

impl Maps {
    /// Reads /proc/self/maps (proc_pid_maps(5)).
    fn read() -> Result<Self, Errno> {
        let text = fs::read_to_string("/proc/self/maps")
            .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
        Ok(Self(text.lines().filter_map(Self::parse).collect()))
    }

    fn parse(line: &str) -> Option<(usize, (usize, u64, u64))> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = fields.nth(1)?;
        let inode = fields.nth(1)?;
        Some((
            usize::from_str_radix(start, 16).ok()?,
            (
                usize::from_str_radix(end, 16).ok()?,
                inode.parse().ok()?,
                u64::from_str_radix(offset, 16).ok()?,
            ),
        ))
    }

    /// Inode and offset of what is mapped at `address`.
    fn at(&self, address: Hva) -> Option<(u64, u64)> {
        let (start, (end, inode, offset)) = self.0.range(..=address.0).next_back()?;
        (address.0 < *end).then(|| (*inode, offset + (address.0 - start) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_gives_inode_and_offset() {
        let line = "7f0000000000-7f0000400000 rw-s 00200000 00:01 1234   /memfd:neap (deleted)";
        let maps = Maps([Maps::parse(line).unwrap()].into());
        assert_eq!(maps.at(Hva(0x7f00_0000_1000)), Some((1234, 0x20_1000)));
        assert_eq!(maps.at(Hva(0x7f00_0040_0000)), None);
        assert_eq!(Maps::parse(""), None);
    }
}
