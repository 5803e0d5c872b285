//! Regions whose host memory is gone for good: a /dev/dax that is unbound from
//! its driver while it is in use.
//!
//! What was in it is lost, as if every frame had failed. Its pool is closed and
//! its frames are retired; granules at home live on; where the guest has one
//! that was in the device it gets memory that has failed, so that a touch is a
//! machine check.
//!
//! Whoever finds it says so first ([`Gone`]) and gives up what nobody has
//! claimed; whoever settles a granule looks at it afterwards. So none is left
//! out, and nobody waits for anybody. That needs each to see what the other wrote
//! before: both write with a locked instruction, the state word by
//! compare-exchange and the mark by a swap, which x86-64 never lets a later read
//! pass.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Tiers;
use super::core::{Core, lock};
use super::failure::{Failure, Met};
use crate::granule::{Frame, Granule, PoolId};
use crate::table::Place;

/// Which regions are gone.
#[derive(Debug)]
pub(crate) struct Gone {
    any: AtomicBool,
    pools: Box<[AtomicBool]>,
    /// Held while a granule is given up.
    given_up: Mutex<GivenUp>,
}

impl Gone {
    pub(crate) fn new(pools: usize) -> Self {
        let pools = (0..pools).map(|_| AtomicBool::new(false)).collect();
        Self { any: AtomicBool::new(false), pools, given_up: Mutex::default() }
    }

    /// Whether the memory of `place` is gone.
    pub(crate) fn has(&self, place: Place) -> bool {
        match place {
            Place::Device { pool, .. } => self.is(pool),
            Place::Home | Place::Untouched => false,
        }
    }

    /// Whether a region is gone.
    pub(crate) fn is(&self, pool: PoolId) -> bool {
        self.any.load(Ordering::Acquire)
            && self.pools.get(usize::from(pool.0)).is_some_and(|gone| gone.load(Ordering::Acquire))
    }

    /// Notes that it is; false if somebody has before.
    fn note(&self, pool: PoolId) -> bool {
        self.any.store(true, Ordering::Release);
        let gone = self.pools.get(usize::from(pool.0));
        gone.is_some_and(|gone| !gone.swap(true, Ordering::AcqRel))
    }
}

#[derive(Debug, Default)]
struct GivenUp {
    /// Granules that are marked.
    marked: BTreeSet<Granule>,
    /// Those that could not be: the next look tries again.
    failed: BTreeSet<Granule>,
}

/// A region that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionGone {
    /// Which.
    pub region: u8,
    /// Bytes of the guest's that were in it.
    pub lost: u64,
}

impl Tiers {
    /// Looks whether host memory of regions is gone, as whoever cannot reach
    /// guest memory does; false if that is not why. What nobody moves is marked
    /// when this returns, or another thread is marking it.
    pub fn look_for_gone(&self) -> bool {
        self.core.look_for_gone();
        self.core.gone.any.load(Ordering::Acquire)
    }
}

impl Core {
    /// Looks whether regions are gone, and gives up what was in those that are.
    pub(crate) fn look_for_gone(&self) {
        if self.gone.any.load(Ordering::Acquire) {
            let again = lock(&self.gone.given_up).failed.clone();
            again.into_iter().for_each(|granule| self.give_up_if_gone(granule));
        }
        for pool in self.find_gone() {
            self.give_up_region(pool);
        }
    }

    /// Looks whether regions are gone. Of those that newly are, no frame is
    /// handed out and no granule moved from now on; [`Self::give_up_region`] is
    /// due.
    pub(crate) fn find_gone(&self) -> Vec<PoolId> {
        let ids = (0..self.pools.len()).map(|index| PoolId(index as u8));
        let mut found = Vec::new();
        for id in ids.filter(|id| !self.gone.is(*id)) {
            if self.engine.has_memory(id) || !self.gone.note(id) {
                continue;
            }
            if let Some(mut pool) = self.pool(id) {
                pool.close(true);
                for frame in 0..pool.frames() {
                    // There are that many.
                    let _ = pool.retire(Frame(frame));
                }
            }
            found.push(id);
        }
        found
    }

    /// Granules in frames of a pool.
    fn granules_in(&self, pool: PoolId) -> impl Iterator<Item = (Granule, Place)> {
        let numbers =
            self.space.parts().iter().flat_map(|part| part.first..part.first + part.count);
        numbers.filter_map(move |number| {
            let granule = Granule(number);
            let place = self.space.actual(granule, self.table.get(granule).place);
            let inside = matches!(place, Place::Device { pool: of, .. } if of == pool);
            inside.then_some((granule, place))
        })
    }

    /// Whether a granule is the next of a run, in the same part of memory.
    fn follows(&self, first: Granule, count: u32, granule: Granule) -> bool {
        first.0 + count == granule.0
            && self.space.part(granule).is_some_and(|part| part.first <= first.0)
    }

    /// Gives up what is in a pool that is gone, and tells of it.
    pub(crate) fn give_up_region(&self, pool: PoolId) {
        let mut runs: Vec<(Granule, u32, Place)> = Vec::new();
        for (granule, place) in self.granules_in(pool) {
            self.give_up_if_gone(granule);
            match runs.last_mut() {
                Some((first, count, _)) if self.follows(*first, *count, granule) => *count += 1,
                _ => runs.push((granule, 1, place)),
            }
        }
        let lost = runs.iter().map(|(_, count, _)| u64::from(*count)).sum::<u64>();
        (self.on_gone)(RegionGone { region: pool.0, lost: lost * self.space.size().bytes() });
        for (first, count, place) in runs {
            if let Some(range) = self.space.gpa(first, count) {
                self.tell(&Failure { range, place, retired: true, met: Met::Unbound });
            }
        }
    }

    /// Gives a granule up that is in a region that is gone and that nobody moves
    /// any more.
    pub(crate) fn give_up_if_gone(&self, granule: Granule) {
        if !self.gone.any.load(Ordering::Acquire) {
            return;
        }
        let mut given_up = lock(&self.gone.given_up);
        let view = self.table.get(granule);
        let gone = self.gone.has(self.space.actual(granule, view.place));
        if !gone || view.moving || given_up.marked.contains(&granule) {
            return;
        }
        // What cannot be marked stays out of reach until it can.
        match self.engine.give_up(granule) {
            Ok(()) => {
                given_up.failed.remove(&granule);
                given_up.marked.insert(granule);
            }
            Err(_) => {
                given_up.failed.insert(granule);
            }
        }
    }
}
