//! Policy `heat` over memory that threads of this process use: to the tiers
//! they are no different from vCPUs.
#![cfg(not(feature = "loom"))]
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;
use std::io::Seek;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use neap_memory::addr::MIB;
use neap_memory::engine::hooks::{Hooks, Inject, Point};
use neap_memory::granule::{Granule, GranuleSize, Kind, PoolId};
use neap_memory::guest::{GuestMemory, RangeSpec};
use neap_memory::heat::sim::sampled::Sampled;
use neap_memory::heat::sim::{Trace, hot_set};
use neap_memory::migrate::{MigrateRequest, Outcome, Select, Target};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::{HeatConfig, RegionConfig, Tiers, TiersConfig, TiersError};
use neap_memory::uffd::Features;
use neap_memory::{Backing, Gpa, GpaRange};
use rustix::io::Errno;

const LIMIT: Duration = Duration::from_secs(60);

fn fatal(message: &str) -> ! {
    eprintln!("fatal: {message}");
    std::process::abort()
}

fn range(base: u64, size: u64) -> GpaRange {
    GpaRange::new(Gpa(base), size).unwrap()
}

fn memory(backing: Backing, ram: u64) -> Arc<GuestMemory> {
    let range = range(0, ram);
    Arc::new(GuestMemory::new(&[RangeSpec { range, backing, prefault: true }]).unwrap())
}

fn config(backing: Backing, granule: GranuleSize, pool: u64, kind: Kind) -> TiersConfig {
    TiersConfig {
        policy: PolicyName::Heat,
        ram: backing,
        regions: vec![RegionConfig { window: None, pool, kind, backing }],
        heat: HeatConfig {
            budget: 1 << 30,
            period: Duration::from_millis(10),
            // Looking may cost much: the proofs are not of that.
            cost: 1000,
            ..HeatConfig::default()
        },
        ..TiersConfig::new(granule, fatal)
    }
}

/// One guest at a time: what looking costs is measured, and others would take
/// the time of the threads that are measured.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One word of each page of guest memory, from `pages`.
fn word(memory: &GuestMemory, page: u64) -> *mut u64 {
    std::ptr::with_exposed_provenance_mut((memory.slots()[0].hva + page * 4096) as usize)
}

/// Reads every page of `pages` again and again and checks it.
fn read(memory: &GuestMemory, pages: Range<u64>, stop: &AtomicBool) -> u64 {
    let mut wrong = 0;
    while !stop.load(Ordering::Relaxed) {
        for page in pages.clone() {
            // SAFETY: guest memory of the test, which outlives the thread.
            wrong += u64::from(unsafe { word(memory, page).read_volatile() } != page + 1);
        }
    }
    wrong
}

fn fill(memory: &GuestMemory, pages: u64) {
    for page in 0..pages {
        // SAFETY: guest memory of the test, before anybody else uses it.
        unsafe { word(memory, page).write_volatile(page + 1) };
    }
}

fn in_device(tiers: &Tiers, range: &GpaRange) -> bool {
    let residency = tiers.residency();
    let mut inside = residency.iter().filter(|run| run.range.overlaps(range));
    inside.all(|run| run.place.is_device())
}

/// A set that is only read comes to the device and stays, whatever else is.
fn read_only_set(backing: Backing, granule: GranuleSize, ram: u64, requests: bool) {
    let _alone = alone();
    let memory = memory(backing, ram);
    let pages = ram / 4096;
    fill(&memory, pages);
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let mut trace = File::from(rustix::fs::memfd_create("trace", flags).unwrap());
    let config = config(backing, granule, ram / 4, Kind::Public);
    let tiers = Tiers::new(&memory, config).unwrap();
    tiers.record_heat(trace.try_clone().unwrap()).unwrap();
    let hot = range(ram / 2, ram / 8);
    let hot_pages = hot.base().0 / 4096..hot.end().0 / 4096;
    let stop = AtomicBool::new(false);
    let wrong = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&memory, hot_pages, &stop));
        let since = Instant::now();
        while !in_device(&tiers, &hot) {
            if since.elapsed() > LIMIT {
                stop.store(true, Ordering::Relaxed);
                panic!("{:?}", tiers.status());
            }
            if requests {
                // People move what they like meanwhile.
                let request = MigrateRequest {
                    ranges: vec![range(0, ram / 4)],
                    to: Target::Pool(PoolId(0)),
                    select: Select::ALL,
                    from_pool: None,
                    limit: Some(1),
                };
                tiers.migrate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap()
    });
    let set = ram / 8 / granule.bytes();
    // What moved is there before it is counted.
    let since = Instant::now();
    while tiers.status().counts.heat.promoted < set && since.elapsed() < LIMIT {
        std::thread::yield_now();
    }
    let counts = tiers.status().counts;
    eprintln!("{granule}: {counts:?}");
    assert_eq!(wrong, 0);
    assert!(counts.heat.touched > 0 && counts.heat.touched <= counts.heat.watched);
    assert!((set..=2 * set).contains(&counts.heat.promoted), "{counts:?}");
    if !requests {
        assert_eq!(counts.bytes, counts.heat.bytes);
    }
    tiers.stop();
    assert_eq!(tiers.verify().unwrap().mismatches, []);
    let all = range(0, ram);
    assert!(tiers.pin(all, LIMIT).is_ok());
    assert_eq!(read(&memory, 0..pages, &AtomicBool::new(true)), 0);
    drop(tiers);
    trace.rewind().unwrap();
    let text = std::io::read_to_string(&trace).unwrap();
    let mut recorded = Sampled::read(&mut text.as_bytes()).unwrap();
    assert_eq!(u64::from(recorded.granules()), ram / granule.bytes());
    // Only the hot set is used, and all of it was seen.
    assert_eq!(u64::from(hot_set(&mut recorded, 1.0)), set);
    for page in 0..pages {
        // SAFETY: guest memory of the test; nothing is away any more.
        assert_eq!(unsafe { word(&memory, page).read_volatile() }, page + 1);
    }
}

#[test]
fn what_is_only_read_comes_to_the_device_at_2m() {
    read_only_set(Backing::Anon, GranuleSize::M2, 128 * MIB, false);
}

#[test]
fn what_is_only_read_comes_to_the_device_at_64k() {
    read_only_set(Backing::Anon, GranuleSize::K64, 8 * MIB, false);
}

#[test]
fn what_is_only_read_comes_to_the_device_also_in_files() {
    read_only_set(Backing::Memfd, GranuleSize::M2, 128 * MIB, false);
    read_only_set(Backing::Memfd, GranuleSize::K64, 8 * MIB, false);
    read_only_set(Backing::Memfd, GranuleSize::K4, 2 * MIB, false);
}

#[test]
fn requests_of_people_go_through_meanwhile() {
    read_only_set(Backing::Anon, GranuleSize::M2, 128 * MIB, true);
    read_only_set(Backing::Memfd, GranuleSize::M2, 128 * MIB, true);
}

#[test]
fn granules_that_are_watched_can_be_pinned_and_moved() {
    pinned_and_moved(Backing::Anon);
}

#[test]
fn granules_of_files_that_are_watched_can_be_pinned_and_moved() {
    pinned_and_moved(Backing::Memfd);
}

fn pinned_and_moved(backing: Backing) {
    let _alone = alone();
    let ram = 32 * MIB;
    let memory = memory(backing, ram);
    fill(&memory, ram / 4096);
    let mut config = config(backing, GranuleSize::M2, ram, Kind::Public);
    config.heat.moves = false;
    let tiers = Tiers::new(&memory, config).unwrap();
    let all = range(0, ram);
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut rounds = 0;
    while Instant::now() < deadline || tiers.status().counts.heat.watched < 100 {
        // Some is watched in each round.
        let (before, since) = (tiers.status().counts.heat.watched, Instant::now());
        while tiers.status().counts.heat.watched == before {
            assert!(since.elapsed() < LIMIT, "{:?}", tiers.status());
            std::thread::yield_now();
        }
        // Whoever pins memory and then touches it must not wait for itself.
        let pin = tiers.pin(all, LIMIT).unwrap();
        assert_eq!(read(&memory, 0..ram / 4096, &AtomicBool::new(true)), 0);
        for page in 0..ram / 4096 {
            // SAFETY: guest memory of the test.
            assert_eq!(unsafe { word(&memory, page).read_volatile() }, page + 1);
        }
        drop(pin);
        for to in [Target::Pool(PoolId(0)), Target::Home] {
            let request = MigrateRequest {
                ranges: vec![all],
                to,
                select: Select::ALL,
                from_pool: None,
                limit: None,
            };
            let report = tiers.migrate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
            assert!(report.moved.granules > 0, "{report:?}");
        }
        rounds += 1;
        assert_eq!(tiers.verify().unwrap().mismatches, []);
        assert!(rounds < 100_000);
    }
    eprintln!("{rounds} rounds, {:?}", tiers.status().counts);
}

/// Unmaps a page of the guest's, as the kernel does that reclaims it.
fn unmap(memory: &GuestMemory, page: u64) {
    // SAFETY: guest memory of the test, of a file, which keeps what is in it.
    let result = unsafe { libc::madvise(word(memory, page).cast(), 4096, libc::MADV_DONTNEED) };
    assert_eq!(result, 0);
}

/// Reads a page in a thread of its own.
fn touch(memory: &Arc<GuestMemory>, page: u64) -> Receiver<u64> {
    let (found, receiver) = mpsc::channel();
    let memory = Arc::clone(memory);
    std::thread::spawn(move || {
        // SAFETY: guest memory of the test, which the thread has a share of.
        let value = unsafe { word(&memory, page).read_volatile() };
        found.send(value)
    });
    receiver
}

/// Waits until policy `heat` has looked at all of memory, and ends it.
fn look_at_all(tiers: &Tiers, granules: u64) {
    let since = Instant::now();
    while tiers.status().counts.heat.watched < 4 * granules {
        assert!(since.elapsed() < LIMIT, "{:?}", tiers.status());
        std::thread::sleep(Duration::from_millis(5));
    }
    tiers.set_policy(PolicyName::Static).unwrap();
}

/// The first move of a granule waits for memory, and gets none.
#[derive(Debug, Default)]
struct NoMemory {
    begun: AtomicBool,
    go_on: AtomicBool,
}

impl Hooks for NoMemory {
    fn at(&self, point: Point, _: Granule) -> Inject {
        if point != Point::Populate || self.begun.swap(true, Ordering::AcqRel) {
            return Inject::Nothing;
        }
        let since = Instant::now();
        while !self.go_on.load(Ordering::Acquire) && since.elapsed() < LIMIT {
            std::thread::yield_now();
        }
        Inject::Fail(Errno::NOMEM)
    }
}

#[test]
fn nobody_waits_for_a_move_that_came_to_nothing() {
    let _alone = alone();
    let ram = 8 * MIB;
    let memory = memory(Backing::Memfd, ram);
    fill(&memory, ram / 4096);
    let hooks = Arc::<NoMemory>::default();
    let mut config = config(Backing::Memfd, GranuleSize::M2, ram, Kind::Public);
    config.heat.moves = false;
    config.hooks = Arc::clone(&hooks) as Arc<dyn Hooks>;
    let tiers = Tiers::new(&memory, config).unwrap();
    look_at_all(&tiers, ram / GranuleSize::M2.bytes());
    // What the kernel unmaps of a granule that was looked at makes events.
    unmap(&memory, 7);
    let request = MigrateRequest {
        ranges: vec![range(0, GranuleSize::M2.bytes())],
        to: Target::Pool(PoolId(0)),
        select: Select::ALL,
        from_pool: None,
        limit: None,
    };
    std::thread::scope(|scope| {
        let moving =
            scope.spawn(|| tiers.migrate(&request, &mut |_| ControlFlow::Continue(())).unwrap());
        let since = Instant::now();
        while !hooks.begun.load(Ordering::Acquire) {
            assert!(since.elapsed() < LIMIT);
            std::thread::yield_now();
        }
        let waited = tiers.status().counts.waited;
        let found = touch(&memory, 7);
        while tiers.status().counts.waited == waited {
            assert!(since.elapsed() < LIMIT);
            std::thread::yield_now();
        }
        hooks.go_on.store(true, Ordering::Release);
        assert_eq!(moving.join().unwrap().count(Outcome::NoFrame), 1);
        assert_eq!(found.recv_timeout(LIMIT / 4), Ok(8));
    });
}

#[test]
fn what_cannot_be_is_refused() {
    let ram = 4 * MIB;
    let refused = |config: TiersConfig| match Tiers::new(&memory(config.ram, ram), config) {
        Err(TiersError::Heat(message)) => message,
        other => panic!("{other:?}"),
    };
    let good = || config(Backing::Anon, GranuleSize::M2, ram, Kind::Public);
    let mut none = good();
    none.heat.budget = 0;
    assert!(refused(none).contains("budget of 0 bytes"));
    let mut soon = good();
    soon.heat.period = Duration::from_millis(1);
    assert!(refused(soon).contains("10ms to 10s"));
    let mut dear = good();
    dear.heat.cost = 1001;
    assert!(refused(dear).contains("10.01 %"));
    // Reads of files are seen by minor faults.
    let mut files = config(Backing::Memfd, GranuleSize::M2, ram, Kind::Public);
    files.features = Features(!Features::MINOR_SHMEM.0);
    assert!(refused(files).contains("backing=anon"));
}
