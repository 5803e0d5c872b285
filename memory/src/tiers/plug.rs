//! Taking a device region away under a running guest, and giving it back.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Tiers;
use super::core::lock;
use crate::addr::display_size;
use crate::backing::Backing;
use crate::granule::PoolId;
use crate::migrate::{
    MigrateRequest, Moved, Outcome, Progress, RequestError, Select, Skipped, Target,
};
use crate::numa::nodes::{self, NodeError};
use crate::space::Origin;

/// What came of taking a region away.
#[derive(Clone, Debug)]
pub struct Unplugged {
    /// What came home.
    pub moved: Moved,
    /// Bytes of host memory that came free.
    pub released: u64,
    /// What could not be moved, and why; empty if the region is gone. The
    /// region serves on as before then.
    pub left: Vec<Skipped>,
}

/// Why a region is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PlugError {
    /// No such region.
    #[error("there is no device region {0}")]
    NoRegion(u8),
    /// It is gone already, or there already.
    #[error("device region {0} is {1} already")]
    Already(u8, &'static str),
    /// A region is on its way already.
    #[error("a region is being unplugged: wait for the end of that")]
    AtWork,
    /// It could not be emptied.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Its memory could not be given back; it is empty, and serves on.
    #[error("the memory of device region {0} cannot be given back: {1}")]
    Release(u8, Errno),
    /// A size that its pool cannot have.
    #[error(
        "a pool of {} for device region {region}: it is a multiple of {}, and at the most {}, \
         which it was started with", display_size(*.bytes), display_size(*.granule),
        display_size(*.most)
    )]
    Size {
        /// The region.
        region: u8,
        /// Bytes asked for.
        bytes: u64,
        /// Most bytes.
        most: u64,
        /// Bytes of a granule.
        granule: u64,
    },
    /// Memory that stays where it is.
    #[error(
        "device region {0} keeps its size: huge pages of hugetlb stay reserved for it, and a \
         /dev/dax has nothing to give back"
    )]
    Fixed(u8),
    /// A kind of memory that its engine does not move.
    #[error(
        "device region {region} has backing={before} and cannot have {backing}: private memory \
         (anon, node:N) can come from another node, files keep theirs"
    )]
    Kind {
        /// The region.
        region: u8,
        /// Its memory so far.
        before: String,
        /// The memory asked for.
        backing: Backing,
    },
    /// A node that home is on.
    #[error("device region {region}: home is on node {node}: nothing would move")]
    Home {
        /// The region.
        region: u8,
        /// The node.
        node: u32,
    },
    /// A node that has not enough.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The kernel refused.
    #[error("the memory of device region {0} cannot be of backing={1}: {2}")]
    Place(u8, Backing, Errno),
    /// Whoever asked went away.
    #[error("device region {0} is not empty yet, and whoever asked is gone")]
    Cancelled(u8),
}

/// What a region that is given back is to have behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlugMemory {
    /// Bytes of its pool; `None`: as many as before.
    pub pool: Option<u64>,
    /// Kind of memory; `None`: that of before.
    pub backing: Option<Backing>,
}

/// What is in other hands for a moment is tried again for so long.
const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(20);

impl Tiers {
    /// Empties a region, gives its host memory back, and hands out none of its
    /// frames until [`Tiers::plug`]. Its part of the guest's memory, if it has
    /// one, is in host RAM from then on.
    ///
    /// What cannot be moved is named in the result; then the region serves on.
    ///
    /// # Errors
    /// Nothing of the region is gone.
    pub fn unplug(
        &self,
        region: u8,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Unplugged, PlugError> {
        let id = PoolId(region);
        let _one_at_a_time = self.plugging.try_lock().map_err(|_| PlugError::AtWork)?;
        {
            let mut pool = self.core.pool(id).ok_or(PlugError::NoRegion(region))?;
            if pool.is_closed() {
                return Err(PlugError::Already(region, "unplugged"));
            }
            pool.close(true);
        }
        let result = self.empty_and_release(id, progress);
        let gone = result.as_ref().is_ok_and(|unplugged| unplugged.left.is_empty());
        if !gone && let Some(mut pool) = self.core.pool(id) {
            pool.close(false);
        }
        result
    }

    /// Gives a region back, with other memory behind it if `memory` says so.
    ///
    /// # Errors
    /// There is none, it is not gone, or that memory is not to be had; it is
    /// still gone then.
    pub fn plug(&self, region: u8, memory: PlugMemory) -> Result<u32, PlugError> {
        let id = PoolId(region);
        let _one_at_a_time = self.plugging.try_lock().map_err(|_| PlugError::AtWork)?;
        let (frames, most) = {
            let pool = self.core.pool(id).ok_or(PlugError::NoRegion(region))?;
            if !pool.is_closed() {
                return Err(PlugError::Already(region, "there"));
            }
            (pool.frames(), pool.most())
        };
        let frames = memory.pool.map_or(Ok(frames), |bytes| self.frames_for(id, bytes, most))?;
        if let Some(backing) = memory.backing {
            self.place(id, backing, frames)?;
        }
        let mut pool = self.core.pool(id).ok_or(PlugError::NoRegion(region))?;
        if frames != pool.frames() && !pool.resize(frames) {
            // Nobody has used a frame since it was closed.
            return Err(PlugError::Already(region, "in use"));
        }
        pool.close(false);
        Ok(pool.free())
    }

    /// Frames of a region whose pool is to have `bytes`, beside its window's.
    fn frames_for(&self, id: PoolId, bytes: u64, most: u32) -> Result<u32, PlugError> {
        let core = &self.core;
        let size = core.space.size().bytes();
        let parts = core.space.parts().iter();
        let window = parts.filter(|part| part.origin == Origin::Window(id)).map(|part| part.count);
        let window: u32 = window.sum();
        let fits = |frames: &u32| (1..=most).contains(frames);
        let frames = u32::try_from(bytes / size).ok().filter(|_| bytes.is_multiple_of(size));
        let frames = frames.and_then(|frames| frames.checked_add(window)).filter(fits);
        let most = u64::from(most - window.min(most)) * size;
        let frames = frames.ok_or(PlugError::Size { region: id.0, bytes, most, granule: size })?;
        let same = core.pool(id).is_some_and(|pool| pool.frames() == frames);
        if !same && !core.engine.gives_back(id) {
            return Err(PlugError::Fixed(id.0));
        }
        Ok(frames)
    }

    /// Has the memory of a region, which has none now, come from elsewhere.
    fn place(&self, id: PoolId, backing: Backing, frames: u32) -> Result<(), PlugError> {
        let bytes = u64::from(frames) * self.core.space.size().bytes();
        let mut backings = lock(&self.backings);
        let Some(before) = backings.get_mut(usize::from(id.0)) else {
            return Err(PlugError::NoRegion(id.0));
        };
        if *before == backing {
            return Ok(());
        }
        let other = || PlugError::Kind { region: id.0, before: before.to_string(), backing };
        if !before.is_anonymous() || !backing.is_anonymous() {
            return Err(other());
        }
        if let Some(node) = backing.node() {
            nodes::check(node, bytes)?;
            if self.core.engine.placement().home.contains(&node) {
                return Err(PlugError::Home { region: id.0, node });
            }
        }
        self.core.engine.place_pool(id, backing.node()).map_err(|errno| match errno {
            Errno::OPNOTSUPP => other(),
            errno => PlugError::Place(id.0, backing, errno),
        })?;
        *before = backing;
        Ok(())
    }

    fn empty_and_release(
        &self,
        id: PoolId,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Unplugged, PlugError> {
        let request = MigrateRequest {
            ranges: Vec::new(),
            to: Target::Home,
            select: Select { system: false, untouched: true, ..Select::ALL },
            from_pool: Some(id),
            limit: None,
        };
        let mut moved = Moved::default();
        let deadline = Instant::now() + PATIENCE;
        let broken = Cell::new(false);
        let mut tell = |now: &Progress| {
            let flow = progress(now);
            broken.set(broken.get() || flow.is_break());
            flow
        };
        loop {
            let report = self.migrate(&request, &mut tell)?;
            moved.granules += report.moved.granules;
            moved.bytes += report.moved.bytes;
            if self
                .core
                .pools
                .get(usize::from(id.0))
                .is_none_or(|pool| lock(pool).stats().used == 0)
            {
                let released = self.core.engine.release_pool(id);
                let released = released.map_err(|errno| PlugError::Release(id.0, errno))?;
                return Ok(Unplugged { moved, released, left: Vec::new() });
            }
            if broken.get() {
                return Err(PlugError::Cancelled(id.0));
            }
            // What is at home already was not asked for.
            let left: Vec<Skipped> = report
                .skipped
                .into_iter()
                .filter(|skipped| {
                    !matches!(skipped.outcome, Outcome::AlreadyThere | Outcome::WrongKind)
                })
                .collect();
            let fleeting = left.iter().all(|skipped| skipped.outcome == Outcome::Busy);
            if !fleeting || Instant::now() >= deadline {
                return Ok(Unplugged { moved, released: 0, left: self.named(id, left) });
            }
            thread::sleep(AGAIN);
        }
    }

    /// `left`, or what is in frames of the pool if that says nothing.
    fn named(&self, id: PoolId, left: Vec<Skipped>) -> Vec<Skipped> {
        if !left.is_empty() {
            return left;
        }
        let here = |place| matches!(place, crate::table::Place::Device { pool, .. } if pool == id);
        self.residency()
            .into_iter()
            .filter(|run| here(run.place))
            .map(|run| Skipped { range: run.range, outcome: Outcome::WrongKind })
            .collect()
    }
}
