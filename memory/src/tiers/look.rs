//! Looking at the tiers: status, residency, and whether the kernel agrees.

use rustix::io::Errno;

use super::Tiers;
use super::core::lock;
use super::counters::Counts;
use crate::engine::EngineName;
use crate::granule::{Granule, GranuleSize, Kind, PoolId};
use crate::park::Stalls;
use crate::policy::PolicyName;
use crate::pool::PoolStats;
use crate::table::{Place, View};
use crate::uffd::abi::Door;
use crate::{Backing, Gpa, GpaRange};

/// The tiers in numbers.
#[derive(Clone, Debug)]
pub struct TiersStatus {
    /// Unit of tracking and moving.
    pub granule: GranuleSize,
    /// How granules move.
    pub engine: EngineName,
    /// What moves by itself.
    pub policy: PolicyName,
    /// Threads that copy.
    pub copy_threads: usize,
    /// Bytes of guest memory.
    pub bytes: u64,
    /// Host memory behind RAM.
    pub ram: Backing,
    /// Device regions.
    pub pools: Vec<PoolStatus>,
    /// What was done so far.
    pub counts: Counts,
    /// VMAs that the process may have, and has at the most.
    pub vmas: (u64, u64),
    /// How faults are had.
    pub door: Door,
    /// How long vCPUs were parked for moves; `None` where they never are.
    pub stalls: Option<Stalls>,
}

/// A device region in numbers.
#[derive(Clone, Copy, Debug)]
pub struct PoolStatus {
    /// Which.
    pub id: PoolId,
    /// What its frames are to vCPUs.
    pub kind: Kind,
    /// Host memory behind it.
    pub backing: Backing,
    /// Its SPM window.
    pub window: Option<GpaRange>,
    /// Its frames.
    pub stats: PoolStats,
    /// Whether its memory is gone, and what was in it lost.
    pub gone: bool,
}

/// Neighbouring granules in the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residence {
    /// Guest-physical.
    pub range: GpaRange,
    /// Where; in a device region the first of consecutive frames. A granule
    /// that nobody moved is at its birthplace.
    pub place: Place,
    /// Whether nobody has moved it, or its first touch was not yet seen.
    pub untouched: bool,
    /// Kind of the region.
    pub kind: Option<Kind>,
    /// Whether the guest reaches it without a fault.
    pub mapped: bool,
    /// Users of each frame.
    pub refcount: u32,
    /// Pins on each granule.
    pub pins: u16,
    /// Whether it is moving.
    pub moving: bool,
}

/// What the kernel says of where granules are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Granules that were compared.
    pub checked: u64,
    /// Granules that nobody moved yet, or that moved meanwhile.
    pub passed_over: u64,
    /// Bytes in huge pages.
    pub huge: u64,
    /// Where it does not agree, at the most [`Verified::MOST`].
    pub mismatches: Vec<(GpaRange, String)>,
}

impl Verified {
    /// Most mismatches that are listed.
    pub const MOST: usize = 100;
}

impl Tiers {
    /// Status.
    pub fn status(&self) -> TiersStatus {
        let core = &self.core;
        let backings = lock(&self.backings).clone();
        let regions = self.config.regions.iter().zip(backings);
        let pools = core.pools.iter().zip(regions).map(|(pool, (region, backing))| {
            let (id, kind, stats) = {
                let pool = lock(pool);
                (pool.id(), pool.kind(), pool.stats())
            };
            let window = region.window.and_then(|slot| core.space.parts().get(slot));
            let window = window.map(|part| part.range);
            let gone = core.gone.is(id);
            PoolStatus { id, kind, backing, window, stats, gone }
        });
        TiersStatus {
            granule: core.space.size(),
            engine: self.config.engine(),
            policy: lock(&core.policy).name(),
            copy_threads: self.config.copy_threads,
            bytes: core.space.parts().iter().map(|part| part.range.size()).sum(),
            ram: self.config.ram,
            pools: pools.collect(),
            counts: core.counters.read(),
            vmas: lock(&core.budget).numbers(),
            door: core.uffd.opened().door,
            stalls: core.engine.stalls(),
        }
    }

    /// Where every granule is, as runs.
    pub fn residency(&self) -> Vec<Residence> {
        self.residency_from(Gpa(0), usize::MAX)
    }

    /// The same from the granule at `from` on, at the most `most` runs.
    pub fn residency_from(&self, from: Gpa, most: usize) -> Vec<Residence> {
        let core = &self.core;
        let mut list: Vec<Residence> = Vec::new();
        for part in core.space.parts() {
            let skip = from.0.saturating_sub(part.range.base().0) / core.space.size().bytes();
            let skip = u32::try_from(skip).unwrap_or(u32::MAX).min(part.count);
            let first = Granule(part.first + skip);
            let runs = core.table.runs(first, Granule(part.first + part.count));
            for (granules, view) in runs {
                if list.len() == most {
                    return list;
                }
                let first = Granule(granules.start);
                let Some(range) = core.space.gpa(first, granules.end - granules.start) else {
                    continue;
                };
                let place = core.space.actual(first, view.place);
                let (kind, refcount) = match place {
                    Place::Device { pool, frame } => {
                        let kind = core.kind_for(first, pool);
                        (Some(kind), core.pool(pool).map_or(0, |pool| pool.refcount(frame)))
                    }
                    Place::Home | Place::Untouched => (None, 1 + u32::from(view.pins)),
                };
                let untouched = view.place == Place::Untouched;
                list.push(Residence {
                    range,
                    place,
                    untouched,
                    kind,
                    mapped: view.mapped || untouched,
                    refcount,
                    pins: view.pins,
                    moving: view.moving,
                });
            }
        }
        list
    }

    /// Asks the kernel where every granule is that was ever moved.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn verify(&self) -> Result<Verified, Errno> {
        self.verify_while(&|| true)
    }

    /// The same for as long as `wanted` says so.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn verify_while(&self, wanted: &dyn Fn() -> bool) -> Result<Verified, Errno> {
        let core = &self.core;
        let mut ask = core.engine.verifier()?;
        let keeps = core.engine.aside_is_mapped();
        let mut verified = Verified::default();
        for index in 0..core.space.granules() {
            let granule = Granule(index);
            if !wanted() {
                break;
            }
            let settled = |view: &View| !view.moving && view.place != Place::Untouched;
            let view = core.table.get(granule);
            if !settled(&view) {
                verified.passed_over += 1;
                continue;
            }
            let verdict =
                ask(granule, view.place, view.mapped || keeps && core.is_aside(granule, &view))?;
            let after = core.table.get(granule);
            if (after.place, after.mapped, after.moving) != (view.place, view.mapped, false) {
                verified.passed_over += 1;
                continue;
            }
            verified.checked += 1;
            verified.huge += verdict.huge;
            if let (Some(wrong), Some(range)) = (verdict.wrong, core.space.gpa(granule, 1))
                && verified.mismatches.len() < Verified::MOST
            {
                verified.mismatches.push((range, wrong));
            }
        }
        Ok(verified)
    }
}
