//! Requests about memory, each on a thread of its own, so that none waits for
//! another.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use neap_memory::Gpa;
use neap_memory::migrate::MigrateRequest;

use super::api::{self, Answer, Error, ErrorKind, Event, JobKind, MAX_RUNS, PolicyWord};
use super::hub::Hub;
use super::jobs::{Jobs, Running};
use super::metrics::{self, Counts};
use super::{Memory, Reply, translate};

/// How long a pin waits for a granule in motion.
const PIN_PATIENCE: Duration = Duration::from_secs(10);
/// Most requests about memory at a time, of all clients: each takes a thread.
const MAX_MOVERS: usize = 64;
/// Of these, most migrations, so that whoever wants to see what they do or
/// hold is not refused for them.
const MAX_MIGRATIONS: usize = 32;
/// Most pins at a time that clients hold.
const MAX_PINS: usize = 4096;

/// The outcome of a granule that a cgroup's limit left where it was.
const NO_MEMORY: &str = "no-memory";

/// What a mover does.
#[derive(Debug)]
pub(super) enum Job {
    /// Adds to what the main thread knows; with what the kernel says, if the
    /// flag is set.
    Status(Box<api::Status>, bool),
    /// The same, as metrics.
    Metrics(Box<api::Status>, Counts),
    Residency {
        verify: bool,
        from: u64,
    },
    Migrate(Migration),
    Pin(api::Range),
    Unpin(u64),
    Unplug(u8),
    Plug(api::Plug),
    FailPage(u64),
    Policy(Option<PolicyWord>),
}

/// A migration that is asked for.
#[derive(Debug)]
pub(super) struct Migration {
    pub(super) what: JobKind,
    pub(super) request: MigrateRequest,
    /// Whether it goes on without whoever asked.
    pub(super) detach: bool,
}

/// Where movers come from.
pub(super) struct Movers {
    memory: Arc<dyn Memory>,
    pins: Arc<Mutex<Pins>>,
    jobs: Arc<Jobs>,
    hub: Arc<Hub>,
    /// One clone for each thread, and this one.
    at_work: Arc<()>,
    /// The same for migrations.
    migrating: Arc<()>,
}

/// What clients hold.
#[derive(Default)]
struct Pins {
    next: u64,
    held: BTreeMap<u64, Box<dyn Send>>,
}

impl Movers {
    pub(super) fn new(memory: Arc<dyn Memory>, hub: Arc<Hub>) -> Self {
        let jobs = Arc::new(Jobs::new(Arc::clone(&hub)));
        let events = Arc::clone(&hub);
        memory.on_failure(Box::new(move |failed| events.tell(Event::MemoryFailed(failed))));
        Self {
            memory,
            pins: Arc::default(),
            jobs,
            hub,
            at_work: Arc::default(),
            migrating: Arc::default(),
        }
    }

    /// The jobs that there are.
    pub(super) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    /// Has `job` done; its result goes to `reply`.
    pub(super) fn submit(&self, job: Job, reply: Reply) {
        if Arc::strong_count(&self.at_work) > MAX_MOVERS {
            let message = format!("{MAX_MOVERS} requests are at work: wait for one");
            return reply.finish(Err(Error::new(ErrorKind::Refused, message)));
        }
        let migrating = matches!(job, Job::Migrate(_)).then(|| Arc::clone(&self.migrating));
        // One clone is its own, one this.
        if migrating.is_some() && Arc::strong_count(&self.migrating) > MAX_MIGRATIONS + 1 {
            let message = format!("{MAX_MIGRATIONS} migrations are at work: wait for one");
            return reply.finish(Err(Error::new(ErrorKind::Refused, message)));
        }
        let means = Means {
            memory: Arc::clone(&self.memory),
            pins: Arc::clone(&self.pins),
            jobs: Arc::clone(&self.jobs),
            hub: Arc::clone(&self.hub),
        };
        let at_work = Arc::clone(&self.at_work);
        // The reply has to survive a thread that does not come to be.
        let slot = Arc::new(Mutex::new(Some(reply)));
        let work = {
            let slot = Arc::clone(&slot);
            move || {
                let _at_work = (at_work, migrating);
                if let Some(reply) = lock(&slot).take() {
                    means.carry_out(job, reply);
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

/// What a mover works with.
struct Means {
    memory: Arc<dyn Memory>,
    pins: Arc<Mutex<Pins>>,
    jobs: Arc<Jobs>,
    hub: Arc<Hub>,
}

impl Means {
    fn carry_out(self, job: Job, reply: Reply) {
        let memory = &*self.memory;
        let result = match job {
            Job::Status(status, verify) => self.status(status, verify, &reply),
            Job::Metrics(mut status, counts) => {
                status.tiers = Some(memory.status());
                Ok(Answer::Metrics(api::Metrics { text: metrics::text(&status, &counts) }))
            }
            Job::Residency { verify, from } => residency(memory, verify, from, &reply),
            Job::Migrate(asked) if asked.detach => return self.migrate_detached(&asked, reply),
            Job::Migrate(asked) => self.migrate(&asked, &reply),
            Job::Pin(range) => pin(memory, &self.pins, &range),
            Job::Unpin(number) => match lock(&self.pins).held.remove(&number) {
                Some(_pin) => Ok(Answer::Unpinned(api::Unpinned {})),
                None => Err(Error::new(ErrorKind::Refused, format!("there is no pin {number}"))),
            },
            Job::Unplug(region) => self.unplug(region, &reply),
            Job::Plug(asked) => match memory.plug(&asked) {
                Ok(plugged) => {
                    self.tell_region(asked.region, true);
                    Ok(Answer::Plugged(plugged))
                }
                Err(why) => Err(refused(why)),
            },
            Job::FailPage(address) => memory
                .fail_page(Gpa(address))
                .map(|()| Answer::PageFailed(api::PageFailed {}))
                .map_err(refused),
            Job::Policy(set) => self.policy(set),
        };
        reply.finish(result);
    }

    fn status(
        &self,
        mut status: Box<api::Status>,
        verify: bool,
        reply: &Reply,
    ) -> Result<Answer, Error> {
        let mut tiers = self.memory.status();
        if verify {
            let failed = |error| Error::new(ErrorKind::Failed, format!("the kernel: {error}"));
            let accounts = self.memory.account(&|| reply.is_wanted()).map_err(failed)?;
            tiers.accounts = Some(accounts);
        }
        status.tiers = Some(tiers);
        Ok(Answer::Status(status))
    }

    /// A migration that ends when nobody waits for it any more.
    fn migrate(&self, asked: &Migration, reply: &Reply) -> Result<Answer, Error> {
        let job = self.jobs.begin(asked.what, false);
        let mut tell = |progress: &neap_memory::migrate::Progress| {
            reply.progress(translate::progress(progress));
            match reply.is_wanted() {
                true => job.progress(progress),
                false => ControlFlow::Break(()),
            }
        };
        let result = self.memory.migrate(&asked.request, &mut tell);
        let result = result.map(translate::migrated).map_err(|error| translate::refusal(&error));
        self.end(job, &result);
        result.map(Answer::Migrated)
    }

    /// A migration that is answered before it begins.
    fn migrate_detached(&self, asked: &Migration, reply: Reply) {
        if let Err(error) = self.memory.check(&asked.request) {
            return reply.finish(Err(translate::refusal(&error)));
        }
        let job = self.jobs.begin(asked.what, true);
        reply.finish(job.told().map(|job| Answer::Job(Box::new(job))));
        let mut tell = |progress: &neap_memory::migrate::Progress| job.progress(progress);
        let result = self.memory.migrate(&asked.request, &mut tell);
        self.end(job, &result.map(translate::migrated).map_err(|error| translate::refusal(&error)));
    }

    fn end(&self, job: Running, result: &Result<api::Migrated, Error>) {
        let without = |migrated: &api::Migrated| migrated.outcomes.get(NO_MEMORY).copied();
        if let Some(granules) = result.as_ref().ok().and_then(without) {
            self.hub.tell(Event::NoMemory(api::NoMemory { job: Some(job.id()), granules }));
        }
        job.end(result);
    }

    fn unplug(&self, region: u8, reply: &Reply) -> Result<Answer, Error> {
        let mut tell = |progress: &neap_memory::migrate::Progress| {
            reply.progress(translate::progress(progress));
            if reply.is_wanted() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        };
        let unplugged = self.memory.unplug(region, &mut tell).map_err(refused)?;
        let left = unplugged.left.iter().filter(|left| left.outcome == NO_MEMORY);
        let bytes: u64 = left.map(|left| left.size).sum();
        let granules = bytes / self.memory.status().granule_bytes.max(1);
        if granules > 0 {
            self.hub.tell(Event::NoMemory(api::NoMemory { job: None, granules }));
        }
        if unplugged.gone {
            self.tell_region(region, false);
        }
        Ok(Answer::Unplugged(unplugged))
    }

    fn tell_region(&self, region: u8, there: bool) {
        self.hub.tell(Event::Region(api::RegionChanged { region, there }));
    }

    fn policy(&self, set: Option<PolicyWord>) -> Result<Answer, Error> {
        if let Some(PolicyWord(name)) = set {
            let before = self.memory.set_policy(name);
            let before = before.map_err(|why| Error::new(ErrorKind::Refused, why))?;
            if before != name {
                let (policy, before) = (PolicyWord(name), PolicyWord(before));
                self.hub.tell(Event::Policy(api::PolicyChanged { policy, before }));
            }
        }
        let (policy, available) = self.memory.policy();
        let available = available.into_iter().map(PolicyWord).collect();
        Ok(Answer::Policy(api::Policy { policy: PolicyWord(policy), available }))
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

fn refused(why: String) -> Error {
    Error::new(ErrorKind::Refused, why)
}

/// What the locks guard is right after every statement under them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
