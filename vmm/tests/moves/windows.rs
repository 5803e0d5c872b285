//! Regions with a window that the guest sees, full pools, and two regions.

use std::time::Instant;

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::addr::MIB;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::migrate::{Outcome, Target};

use crate::census::Census;
use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, WAYS, ram_for};
use crate::{Ran, trial};

const MOVES: u32 = 20;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        let name = |what: &str| format!("windows::{backing}_{granule}_{what}");
        trials.push(trial(name("evacuated_and_brought_back"), move || {
            evacuate(backing, granule, Kind::Public)
        }));
        trials.push(trial(name("a_full_pool"), move || full(backing, granule)));
        trials.push(trial(name("from_region_to_region"), move || between(backing, granule)));
    }
    // To vCPUs a window is public whatever its region's kind.
    trials.push(trial("windows::of_a_private_region", || {
        evacuate(Backing::Anon, GranuleSize::K64, Kind::Private)?;
        evacuate(Backing::Memfd, GranuleSize::K64, Kind::Private)
    }));
    trials
}

fn evacuate(backing: Backing, granule: GranuleSize, kind: Kind) -> Ran {
    let size = ram_for(granule) / 2;
    // Home memory for the window's granules comes on top.
    let _pages = HugePages::behind(backing, 4 * size)?;
    let plan = Plan {
        window: size,
        // Frames beside the window, so that granules come back elsewhere.
        regions: vec![(size / 2, kind)],
        ..Plan::new(backing, granule, size)
    };
    let mut rig = plan.build(2);
    let window = rig.window.unwrap();
    rig.hammer(window);
    let mut census = Census::new(&rig.tiers, rig.granule);
    let since = Instant::now();
    for _ in 0..MOVES {
        assert!(since.elapsed() < LIMIT);
        assert_eq!(rig.bring(window, Target::Home), rig.granules(window));
        census.look(&rig.tiers);
        assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
        assert_eq!(rig.tiers.status().pools[0].stats.used, 0);
        assert_eq!(rig.bring(window, POOL), rig.granules(window));
        census.look(&rig.tiers);
    }
    rig.check();
    rig.check_home();
    let granules = rig.granules(window) as usize;
    assert_eq!(census.moves_of_last(granules), (MOVES, MOVES));
    Ok(())
}

fn full(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let plan = Plan { regions: vec![(ram / 4, Kind::Public)], ..Plan::new(backing, granule, ram) };
    let mut rig = plan.build(2);
    rig.hammer(rig.ram);
    let all = rig.granules(rig.ram);
    for _ in 0..5 {
        // The kernel may hold a page for a moment, whose frame goes to another
        // granule then or stays free.
        let (deadline, mut moved) = (Instant::now() + LIMIT, 0);
        while moved < all / 4 {
            let report = rig.migrate(rig.ram, POOL);
            moved += report.moved.granules;
            let busy = report.count(Outcome::Busy);
            assert!(moved + busy >= all / 4, "{report:?}");
            assert!(report.count(Outcome::NoFrame) + busy >= all - all / 4, "{report:?}");
            assert!(Instant::now() < deadline, "{report:?}");
        }
        assert_eq!(moved, all / 4);
        let again = rig.migrate(rig.ram, POOL);
        assert_eq!(again.count(Outcome::AlreadyThere), all / 4, "{again:?}");
        assert_eq!(again.count(Outcome::NoFrame), all - all / 4, "{again:?}");
        assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
        rig.check();
        rig.bring(rig.ram, Target::Home);
    }
    rig.check();
    rig.check_home();
    Ok(())
}

fn between(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = (ram_for(granule) / 2).max(4 * MIB);
    let _pages = HugePages::behind(backing, 3 * ram)?;
    let plan = Plan {
        regions: vec![(ram, Kind::Public), (ram, Kind::Public)],
        ..Plan::new(backing, granule, ram)
    };
    let mut rig = plan.build(2);
    rig.hammer(rig.ram);
    rig.bring(rig.ram, POOL);
    let other = Target::Pool(PoolId(1));
    for _ in 0..MOVES {
        rig.bring(rig.ram, other);
        let used: Vec<_> = rig.tiers.status().pools.iter().map(|p| p.stats.used).collect();
        assert_eq!(used, [0, rig.granules(rig.ram) as u32]);
        rig.bring(rig.ram, POOL);
    }
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    rig.bring(rig.ram, Target::Home);
    rig.check();
    rig.check_home();
    Ok(())
}
