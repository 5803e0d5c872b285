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
//! [`over`] has the only `MAP_FIXED` over guest memory, beside [`gone`], for what
//! is lost.
//!
//! Known hole: a granule cannot go from one pool to another if it is unmapped
//! in either; it has to come home in between.
#![allow(unsafe_code)]

mod books;
mod copy;
mod files;
mod gone;
mod maps;
mod over;
mod parked;
mod unmapped;
mod watched;

use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstat, seek};
use rustix::io::Errno;

pub(crate) use self::files::Area;
use self::files::{FileKind, Spot};
use self::maps::Maps;
use super::glance::{Glance, PIECE};
use super::hooks::{Hooks, Inject, Point};
use super::hurry::Waiters;
use super::losses::Losses;
use super::memory;
use super::pace::Pace;
use super::rows::Row;
use super::{Engine, Fatal, Step, Verdict, Verifier, outcome_of, runs};
use crate::addr::PAGE_SIZE;
use crate::granule::{Granule, PoolId};
use crate::hva::{Hva, HvaRange};
use crate::migrate::Outcome;
use crate::numa::Placement;
use crate::park::{Park, Stalls};
use crate::space::{Origin, Space};
use crate::table::Place;
use crate::uffd::{Features, Modes, Userfaultfd};

/// What an engine moves between.
#[derive(Debug)]
pub(crate) struct Areas {
    /// The home of each part, in order of granules.
    pub(crate) homes: Vec<Area>,
    /// Each pool's.
    pub(crate) pools: Vec<Area>,
    /// Which nodes they are on.
    pub(crate) placement: Placement,
}

/// The engine with its files.
#[derive(Debug)]
pub(crate) struct RemapEngine {
    uffd: Arc<Userfaultfd>,
    space: Arc<Space>,
    /// The home of each part, in order of granules.
    homes: Vec<Area>,
    pools: Vec<Area>,
    placement: Placement,
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
        areas: Areas,
        park: Option<Arc<dyn Park>>,
        hooks: Arc<dyn Hooks>,
        fatal: Fatal,
    ) -> Result<Self, Errno> {
        let Areas { homes, pools, placement } = areas;
        let watched = |origin| match origin {
            Origin::Ram => true,
            Origin::Window(PoolId(id)) => pools.get(usize::from(id)).is_some_and(Area::is_watched),
        };
        for part in space.parts().iter().filter(|part| watched(part.origin)) {
            let range = HvaRange::new(part.hva, part.count as usize * space.bytes());
            uffd.register(range, Modes::WriteProtect)?;
        }
        let (pace, losses, glance) = (Pace::default(), Losses::default(), Glance::default());
        Ok(Self { uffd, space, homes, pools, placement, park, pace, glance, losses, hooks, fatal })
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

    fn wake(&self, range: HvaRange) {
        if let Err(errno) = self.uffd.wake(range) {
            (self.fatal)(&format!("waiters for guest memory cannot be woken: {errno}"));
        }
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

    fn set_aside_at_most(&self) -> u64 {
        let huge = |area: &Area| area.kind == FileKind::Hugetlb;
        let all = self.homes.iter().chain(&self.pools).any(huge);
        if all { u64::MAX } else { PIECE as u64 }
    }

    fn set_aside(&self, granule: Granule, place: Place) -> Result<(), Errno> {
        let huge = self.spot(granule, place).area.kind == FileKind::Hugetlb;
        self.glance.begin(&self.uffd, granule, self.guest(granule), huge)
    }

    fn bring_back(&self, granule: Granule, place: Place) {
        self.glance.end(&self.uffd, granule, self.spot(granule, place).area.page());
        self.wake(self.guest(granule));
    }

    fn map_in(&self, granule: Granule, place: Place, page: Hva) {
        // Of hugetlb an event is of a whole page, wherever in it the touch was.
        // Home and a region may have pages of different sizes.
        let page = match self.spot(granule, place).area.kind {
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

    fn takes(&self, step: &Step) -> u64 {
        self.bytes_taken_by(step)
    }

    fn gives_back(&self, pool: PoolId) -> bool {
        // Huge pages stay reserved, and a device has nothing to give.
        let area = self.pools.get(usize::from(pool.0));
        area.is_none_or(|area| area.kind == FileKind::Small)
    }

    fn rows(&self) -> Vec<Row<'_>> {
        self.all_rows()
    }

    fn has_memory(&self, pool: PoolId) -> bool {
        self.pools.get(usize::from(pool.0)).is_none_or(|area| !area.is_gone())
    }

    fn may_lose_pools(&self) -> bool {
        self.pools.iter().any(|area| !area.is_watched())
    }

    fn give_up(&self, granule: Granule) -> Result<(), Errno> {
        self.void(self.guest(granule))
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
            // What was in it is lost, and marked so.
            if place.is_device() && self.spot(granule, place).area.was_gone() {
                let left = found.filter(|(inode, _)| *inode != 0);
                let wrong = left.map(|left| format!("mapped is {left:x?}, and its device is gone"));
                return Ok(Verdict { wrong, huge: 0 });
            }
            let wrong = if found != Some(expected) {
                Some(format!("mapped is (inode, offset) {found:x?}, expected {expected:x?}"))
            } else if !mapped && memory::any_in_core(guest) {
                Some("pages of it are at home, where none should be".to_owned())
            } else {
                let huge = spot.area.kind == FileKind::Hugetlb;
                self.placement.misplaced(guest, place, huge)?
            };
            let huge = memory::present(guest).map_or(0, |found| found.huge);
            Ok(Verdict { wrong, huge })
        }))
    }
}
