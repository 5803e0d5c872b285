//! The fault thread: reads what waits on the userfaultfd and decides.
//!
//! It moves single granules itself, so that a fault is never queued behind a
//! batch. It takes no lock that anybody holds while a granule moves, and never
//! touches the guest's own mapping: its fault would wait for itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::core::{Core, Touched, lock};
use super::death::Death;
use super::failure::Met;
use crate::granule::{Granule, Kind, PoolId};
use crate::hva::Hva;
use crate::policy::{Decision, Event as Touch, Facts};
use crate::table::{ClaimError, Place, View};
use crate::uffd::Event;

/// How soon a fault that could not be served is tried again.
const RETRY: Timespec = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };

/// How often devices are looked at. Guests that KVM serves with asynchronous
/// page faults are told to wait for what is out of reach, again and again, and
/// then nobody hears of it.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The thread with what ends it.
pub(crate) struct FaultThread {
    core: Arc<Core>,
    over: Arc<AtomicBool>,
    die: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FaultThread {
    /// Starts it.
    ///
    /// # Errors
    /// No thread or descriptor could be had.
    pub(crate) fn start(core: &Arc<Core>) -> io::Result<Self> {
        let die = Arc::new(AtomicBool::new(false));
        let over = Arc::new(AtomicBool::new(false));
        let service = Service {
            core: Arc::clone(core),
            over: Arc::clone(&over),
            die: Arc::clone(&die),
            events: Vec::new(),
            waiting: BTreeMap::new(),
            devices: core.engine.may_lose_pools().then(Instant::now),
        };
        let thread = thread::Builder::new().name("fault".into()).spawn(move || service.serve())?;
        Ok(Self { core: Arc::clone(core), over, die, thread: Some(thread) })
    }

    /// Makes the thread panic, to test what follows.
    pub(crate) fn kill(&self) {
        self.die.store(true, Ordering::Release);
        self.core.wake_fault_thread();
    }
}

impl Drop for FaultThread {
    /// Ends the thread. Nobody touches guest memory any more.
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        self.core.wake_fault_thread();
        if let Some(thread) = self.thread.take() {
            // A panic has ended the process.
            let _ = thread.join();
        }
    }
}

/// What a fault was.
#[derive(Clone, Copy, Debug, Default)]
struct Fault {
    write: bool,
    /// The page, if it is there and not mapped.
    minor: Option<Hva>,
}

struct Service {
    core: Arc<Core>,
    over: Arc<AtomicBool>,
    die: Arc<AtomicBool>,
    events: Vec<Event>,
    /// Granules whose fault could not be served yet, and when it was read.
    waiting: BTreeMap<Granule, Instant>,
    /// When devices were looked at last, if there are any.
    devices: Option<Instant>,
}

impl Service {
    fn serve(mut self) {
        let _death = Death::of("the fault thread", self.core.fatal);
        while !self.over.load(Ordering::Acquire) {
            if let Err(errno) = self.round() {
                (self.core.fatal)(&format!("faults of guest memory cannot be read: {errno}"));
            }
        }
    }

    fn round(&mut self) -> Result<(), Errno> {
        let timeout = match self.waiting.is_empty() {
            false => Some(&RETRY),
            true => self.devices.is_some().then_some(&LOOK),
        };
        let mut fds = [
            PollFd::new(&*self.core.uffd, PollFlags::IN),
            PollFd::new(&self.core.fault_wake, PollFlags::IN),
        ];
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if fds[1].revents().contains(PollFlags::IN) {
            let mut count = [0; 8];
            // What was written before is seen below.
            let _ = rustix::io::read(&self.core.fault_wake, &mut count);
            self.core.echo.answer();
        }
        if self.die.load(Ordering::Acquire) {
            panic!("the fault thread was told to die");
        }
        if let Some(looked) = &mut self.devices
            && looked.elapsed().as_nanos() >= LOOK.tv_nsec as u128
        {
            *looked = Instant::now();
            self.core.look_for_gone();
        }
        for (granule, since) in std::mem::take(&mut self.waiting) {
            self.core.counters.retried.fetch_add(1, Ordering::Relaxed);
            self.resolve(granule, Fault::default(), since);
        }
        let mut events = std::mem::take(&mut self.events);
        events.append(&mut lock(&self.core.inbox));
        self.core.uffd.read(&mut events)?;
        let since = Instant::now();
        for event in events.drain(..) {
            match self.core.space.at_hva(event.address) {
                // Its turn comes; each try that fails wakes whoever waits, who
                // then faults again.
                Some(granule) if self.waiting.contains_key(&granule) => {}
                Some(granule) => {
                    let minor = event.minor.then_some(event.address);
                    self.resolve(granule, Fault { write: event.write, minor }, since);
                }
                // Nothing else is watched in a way that makes events.
                None => (self.core.fatal)("a fault outside of guest memory"),
            }
        }
        self.events = events;
        Ok(())
    }

    fn resolve(&mut self, granule: Granule, fault: Fault, since: Instant) {
        if self.serve_one(granule, fault) {
            self.core.counters.latency.add(since.elapsed());
        } else if let Some(waiting) = self.waiting.get_mut(&granule) {
            *waiting = since;
        }
    }

    /// Serves the fault; false if it is left to a later try, or to whoever
    /// moves the granule.
    fn serve_one(&mut self, granule: Granule, fault: Fault) -> bool {
        let counters = &self.core.counters;
        match self.core.table.get(granule) {
            // Whoever moves it wakes those who wait.
            View { moving: true, .. } => {
                self.core.is_waited_for(granule);
                return false;
            }
            view @ View { place: Place::Untouched, .. } => self.first_touch(granule, view),
            view if self.core.is_aside(granule, &view) => {
                self.bring_back(granule, view, fault.write)
            }
            view @ View { place: Place::Device { pool, .. }, mapped: false, .. } => {
                self.come_home(granule, view, pool);
            }
            _ => {
                if let Some(page) = fault.minor
                    && !self.core.map_in(granule, page)
                {
                    self.core.is_waited_for(granule);
                    return false;
                }
                counters.stale.fetch_add(1, Ordering::Relaxed);
                self.core.wake(granule);
            }
        }
        !self.waiting.contains_key(&granule)
    }

    /// Tries again a little later.
    fn retry(&mut self, granule: Granule) {
        self.waiting.insert(granule, Instant::now());
    }

    /// A granule that was set aside to see just that was touched.
    fn bring_back(&mut self, granule: Granule, view: View, write: bool) {
        let at = Instant::now();
        if self.core.bring_back(granule, view) {
            lock(&self.core.touched).push(Touched { granule, at, write, served: at.elapsed() });
        } else {
            self.retry(granule);
        }
    }

    /// A granule in a frame of kind `private` was touched.
    fn come_home(&mut self, granule: Granule, view: View, pool: PoolId) {
        let core = &self.core;
        let facts = Facts {
            kind: core.kind_for(granule, pool),
            place: view.place,
            window: false,
            fast: None,
        };
        if lock(&core.policy).decide(Touch::VcpuTouch, &facts) != Decision::ToHome {
            (core.fatal)("a policy leaves an unmapped granule where it is");
        }
        if !core.come_home(granule, view) {
            self.retry(granule);
        }
    }

    /// RAM that nobody ever touched was touched.
    fn first_touch(&mut self, granule: Granule, view: View) {
        let core = &self.core;
        let fast =
            core.pools.iter().map(lock).find_map(|pool| {
                (pool.kind() == Kind::Public && pool.free() > 0).then(|| pool.id())
            });
        let facts = Facts {
            kind: fast.map_or(Kind::Public, |pool| core.kind_for(granule, pool)),
            place: view.place,
            window: core.is_window(granule),
            fast,
        };
        let decision = lock(&core.policy).decide(Touch::FirstTouch, &facts);
        let vmas = core.engine.vmas_per_run();
        match decision {
            Decision::ToPool(pool) if lock(&core.budget).take(vmas) => {
                let frame = core.pool(pool).and_then(|mut pool| pool.allocate(granule));
                self.place_first(granule, frame.map(|frame| Place::Device { pool, frame }));
                // Neighbours that are touched in order get one mapping.
                lock(&self.core.budget).given_up(vmas);
            }
            _ => self.place_first(granule, None),
        }
    }

    /// Gives a granule its first memory: `device`, which is its own, or home.
    fn place_first(&mut self, granule: Granule, mut device: Option<Place>) {
        let core = &self.core;
        let claimed = match core.table.claim(granule) {
            Ok(claimed) => Some(claimed),
            // Whoever pinned it may be the one who waits. It can have its
            // first page at home, where pins need no frame to be counted at.
            Err(ClaimError::Pinned) => {
                device.take().into_iter().for_each(|place| core.put(place));
                core.table.claim_first(granule)
            }
            Err(ClaimError::Moving) => None,
        };
        let Some(claimed) = claimed else {
            device.into_iter().for_each(|place| core.put(place));
            self.retry(granule);
            return;
        };
        if claimed.from != Place::Untouched {
            device.into_iter().for_each(|place| core.put(place));
            core.table.abort(claimed);
            return core.wake(granule);
        }
        for place in device.into_iter().chain([Place::Home]) {
            if core.engine.place_first(granule, place).is_ok() {
                core.table.finish(claimed, place, true);
                core.wake_settled(granule, true);
                core.counters.first_touches.fetch_add(1, Ordering::Relaxed);
                return;
            }
            for (_, lost) in core.engine.losses(&mut [granule].into_iter()) {
                core.lose(granule, None, lost, Met::Frame);
            }
            core.put(place);
        }
        core.table.abort(claimed);
        self.retry(granule);
    }
}
