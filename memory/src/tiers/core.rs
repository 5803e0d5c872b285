//! What all threads of the tiers share, and how granules that were claimed
//! (`claims`) are moved and settled.
//!
//! Lock order: the adoption lock, then a pool's, then the budget's or the
//! room's. The fault thread takes all but the first, and whoever holds them
//! touches no guest memory: a pool's for a few memory accesses, the budget's
//! also for a read of /proc/self/maps, the room's for one of the cgroups'. The
//! adoption lock is held while memory that nobody watches yet is made present,
//! which no fault thread is needed for.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::budget::VmaBudget;
use super::counters::Counters;
use super::failure::{Damaged, Listener, Met};
use super::gone::{Gone, RegionGone};
use super::heat::Echo;
use super::room::Room;
use crate::engine::hurry::{Hurry, Waiters};
use crate::engine::{Engine, Fatal, Step};
use crate::granule::{Granule, Kind, PoolId};
use crate::heat::sim::sampled::Recorder;
use crate::mapped::Mapped;
use crate::migrate::Outcome;
use crate::park::Park;
use crate::policy::Policy;
use crate::pool::Pool;
use crate::space::{Origin, Space};
use crate::table::{Claimed, GranuleTable, Place, View};
use crate::uffd::{Event, Userfaultfd};

/// A granule on its way.
#[derive(Debug)]
pub(crate) struct Job {
    pub(super) claimed: Claimed,
    /// Where it really is, also if nobody had moved it before.
    pub(super) from: Place,
    pub(super) from_mapped: bool,
    pub(super) to: Place,
    pub(super) to_mapped: bool,
    /// VMAs that were taken from the budget for it.
    pub(super) vmas: u64,
    /// Bytes that were taken from the room for it.
    pub(super) charge: u64,
}

impl Job {
    pub(super) fn step(&self) -> Step {
        Step {
            granule: self.claimed.granule,
            from: self.from,
            from_mapped: self.from_mapped,
            to: self.to,
            to_mapped: self.to_mapped,
        }
    }

    /// Granule and destination.
    pub(crate) fn end(&self) -> (Granule, Place) {
        (self.claimed.granule, self.to)
    }
}

/// A touch of a granule that was set aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Touched {
    pub(crate) granule: Granule,
    pub(crate) at: Instant,
    pub(crate) write: bool,
    /// Time that it took to give it back.
    pub(crate) served: Duration,
}

/// Shared state of the tiers.
pub(crate) struct Core {
    pub(crate) uffd: Arc<Userfaultfd>,
    pub(crate) space: Arc<Space>,
    pub(crate) table: GranuleTable,
    pub(crate) pools: Vec<Mutex<Pool>>,
    /// Kind of each pool.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) engine: Box<dyn Engine>,
    pub(crate) policy: Mutex<Box<dyn Policy>>,
    pub(crate) budget: Mutex<VmaBudget>,
    /// Memory that cgroups of this process leave it.
    pub(crate) room: Mutex<Room>,
    pub(crate) adopting: Mutex<()>,
    /// Granules in motion that somebody waits for.
    pub(crate) hurry: Hurry,
    /// Faults that movers have read and that are the fault thread's to serve.
    pub(crate) inbox: Mutex<Vec<Event>>,
    /// Wakes the fault thread.
    pub(crate) fault_wake: OwnedFd,
    /// Whether the first touches of RAM come as events.
    pub(crate) watches_first_touch: bool,
    pub(crate) counters: Counters,
    /// Granules of which host memory has lost a part; empty, nearly always.
    pub(crate) damaged: Damaged,
    /// Who is told of memory that fails.
    pub(crate) on_failure: Listener,
    /// Called once for each region whose memory is gone.
    pub(crate) on_gone: fn(RegionGone),
    /// Regions whose memory is gone.
    pub(crate) gone: Gone,
    /// Touches of granules that were set aside.
    pub(crate) touched: Mutex<Vec<Touched>>,
    /// Where what policy `heat` sees is written, until that fails.
    pub(crate) recorder: Mutex<Option<Recorder<BufWriter<File>>>>,
    /// Who parks vCPUs, if anybody does.
    pub(crate) park: Option<Arc<dyn Park>>,
    /// Who maps guest memory for the guest, if it is known.
    pub(crate) mapped: OnceLock<Arc<dyn Mapped>>,
    /// How soon the fault thread wakes up.
    pub(crate) echo: Echo,
    pub(crate) over: AtomicBool,
    pub(crate) fatal: Fatal,
}

/// A lock whose holder panicked guards data that is still whole here: every
/// critical section is a single change.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    /// Whether the machine is over.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Faults until all that was taken from the guest of a granule, for a moment,
    /// is mapped again.
    pub(super) fn faults_to_map(&self) -> u32 {
        let taken = self.space.size().bytes().min(self.engine.set_aside_at_most());
        let pages = self.mapped.get().and_then(|mapped| mapped.pages());
        pages.unwrap_or_default().faults(taken)
    }

    pub(crate) fn pool(&self, id: PoolId) -> Option<MutexGuard<'_, Pool>> {
        self.pools.get(usize::from(id.0)).map(lock)
    }

    /// What the frames of a pool are to vCPUs; nothing moves to or from a pool
    /// that does not exist.
    pub(crate) fn kind(&self, id: PoolId) -> Kind {
        self.kinds.get(usize::from(id.0)).copied().unwrap_or(Kind::Generic)
    }

    /// Whether a granule belongs to an SPM window, which is `public` towards
    /// vCPUs whatever its region's kind.
    pub(crate) fn is_window(&self, granule: Granule) -> bool {
        matches!(self.space.part(granule), Some(part) if part.origin != Origin::Ram)
    }

    /// What vCPUs may do with `granule` in a frame of `pool`.
    pub(crate) fn kind_for(&self, granule: Granule, pool: PoolId) -> Kind {
        match self.kind(pool) {
            Kind::Private if self.is_window(granule) => Kind::Public,
            kind => kind,
        }
    }

    /// Whoever touched a granule while it was claimed waits for an answer that
    /// only the fault thread has, which passed over a granule in motion. Of one
    /// that the guest has mapped that is so where looks leave a watch for minor
    /// faults behind. Called when the table says that it is settled: what is
    /// woken earlier may be passed over once more.
    pub(super) fn wake_settled(&self, granule: Granule, mapped: bool) {
        if !mapped || self.engine.aside_is_mapped() {
            self.wake(granule);
        }
    }

    /// Brings a granule home that was touched in a frame where nobody reaches
    /// it. False if it has to be tried again.
    pub(crate) fn come_home(&self, granule: Granule, view: View) -> bool {
        if self.gone.has(view.place) {
            self.give_up_if_gone(granule);
            return true;
        }
        // An error: a pin holds it, it changed since it was looked at, or its
        // home page would take more memory than there may be.
        let job = self
            .claim_for(granule, view, Place::Home)
            .and_then(|job| self.with_room(job, Room::take_for_fault));
        let came = job.is_ok_and(|job| {
            let outcomes = self.carry_out(vec![job]);
            outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Moved)
        });
        self.counters.come_home.fetch_add(u64::from(came), Ordering::Relaxed);
        came
    }

    /// Gives the frame of a place back to its pool.
    pub(crate) fn put(&self, place: Place) {
        if let Place::Device { pool, frame } = place
            && let Some(mut pool) = self.pool(pool)
            && let Err(error) = pool.put(frame)
        {
            drop(pool);
            (self.fatal)(&format!("the pool has lost count: {error}"));
        }
    }

    /// Moves a group of claimed granules and settles each.
    pub(crate) fn carry_out(&self, jobs: Vec<Job>) -> Vec<(Granule, Outcome)> {
        let steps: Vec<Step> = jobs.iter().map(Job::step).collect();
        let mut outcomes = Vec::with_capacity(steps.len());
        let waiters = Waiters { hurry: &self.hurry, listen: &|| self.listen() };
        self.engine.transfer(&steps, &waiters, &mut outcomes);
        // Before the frames are put, so that nobody gets one of these again.
        let losses = self.engine.losses(&mut steps.iter().map(|step| step.granule));
        let found = if losses.is_empty() { Vec::new() } else { self.find_gone() };
        for (granule, place) in losses {
            if self.gone.has(place) {
                // What stays in a region that is gone is given up with it. What
                // left it has come without what was lost on the way.
                let left = steps.iter().zip(&outcomes).any(|(step, outcome)| {
                    (step.granule, step.from) == (granule, place) && *outcome == Outcome::Moved
                });
                if left {
                    self.damaged.insert(granule);
                    self.lose(granule, None, place, Met::Unbound);
                }
                continue;
            }
            let ahead = steps.iter().any(|step| (step.granule, step.to) == (granule, place));
            if !ahead {
                self.damaged.insert(granule);
            }
            self.lose(granule, None, place, if ahead { Met::Frame } else { Met::Move });
        }
        let settled = jobs
            .into_iter()
            .zip(outcomes)
            .map(|(job, outcome)| (job.claimed.granule, self.settle(job, outcome)))
            .collect();
        found.into_iter().for_each(|pool| self.give_up_region(pool));
        steps.iter().for_each(|step| self.give_up_if_gone(step.granule));
        settled
    }

    fn settle(&self, job: Job, outcome: Outcome) -> Outcome {
        let Job { claimed, from, from_mapped, to, to_mapped, vmas, charge } = job;
        if charge > 0 {
            lock(&self.room).landed(charge);
        }
        if self.engine.vmas_per_run() > 0 {
            let mut budget = lock(&self.budget);
            match outcome {
                Outcome::Moved => budget.landed(vmas),
                _ => budget.given_up(vmas),
            }
        }
        let granule = claimed.granule;
        let mapped = if outcome == Outcome::Moved {
            self.table.finish(claimed, to, to_mapped);
            self.put(from);
            to_mapped
        } else {
            if from_mapped && !claimed.was_mapped && claimed.from != Place::Untouched {
                // It was set aside, and is not any more.
                self.engine.bring_back(granule, from);
            }
            self.table.finish(claimed, from, from_mapped);
            self.put(to);
            from_mapped
        };
        self.wake_settled(granule, mapped);
        self.counters.settled(from, to, outcome, self.space.size().bytes());
        outcome
    }

    /// Reads faults on behalf of the fault thread: of those on granules in
    /// motion the mover hears at once, the others are handed on.
    fn listen(&self) {
        let mut events = Vec::new();
        // An error is the fault thread's to find.
        if self.uffd.read(&mut events).is_err() || events.is_empty() {
            return;
        }
        events.retain(|event| match self.space.at_hva(event.address) {
            Some(granule) if self.table.get(granule).moving => {
                self.is_waited_for(granule);
                false
            }
            _ => true,
        });
        if !events.is_empty() {
            lock(&self.inbox).extend(events);
            self.wake_fault_thread();
        }
    }

    /// Somebody waits for a granule in motion.
    pub(crate) fn is_waited_for(&self, granule: Granule) {
        self.hurry.ask(granule);
        self.counters.waited.fetch_add(1, Ordering::Relaxed);
    }

    /// Has the fault thread look around.
    pub(crate) fn wake_fault_thread(&self) {
        // It can only be full if it has been written already.
        let _ = rustix::io::write(&self.fault_wake, &1u64.to_ne_bytes());
    }

    /// Lets whoever waits for a granule try again.
    pub(crate) fn wake(&self, granule: Granule) {
        if let Some(range) = self.space.hva_range(granule, 1)
            && let Err(errno) = self.uffd.wake(range)
        {
            (self.fatal)(&format!("waiters for guest memory cannot be woken: {errno}"));
        }
    }
}
