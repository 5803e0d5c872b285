//! Frames for the next few granules of one request, taken from the pool as a
//! run: so that neighbours get neighbouring frames also while faults and other
//! requests take frames from the same pool, and in a pool that is nearly full.

use crate::granule::{Frame, Granule, PoolId};
use crate::pool::Pool;
use crate::tiers::core::Core;

/// A run of frames that are in use by nobody but the request.
#[derive(Debug)]
pub(crate) struct Reserve {
    pool: PoolId,
    next: u32,
    left: u32,
    run: u32,
}

impl Reserve {
    /// Takes runs of up to `run` frames of `pool`.
    pub(crate) fn new(pool: PoolId, run: usize) -> Self {
        Self { pool, next: 0, left: 0, run: u32::try_from(run).unwrap_or(u32::MAX) }
    }

    /// A frame for `granule`, with refcount 1; `None` if none is free.
    pub(crate) fn take(&mut self, core: &Core, granule: Granule) -> Option<Frame> {
        let mut pool = core.pool(self.pool)?;
        if self.left == 0 {
            let (first, count) = pool.allocate_run(granule, self.run)?;
            (self.next, self.left) = (first.0, count);
        }
        let frame = Frame(self.next);
        self.next += 1;
        self.left -= 1;
        // It is in use, so that it has an owner; only who it is may differ.
        let _ = pool.set_owner(frame, granule);
        Some(frame)
    }

    /// Takes back the last frame that [`Self::take`] gave, which stays in use.
    pub(crate) fn untake(&mut self, frame: Frame) {
        debug_assert_eq!(frame.0 + 1, self.next, "only the last frame");
        self.next = frame.0;
        self.left += 1;
    }

    /// Gives the rest back to the pool.
    pub(crate) fn release(&mut self, pool: &mut Pool) {
        for frame in self.next..self.next + self.left {
            // In use by this request alone until now.
            let _ = pool.put(Frame(frame));
        }
        self.left = 0;
    }
}
