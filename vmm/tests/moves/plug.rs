//! A device region is taken away under a guest that uses it, and given back.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::granule::GranuleSize;
use neap_memory::migrate::{Outcome, Target};
use neap_memory::tiers::{PlugError, PlugMemory};
use neap_memory::{Backing, GpaRange};

use crate::hooks::Slow;
use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, ram_for};
use crate::{Ran, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        trials.push(trial(format!("plug::away_and_back_{backing}_{granule}"), move || {
            away_and_back(backing, granule)
        }));
    }
    trials.push(trial("plug::what_is_pinned_is_named", pinned));
    trials.push(trial("plug::a_window_comes_home_touched_or_not", window));
    for backing in [Backing::Anon, Backing::Memfd, Backing::Hugetlb] {
        let name = format!("plug::comes_back_with_another_size_{backing}");
        trials.push(trial(name, move || resized(backing)));
    }
    trials.push(trial("plug::is_refused_while_unplug_is_at_work", at_work));
    trials
}

fn unplug(rig: &Rig) -> neap_memory::tiers::Unplugged {
    rig.tiers.unplug(0, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn away_and_back(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let mut rig = Plan::new(backing, granule, ram).build(1);
    let all = rig.granules(rig.ram);
    rig.hammer(rig.ram);
    for _ in 0..3 {
        assert_eq!(rig.bring(rig.ram, POOL), all);
        let away = unplug(&rig);
        assert_eq!((away.moved.granules, away.left.len()), (all, 0), "{away:?}");
        // Huge pages that were reserved stay so.
        let released = if backing == Backing::Hugetlb { 0 } else { ram };
        assert_eq!(away.released, released);
        rig.check();
        // Nothing goes there while it is gone.
        let report = rig.migrate(rig.ram, POOL);
        assert_eq!(report.count(Outcome::NoFrame), all, "{report:?}");
        let twice = rig.tiers.unplug(0, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(twice, Err(PlugError::Already(0, _))), "{twice:?}");
        assert_eq!(u64::from(rig.tiers.plug(0, PlugMemory::default()).unwrap()), all);
        assert!(matches!(rig.tiers.plug(0, PlugMemory::default()), Err(PlugError::Already(0, _))));
    }
    assert!(matches!(rig.tiers.plug(7, PlugMemory::default()), Err(PlugError::NoRegion(7))));
    rig.check();
    rig.check_home();
    Ok(())
}

fn resized(backing: Backing) -> Ran {
    let granule = GranuleSize::M2;
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let mut rig = Plan::new(backing, granule, ram).build(1);
    let all = rig.granules(rig.ram);
    rig.hammer(rig.ram);
    assert_eq!(rig.bring(rig.ram, POOL), all);
    assert_eq!(unplug(&rig).left, []);
    let plug = |pool, backing| rig.tiers.plug(0, PlugMemory { pool, backing });
    for pool in [0, ram + rig.granule, rig.granule - 4096, u64::MAX] {
        let refused = plug(Some(pool), None);
        assert!(matches!(refused, Err(PlugError::Size { .. })), "{refused:?}");
    }
    let refused = plug(None, Some(Backing::Node(4000)));
    assert!(matches!(refused, Err(PlugError::Node(_) | PlugError::Kind { .. })), "{refused:?}");
    let half = plug(Some(ram / 2), None);
    if backing == Backing::Hugetlb {
        assert!(matches!(half, Err(PlugError::Fixed(0))), "{half:?}");
        assert_eq!(u64::from(plug(Some(ram), Some(backing)).unwrap()), all);
        rig.check();
        return Ok(());
    }
    assert_eq!(u64::from(half.unwrap()), all / 2);
    let report = rig.migrate(rig.ram, POOL);
    assert!(report.count(Outcome::NoFrame) >= all / 2, "{report:?}");
    let accounts = rig.tiers.account(&|| true).unwrap();
    assert!(accounts.settled && accounts.differences.is_empty(), "{accounts:?}");
    // Its limit is what it has now, and it holds no more.
    let region = accounts.tiers[1];
    assert!(region.limit == ram / 2 && region.found <= ram / 2, "{region:?}");
    assert_eq!(unplug(&rig).left, []);
    assert_eq!(u64::from(plug(Some(ram), None).unwrap()), all);
    assert_eq!(rig.bring(rig.ram, POOL), all);
    rig.check();
    assert_eq!(rig.bring(rig.ram, Target::Home), all);
    rig.check();
    rig.check_home();
    Ok(())
}

fn pinned() -> Ran {
    let granule = GranuleSize::K64;
    let mut rig = Plan::new(Backing::Anon, granule, ram_for(granule)).build(1);
    let all = rig.granules(rig.ram);
    rig.hammer(rig.ram);
    rig.bring(rig.ram, POOL);
    let held = GpaRange::new(neap_memory::Gpa(3 * rig.granule), rig.granule).unwrap();
    let pin = rig.tiers.pin(held, Duration::from_secs(1)).unwrap();
    let kept = unplug(&rig);
    let left: Vec<_> = kept.left.iter().map(|left| (left.range, left.outcome)).collect();
    assert_eq!(left, [(held, Outcome::Pinned)]);
    assert_eq!((kept.moved.granules, kept.released), (all - 1, 0));
    // It serves on.
    assert_eq!(rig.bring(rig.ram, POOL), all - 1);
    drop(pin);
    assert_eq!(unplug(&rig).left, []);
    rig.check();
    rig.check_home();
    Ok(())
}

fn window() -> Ran {
    for backing in [Backing::Anon, Backing::Memfd] {
        let granule = GranuleSize::M2;
        let plan = Plan { window: 8 << 20, ..Plan::new(backing, granule, ram_for(granule)) };
        let mut rig = Plan { prefault: false, ..plan }.build(1);
        let window = rig.window.unwrap();
        // Half of it is used.
        rig.hammer(GpaRange::new(window.base(), window.size() / 2).unwrap());
        let away = unplug(&rig);
        assert_eq!((away.moved.granules, away.left.len()), (rig.granules(window), 0), "{away:?}");
        assert!(rig.all_at(window, Target::Home));
        rig.check();
        rig.tiers.plug(0, PlugMemory::default()).unwrap();
        assert_eq!(rig.bring(window, POOL), rig.granules(window));
        rig.check();
        assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    }
    Ok(())
}

fn at_work() -> Ran {
    let granule = GranuleSize::K64;
    let hooks = Arc::new(Slow(Duration::from_millis(2)));
    let rig = Plan::new(Backing::Anon, granule, ram_for(granule)).hooks(hooks).build(1);
    let all = rig.granules(rig.ram);
    assert_eq!(rig.bring(rig.ram, POOL), all);
    std::thread::scope(|scope| {
        let unplug = scope.spawn(|| unplug(&rig));
        let deadline = Instant::now() + LIMIT;
        while rig.tiers.status().counts.to_home == 0 {
            assert!(Instant::now() < deadline && !unplug.is_finished(), "nobody is at work");
            std::thread::yield_now();
        }
        let plug = rig.tiers.plug(0, PlugMemory::default());
        assert!(matches!(plug, Err(PlugError::AtWork)), "{plug:?}");
        let again = rig.tiers.unplug(0, &mut |_| ControlFlow::Continue(()));
        assert!(matches!(again, Err(PlugError::AtWork)), "{again:?}");
        let away = unplug.join().unwrap();
        assert_eq!((away.moved.granules, away.left.len()), (all, 0), "{away:?}");
    });
    rig.tiers.plug(0, PlugMemory::default()).unwrap();
    rig.check_home();
    Ok(())
}
