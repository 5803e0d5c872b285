//! Several requests at a time, requests that overlap or are broken off, and
//! the end of the machine in the middle of one.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::addr::MIB;
use neap_memory::granule::{Granule, GranuleSize, Kind};
use neap_memory::migrate::{MigrateRequest, Outcome, RequestError, Target};

use crate::hooks::{Gate, Slow};
use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, carry_out, ram_for, range, request};
use crate::{Ran, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        let name = |what: &str| format!("requests::{backing}_{granule}_{what}");
        trials.push(trial(name("several_at_a_time"), move || several(backing, granule)));
    }
    for backing in [Backing::Anon, Backing::Memfd] {
        let name = |what: &str| format!("requests::{backing}_{what}");
        trials.push(trial(name("two_over_one_range"), move || overlapping(backing)));
        trials.push(trial(name("broken_off"), move || broken_off(backing)));
        trials.push(trial(name("the_machine_ends"), move || the_machine_ends(backing)));
        for kind in [Kind::Public, Kind::Private] {
            trials.push(trial(name(&format!("ended_guest_goes_on_{kind}")), move || {
                guest_goes_on(backing, kind)
            }));
        }
    }
    trials
}

/// Four threads, each with a quarter of RAM of its own.
fn several(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let mut rig = Plan { copy_threads: 2, ..Plan::new(backing, granule, ram) }.build(2);
    rig.hammer(rig.ram);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for quarter in 0..4 {
            let (rig, stop) = (&rig, &stop);
            scope.spawn(move || {
                let part = range(quarter * ram / 4, ram / 4);
                let mut rounds = 0;
                while !stop.load(Relaxed) && rounds < 10 {
                    assert!(rig.bring(part, POOL) >= rig.granules(part));
                    assert!(rig.bring(part, Target::Home) >= rig.granules(part));
                    rounds += 1;
                }
            });
        }
    });
    rig.check();
    rig.check_home();
    Ok(())
}

/// A request that is held up in its middle, with one granule in motion.
fn held_up(backing: Backing, kind: Kind) -> (Rig, Arc<Gate>) {
    let gate = Arc::new(Gate::shut(Granule(1)));
    let plan = Plan::new(backing, GranuleSize::M2, 32 * MIB).kind(kind).hooks(gate.clone());
    (plan.build(1), gate)
}

fn overlapping(backing: Backing) -> Ran {
    let (rig, gate) = held_up(backing, Kind::Public);
    thread::scope(|scope| {
        let mover = scope.spawn(|| rig.migrate(range(0, 16 * MIB), POOL));
        gate.wait_reached();
        let before = rig.tiers.status().counts;
        for other in [range(0, 2 * MIB), range(14 * MIB, 4 * MIB), rig.ram] {
            let error = carry_out(&rig.tiers, &request(other, Target::Home)).unwrap_err();
            assert!(matches!(error, RequestError::Overlaps(..)), "{error:?}");
        }
        // The empty list is all of memory, so it overlaps too.
        let all = MigrateRequest { ranges: Vec::new(), ..request(rig.ram, POOL) };
        assert!(matches!(carry_out(&rig.tiers, &all), Err(RequestError::Overlaps(..))));
        assert_eq!(rig.tiers.status().counts.to_home, before.to_home);
        gate.open();
        assert_eq!(mover.join().unwrap().moved.granules, 8);
    });
    // It is over, so the range is free again.
    assert_eq!(rig.migrate(range(0, 16 * MIB), Target::Home).moved.granules, 8);
    rig.check_home();
    Ok(())
}

/// Whoever asked goes away while granules are on their way.
fn broken_off(backing: Backing) -> Ran {
    let ram = 64 * MIB;
    let slow = Arc::new(Slow(Duration::from_micros(100)));
    let mut rig = Plan::new(backing, GranuleSize::K64, ram).hooks(slow).build(2);
    rig.hammer(rig.ram);
    let all = rig.granules(rig.ram);
    let mut told = Vec::new();
    let request = request(rig.ram, POOL);
    let report = rig.tiers.migrate(&request, &mut |progress| {
        told.push(*progress);
        ControlFlow::Break(())
    });
    let report = report.unwrap();
    let (moved, cancelled) = (report.moved.granules, report.count(Outcome::Cancelled));
    assert!(!told.is_empty() && told[0].total == all, "{told:?}");
    assert!(moved > 0 && cancelled > 0, "{:?}, told {told:?}", report.counts);
    assert_eq!(report.counts.iter().sum::<u64>(), all, "{:?}", report.counts);
    // Each is wholly in the one place or the other.
    let away: u64 = rig
        .tiers
        .residency()
        .iter()
        .inspect(|run| assert!(!run.moving, "{run:?}"))
        .filter(|run| run.place.is_device())
        .map(|run| rig.granules(run.range))
        .sum();
    assert_eq!(away, moved);
    assert_eq!(u64::from(rig.tiers.status().pools[0].stats.used), moved);
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    rig.check();
    rig.bring(rig.ram, Target::Home);
    rig.check();
    rig.check_home();
    Ok(())
}

/// `stop` lets what is in flight arrive and refuses the rest.
fn the_machine_ends(backing: Backing) -> Ran {
    let (mut rig, gate) = held_up(backing, Kind::Public);
    // The guest waits for the granule at the gate, which is why it cannot be
    // waited for here.
    rig.guest.load_writer(0, &neap_vmm::bare::Writer::over(rig.ram)).unwrap();
    rig.guest.start().unwrap();
    rig.guest.wait_passes(1, LIMIT).unwrap();
    let report = thread::scope(|scope| {
        let mover = scope.spawn(|| rig.migrate(rig.ram, POOL));
        gate.wait_reached();
        rig.tiers.stop();
        assert!(matches!(carry_out(&rig.tiers, &request(rig.ram, POOL)), Err(RequestError::Over)));
        gate.open();
        mover.join().unwrap()
    });
    let counts = report.counts.iter().sum::<u64>();
    assert_eq!(counts, rig.granules(rig.ram), "{:?}", report.counts);
    assert!(report.moved.granules >= 1, "{:?}", report.counts);
    assert!(rig.tiers.residency().iter().all(|run| !run.moving));
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    rig.check();
    Ok(())
}

/// vCPUs may still run for a while after `stop`, and what is away then must
/// not hold them up.
fn guest_goes_on(backing: Backing, kind: Kind) -> Ran {
    let mut rig = Plan::new(backing, GranuleSize::K64, 16 * MIB).kind(kind).build(2);
    rig.hammer(rig.ram);
    rig.guest.stop(LIMIT).unwrap();
    rig.bring(rig.ram, POOL);
    rig.tiers.stop();
    let since = Instant::now();
    rig.guest.start().unwrap();
    rig.check();
    assert!(since.elapsed() < LIMIT);
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    Ok(())
}
