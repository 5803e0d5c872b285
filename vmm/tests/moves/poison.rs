//! Host memory that fails while it is copied: what is lost is said and
//! marked, never read as zeros, and everything else is whole.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use libtest_mimic::Trial;
use neap_memory::engine::hooks::{Hooks, Inject, Point};
use neap_memory::granule::{Granule, GranuleSize, Kind};
use neap_memory::migrate::{Outcome, Target};
use neap_memory::tiers::Met;
use neap_memory::{Backing, GuestMemory};
use vm_memory::{Bytes, GuestAddress};

use crate::rig::{LIMIT, POOL, Plan, Rig, ram_for, range};
use crate::{Ran, trial};

/// The granule whose first page fails.
const VICTIM: Granule = Granule(1);
const PAGE: u64 = 4096;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for granule in [GranuleSize::K4, GranuleSize::K64, GranuleSize::M2] {
        for way in [Way::Out, Way::Home] {
            let name = format!("poison::{way:?}_{granule}").to_lowercase();
            trials.push(trial(name, move || in_motion(granule, way)));
        }
    }
    for granule in [GranuleSize::K64, GranuleSize::M2] {
        trials.push(trial(format!("poison::private_comes_home_{granule}"), move || {
            private_comes_home(granule)
        }));
    }
    trials
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Out,
    Home,
}

/// The n-th copy of the victim meets a page that has failed.
#[derive(Debug)]
struct Failing(AtomicU32);

impl Hooks for Failing {
    fn at(&self, point: Point, granule: Granule) -> Inject {
        let now = point == Point::Copy && granule == VICTIM && self.0.fetch_sub(1, Relaxed) == 1;
        if now { Inject::Poison } else { Inject::Nothing }
    }
}

fn build(granule: GranuleSize, kind: Kind, copy: u32) -> Rig {
    let hooks = Arc::new(Failing(AtomicU32::new(copy)));
    let plan = Plan::new(Backing::Anon, granule, ram_for(granule)).kind(kind).hooks(hooks);
    let rig = plan.build(1);
    for page in victim(rig.granule) {
        rig.memory.view().write_obj(mark(page), GuestAddress(page)).unwrap();
    }
    rig
}

/// Addresses of the victim's pages.
fn victim(granule: u64) -> impl Iterator<Item = u64> {
    let base = u64::from(VICTIM.0) * granule;
    (base..base + granule).step_by(PAGE as usize)
}

fn mark(page: u64) -> u64 {
    page ^ 0x5a5a_0000_1234_5678
}

/// A word of guest memory as the kernel reads it for others, which gives an
/// error and no signal where it is lost.
fn peek(memory: &GuestMemory, gpa: u64) -> std::io::Result<u64> {
    let mut word = [0; 8];
    File::open("/proc/self/mem")?.read_exact_at(&mut word, memory.slots()[0].hva + gpa)?;
    Ok(u64::from_ne_bytes(word))
}

/// The first page of the victim is lost and says so; the others are whole.
fn check_victim(rig: &Rig) {
    let mut pages = victim(rig.granule);
    let lost = peek(&rig.memory, pages.next().unwrap());
    assert!(lost.is_err(), "what is lost reads as {lost:?}");
    for page in pages {
        assert_eq!(peek(&rig.memory, page).unwrap(), mark(page), "at {page:#x}");
    }
}

fn in_motion(granule: GranuleSize, way: Way) -> Ran {
    let mut rig = build(granule, Kind::Public, if way == Way::Out { 1 } else { 2 });
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = Arc::clone(&told);
    rig.tiers.on_failure(Box::new(move |failure| tell.lock().unwrap().push(*failure)));
    // The guest uses everything but the victim.
    let others = range(2 * rig.granule, rig.ram.size() - 2 * rig.granule);
    rig.hammer(others);
    let all = rig.granules(rig.ram);
    // The kernel may hold a page for a moment.
    let all_but_one = |rig: &Rig, to| {
        let (deadline, mut moved) = (Instant::now() + LIMIT, 0);
        loop {
            let report = rig.migrate(rig.ram, to);
            moved += report.moved.granules;
            if report.count(Outcome::Busy) == 0 {
                assert_eq!(report.count(Outcome::Poisoned), 1, "{report:?}");
                break assert_eq!(moved, all - 1, "{report:?}");
            }
            assert!(Instant::now() < deadline, "{report:?}");
        }
    };
    if way == Way::Home {
        assert_eq!(rig.bring(rig.ram, POOL), all);
        all_but_one(&rig, Target::Home);
    } else {
        all_but_one(&rig, POOL);
    }
    check_victim(&rig);
    assert_eq!(rig.tiers.status().counts.lost, 1);
    // Whoever asked is told what, where, and whether a frame is out of service.
    let told = told.lock().unwrap().clone();
    let [failure] = told[..] else { panic!("{told:?}") };
    let met = (failure.range, failure.retired, failure.met);
    assert_eq!(met, (range(rig.granule, rig.granule), way == Way::Home, Met::Move));
    assert_eq!(failure.place.is_device(), way == Way::Home);
    // It stays where it is from now on, and the others do not care.
    let (back, stays) = match way {
        Way::Out => (Target::Home, Outcome::AlreadyThere),
        Way::Home => (POOL, Outcome::AlreadyThere),
    };
    assert_eq!(rig.bring(others, back), all - 2);
    let one = range(rig.granule, rig.granule);
    assert_eq!(rig.migrate(one, back).count(stays), 1);
    let away = if way == Way::Out { POOL } else { Target::Home };
    let report = rig.migrate(one, away);
    assert_eq!(report.count(Outcome::Poisoned), 1, "{report:?}");
    check_victim(&rig);
    rig.check();
    // A frame that failed is in use by the victim and free to nobody.
    if way == Way::Home {
        assert_eq!(rig.bring(others, Target::Home), all - 2);
        let stats = rig.tiers.status().pools[0].stats;
        assert_eq!(stats.used, 1, "{stats:?}");
    }
    Ok(())
}

fn private_comes_home(granule: GranuleSize) -> Ran {
    let rig = build(granule, Kind::Private, 2);
    let one = range(rig.granule, rig.granule);
    assert_eq!(rig.bring(one, POOL), 1);
    // Whoever touches a page that is whole gets it: the granule comes home.
    let second = victim(rig.granule).nth(1).unwrap();
    let word: u64 = rig.memory.view().read_obj(GuestAddress(second)).unwrap();
    assert_eq!(word, mark(second));
    check_victim(&rig);
    // The pages come before the books are written.
    let deadline = Instant::now() + LIMIT;
    while rig.tiers.status().counts.come_home == 0 {
        assert!(Instant::now() < deadline, "{:?}", rig.tiers.status());
        thread::yield_now();
    }
    let status = rig.tiers.status();
    assert_eq!((status.counts.lost, status.counts.come_home), (1, 1), "{status:?}");
    // Its frame is nobody's any more.
    let stats = status.pools[0].stats;
    assert_eq!((stats.used, stats.retired), (0, 1), "{stats:?}");
    Ok(())
}
