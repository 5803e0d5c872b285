//! The main thread's side of the control socket: what is about vCPUs is
//! answered here, what is about memory goes to a mover.
//!
//! Nothing here waits: a pause is begun, and the event loop looks in again
//! until the vCPUs are parked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::api::{
    self, Answer, Error, ErrorKind, Event, JobKind, Lifecycle, Request, State, Status,
};
use super::metrics::{self, Counts};
use super::movers::{Job, Migration, Movers};
use super::{Call, Calls, Memory, Reply, translate};
use crate::machine::PARK_LIMIT;

/// Calls that are answered before the event loop sees to signals and the rest
/// again, however many there are.
const AT_ONCE: usize = 64;

/// What the desk needs of a machine.
pub trait Owner {
    /// Whether the vCPUs are to run.
    fn is_running(&self) -> bool;
    /// Has the vCPUs park; does not wait for them.
    fn begin_pause(&mut self);
    /// Whether every vCPU is parked.
    fn is_parked(&self) -> bool;
    /// Lets the vCPUs go on.
    fn resume(&mut self);
    /// How many vCPUs there are.
    fn vcpus(&self) -> usize;
    /// Bytes of guest memory.
    fn memory_bytes(&self) -> u64;
    /// Exits of all vCPUs so far, by kind.
    fn exits(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// A pause that has begun.
#[derive(Debug)]
struct Pausing {
    deadline: Instant,
    reply: Reply,
}

/// Where requests arrive.
pub struct Desk {
    calls: Calls,
    movers: Option<Movers>,
    pausing: Option<Pausing>,
    /// How long vCPUs get to park.
    patience: Duration,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("pausing", &self.pausing).finish_non_exhaustive()
    }
}

impl Desk {
    /// A desk for a machine whose memory is `memory`, if it moves.
    pub fn new(calls: Calls, memory: Option<Arc<dyn Memory>>) -> Self {
        let movers = memory.map(|memory| Movers::new(memory, Arc::clone(&calls.hub)));
        Self { calls, movers, pausing: None, patience: PARK_LIMIT }
    }

    /// Readable when there is something to do.
    pub fn wake(&self) -> &EventFd {
        self.calls.wake()
    }

    /// Whether to look in again soon, though nobody wakes.
    pub fn is_waiting(&self) -> bool {
        self.pausing.is_some()
    }

    /// Does what there is to do.
    pub fn serve(&mut self, machine: &mut impl Owner) {
        let _ = self.wake().read();
        for _ in 0..AT_ONCE {
            match self.calls.next() {
                Some(call) => self.answer(call, machine),
                None => return self.look(machine),
            }
        }
        // There may be more: others get their turn first.
        let _ = self.wake().write(1);
        self.look(machine);
    }

    fn answer(&mut self, Call { request, reply }: Call, machine: &mut impl Owner) {
        match request {
            Request::Status { verify } => {
                let status = Box::new(self.status(machine));
                match &self.movers {
                    Some(movers) => movers.submit(Job::Status(status, verify), reply),
                    None => reply.finish(Ok(Answer::Status(status))),
                }
            }
            Request::Pause {} => self.pause(reply, machine),
            Request::Resume {} => reply.finish(self.resume(machine)),
            Request::Metrics {} => {
                let (status, counts) = (Box::new(self.status(machine)), self.counts(machine));
                match &self.movers {
                    Some(movers) => movers.submit(Job::Metrics(status, counts), reply),
                    None => {
                        let text = metrics::text(&status, &counts);
                        reply.finish(Ok(Answer::Metrics(api::Metrics { text })));
                    }
                }
            }
            Request::Jobs {} => reply.finish(Ok(Answer::Jobs(match &self.movers {
                Some(movers) => movers.jobs().all(),
                None => api::Jobs { jobs: Vec::new() },
            }))),
            Request::Job { job } => {
                let found = self.movers().and_then(|movers| movers.jobs().get(job));
                reply.finish(found.map(|job| Answer::Job(Box::new(job))));
            }
            Request::Cancel { job } => {
                let ended = self.movers().and_then(|movers| movers.jobs().cancel(job));
                reply.finish(ended.map(|job| Answer::Job(Box::new(job))));
            }
            Request::Policy { set } => self.submit(reply, Ok(Job::Policy(set))),
            Request::Residency { verify, from } => {
                self.submit(reply, Ok(Job::Residency { verify, from: from.0 }));
            }
            Request::Migrate(asked) => {
                let (what, detach) = (JobKind::Migrate, asked.detach);
                let job = translate::migrate_request(&asked)
                    .map(|request| Job::Migrate(Migration { what, request, detach }));
                self.submit(reply, job);
            }
            Request::Evacuate(asked) => {
                let (what, detach) = (JobKind::Evacuate, asked.detach);
                let request = translate::evacuation(asked.region);
                self.submit(reply, Ok(Job::Migrate(Migration { what, request, detach })));
            }
            Request::Pin { range } => self.submit(reply, Ok(Job::Pin(range))),
            Request::Unpin { pin } => self.submit(reply, Ok(Job::Unpin(pin))),
            Request::Unplug { region } => self.submit(reply, Ok(Job::Unplug(region))),
            Request::Plug(asked) => self.submit(reply, Ok(Job::Plug(asked))),
            Request::FailPage { address } => self.submit(reply, Ok(Job::FailPage(address.0))),
        }
    }

    fn submit(&self, reply: Reply, job: Result<Job, Error>) {
        match job.and_then(|job| Ok((job, self.movers()?))) {
            Ok((job, movers)) => movers.submit(job, reply),
            Err(error) => reply.finish(Err(error)),
        }
    }

    fn movers(&self) -> Result<&Movers, Error> {
        let none = || Error::new(ErrorKind::Unsupported, "no memory of this machine moves");
        self.movers.as_ref().ok_or_else(none)
    }

    fn counts(&self, machine: &impl Owner) -> Counts {
        let traffic = &self.calls.traffic;
        let (lines, http) = (&traffic.lines, &traffic.http);
        Counts {
            requests: (lines.load(Ordering::Relaxed), http.load(Ordering::Relaxed)),
            jobs: self.movers.as_ref().map(|movers| movers.jobs().counts()).unwrap_or_default(),
            exits: machine.exits(),
        }
    }

    /// The machine does something else.
    fn tell(&self, state: State) -> Lifecycle {
        let lifecycle = Lifecycle { state };
        self.calls.hub.tell(Event::Lifecycle(lifecycle));
        lifecycle
    }

    fn state(&self, machine: &impl Owner) -> State {
        match (&self.pausing, machine.is_running()) {
            (Some(_), _) => State::Pausing,
            (None, true) => State::Running,
            (None, false) => State::Paused,
        }
    }

    fn status(&self, machine: &impl Owner) -> Status {
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state: self.state(machine),
            vcpus: machine.vcpus(),
            memory_bytes: machine.memory_bytes(),
            tiers: None,
        }
    }

    fn pause(&mut self, reply: Reply, machine: &mut impl Owner) {
        match self.state(machine) {
            State::Running => {
                machine.begin_pause();
                let deadline = Instant::now() + self.patience;
                self.pausing = Some(Pausing { deadline, reply });
            }
            state => reply.finish(Err(Error::new(
                ErrorKind::State,
                format!("the machine is {state} already"),
            ))),
        }
    }

    fn resume(&mut self, machine: &mut impl Owner) -> Result<Answer, Error> {
        let wrong = |message| Err(Error::new(ErrorKind::State, message));
        match self.state(machine) {
            State::Paused => {
                machine.resume();
                Ok(Answer::Lifecycle(self.tell(State::Running)))
            }
            State::Pausing => wrong("the machine is being paused: wait until it is"),
            State::Running => wrong("the machine is not paused"),
        }
    }

    /// Answers a pause that is over: the vCPUs are parked, or one does not
    /// come and they go on.
    fn look(&mut self, machine: &mut impl Owner) {
        let Some(Pausing { deadline, reply }) = self.pausing.take() else { return };
        if machine.is_parked() {
            reply.finish(Ok(Answer::Lifecycle(self.tell(State::Paused))));
        } else if Instant::now() >= deadline {
            machine.resume();
            let message = format!(
                "a vCPU did not stop within {} s: the machine runs on",
                self.patience.as_secs()
            );
            reply.finish(Err(Error::new(ErrorKind::Failed, message)));
        } else {
            self.pausing = Some(Pausing { deadline, reply });
        }
    }
}

impl Drop for Desk {
    /// Who waits for memory hears that the machine is over.
    fn drop(&mut self) {
        if let Some(movers) = &self.movers {
            movers.stop();
        }
        self.calls.hub.end();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::control::client::{Client, ClientError};
    use crate::control::server::Server;
    use crate::control::socket::ListeningSocket;

    /// vCPUs that park when they are told that they may.
    #[derive(Default)]
    struct Stubborn {
        paused: bool,
        parks: bool,
    }

    impl Owner for Stubborn {
        fn is_running(&self) -> bool {
            !self.paused
        }
        fn begin_pause(&mut self) {
            self.paused = true;
        }
        fn is_parked(&self) -> bool {
            self.paused && self.parks
        }
        fn resume(&mut self) {
            self.paused = false;
        }
        fn vcpus(&self) -> usize {
            1
        }
        fn memory_bytes(&self) -> u64 {
            0
        }
    }

    /// Serves until `done`, as the event loop does.
    fn serve_until(desk: &mut Desk, machine: &mut Stubborn, done: impl Fn(&Desk) -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !done(desk) {
            assert!(Instant::now() < end);
            desk.serve(machine);
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_vcpu_that_does_not_park_leaves_the_machine_running() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("s");
        let (server, calls) = Server::start(ListeningSocket::bind(&path).unwrap()).unwrap();
        let mut desk = Desk::new(calls, None);
        desk.patience = Duration::from_millis(300);
        let mut machine = Stubborn::default();
        let ask = |request: Request| {
            let path = path.clone();
            std::thread::spawn(move || {
                Client::connect(&path).unwrap().ask::<Lifecycle>(&request).map(|told| told.state)
            })
        };
        let pause = ask(Request::Pause {});
        serve_until(&mut desk, &mut machine, Desk::is_waiting);
        let (again, resume) = (ask(Request::Pause {}), ask(Request::Resume {}));
        serve_until(&mut desk, &mut machine, |_| again.is_finished() && resume.is_finished());
        let refused = |result: Result<State, ClientError>| match result {
            Err(ClientError::Refused(error)) => (error.kind, error.message),
            other => panic!("{other:?}"),
        };
        let (kind, message) = refused(again.join().unwrap());
        assert_eq!(kind, ErrorKind::State);
        assert_eq!(message, "the machine is being paused already");
        assert_eq!(refused(resume.join().unwrap()).0, ErrorKind::State);
        serve_until(&mut desk, &mut machine, |_| pause.is_finished());
        let (kind, message) = refused(pause.join().unwrap());
        assert_eq!(kind, ErrorKind::Failed);
        assert!(message.ends_with("the machine runs on"), "{message}");
        assert!(machine.is_running());
        machine.parks = true;
        let pause = ask(Request::Pause {});
        serve_until(&mut desk, &mut machine, |_| pause.is_finished());
        assert_eq!(pause.join().unwrap().unwrap(), State::Paused);
        server.stop();
        assert!(UnixStream::connect(&path).is_err());
    }
}
