//! Device models in the host: one touches granules in motion, one pins them.
//! Neither waits for ever, and what they read is what they wrote.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::addr::MIB;
use neap_memory::granule::{Granule, GranuleSize, Kind};
use neap_memory::migrate::{Outcome, Target};
use neap_memory::table::PinError;
use neap_memory::tiers::PinRangeError;
use vm_memory::{Bytes, GuestAddress};

use crate::hooks::{Gate, mix};
use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, carry_out, ram_for, range, request};
use crate::{Ran, trial};

/// Rounds out and home meanwhile.
const ROUNDS: u64 = 15;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        for kind in [Kind::Public, Kind::Private] {
            let name = format!("devices::touch_and_pin_{backing}_{granule}_{kind}");
            trials.push(trial(name, move || touch_and_pin(backing, granule, kind)));
        }
    }
    trials.push(trial("devices::a_pin_has_a_deadline", a_pin_has_a_deadline));
    trials.push(trial("devices::a_pin_that_is_refused_holds_nothing", refused_pin));
    trials.push(trial("devices::adoption_around_pins", adoption_around_pins));
    trials
}

/// Where in a page each device has its word; the guest's are elsewhere.
const TOUCHED: u64 = 1024;
const PINNED: u64 = 2048;

fn touch_and_pin(backing: Backing, granule: GranuleSize, kind: Kind) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let mut rig = Plan::new(backing, granule, ram).kind(kind).build(1);
    rig.hammer(rig.ram);
    let (stop, touches, pins) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        let devices =
            [scope.spawn(|| touch(&rig, &stop, &touches)), scope.spawn(|| pin(&rig, &stop, &pins))];
        let since = Instant::now();
        let mut rounds = 0;
        let busy = || touches.load(Relaxed) >= 2 * ram / 4096 && pins.load(Relaxed) >= 50;
        while rounds < ROUNDS || !busy() {
            let over = devices.iter().any(thread::ScopedJoinHandle::is_finished);
            if over || since.elapsed() > LIMIT {
                break;
            }
            rig.migrate(rig.ram, POOL);
            rig.migrate(rig.ram, Target::Home);
            rounds += 1;
        }
        stop.store(true, Relaxed);
        // A device that waits for ever would keep the scope from ending.
        while !devices.iter().all(thread::ScopedJoinHandle::is_finished) {
            if since.elapsed() > 2 * LIMIT {
                eprintln!("a device is stuck: {:?}", rig.tiers.status());
                std::process::exit(101);
            }
            thread::yield_now();
        }
        assert!(rounds >= ROUNDS && busy(), "{rounds} rounds, {touches:?}, {pins:?}");
    });
    rig.bring(rig.ram, Target::Home);
    rig.check();
    rig.check_home();
    Ok(())
}

/// Reads and writes a word of every page, in order.
fn touch(rig: &Rig, stop: &AtomicBool, touches: &AtomicU64) {
    for pass in 0u64.. {
        for page in 0..rig.ram.size() / 4096 {
            if stop.load(Relaxed) {
                return;
            }
            let at = GuestAddress(page * 4096 + TOUCHED);
            let expected = if pass == 0 { 0 } else { mix(pass << 32 | page) };
            let found: u64 = rig.memory.view().read_obj(at).unwrap();
            assert_eq!(found, expected, "page {page} in pass {pass}");
            rig.memory.view().write_obj(mix((pass + 1) << 32 | page), at).unwrap();
            touches.fetch_add(1, Relaxed);
        }
    }
}

/// Holds a granule and works on all of its pages, somewhere else each time.
fn pin(rig: &Rig, stop: &AtomicBool, pins: &AtomicU64) {
    let mut written = vec![0u64; (rig.ram.size() / 4096) as usize];
    for turn in 1u64.. {
        if stop.load(Relaxed) {
            return;
        }
        let index = mix(turn) % rig.granules(rig.ram);
        let held = range(index * rig.granule, rig.granule);
        let pin = rig.tiers.pin(held, LIMIT).unwrap();
        for address in (held.base().0..held.end().0).step_by(4096) {
            let at = GuestAddress(address + PINNED);
            let last = &mut written[(address / 4096) as usize];
            let found: u64 = rig.memory.view().read_obj(at).unwrap();
            assert_eq!(found, *last, "{address:#x} at turn {turn}");
            *last = turn;
            rig.memory.view().write_obj(turn, at).unwrap();
        }
        drop(pin);
        pins.fetch_add(1, Relaxed);
    }
}

fn a_pin_has_a_deadline() -> Ran {
    for backing in [Backing::Anon, Backing::Memfd] {
        let gate = Arc::new(Gate::shut(Granule(1)));
        let plan = Plan::new(backing, GranuleSize::M2, 8 * MIB).hooks(gate.clone());
        let (_memory, tiers) = plan.tiers().unwrap();
        let (all, moving) = (range(0, 8 * MIB), range(2 * MIB, 2 * MIB));
        thread::scope(|scope| {
            let mover = scope.spawn(|| carry_out(&tiers, &request(all, POOL)).unwrap());
            gate.wait_reached();
            let since = Instant::now();
            let refused = tiers.pin(moving, Duration::from_millis(50)).unwrap_err();
            assert_eq!(refused, PinRangeError::Granule(PinError::TimedOut));
            assert!(since.elapsed() >= Duration::from_millis(50));
            // The whole range or nothing: what was pinned before it is let go.
            tiers.pin(range(0, 4 * MIB), Duration::ZERO).unwrap_err();
            gate.open();
            // Now it gets through, wherever the move is by then.
            let pin = tiers.pin(moving, LIMIT).unwrap();
            let report = mover.join().unwrap();
            assert_eq!(report.moved.granules, 4, "{report:?}");
            let report = carry_out(&tiers, &request(all, Target::Home)).unwrap();
            assert_eq!(report.moved.granules, 3, "{report:?}");
            assert_eq!(report.count(Outcome::Pinned), 1, "{report:?}");
            drop(pin);
        });
        assert_eq!(carry_out(&tiers, &request(all, Target::Home)).unwrap().moved.granules, 1);
        assert_eq!(tiers.status().pools[0].stats.used, 0);
        assert!(tiers.residency().iter().all(|run| run.pins == 0 && run.refcount == 1));
    }
    Ok(())
}

/// More pins than a frame can count users: the one that is refused leaves the
/// frame to those that were not.
fn refused_pin() -> Ran {
    let (_memory, tiers) = Plan::new(Backing::Anon, GranuleSize::M2, 4 * MIB).tiers().unwrap();
    let first = range(0, 2 * MIB);
    carry_out(&tiers, &request(first, POOL)).unwrap();
    let mut pins = Vec::new();
    while let Ok(pin) = tiers.pin(first, Duration::ZERO) {
        pins.push(pin);
        assert!(pins.len() <= usize::from(u16::MAX));
    }
    assert!(pins.len() > 30_000, "{}", pins.len());
    let run = tiers.residency()[0];
    assert_eq!((run.refcount, usize::from(run.pins)), (pins.len() as u32 + 1, pins.len()));
    pins.clear();
    let run = tiers.residency()[0];
    assert_eq!((run.refcount, run.pins), (1, 0));
    assert_eq!(carry_out(&tiers, &request(first, Target::Home)).unwrap().moved.granules, 1);
    assert_eq!(tiers.status().pools[0].stats.used, 0);
    Ok(())
}

/// The first moves of memory that nobody moved before, with pins that come and
/// go on it all the while: a granule that is passed over because of a pin must
/// not be taken for one that is watched.
fn adoption_around_pins() -> Ran {
    for granule in [GranuleSize::K4, GranuleSize::M2] {
        let ram = 4 * granule.bytes().max(MIB);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(1) {
            let mut rig = Plan::new(Backing::Anon, granule, ram).build(1);
            rig.hammer(rig.ram);
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Relaxed) {
                        drop(rig.tiers.pin(rig.ram, LIMIT).unwrap());
                    }
                });
                for _ in 0..3 {
                    rig.migrate(rig.ram, POOL);
                    rig.migrate(rig.ram, Target::Home);
                }
                stop.store(true, Relaxed);
            });
            rig.bring(rig.ram, POOL);
            rig.bring(rig.ram, Target::Home);
            rig.check();
            rig.check_home();
        }
    }
    Ok(())
}
