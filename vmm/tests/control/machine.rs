//! A machine without vCPUs, and memory that waits for a test.

use std::io::{self, BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use neap_memory::granule::PoolId;
use neap_memory::migrate::{MigrateRequest, Outcome, Progress, Report, RequestError, Target};
use neap_memory::policy::PolicyName;
use neap_memory::{Gpa, GpaRange};
use neap_vmm::control::Memory;
use neap_vmm::control::api::{self, MAX_RUNS};
use neap_vmm::control::desk::{Desk, Owner};
use neap_vmm::control::server::{Limits, Server};
use neap_vmm::control::socket::ListeningSocket;
use serde_json::{Value, json};
use tempfile::TempDir;

/// For anything that should take no time.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const GRANULE: u64 = 2 << 20;
/// Guest memory, in granules.
pub(crate) const GRANULES: u64 = 1024;

/// Memory whose migrations wait for `go`, or for a client that is gone.
#[derive(Default)]
pub(crate) struct Slow {
    pub(crate) go: AtomicBool,
    over: AtomicBool,
    pub(crate) active: Mutex<Vec<GpaRange>>,
    pub(crate) cancelled: AtomicUsize,
    pub(crate) pins: Arc<AtomicUsize>,
    policy: Mutex<PolicyName>,
    on_failure: Mutex<Option<OnFailure>>,
    /// What comes of granules, if they do not move.
    pub(crate) outcome: Mutex<Option<Outcome>>,
}

type OnFailure = Box<dyn Fn(api::MemoryFailed) + Send + Sync>;

struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Memory for Slow {
    fn migrate(
        &self,
        request: &MigrateRequest,
        progress: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Report, RequestError> {
        let whole = GpaRange::new(Gpa(0), GRANULES * GRANULE).unwrap();
        let range = request.ranges.first().copied().unwrap_or(whole);
        {
            let mut active = self.active.lock().unwrap();
            if let Some(other) = active.iter().find(|other| other.overlaps(&range)) {
                return Err(RequestError::Overlaps(range, *other));
            }
            active.push(range);
        }
        let mut report = Report::default();
        let total = range.size() / GRANULE;
        let mut outcome = self.outcome.lock().unwrap().unwrap_or(Outcome::Moved);
        while !self.go.load(Ordering::SeqCst) {
            let so_far = Progress { done: 0, total, moved: report.moved };
            if self.over.load(Ordering::SeqCst) || progress(&so_far).is_break() {
                outcome = Outcome::Cancelled;
                self.cancelled.fetch_add(1, Ordering::SeqCst);
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        for index in 0..total {
            let base = Gpa(range.base().0 + index * GRANULE);
            report.add(GpaRange::new(base, GRANULE).unwrap(), outcome);
        }
        self.active.lock().unwrap().retain(|other| *other != range);
        Ok(report)
    }

    fn check(&self, request: &MigrateRequest) -> Result<(), RequestError> {
        match request.to {
            Target::Pool(PoolId(pool @ 1..)) => {
                Err(RequestError::NoPool(pool, "this machine has 0 to 0".to_owned()))
            }
            _ => Ok(()),
        }
    }

    fn residency(&self, from: Gpa, most: usize) -> Vec<api::Run> {
        let run = |index: u64| api::Run {
            base: api::Hex(index * GRANULE),
            size: GRANULE,
            place: api::Place::Home,
            region: None,
            frame: None,
            kind: None,
            untouched: false,
            mapped: true,
            refcount: 1,
            pins: 0,
            moving: false,
        };
        (from.0 / GRANULE..2 * MAX_RUNS as u64 + 5).take(most).map(run).collect()
    }

    fn verify(&self, _: &dyn Fn() -> bool) -> io::Result<api::Verified> {
        Ok(api::Verified { checked: GRANULES, ..api::Verified::default() })
    }

    fn status(&self) -> api::Tiers {
        api::Tiers { granule_bytes: GRANULE, ..api::Tiers::default() }
    }

    fn account(&self, _: &dyn Fn() -> bool) -> io::Result<api::Accounts> {
        let differences = vec!["home should have 2 bytes and has 1".to_owned()];
        Ok(api::Accounts { settled: true, differences, ..api::Accounts::default() })
    }

    fn on_failure(&self, tell: OnFailure) {
        *self.on_failure.lock().unwrap() = Some(tell);
    }

    fn pin(&self, range: GpaRange, _: Duration) -> Result<Box<dyn Send>, String> {
        if range.base().0 >= GRANULES * GRANULE {
            return Err(format!("{range} is not whole granules of guest memory"));
        }
        self.pins.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Held(Arc::clone(&self.pins))))
    }

    fn policy(&self) -> (PolicyName, Vec<PolicyName>) {
        (*self.policy.lock().unwrap(), vec![PolicyName::Static, PolicyName::OnFault])
    }

    fn set_policy(&self, name: PolicyName) -> Result<PolicyName, String> {
        if name == PolicyName::FirstTouch {
            return Err("first touches are not watched".to_owned());
        }
        Ok(std::mem::replace(&mut *self.policy.lock().unwrap(), name))
    }

    fn unplug(
        &self,
        region: u8,
        _: &mut dyn FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<api::Unplugged, String> {
        Err(format!("there is no device region {region}"))
    }

    fn plug(&self, asked: &api::Plug) -> Result<api::Plugged, String> {
        Err(format!("there is no device region {}", asked.region))
    }

    fn fail_page(&self, gpa: Gpa) -> Result<(), String> {
        if gpa.0 >= GRANULES * GRANULE {
            return Err(format!("{gpa} is no guest memory"));
        }
        let (region, frame) = (Some(0), Some(3));
        let met = api::MetBy::Ahead;
        let (retired, machine_check) = (true, false);
        let base = api::Hex(gpa.0);
        let size = 4096;
        let tell = self.on_failure.lock().unwrap();
        tell.as_ref().unwrap()(api::MemoryFailed {
            base,
            size,
            region,
            frame,
            retired,
            met,
            machine_check,
        });
        Ok(())
    }

    fn stop(&self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// vCPUs that park at once.
#[derive(Default)]
struct Obedient(bool);

impl Owner for Obedient {
    fn is_running(&self) -> bool {
        !self.0
    }
    fn begin_pause(&mut self) {
        self.0 = true;
    }
    fn is_parked(&self) -> bool {
        self.0
    }
    fn resume(&mut self) {
        self.0 = false;
    }
    fn vcpus(&self) -> usize {
        2
    }
    fn memory_bytes(&self) -> u64 {
        GRANULES * GRANULE
    }
}

/// A machine without vCPUs behind a socket.
pub(crate) struct Machine {
    _folder: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) memory: Arc<Slow>,
    stop: Arc<AtomicBool>,
    main: Option<JoinHandle<()>>,
}

impl Machine {
    pub(crate) fn start() -> Self {
        Self::with_memory(true)
    }

    /// One whose patience is as short as a test's.
    pub(crate) fn impatient(limits: Limits) -> Self {
        Self::with(true, limits)
    }

    pub(crate) fn with_memory(moves: bool) -> Self {
        Self::with(moves, Limits::default())
    }

    fn with(moves: bool, limits: Limits) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("vm.sock");
        let socket = ListeningSocket::bind(&path).unwrap();
        let (server, calls) = Server::start_with(socket, limits).unwrap();
        let memory = Arc::new(Slow::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut desk = Desk::new(calls, moves.then(|| Arc::clone(&memory) as Arc<dyn Memory>));
        let main = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                let mut machine = Obedient::default();
                while !stop.load(Ordering::SeqCst) {
                    desk.serve(&mut machine);
                    thread::sleep(Duration::from_millis(1));
                }
                drop(desk);
                server.stop();
            })
        };
        Self { _folder: folder, path, memory, stop, main: Some(main) }
    }

    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(main) = self.main.take() {
            main.join().unwrap();
        }
    }

    pub(crate) fn connect(&self) -> Peer {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        Peer(BufReader::new(stream))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The other end of a connection, line by line.
pub(crate) struct Peer(pub(crate) BufReader<UnixStream>);

impl Peer {
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn read(&mut self) -> Option<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        (!line.is_empty()).then(|| serde_json::from_str(&line).unwrap())
    }

    /// The next line that is no progress.
    pub(crate) fn answer(&mut self) -> Value {
        loop {
            let message = self.read().expect("an answer");
            if message.get("progress").is_none() {
                return message;
            }
        }
    }

    pub(crate) fn ask(&mut self, request: &str) -> Value {
        self.send(format!("{request}\n"));
        self.answer()
    }

    #[track_caller]
    pub(crate) fn expect_error(&mut self, id: Value, kind: &str) -> String {
        let answer = self.answer();
        assert_eq!((&answer["id"], &answer["error"]["kind"]), (&id, &json!(kind)), "{answer}");
        answer["error"]["message"].as_str().unwrap().to_owned()
    }
}

#[track_caller]
pub(crate) fn wait_until(holds: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "not within {LIMIT:?}");
        thread::sleep(Duration::from_millis(2));
    }
}
