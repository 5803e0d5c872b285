//! `api.*`: how soon a machine with a device region of 1 TiB answers while its
//! memory moves all the time, and what a scrape of the metrics costs the moves.
//!
//! The region is a window that the guest sees, and nothing is in it; part of it
//! is pinned in such a way that every answer to `residency` is as long as one
//! may be. What moves is RAM, to frames of the region and home again. The
//! socket, the control thread and the main thread's side are those of `neap
//! run`; there are no vCPUs.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use neap_memory::addr::{GIB, HUGE_PAGE_SIZE, MIB, TIB};
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::migrate::{MigrateRequest, Select, Target};
use neap_memory::tiers::{Pin, RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use super::host::check_memory;
use super::pool::fatal;
use super::rates::Task;
use super::{BenchError, samples, window};
use crate::bench::rows::Row;
use crate::bench::{Figure, Samples};
use crate::control::Memory;
use crate::control::api::{self, Body, Hex, MAX_RUNS, Message, Request, Residency, Status};
use crate::control::desk::{Desk, Owner};
use crate::control::server::Server;
use crate::control::socket::ListeningSocket;
use crate::fd;

const STATUS: &str = "api.status_ms.1t";
const RESIDENCY: &str = "api.residency_ms.1t";
const SCRAPE: &str = "api.scrape_ms";
const SCRAPED: &str = "api.moves_while_scraped";

/// Names of the figures.
pub fn names() -> Vec<String> {
    [STATUS, RESIDENCY, SCRAPE, SCRAPED].map(str::to_owned).into()
}

/// RAM, all of which moves.
const RAM: u64 = 256 * MIB;
/// Where the window begins.
const WINDOW: Gpa = Gpa(TIB);
/// Answers of each kind in a turn.
const ASKED: usize = 5;
/// How long moves are counted, with and without scrapes.
const COUNTED: Duration = Duration::from_millis(250);
/// Between two scrapes; Prometheus' own default is a minute.
const EVERY: Duration = Duration::from_millis(50);
/// The limit for an answer.
const LIMIT_MS: f64 = 50.0;
/// For an answer, before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon the main thread's side looks whether it is to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

/// All of them.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn measure(task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    check_memory(task.host, 2 * RAM)?;
    let machine = Machine::start()?;
    let storm = Storm::start(&machine.tiers);
    let (mut status, mut residency, mut scrape) = (Vec::new(), Vec::new(), Vec::new());
    let (mut alone, mut scraped) = (Vec::new(), Vec::new());
    let mut asker = Asker::connect(&machine.path)?;
    for _ in 0..task.turns {
        task.interrupts.check()?;
        for _ in 0..ASKED {
            status.push(asker.status()?);
            residency.push(asker.residency()?);
            scrape.push(scraped_in(&machine.path)?);
        }
        alone.push(machine.moves(None)?);
        scraped.push(machine.moves(Some(EVERY))?);
    }
    storm.end()?;
    // The slowest: an answer that comes in time on average is no answer in time.
    let slowest = |quantity: &str, values: Vec<f64>, name| {
        let ours = samples(values)?;
        let figure = Figure { value: ours.max(), ..Figure::median(name, "ms", &ours) };
        let (quantity, figure) = (quantity.into(), figure.at_most(LIMIT_MS));
        Ok::<_, BenchError>(Row { quantity, unit: "ms", ours, theirs: None, figure })
    };
    Ok(vec![
        slowest("status while memory moves, the slowest", status, STATUS)?,
        slowest(&format!("residency ({MAX_RUNS} runs), the slowest"), residency, RESIDENCY)?,
        slowest("a scrape of the metrics, the slowest", scrape, SCRAPE)?,
        moves(samples(scraped)?, samples(alone)?)?,
    ])
}

fn moves(ours: Samples, theirs: Samples) -> Result<Row, BenchError> {
    let figure = Figure::ratio(SCRAPED, &ours, &theirs);
    let figure = figure.ok_or_else(|| unexpected("nothing moved"))?.at_least(0.95);
    let quantity = format!("granules moved, scraped every {} ms", EVERY.as_millis());
    Ok(Row { quantity, unit: "1/s", ours, theirs: Some(("not scraped", theirs)), figure })
}

fn unexpected(error: impl std::fmt::Display) -> BenchError {
    BenchError::Unexpected(error.to_string())
}

/// The main thread's side of a machine without vCPUs.
struct NoVcpus;

impl Owner for NoVcpus {
    fn is_running(&self) -> bool {
        true
    }
    fn begin_pause(&mut self) {}
    fn is_parked(&self) -> bool {
        true
    }
    fn resume(&mut self) {}
    fn vcpus(&self) -> usize {
        0
    }
    fn memory_bytes(&self) -> u64 {
        TIB + RAM
    }
}

/// A machine behind its socket.
struct Machine {
    tiers: Arc<Tiers>,
    path: PathBuf,
    _folder: TempDir,
    _pins: Vec<Pin>,
    over: Arc<AtomicBool>,
    main: Option<JoinHandle<()>>,
}

impl Machine {
    fn start() -> Result<Self, BenchError> {
        let system = |what| move |source| BenchError::System { what, source };
        let tiers = Arc::new(tiers()?);
        let pins = pins(&tiers)?;
        let folder = TempDir::new().map_err(system("a temporary folder"))?;
        let path = folder.path().join("vm.sock");
        let socket = ListeningSocket::bind(&path).map_err(unexpected)?;
        let (server, calls) = Server::start(socket).map_err(system("the control thread"))?;
        let over = Arc::new(AtomicBool::new(false));
        let mut desk = Desk::new(calls, Some(Arc::clone(&tiers) as Arc<dyn Memory>));
        let serve = {
            let over = Arc::clone(&over);
            move || {
                while !over.load(Ordering::Acquire) {
                    let wake = fd::of_event(desk.wake());
                    // An interruption is a reason to look.
                    let mut fds = [PollFd::from_borrowed_fd(wake, PollFlags::IN)];
                    let _ = poll(&mut fds, Some(&LOOK));
                    desk.serve(&mut NoVcpus);
                }
                drop(desk);
                server.stop();
            }
        };
        let main = thread::Builder::new().name("main".into()).spawn(serve);
        let main = Some(main.map_err(system("a thread"))?);
        Ok(Self { tiers, path, _folder: folder, _pins: pins, over, main })
    }

    /// Granules that move in a second, with a scrape every now and then.
    fn moves(&self, every: Option<Duration>) -> Result<f64, BenchError> {
        let moved = || {
            let counts = self.tiers.status().counts;
            counts.to_device + counts.to_home
        };
        let (since, before) = (Instant::now(), moved());
        while let Some(left) = COUNTED.checked_sub(since.elapsed()) {
            if every.is_some() {
                scraped_in(&self.path)?;
            }
            thread::sleep(left.min(every.unwrap_or(left)));
        }
        Ok((moved() - before) as f64 / since.elapsed().as_secs_f64())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(main) = self.main.take() {
            // A panic was reported when it happened.
            let _ = main.join();
        }
    }
}

/// Tiers with a window of 1 TiB.
fn tiers() -> Result<Tiers, BenchError> {
    let spec = |range, prefault| RangeSpec { range, backing: Backing::Anon, prefault };
    let far = GpaRange::new(WINDOW, TIB).ok_or_else(|| unexpected("an empty window"))?;
    let memory = Arc::new(GuestMemory::new(&[spec(window(RAM)?, true), spec(far, false)])?);
    let slot = memory.slots().iter().position(|slot| slot.range == far);
    let mut config = TiersConfig::new(GranuleSize::M2, fatal);
    let backing = Backing::Anon;
    config.regions = vec![RegionConfig { window: slot, pool: RAM, kind: Kind::Public, backing }];
    Ok(Tiers::new(&memory, config)?)
}

/// Pins on every second granule of a part of the window, so that there are
/// more runs than an answer has. No memory is needed for it.
fn pins(tiers: &Tiers) -> Result<Vec<Pin>, BenchError> {
    let held = |index: u64| {
        let range = GpaRange::new(Gpa(WINDOW.0 + 2 * index * HUGE_PAGE_SIZE), HUGE_PAGE_SIZE);
        let range = range.ok_or_else(|| unexpected("an empty range"))?;
        tiers.pin(range, Duration::ZERO).map_err(unexpected)
    };
    (0..MAX_RUNS as u64).map(held).collect()
}

/// Somebody who asks in JSON lines. What is timed ends with the last byte of
/// the answer: to make sense of it takes the client as long as it likes.
struct Asker(BufReader<UnixStream>);

impl Asker {
    fn connect(path: &Path) -> Result<Self, BenchError> {
        Ok(Self(BufReader::new(connect(path).map_err(unexpected)?)))
    }

    /// The answer, and milliseconds until it was there.
    fn ask<A: DeserializeOwned>(&mut self, request: &Request) -> Result<(A, f64), BenchError> {
        let since = Instant::now();
        self.0.get_mut().write_all(&api::request_line(1, request)).map_err(unexpected)?;
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line).map_err(unexpected)?;
        let took = since.elapsed();
        let message: Message<A> = serde_json::from_slice(&line).map_err(unexpected)?;
        match message.body {
            Body::Ok(answer) => Ok((answer, took.as_secs_f64() * 1e3)),
            _ => Err(unexpected(String::from_utf8_lossy(&line))),
        }
    }

    fn status(&mut self) -> Result<f64, BenchError> {
        let (status, took) = self.ask::<Status>(&Request::Status { verify: false })?;
        match status.tiers.and_then(|tiers| tiers.regions.first().map(|region| region.frames)) {
            Some(frames) if frames * HUGE_PAGE_SIZE > TIB => Ok(took),
            other => Err(unexpected(format!("a region of {other:?} frames"))),
        }
    }

    fn residency(&mut self) -> Result<f64, BenchError> {
        let request = Request::Residency { verify: false, from: Hex(0) };
        let (residency, took) = self.ask::<Residency>(&request)?;
        match residency.runs.len() {
            MAX_RUNS => Ok(took),
            runs => Err(unexpected(format!("an answer of {runs} runs"))),
        }
    }
}

/// Milliseconds that a scrape takes, with its connection.
fn scraped_in(path: &Path) -> Result<f64, BenchError> {
    let since = Instant::now();
    let page = get(path, "/metrics").map_err(unexpected)?;
    let took = since.elapsed();
    match page.starts_with("HTTP/1.0 200") && page.contains("neap_moved_bytes_total") {
        true => Ok(took.as_secs_f64() * 1e3),
        false => Err(unexpected(page)),
    }
}

fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// What the server says to a request in HTTP/1.0.
fn get(path: &Path, resource: &str) -> std::io::Result<String> {
    let mut stream = connect(path)?;
    stream.write_all(format!("GET {resource} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

/// All of RAM on its way all the time.
struct Storm {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<(), BenchError>>>,
}

impl Storm {
    fn start(tiers: &Arc<Tiers>) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (tiers, until) = (Arc::clone(tiers), Arc::clone(&over));
        let work = move || {
            while !until.load(Ordering::Acquire) {
                for to in [Target::Pool(PoolId(0)), Target::Home] {
                    let ranges = vec![window(RAM)?];
                    let (select, from_pool, limit) = (Select::ALL, None, None);
                    let request = MigrateRequest { ranges, to, select, from_pool, limit };
                    let mut go_on = |_: &_| std::ops::ControlFlow::Continue(());
                    let report = tiers.migrate(&request, &mut go_on).map_err(unexpected)?;
                    if report.moved.bytes != RAM {
                        return Err(unexpected(format!("{:?} moved", report.moved)));
                    }
                }
            }
            Ok(())
        };
        Self { over, thread: Some(thread::spawn(work)) }
    }

    /// Whether it stormed all the time.
    fn end(mut self) -> Result<(), BenchError> {
        self.over.store(true, Ordering::Release);
        let thread = self.thread.take().ok_or_else(|| unexpected("no storm"))?;
        thread.join().map_err(|_| unexpected("the storm panicked"))?
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // What went wrong is told by whoever dropped it early.
            let _ = thread.join();
        }
    }
}

// RAM lies below the window.
const _: () = assert!(super::BASE.0 + RAM <= WINDOW.0 && WINDOW.0 >= GIB);
