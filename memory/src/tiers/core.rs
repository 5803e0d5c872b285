//! What all threads of the tiers share, and how one granule is claimed and
//! settled.
//!
//! Lock order: the adoption lock, then a pool's, then the budget's or the
//! room's. The fault thread takes all but the first, and whoever holds them
//! touches no guest memory: a pool's for a few memory accesses, the budget's
//! also for a read of /proc/self/maps, the room's for one of the cgroups'. The adoption lock is held while memory that nobody watches
//! yet is made present, which no fault thread is needed for.

use std::fs::File;
use std::io::BufWriter;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::budget::VmaBudget;
use super::counters::Counters;
use super::failure::{Damaged, Listener, Met};
use super::gone::{Gone, RegionGone};
use super::heat::Echo;
use super::room::Room;
use crate::engine::hurry::{Hurry, Waiters};
use crate::engine::{Engine, Fatal, Step, memory};
use crate::granule::{Granule, Kind, PoolId};
use crate::heat::sim::sampled::Recorder;
use crate::hva::Hva;
use crate::migrate::reserve::Reserve;
use crate::migrate::{MigrateRequest, Outcome, Target};
use crate::policy::Policy;
use crate::pool::Pool;
use crate::space::{Origin, Space};
use crate::table::{ClaimError, Claimed, GranuleTable, Place, TryPinError, View};
use crate::uffd::{Event, Userfaultfd};

/// Guest memory is adopted in pieces of this size, so that small granules do
/// not take a VMA each.
const ADOPT: u64 = crate::addr::HUGE_PAGE_SIZE;

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
    vmas: u64,
    /// Bytes that were taken from the room for it.
    charge: u64,
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

    /// Claims `granule` for what `request` wants, with a frame if it is to go
    /// to a pool: one of `frames`, which are of that pool. `last` is the end of
    /// the job before, whose mapping this one may continue.
    pub(crate) fn claim(
        &self,
        granule: Granule,
        request: &MigrateRequest,
        frames: &mut Option<Reserve>,
        last: Option<(Granule, Place)>,
    ) -> Result<Job, Outcome> {
        let mut view = self.table.get(granule);
        self.check(granule, view, request)?;
        if view.place == Place::Untouched {
            // Where first touches are watched the table knows of every page,
            // and whoever made one present here would wait for the fault thread.
            let watched = self.watches_first_touch && !self.is_window(granule);
            if watched || !(request.select.untouched || self.engine.exists(granule)) {
                return Err(Outcome::Untouched);
            }
            if self.engine.adopts() {
                self.adopt(granule)?;
                view = self.table.get(granule);
                // Passed over because of a pin that may be gone by now. It is
                // not watched, and without its page it would read as zeros.
                if view.place == Place::Untouched {
                    return Err(Outcome::Busy);
                }
            }
        }
        let (pool, to) = match (request.to, frames) {
            (Target::Pool(pool), Some(frames)) => {
                let frame = frames.take(self, granule).ok_or(Outcome::NoFrame)?;
                (Some((frames, frame)), Place::Device { pool, frame })
            }
            _ => (None, Place::Home),
        };
        let claimed = self.claim_to(granule, view, to, last);
        let (Err(outcome), Some((frames, frame))) = (&claimed, pool) else { return claimed };
        frames.untake(frame);
        match (outcome, request.to) {
            (Outcome::NoMemory, Target::Pool(pool)) => {
                // What is left of the run may have frames with memory.
                if let Some(mut pool) = self.pool(pool) {
                    frames.release(&mut pool);
                }
                self.claim_with_memory(granule, view, pool, last)
            }
            _ => claimed,
        }
    }

    /// Claims a granule to go to `to`, with all that its move takes.
    fn claim_to(
        &self,
        granule: Granule,
        view: View,
        to: Place,
        last: Option<(Granule, Place)>,
    ) -> Result<Job, Outcome> {
        let mut job = self.claim_for(granule, view, to)?;
        job.vmas = self.vmas(&job, last);
        if job.vmas > 0 && !lock(&self.budget).take(job.vmas) {
            self.abort(job.claimed);
            return Err(Outcome::VmaBudget);
        }
        self.with_room(job, Room::take)
    }

    /// The same for a free frame that has its memory already, where there is no
    /// room for more.
    fn claim_with_memory(
        &self,
        granule: Granule,
        view: View,
        pool: PoolId,
        last: Option<(Granule, Place)>,
    ) -> Result<Job, Outcome> {
        let frame = self.frame_with_memory(pool, granule).ok_or(Outcome::NoMemory)?;
        let to = Place::Device { pool, frame };
        let claimed = self.claim_to(granule, view, to, last);
        if claimed.is_err() {
            self.put(to);
        }
        claimed
    }

    /// What speaks against moving the granule, without touching it.
    fn check(&self, granule: Granule, view: View, request: &MigrateRequest) -> Result<(), Outcome> {
        let actual = self.space.actual(granule, view.place);
        if let Place::Device { pool, frame } = actual {
            match request.to {
                Target::Pool(to) if to == pool => return Err(Outcome::AlreadyThere),
                _ => {}
            }
            let selected = match self.kind_for(granule, pool) {
                Kind::Public => request.select.device_public,
                Kind::Private => request.select.device_private,
                Kind::Generic => false,
            };
            if !selected || request.from_pool.is_some_and(|from| from != pool) {
                return Err(Outcome::WrongKind);
            }
            let refcount = self.pool(pool).map_or(0, |pool| pool.refcount(frame));
            if refcount > 1 {
                return Err(Outcome::Pinned);
            }
        } else if request.to == Target::Home {
            return Err(Outcome::AlreadyThere);
        } else if !request.select.system {
            return Err(Outcome::WrongKind);
        }
        if let Target::Pool(to) = request.to
            && self.kind_for(granule, to) == Kind::Generic
        {
            return Err(Outcome::WrongKind);
        }
        match view {
            _ if self.damaged.contains(granule) || self.gone.has(actual) => Err(Outcome::Poisoned),
            View { moving: true, .. } => Err(Outcome::Busy),
            View { pins: 1.., .. } => Err(Outcome::Pinned),
            _ => Ok(()),
        }
    }

    /// Claims a granule that was as `view` says, to go to `to`.
    pub(crate) fn claim_for(
        &self,
        granule: Granule,
        view: View,
        to: Place,
    ) -> Result<Job, Outcome> {
        let claimed = self.table.claim(granule).map_err(|error| match error {
            ClaimError::Moving => Outcome::Busy,
            ClaimError::Pinned => Outcome::Pinned,
        })?;
        if claimed.from != view.place {
            self.abort(claimed);
            return Err(Outcome::Busy);
        }
        let from = self.space.actual(granule, claimed.from);
        // Looked at after it was claimed: whoever finds a region gone gives up
        // what is not claimed by then.
        if self.gone.has(from) {
            self.abort(claimed);
            return Err(Outcome::Poisoned);
        }
        if self.gone.has(to) {
            self.abort(claimed);
            return Err(Outcome::BadFrame);
        }
        let aside = View { place: claimed.from, pins: 0, moving: true, mapped: claimed.was_mapped };
        let from_mapped = claimed.was_mapped
            || claimed.from == Place::Untouched
            || self.engine.aside_is_mapped() && self.is_aside(granule, &aside);
        let to_mapped = match to {
            Place::Device { pool, .. } => self.kind_for(granule, pool) != Kind::Private,
            Place::Home | Place::Untouched => true,
        };
        Ok(Job { claimed, from, from_mapped, to, to_mapped, vmas: 0, charge: 0 })
    }

    /// The job with room for the memory that it takes, or nothing done.
    fn with_room(
        &self,
        mut job: Job,
        take: impl FnOnce(&mut Room, u64) -> bool,
    ) -> Result<Job, Outcome> {
        job.charge = self.charge_of(|| self.engine.takes(&job.step()));
        if take(&mut lock(&self.room), job.charge) {
            return Ok(job);
        }
        if job.vmas > 0 {
            lock(&self.budget).given_up(job.vmas);
        }
        self.abort(job.claimed);
        Err(Outcome::NoMemory)
    }

    /// What `takes` says, asked only if there is a limit that it counts for.
    fn charge_of(&self, takes: impl FnOnce() -> u64) -> u64 {
        let limited = lock(&self.room).is_limited();
        if limited { takes() } else { 0 }
    }

    /// Lets go of a granule that was claimed and not touched.
    fn abort(&self, claimed: Claimed) {
        let (granule, mapped) = (claimed.granule, claimed.was_mapped);
        self.table.abort(claimed);
        self.wake_settled(granule, mapped);
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

    /// Whether a granule in that state was set aside to see its next touch,
    /// and is not in a frame where vCPUs must not reach it.
    pub(crate) fn is_aside(&self, granule: Granule, view: &View) -> bool {
        match view.place {
            _ if view.mapped => false,
            Place::Untouched => false,
            Place::Home => true,
            Place::Device { pool, .. } => self.kind_for(granule, pool) != Kind::Private,
        }
    }

    /// Sets a mapped granule aside, so that its next touch is seen. False if
    /// it is not to be had now.
    pub(crate) fn set_aside(&self, granule: Granule) -> bool {
        // What is lost of it is marked where the guest has it.
        if self.damaged.contains(granule) {
            return false;
        }
        let Ok(claimed) = self.table.claim(granule) else { return false };
        let place = claimed.from;
        let vmas = if self.engine.aside_is_mapped() { 2 } else { 0 };
        if place == Place::Untouched
            || !claimed.was_mapped
            || vmas > 0 && !lock(&self.budget).take(vmas)
        {
            self.abort(claimed);
            return false;
        }
        let aside = self.engine.set_aside(granule, place);
        if vmas > 0 {
            // As soon as its neighbours are watched as well they are one again,
            // and one that was watched already took none: counting tells.
            lock(&self.budget).given_up(vmas);
        }
        if aside.is_err() {
            self.abort(claimed);
            return false;
        }
        self.table.finish(claimed, place, false);
        self.wake_settled(granule, false);
        true
    }

    /// Gives the guest a granule back that was set aside and is as `view` says.
    /// False if it changed since, or is on its way.
    pub(crate) fn bring_back(&self, granule: Granule, view: View) -> bool {
        let Ok(claimed) = self.table.claim(granule) else { return false };
        if claimed.from != view.place || claimed.was_mapped {
            self.abort(claimed);
            return false;
        }
        self.engine.bring_back(granule, claimed.from);
        self.table.finish(claimed, view.place, true);
        self.wake_settled(granule, true);
        true
    }

    /// Takes a granule that exists and that nobody moved yet under control, so
    /// that it can be set aside; true if it was already.
    pub(crate) fn is_managed(&self, granule: Granule) -> bool {
        match self.table.get(granule).place {
            Place::Untouched if self.watches_first_touch || !self.engine.exists(granule) => false,
            Place::Untouched if self.engine.adopts() => {
                self.adopt(granule).is_ok() && self.table.get(granule).place != Place::Untouched
            }
            Place::Untouched => self.take_note(granule),
            Place::Home | Place::Device { .. } => true,
        }
    }

    /// Takes a granule that exists, and that needs no adoption, into the table.
    fn take_note(&self, granule: Granule) -> bool {
        let Ok(claimed) = self.table.claim(granule) else { return false };
        if claimed.from == Place::Untouched {
            self.table.finish(claimed, self.space.birthplace(granule), true);
            self.wake_settled(granule, true);
        } else {
            self.abort(claimed);
        }
        true
    }

    /// Serves a touch of a page that is there and not mapped, of a granule that
    /// is not set aside: the kernel has unmapped it for reasons of its own. False
    /// if the granule is in motion; whoever moves it wakes then.
    pub(crate) fn map_in(&self, granule: Granule, page: Hva) -> bool {
        let pinned = match self.table.try_pin(granule) {
            Ok(()) => true,
            Err(TryPinError::Moving) => return false,
            // So many hold it that nobody can move it before all have let go.
            Err(TryPinError::TooMany) => false,
        };
        // It goes nowhere now.
        let place = self.space.actual(granule, self.table.get(granule).place);
        self.engine.map_in(granule, place, page);
        if pinned {
            self.table.unpin(granule);
        }
        true
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

    /// Takes the memory around a granule that nobody moved yet under control.
    fn adopt(&self, granule: Granule) -> Result<(), Outcome> {
        let part = self.space.part(granule).ok_or(Outcome::Busy)?;
        let _one_at_a_time = lock(&self.adopting);
        if self.table.get(granule).place != Place::Untouched {
            return Ok(());
        }
        let piece = (ADOPT / self.space.size().bytes()).max(1) as u32;
        let first = part.first + (granule.0 - part.first) / piece * piece;
        let end = (part.first + part.count).min(first + piece);
        // A VMA of its own, unless the piece before is under control too.
        let joins =
            first > part.first && self.table.get(Granule(first - 1)).place != Place::Untouched;
        let vmas = if joins { 0 } else { 2 };
        if !lock(&self.budget).take(vmas) {
            return Err(Outcome::VmaBudget);
        }
        let charge = self.charge_of(|| match self.space.hva_range(Granule(first), end - first) {
            // A kernel that does not tell may have none of it.
            Some(range) => {
                range.len() as u64 - memory::resident(range).map_or(0, |found| found.bytes)
            }
            None => 0,
        });
        if !lock(&self.room).take(charge) {
            lock(&self.budget).given_up(vmas);
            return Err(Outcome::NoMemory);
        }
        let mut claimed: Vec<Claimed> = Vec::new();
        for index in first..end {
            match self.table.claim(Granule(index)) {
                Ok(claim) if claim.from == Place::Untouched => claimed.push(claim),
                Ok(claim) => self.abort(claim),
                Err(_) => {}
            }
        }
        let mut result = Ok(());
        for run in consecutive(claimed) {
            let adopted = self.adopt_run(&run);
            for claim in run {
                match adopted {
                    Ok(()) => {
                        let place = self.space.birthplace(claim.granule);
                        self.table.finish(claim, place, true);
                    }
                    Err(_) => self.abort(claim),
                }
            }
            result = result.and(adopted);
        }
        lock(&self.budget).landed(vmas);
        lock(&self.room).landed(charge);
        result.map_err(|errno| match errno {
            Errno::NOMEM => Outcome::NoFrame,
            _ => Outcome::Busy,
        })
    }

    fn adopt_run(&self, run: &[Claimed]) -> Result<(), Errno> {
        let first = run.first().map_or(Granule(0), |claim| claim.granule);
        let range = self.space.hva_range(first, run.len() as u32).ok_or(Errno::INVAL)?;
        self.engine.adopt(range)
    }

    /// Adopts what is there already and lets the first touch of everything
    /// else in RAM come as an event.
    pub(crate) fn watch_first_touches(&self) -> Result<(), Errno> {
        for part in self.space.parts().iter().filter(|part| part.origin == Origin::Ram) {
            let mut next = part.first;
            let end = part.first + part.count;
            while next < end {
                let there = |index: u32| self.engine.exists(Granule(index));
                let present = there(next);
                let mut stop = next + 1;
                while stop < end && there(stop) == present {
                    stop += 1;
                }
                let range = self.space.hva_range(Granule(next), stop - next).ok_or(Errno::INVAL)?;
                if present {
                    self.engine.adopt(range)?;
                    for index in next..stop {
                        self.table.set(Granule(index), Place::Home, true);
                    }
                } else {
                    self.engine.watch_first_touch(range)?;
                }
                next = stop;
            }
        }
        Ok(())
    }
}

/// Claims in runs of neighbours.
fn consecutive(claims: Vec<Claimed>) -> Vec<Vec<Claimed>> {
    let mut runs: Vec<Vec<Claimed>> = Vec::new();
    for claim in claims {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| last.granule.0 + 1 == claim.granule.0) => {
                run.push(claim);
            }
            _ => runs.push(vec![claim]),
        }
    }
    runs
}
