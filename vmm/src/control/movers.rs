//! Requests about memory, each on a thread of its own, so that none waits for
//! another.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use neap_memory::Gpa;
use neap_memory::migrate::MigrateRequest;

use super::api::{self, Answer, Error, ErrorKind, MAX_RUNS};
use super::{Memory, Reply, translate};

/// How long a pin waits for a granule in motion.
const PIN_PATIENCE: Duration = Duration::from_secs(10);
/// Most requests about memory at a time, of all clients: each takes a thread.
const MAX_MOVERS: usize = 64;
/// Most pins at a time that clients hold.
const MAX_PINS: usize = 4096;

/// What a mover does.
#[derive(Debug)]
pub(super) enum Job {
    /// Adds to what the main thread knows.
    Status(Box<api::Status>),
    Residency {
        verify: bool,
        from: u64,
    },
    Migrate(MigrateRequest),
    Pin(api::Range),
    Unpin(u64),
}

/// Where movers come from.
pub(super) struct Movers {
    memory: Arc<dyn Memory>,
    pins: Arc<Mutex<Pins>>,
    /// One clone for each thread, and this one.
    at_work: Arc<()>,
}

/// What clients hold.
#[derive(Default)]
struct Pins {
    next: u64,
    held: BTreeMap<u64, Box<dyn Send>>,
}

impl Movers {
    pub(super) fn new(memory: Arc<dyn Memory>) -> Self {
        Self { memory, pins: Arc::default(), at_work: Arc::default() }
    }

    /// Has `job` done; its result goes to `reply`.
    pub(super) fn submit(&self, job: Job, reply: Reply) {
        if Arc::strong_count(&self.at_work) > MAX_MOVERS {
            let message = format!("{MAX_MOVERS} requests are at work: wait for one");
            return reply.finish(Err(Error::new(ErrorKind::Refused, message)));
        }
        let (memory, pins) = (Arc::clone(&self.memory), Arc::clone(&self.pins));
        let at_work = Arc::clone(&self.at_work);
        // The reply has to survive a thread that does not come to be.
        let slot = Arc::new(Mutex::new(Some(reply)));
        let work = {
            let slot = Arc::clone(&slot);
            move || {
                let _at_work = at_work;
                if let Some(reply) = lock(&slot).take() {
                    let result = carry_out(job, &*memory, &pins, &reply);
                    reply.finish(result);
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("mover".into()).spawn(work)
            && let Some(reply) = lock(&slot).take()
        {
            reply.finish(Err(Error::new(ErrorKind::Failed, format!("no thread for it: {error}"))));
        }
    }

    /// Refuses requests from now on, and ends those at work.
    pub(super) fn stop(&self) {
        self.memory.stop();
    }
}

fn carry_out(
    job: Job,
    memory: &dyn Memory,
    pins: &Mutex<Pins>,
    reply: &Reply,
) -> Result<Answer, Error> {
    match job {
        Job::Status(mut status) => {
            status.tiers = Some(memory.status());
            Ok(Answer::Status(status))
        }
        Job::Residency { verify, from } => residency(memory, verify, from, reply),
        Job::Migrate(request) => migrate(memory, &request, reply),
        Job::Pin(range) => pin(memory, pins, &range),
        Job::Unpin(number) => match lock(pins).held.remove(&number) {
            Some(_pin) => Ok(Answer::Unpinned(api::Unpinned {})),
            None => Err(Error::new(ErrorKind::Refused, format!("there is no pin {number}"))),
        },
    }
}

fn migrate(memory: &dyn Memory, request: &MigrateRequest, reply: &Reply) -> Result<Answer, Error> {
    let mut tell = |progress: &neap_memory::migrate::Progress| {
        reply.progress(translate::progress(progress));
        if reply.is_wanted() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    match memory.migrate(request, &mut tell) {
        Ok(report) => Ok(Answer::Migrated(translate::migrated(report))),
        Err(error) => Err(translate::refusal(&error)),
    }
}

fn residency(memory: &dyn Memory, verify: bool, from: u64, reply: &Reply) -> Result<Answer, Error> {
    let verified = if verify {
        let failed = |error| Error::new(ErrorKind::Failed, format!("the kernel: {error}"));
        Some(memory.verify(&|| reply.is_wanted()).map_err(failed)?)
    } else {
        None
    };
    let mut runs = memory.residency(Gpa(from), MAX_RUNS + 1);
    let next = runs.get(MAX_RUNS).map(|run| run.base);
    runs.truncate(MAX_RUNS);
    Ok(Answer::Residency(api::Residency { runs, next, verified }))
}

fn pin(memory: &dyn Memory, pins: &Mutex<Pins>, range: &api::Range) -> Result<Answer, Error> {
    let refused = |message: String| Error::new(ErrorKind::Refused, message);
    let range = translate::gpa_range(range)?;
    let too_many = || refused(format!("{MAX_PINS} pins are held already: let go of one"));
    if lock(pins).held.len() >= MAX_PINS {
        return Err(too_many());
    }
    // Not under the lock: it waits for what moves.
    let held = memory.pin(range, PIN_PATIENCE).map_err(refused)?;
    let mut pins = lock(pins);
    if pins.held.len() >= MAX_PINS {
        return Err(too_many());
    }
    let number = pins.next;
    pins.next += 1;
    pins.held.insert(number, held);
    Ok(Answer::Pinned(api::Pinned { pin: number }))
}

/// What the locks guard is right after every statement under them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
