//! Moves that fail at every point in every way, with granules pinned and
//! unpinned meanwhile: whatever came of a granule, it is whole, and no frame
//! is lost.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::migrate::{Outcome, Report, Target};
use neap_memory::table::Place;
use neap_memory::tiers::Tiers;

use crate::hooks::{Chance, mix};
use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, ram_for, range};
use crate::{Ran, trial};

/// Least number of times that each injection happens at each point.
const EACH: u64 = 5;
/// Least moves of a granule on average, each way.
const MOVES: u64 = 20;
/// Runs the same chances again.
const SEED: &str = "NEAP_PROOF_SEED";

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        for kind in [Kind::Public, Kind::Private] {
            let name = format!("injection::{backing}_{granule}_{kind}");
            trials.push(trial(name, move || inject(backing, granule, kind)));
        }
    }
    trials
}

/// The seed of this run, which is said once.
fn seed() -> u64 {
    static ONCE: OnceLock<u64> = OnceLock::new();
    *ONCE.get_or_init(|| {
        let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            mix(now.as_nanos() as u64)
        });
        println!("{SEED}={seed}");
        seed
    })
}

/// How rare an injection must be so that most granules arrive, although a
/// failure takes the rest of its run with it.
fn one_in(granule: GranuleSize) -> u64 {
    match granule {
        GranuleSize::M2 => 10,
        GranuleSize::K64 => 60,
        GranuleSize::K4 => 400,
    }
}

/// Outcomes that must be seen.
fn expected(backing: Backing, kind: Kind) -> Vec<Outcome> {
    let mut expected =
        vec![Outcome::Moved, Outcome::Pinned, Outcome::NoFrame, Outcome::CopyFailed, Outcome::Busy];
    // Only mapping over can take a VMA too many.
    if backing != Backing::Anon && kind == Kind::Public {
        expected.push(Outcome::VmaBudget);
    }
    expected
}

fn inject(backing: Backing, granule: GranuleSize, kind: Kind) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let seed = seed();
    let chance = Arc::new(Chance::new(seed, one_in(granule), ram / granule.bytes()));
    let mut rig = Plan::new(backing, granule, ram).kind(kind).hooks(chance.clone()).build(2);
    rig.hammer(rig.ram);
    let mut seen = Vec::new();
    let (stop, pins) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let pinner = scope.spawn(|| pin_at_random(&rig, seed, &stop, &pins));
        // The thread must end also if an assertion does not hold.
        let _stop = StopAtEnd(&stop);
        let since = Instant::now();
        loop {
            let mut happened: Vec<u64> = chance.happened().concat();
            happened.sort_unstable();
            let moves = moves(&rig);
            let missing: Vec<_> =
                expected(backing, kind).into_iter().filter(|o| !seen.contains(o)).collect();
            let enough = happened[0] >= EACH && moves >= MOVES && missing.is_empty();
            if enough || pinner.is_finished() {
                break;
            }
            assert!(
                since.elapsed() < LIMIT,
                "seed {seed}: not enough: {:?}, moves {moves}, missing {missing:?}, {:?}",
                chance.happened(),
                rig.tiers.status()
            );
            for to in [POOL, Target::Home] {
                note(&rig.migrate(rig.ram, to), &mut seen);
                note_counts(&rig.tiers, &mut seen);
            }
        }
    });
    assert!(pins.load(Relaxed) > 0, "nothing was pinned");
    rig.check();
    // Every frame can be had again, so none was lost.
    chance.set(false);
    rig.bring(rig.ram, Target::Home);
    rig.check_home();
    let report = rig.migrate(rig.ram, POOL);
    assert_eq!(report.count(Outcome::NoFrame), 0, "{report:?}");
    rig.bring(rig.ram, Target::Home);
    rig.check();
    rig.check_home();
    Ok(())
}

/// Moves of a granule on average, the way that had fewer.
fn moves(rig: &Rig) -> u64 {
    let counts = rig.tiers.status().counts;
    counts.to_device.min(counts.to_home) / rig.granules(rig.ram)
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

fn note(report: &Report, seen: &mut Vec<Outcome>) {
    for (_, outcome) in Outcome::NAMES {
        if report.count(outcome) > 0 && !seen.contains(&outcome) {
            seen.push(outcome);
        }
    }
}

/// Also those of granules that came home by a touch.
fn note_counts(tiers: &Tiers, seen: &mut Vec<Outcome>) {
    for ((_, outcome), count) in Outcome::NAMES.into_iter().zip(tiers.status().counts.outcomes) {
        if count > 0 && !seen.contains(&outcome) {
            seen.push(outcome);
        }
    }
}

/// Pins a few granules somewhere for a moment, again and again, and asserts
/// that they stay where they are.
fn pin_at_random(rig: &Rig, seed: u64, stop: &AtomicBool, pins: &AtomicU64) {
    let mut chance = mix(seed);
    let mut next = |below: u64| {
        chance = mix(chance);
        chance % below
    };
    let granules = rig.granules(rig.ram);
    while !stop.load(Relaxed) {
        let count = 1 + next(4);
        let first = next(granules - count);
        let pinned = range(first * rig.granule, count * rig.granule);
        let pin = rig.tiers.pin(pinned, LIMIT).unwrap();
        let before = places(&rig.tiers, rig.granule, first, count);
        // Held as long as a device would, not to wait for anything.
        thread::sleep(Duration::from_micros(next(1500)));
        let after = places(&rig.tiers, rig.granule, first, count);
        drop(pin);
        assert_eq!(before, after, "seed {seed}: {pinned} moved under a pin");
        pins.fetch_add(1, Relaxed);
    }
}

/// Where `count` granules from `first` are, one by one.
fn places(tiers: &Tiers, granule: u64, first: u64, count: u64) -> Vec<Place> {
    let at = |place: Place, n: u64| match place {
        Place::Device { pool, frame } => {
            Place::Device { pool, frame: neap_memory::granule::Frame(frame.0 + n as u32) }
        }
        other => other,
    };
    let runs = tiers.residency();
    let wanted = (first..first + count).map(|index| index * granule);
    wanted
        .map(|address| {
            let run = runs
                .iter()
                .find(|run| run.range.base().0 <= address && address < run.range.end().0);
            let run = run.unwrap();
            assert!(run.pins > 0 && !run.moving, "{run:?}");
            at(run.place, (address - run.range.base().0) / granule)
        })
        .collect()
}
