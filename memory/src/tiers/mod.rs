//! The tiers of a guest's memory: home and the pools, with the threads that
//! move granules between them. This is what the machine's owner talks to.
//!
//! [`core`] is the state that threads share and the way of one granule,
//! [`fault`] the fault thread, [`crate::migrate`] the way of a request.
//!
//! Invariants: the userfaultfd is closed only when the tiers are dropped, and
//! whoever owns them does that after the last vCPU has ended; the death of a
//! thread that moves granules ends the process ([`death`]).

mod account;
mod adopt;
mod aside;
mod borders;
mod budget;
mod build;
mod claims;
mod config;
pub(crate) mod core;
mod counters;
pub(crate) mod death;
mod failure;
mod fault;
mod gone;
mod heat;
mod latency;
mod look;
mod movers;
mod plug;
mod policy;
mod room;

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

pub use account::{Accounts, TierAccount};
pub use config::{HeatConfig, RegionConfig, TiersConfig, TiersError};
pub use counters::{Counts, HeatCounts};
pub use failure::{FailPageError, Failure, Met, OnFailure};
pub use gone::RegionGone;
pub use latency::{BOUNDS_US as LATENCY_BOUNDS_US, LatencyCounts};
pub use look::{PoolStatus, Residence, TiersStatus, Verified};
pub use plug::{PlugError, PlugMemory, Unplugged};
pub use policy::PolicyRefused;

use self::core::Core;
use self::movers::Movers;
use crate::granule::Granule;
use crate::mapped::Mapped;
use crate::migrate::{MigrateRequest, Progress, Report, RequestError, run};
use crate::table::{PinError, Place};
use crate::{Backing, GpaRange, GuestMemory};

/// The tiers of one guest. Every method may be called from any thread but
/// those of the tiers.
pub struct Tiers {
    // Threads end before what they work on goes.
    heat: Mutex<Option<heat::HeatThread>>,
    fault: fault::FaultThread,
    movers: Arc<Movers>,
    /// Held while a region is taken away or given back.
    plugging: Mutex<()>,
    /// Host memory behind each region, which `plug` may change.
    backings: Mutex<Vec<Backing>>,
    core: Arc<Core>,
    config: TiersConfig,
    // Last: what is above works in it.
    _memory: Arc<GuestMemory>,
}

impl std::fmt::Debug for Tiers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tiers").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Tiers {
    /// Moves what `request` names and says what came of it. `progress` is
    /// called now and then; when it breaks, what has not begun is left.
    ///
    /// # Errors
    /// A request that makes no sense; nothing has moved then.
    pub fn migrate(
        &self,
        request: &MigrateRequest,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Report, RequestError> {
        self.movers.migrate(request, progress)
    }

    /// Whether [`Self::migrate`] would take `request`, unless another is at
    /// work on the same memory when it begins.
    ///
    /// # Errors
    /// A request that makes no sense.
    pub fn check(&self, request: &MigrateRequest) -> Result<(), RequestError> {
        run::granules(&self.core, request).map(drop)
    }

    /// Holds the granules of `range` where they are, as a device does that
    /// accesses them by itself; waits up to `patience` for those in motion.
    ///
    /// A granule in a frame of kind `private` comes home first, as on any
    /// other touch: whoever pinned it there and then touched it would wait for
    /// its own pin.
    ///
    /// # Errors
    /// Not guest memory, or still moving.
    pub fn pin(&self, range: GpaRange, patience: Duration) -> Result<Pin, PinRangeError> {
        let granules = self.core.space.granules_of(range).ok_or(PinRangeError::Outside(range))?;
        let deadline = Instant::now() + patience;
        let mut pin = Pin { core: Arc::clone(&self.core), held: Vec::new() };
        for granule in granules.iter().flat_map(|(first, count)| first.0..first.0 + count) {
            let granule = Granule(granule);
            self.pin_one(granule, deadline)?;
            // Pinned, it stays where it is, so its frame can be counted.
            if let Place::Device { pool, frame } = self.core.table.get(granule).place
                && let Some(mut pool) = self.core.pool(pool)
                && let Err(error) = pool.get(frame)
            {
                self.core.table.unpin(granule);
                return Err(PinRangeError::Frame(error));
            }
            pin.held.push(granule);
        }
        Ok(pin)
    }

    /// Pins a granule that is mapped, or untouched.
    fn pin_one(&self, granule: Granule, deadline: Instant) -> Result<(), PinError> {
        /// Between two tries to bring a granule home.
        const AGAIN: Duration = Duration::from_millis(1);
        let core = &self.core;
        let _death = death::Death::of("a thread that moves memory", core.fatal);
        loop {
            core.table.pin(granule, deadline)?;
            let view = core.table.get(granule);
            if view.mapped || view.place == Place::Untouched {
                return Ok(());
            }
            core.table.unpin(granule);
            let back = match core.is_aside(granule, &view) {
                true => core.bring_back(granule, view),
                false => core.come_home(granule, view),
            };
            if !back {
                if Instant::now() >= deadline {
                    return Err(PinError::TimedOut);
                }
                thread::sleep(AGAIN);
            }
        }
    }

    /// Says who maps guest memory for the guest, so that what looks cost it is
    /// known better. The first to say so counts.
    pub fn mapped_by(&self, mapped: Arc<dyn Mapped>) {
        let _ = self.core.mapped.set(mapped);
    }

    /// Has policy `heat` watch and move nothing once the tick that it may be at
    /// is over, or go on. Nothing happens under another policy.
    pub fn hold_heat(&self, hold: bool) {
        if let Some(heat) = &*core::lock(&self.heat) {
            heat.hold(hold);
        }
    }

    /// Refuses requests from now on and ends those at work after the granules
    /// in flight. Faults are served until the tiers are dropped.
    pub fn stop(&self) {
        self.core.over.store(true, Ordering::Release);
    }

    /// Makes the fault thread die, for tests of what follows.
    #[doc(hidden)]
    pub fn kill_fault_thread(&self) {
        self.fault.kill();
    }
}

impl Drop for Tiers {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Granules that are held where they are, until this is dropped.
pub struct Pin {
    core: Arc<Core>,
    held: Vec<Granule>,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin").field("granules", &self.held.len()).finish_non_exhaustive()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        for granule in self.held.drain(..) {
            self.core.put(self.core.table.get(granule).place);
            self.core.table.unpin(granule);
        }
    }
}

/// Why a range was not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinRangeError {
    /// Not guest memory, or not whole granules.
    #[error("{0} is not whole granules of guest memory")]
    Outside(GpaRange),
    /// A granule was not to be had.
    #[error(transparent)]
    Granule(#[from] PinError),
    /// A frame was not.
    #[error(transparent)]
    Frame(crate::pool::PoolError),
}
