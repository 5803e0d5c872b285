//! Migration under a thread of this process that writes all the while: the
//! engines see no difference to a vCPU.
#![cfg(not(feature = "loom"))]
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neap_memory::addr::MIB;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::{GuestMemory, RangeSpec};
use neap_memory::migrate::{MigrateRequest, Outcome, Report, Select, Target};
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
    let range = GpaRange::new(Gpa(0), ram).unwrap();
    let memory =
        Arc::new(GuestMemory::new(&[RangeSpec { range, backing, prefault: false }]).unwrap());
    let mut config = TiersConfig::new(granule, fatal);
    config.ram = backing;
    config.policy = policy;
    config.regions = vec![RegionConfig { window: None, pool: ram, kind, backing }];
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
fn hammer(hva: u64, pages: u64, stop: &AtomicBool, passes: &AtomicU64) -> u64 {
    let mut wrong = 0;
    for pass in 1u64.. {
        for page in 0..pages {
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
    wrong
}

fn ping_pong(backing: Backing, granule: GranuleSize, ram: u64, kind: Kind) {
    let Setup { memory, tiers } = setup(backing, granule, ram, kind, PolicyName::Static);
    let (stop, passes) = (AtomicBool::new(false), AtomicU64::new(0));
    let hva = memory.slots()[0].hva;
    let total = ram / granule.bytes();
    let wrong = std::thread::scope(|scope| {
        let writer = scope.spawn(|| hammer(hva, ram / 4096, &stop, &passes));
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
            let home = migrate(&tiers, Target::Home);
            if kind == Kind::Public {
                assert_eq!(home.count(Outcome::Moved), total, "round {round}: {home:?}");
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
    if backing == Backing::Anon && granule == GranuleSize::M2 {
        assert_eq!(tiers.verify().unwrap().huge, ram);
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
