//! Jobs: every migration from its request on, those at work and the last that
//! ended. They belong to the machine: whoever asks by number is told, and may
//! end them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use neap_memory::migrate;

use super::api::{self, Error, ErrorKind, Event, Job, JobKind, JobState, Migrated, Progress};
use super::hub::Hub;
use super::translate;

/// Jobs that have ended and are still told of.
pub(super) const KEPT: usize = 64;

/// All jobs of a machine.
pub(super) struct Jobs {
    list: Mutex<List>,
    hub: Arc<Hub>,
}

#[derive(Default)]
struct List {
    next: u64,
    jobs: BTreeMap<u64, Entry>,
    /// Granules of all that ended, by outcome.
    outcomes: BTreeMap<String, u64>,
}

/// Jobs in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct JobCounts {
    /// Those that began.
    pub(super) begun: u64,
    /// Those at work.
    pub(super) running: u64,
    /// Granules of all that ended, by outcome.
    pub(super) outcomes: BTreeMap<String, u64>,
}

struct Entry {
    job: Job,
    began: Instant,
    /// Set when somebody has asked for its end.
    cancel: Arc<AtomicBool>,
}

impl Entry {
    fn told(&self) -> Job {
        let mut job = self.job.clone();
        if job.state.is_open() {
            job.elapsed_ms = millis(self.began.elapsed());
        }
        job
    }

    /// Without the list of what did not move, for lists of jobs and for events,
    /// many of which may wait for a reader.
    fn brief(&self) -> Job {
        brief(self.told())
    }
}

fn brief(mut job: Job) -> Job {
    if let Some(result) = &mut job.result {
        result.skipped_more += result.skipped.len() as u64;
        result.skipped = Vec::new();
    }
    job
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Jobs {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        Self { list: Mutex::default(), hub }
    }

    fn list(&self) -> MutexGuard<'_, List> {
        // What the lock guards is right after every statement under it.
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A job begins.
    pub(super) fn begin(self: &Arc<Self>, what: JobKind, detached: bool) -> Running {
        let cancel = Arc::new(AtomicBool::new(false));
        let (id, job) = {
            let mut list = self.list();
            let id = list.next;
            list.next += 1;
            let state = JobState::Running;
            let (progress, result, error) = (None, None, None);
            let job = Job { id, what, detached, state, progress, result, error, elapsed_ms: 0 };
            let (began, cancel) = (Instant::now(), Arc::clone(&cancel));
            list.jobs.insert(id, Entry { job: job.clone(), began, cancel });
            (id, job)
        };
        self.hub.tell(Event::JobStarted(job));
        Running { jobs: Arc::clone(self), id, cancel, ended: false }
    }

    /// Every job that is known, in brief.
    pub(super) fn all(&self) -> api::Jobs {
        api::Jobs { jobs: self.list().jobs.values().map(Entry::brief).collect() }
    }

    /// One of them.
    ///
    /// # Errors
    /// It is not known.
    pub(super) fn get(&self, id: u64) -> Result<Job, Error> {
        let list = self.list();
        list.jobs.get(&id).map(Entry::told).ok_or_else(|| unknown(id, list.next))
    }

    /// Has a job end after the granules in flight.
    ///
    /// # Errors
    /// It is not known, or has ended.
    pub(super) fn cancel(&self, id: u64) -> Result<Job, Error> {
        let mut list = self.list();
        let next = list.next;
        let entry = list.jobs.get_mut(&id).ok_or_else(|| unknown(id, next))?;
        if !entry.job.state.is_open() {
            let message = format!("job {id} is {} already", entry.job.state);
            return Err(Error::new(ErrorKind::State, message));
        }
        entry.job.state = JobState::Cancelling;
        entry.cancel.store(true, Ordering::Release);
        Ok(entry.told())
    }

    /// Jobs in numbers.
    pub(super) fn counts(&self) -> JobCounts {
        let list = self.list();
        let running = list.jobs.values().filter(|entry| entry.job.state.is_open()).count() as u64;
        JobCounts { begun: list.next, running, outcomes: list.outcomes.clone() }
    }

    /// Adds what came of the granules of a job.
    fn add(&self, outcomes: &BTreeMap<String, u64>) {
        let mut list = self.list();
        for (outcome, count) in outcomes {
            *list.outcomes.entry(outcome.clone()).or_default() += count;
        }
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Entry)) -> Option<Job> {
        let mut list = self.list();
        let entry = list.jobs.get_mut(&id)?;
        change(entry);
        let job = entry.told();
        let ended: Vec<u64> = list
            .jobs
            .iter()
            .filter(|(_, entry)| !entry.job.state.is_open())
            .map(|(id, _)| *id)
            .collect();
        for old in ended.iter().take(ended.len().saturating_sub(KEPT)) {
            list.jobs.remove(old);
        }
        Some(job)
    }
}

fn unknown(id: u64, next: u64) -> Error {
    let message = match next.checked_sub(1) {
        None => format!("there is no job {id}: none has begun"),
        Some(last) if id > last => format!("there is no job {id}: the last is {last}"),
        Some(_) => format!("there is no job {id} any more: the last {KEPT} that ended are kept"),
    };
    Error::new(ErrorKind::NotFound, message)
}

/// A job at work, for the thread that works. Dropped without an end it has
/// failed.
pub(super) struct Running {
    jobs: Arc<Jobs>,
    id: u64,
    cancel: Arc<AtomicBool>,
    ended: bool,
}

impl Running {
    /// Its number.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The job as others see it.
    pub(super) fn told(&self) -> Result<Job, Error> {
        self.jobs.get(self.id)
    }

    /// It is further; breaks if somebody has asked for its end.
    pub(super) fn progress(&self, progress: &migrate::Progress) -> ControlFlow<()> {
        let progress = translate::progress(progress);
        if let Some(job) = self.jobs.update(self.id, |entry| entry.job.progress = Some(progress)) {
            self.jobs.hub.tell(Event::JobProgress(job));
        }
        match self.cancel.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// It has ended.
    pub(super) fn end(mut self, result: &Result<Migrated, Error>) {
        self.set(result);
    }

    fn set(&mut self, result: &Result<Migrated, Error>) {
        self.ended = true;
        if let Ok(migrated) = result {
            self.jobs.add(&migrated.outcomes);
        }
        let ended = self.jobs.update(self.id, |entry| {
            entry.job.elapsed_ms = millis(entry.began.elapsed());
            match result {
                Ok(migrated) => {
                    entry.job.state = match migrated.outcomes.contains_key("cancelled") {
                        true => JobState::Cancelled,
                        false => JobState::Done,
                    };
                    let done = migrated.outcomes.values().sum();
                    // Granules past a limit have no outcome.
                    let total = entry.job.progress.map_or(done, |progress| progress.total);
                    let moved = migrated.moved;
                    entry.job.progress = Some(Progress { done, total, moved });
                    entry.job.result = Some(migrated.clone());
                }
                Err(error) => {
                    entry.job.state = JobState::Failed;
                    entry.job.error = Some(error.clone());
                }
            }
        });
        if let Some(job) = ended {
            self.jobs.hub.tell(Event::JobEnded(brief(job)));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let message = "a thread of Neap failed at it";
            self.set(&Err(Error::new(ErrorKind::Failed, message)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs() -> Arc<Jobs> {
        Arc::new(Jobs::new(Arc::default()))
    }

    #[test]
    fn those_that_ended_last_are_kept_and_those_at_work_always() {
        let jobs = jobs();
        let open = jobs.begin(JobKind::Evacuate, true);
        for _ in 0..KEPT + 10 {
            jobs.begin(JobKind::Migrate, false).end(&Ok(Migrated::default()));
        }
        assert_eq!(jobs.all().jobs.len(), KEPT + 1);
        let counts = jobs.counts();
        assert_eq!((counts.begun, counts.running), (KEPT as u64 + 11, 1));
        assert_eq!(jobs.get(0).unwrap().state, JobState::Running);
        let gone = jobs.get(1).unwrap_err();
        assert_eq!(gone.kind, ErrorKind::NotFound);
        assert!(gone.message.contains("any more"), "{gone}");
        assert!(jobs.get(1000).unwrap_err().message.contains("the last is 74"));
        drop(open);
        assert_eq!(jobs.get(0).map(|job| job.state), Err(jobs.get(0).unwrap_err()));
    }

    #[test]
    fn a_job_is_cancelled_once_and_an_ended_one_never() {
        let jobs = jobs();
        assert!(jobs.cancel(0).unwrap_err().message.contains("none has begun"));
        let running = jobs.begin(JobKind::Migrate, true);
        let progress = migrate::Progress { done: 1, total: 2, moved: Default::default() };
        assert!(running.progress(&progress).is_continue());
        assert_eq!(jobs.cancel(0).unwrap().state, JobState::Cancelling);
        assert!(running.progress(&progress).is_break());
        let outcomes = [("moved".to_owned(), 1), ("cancelled".to_owned(), 1)].into();
        running.end(&Ok(Migrated { outcomes, ..Migrated::default() }));
        assert_eq!(jobs.counts().outcomes["cancelled"], 1);
        assert_eq!(jobs.get(0).unwrap().progress.unwrap().done, 2);
        let error = jobs.cancel(0).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str()),
            (ErrorKind::State, "job 0 is cancelled already")
        );
    }

    #[test]
    fn what_did_not_move_is_listed_for_whoever_asks_for_the_job() {
        let jobs = jobs();
        let skipped = api::Skipped { base: api::Hex(0), size: 1, outcome: "pinned".to_owned() };
        let result = Migrated { skipped: vec![skipped; 3], skipped_more: 2, ..Migrated::default() };
        jobs.begin(JobKind::Migrate, true).end(&Ok(result.clone()));
        assert_eq!(jobs.get(0).unwrap().result, Some(result));
        let brief = jobs.all().jobs.remove(0).result.unwrap();
        assert_eq!((brief.skipped.len(), brief.skipped_more), (0, 5));
    }

    #[test]
    fn a_job_whose_thread_dies_has_failed() {
        let jobs = jobs();
        drop(jobs.begin(JobKind::Migrate, true));
        assert_eq!(jobs.get(0).unwrap().state, JobState::Failed);
    }
}
