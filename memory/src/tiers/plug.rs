//! Taking a device region away under a running guest, and giving it back.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::thread;
use std::time::{Duration, Instant};

use super::Tiers;
use super::core::lock;
use crate::granule::PoolId;
use crate::migrate::{
    MigrateRequest, Moved, Outcome, Progress, RequestError, Select, Skipped, Target,
};

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
    /// Its device was taken from its driver.
    #[error("the device of region {0} is gone, and what was in it is lost: start anew")]
    Gone(u8),
    /// A region is on its way already.
    #[error("a region is being unplugged: wait for the end of that")]
    AtWork,
    /// It could not be emptied.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Its memory could not be given back; it is empty, and serves on.
    #[error("the memory of device region {0} cannot be given back: {1}")]
    Release(u8, rustix::io::Errno),
    /// Its memory cannot be had again.
    #[error("the memory of device region {0} cannot be had again: {1}")]
    Restore(u8, rustix::io::Errno),
    /// Whoever asked went away.
    #[error("device region {0} is not empty yet, and whoever asked is gone")]
    Cancelled(u8),
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
        if self.core.gone.is(PoolId(region)) {
            return Err(PlugError::Gone(region));
        }
        {
            let mut pool = self.core.pool(id).ok_or(PlugError::NoRegion(region))?;
            if pool.is_closed() {
                return Err(PlugError::Already(region, "unplugged"));
            }
            pool.close(true);
        }
        let result = self.empty_and_release(id, progress);
        let gone = result.as_ref().is_ok_and(|unplugged| unplugged.left.is_empty());
        // One whose memory went meanwhile stays closed.
        if !gone
            && let Some(mut pool) = self.core.pool(id)
            && !self.core.gone.is(id)
        {
            pool.close(false);
        }
        result
    }

    /// Gives a region back.
    ///
    /// # Errors
    /// There is none, or it is not gone.
    pub fn plug(&self, region: u8) -> Result<u32, PlugError> {
        let _one_at_a_time = self.plugging.try_lock().map_err(|_| PlugError::AtWork)?;
        if self.core.gone.is(PoolId(region)) {
            return Err(PlugError::Gone(region));
        }
        let pool = self.core.pool(PoolId(region)).ok_or(PlugError::NoRegion(region))?;
        if !pool.is_closed() {
            return Err(PlugError::Already(region, "there"));
        }
        drop(pool);
        let restored = self.core.engine.restore_pool(PoolId(region));
        restored.map_err(|errno| PlugError::Restore(region, errno))?;
        let mut pool = self.core.pool(PoolId(region)).ok_or(PlugError::NoRegion(region))?;
        pool.close(false);
        Ok(pool.free())
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
