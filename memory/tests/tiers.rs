//! Migration under a thread of this process that writes all the while: the
//! engines see no difference to a vCPU.
#![cfg(not(feature = "loom"))]
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use neap_memory::addr::MIB;
use neap_memory::engine::EngineName;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::{GuestMemory, RangeSpec};
use neap_memory::migrate::{MigrateRequest, Outcome, Report, Select, Target};
use neap_memory::numa::nodes;
use neap_memory::park::{Park, Parked};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::{RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, Gpa, GpaRange};

fn fatal(message: &str) -> ! {
    eprintln!("fatal: {message}");
    std::process::abort()
}

struct Setup {
    memory: Arc<GuestMemory>,
    tiers: Tiers,
}

fn setup(
    backing: Backing,
    granule: GranuleSize,
    ram: u64,
    kind: Kind,
    policy: PolicyName,
) -> Setup {
    setup_with(backing, granule, ram, kind, |config| config.policy = policy)
}

fn setup_with(
    backing: Backing,
    granule: GranuleSize,
    ram: u64,
    kind: Kind,
    change: impl FnOnce(&mut TiersConfig),
) -> Setup {
    let range = GpaRange::new(Gpa(0), ram).unwrap();
    let memory =
        Arc::new(GuestMemory::new(&[RangeSpec { range, backing, prefault: false }]).unwrap());
    let mut config = TiersConfig::new(granule, fatal);
    config.ram = backing;
    config.regions = vec![RegionConfig { window: None, pool: ram, kind, backing }];
    change(&mut config);
    let tiers = Tiers::new(&memory, config).unwrap();
    Setup { memory, tiers }
}

fn migrate(tiers: &Tiers, to: Target) -> Report {
    let request = MigrateRequest {
        ranges: Vec::new(),
        to,
        select: Select::ALL,
        from_pool: None,
        limit: None,
    };
    tiers.migrate(&request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Writes pass numbers to every page and checks the one before.
fn hammer(hva: u64, pages: u64, stop: &AtomicBool, passes: &AtomicU64, gate: &Gate) -> u64 {
    let mut wrong = 0;
    for pass in 1u64.. {
        for page in 0..pages {
            gate.pass();
            let at = std::ptr::with_exposed_provenance_mut::<u64>((hva + page * 4096) as usize);
            // SAFETY: guest memory of the test, which outlives the thread.
            unsafe {
                wrong += u64::from(
                    at.read_volatile() != if pass == 1 { 0 } else { (pass - 1) * pages + page },
                );
                at.write_volatile(pass * pages + page);
            }
        }
        passes.store(pass, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            break;
        }
    }
    gate.change(|state| state.over = true);
    wrong
}

/// Where the one thread that writes waits while it is held.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    holds: usize,
    parked: bool,
    over: bool,
}

impl Gate {
    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.changed.notify_all();
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        while state.holds > 0 {
            state.parked = true;
            self.changed.notify_all();
            state = self.changed.wait(state).unwrap();
        }
        state.parked = false;
    }
}

#[derive(Debug)]
struct Holder(Arc<Gate>);

struct Hold(Arc<Gate>);

impl Park for Holder {
    fn park(&self, patience: Duration) -> Option<Box<dyn Parked>> {
        self.0.change(|state| state.holds += 1);
        let hold = Hold(Arc::clone(&self.0));
        let state = self.0.state.lock().unwrap();
        let (state, timeout) = self
            .0
            .changed
            .wait_timeout_while(state, patience, |state| !state.parked && !state.over)
            .unwrap();
        drop(state);
        (!timeout.timed_out()).then(|| Box::new(hold) as _)
    }
}

impl Parked for Hold {
    fn vcpus(&self) -> usize {
        1
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.change(|state| state.holds -= 1);
    }
}

fn ping_pong(backing: Backing, granule: GranuleSize, ram: u64, kind: Kind) {
    let setup = setup(backing, granule, ram, kind, PolicyName::Static);
    ping_pong_in(setup, &Arc::default(), backing, granule, ram, kind);
}

fn ping_pong_in(
    Setup { memory, tiers }: Setup,
    gate: &Arc<Gate>,
    backing: Backing,
    granule: GranuleSize,
    ram: u64,
    kind: Kind,
) {
    let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
    let hva = memory.slots()[0].hva;
    let total = ram / granule.bytes();
    let wrong = std::thread::scope(|scope| {
        let writer = scope.spawn(|| hammer(hva, ram / 4096, &stop, &passes, gate));
        let deadline = Instant::now() + Duration::from_secs(30);
        while passes.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        for round in 0..20 {
            let out = migrate(&tiers, Target::Pool(PoolId(0)));
            if kind == Kind::Public {
                assert_eq!(out.count(Outcome::Moved), total, "round {round}: {out:?}");
            }
            let mut came = 0;
            while came < total {
                let home = migrate(&tiers, Target::Home);
                came += home.count(Outcome::Moved);
                // Who was not to be parked in time is tried again.
                let again = home.count(Outcome::Busy) > 0 && tiers.status().stalls.is_some();
                assert!(kind != Kind::Public || came == total || again, "round {round}: {home:?}");
                if kind != Kind::Public {
                    break;
                }
            }
            let verified = tiers.verify().unwrap();
            assert_eq!(verified.mismatches, []);
        }
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap()
    });
    assert_eq!(wrong, 0);
    eprintln!(
        "{backing} {granule} {kind}: passes {}, {:?}",
        passes.load(Ordering::Relaxed),
        tiers.status().counts
    );
    if backing.is_anonymous() && granule == GranuleSize::M2 {
        assert_eq!(tiers.verify().unwrap().huge, ram);
    }
    if let Some(stalls) = tiers.status().stalls {
        eprintln!("{stalls:?}");
        assert_eq!(stalls.granules, 20 * total);
        assert!(stalls.copying_nanos <= stalls.nanos && stalls.batches <= stalls.granules);
    }
}

#[test]
fn memory_that_nobody_can_watch_keeps_every_word_while_its_users_are_parked() {
    let (granule, ram) = (GranuleSize::M2, 64 * MIB);
    for threads in [1, 2] {
        let gate = Arc::<Gate>::default();
        let park = Holder(Arc::clone(&gate));
        let setup = setup_with(Backing::Memfd, granule, ram, Kind::Public, |config| {
            config.unwatched_pools = true;
            config.copy_threads = threads;
            config.park = Some(Arc::new(park));
        });
        ping_pong_in(setup, &gate, Backing::Memfd, granule, ram, Kind::Public);
    }
}

#[test]
fn who_does_not_park_keeps_its_memory_where_it_is() {
    #[derive(Debug)]
    struct Never;
    impl Park for Never {
        fn park(&self, _: Duration) -> Option<Box<dyn Parked>> {
            None
        }
    }
    let ram = 8 * MIB;
    let setup = setup_with(Backing::Memfd, GranuleSize::M2, ram, Kind::Public, |config| {
        config.unwatched_pools = true;
        config.park = Some(Arc::new(Never));
    });
    let (stop, passes) = (AtomicBool::new(true), AtomicU64::new(0));
    let hva = setup.memory.slots()[0].hva;
    assert_eq!(hammer(hva, ram / 4096, &stop, &passes, &Gate::default()), 0);
    let out = migrate(&setup.tiers, Target::Pool(PoolId(0)));
    assert_eq!(out.count(Outcome::Moved), 4);
    let home = migrate(&setup.tiers, Target::Home);
    assert_eq!(home.count(Outcome::Busy), 4, "{home:?}");
    assert_eq!(setup.tiers.verify().unwrap().mismatches, []);
    assert_eq!(setup.tiers.status().pools[0].stats.used, 4);
}

#[test]
fn a_node_s_memory_keeps_every_word_with_either_engine() {
    // The node of both tiers where there is one; the books are kept all the same.
    let Some(&node) = nodes::with_memory().last() else { return };
    let (backing, granule, ram) = (Backing::Node(node), GranuleSize::M2, 32 * MIB);
    for engine in [EngineName::Move, EngineName::Node] {
        let setup = setup_with(backing, granule, ram, Kind::Public, |config| {
            config.ram = Backing::Anon;
            config.engine = Some(engine);
        });
        ping_pong_in(setup, &Arc::default(), backing, granule, ram, Kind::Public);
    }
}

#[test]
fn anonymous_memory_keeps_every_word_at_2m() {
    ping_pong(Backing::Anon, GranuleSize::M2, 64 * MIB, Kind::Public);
}

#[test]
fn anonymous_memory_keeps_every_word_at_64k() {
    ping_pong(Backing::Anon, GranuleSize::K64, 16 * MIB, Kind::Public);
}

#[test]
fn anonymous_memory_keeps_every_word_at_4k() {
    ping_pong(Backing::Anon, GranuleSize::K4, 8 * MIB, Kind::Public);
}

#[test]
fn files_in_memory_keep_every_word_at_2m() {
    ping_pong(Backing::Memfd, GranuleSize::M2, 64 * MIB, Kind::Public);
}

#[test]
fn files_in_memory_keep_every_word_at_64k() {
    ping_pong(Backing::Memfd, GranuleSize::K64, 16 * MIB, Kind::Public);
}

#[test]
fn files_in_memory_keep_every_word_at_4k() {
    ping_pong(Backing::Memfd, GranuleSize::K4, 8 * MIB, Kind::Public);
}

#[test]
fn private_granules_come_home_on_a_touch() {
    for backing in [Backing::Anon, Backing::Memfd] {
        for granule in GranuleSize::ALL {
            ping_pong(backing, granule, 16 * MIB, Kind::Private);
        }
    }
}
