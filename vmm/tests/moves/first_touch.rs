//! Policy `first-touch`: RAM that nobody has touched goes to the pool as it is
//! touched, while there is room, and then home. It always reads as zeros
//! first, whatever was in its frame before.

use std::time::Instant;

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::granule::GranuleSize;
use neap_memory::migrate::Target;
use neap_memory::policy::PolicyName;
use vm_memory::{Bytes, GuestAddress};

use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, is_at, ram_for, range};
use crate::{Ran, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        let name = |what: &str| format!("first_touch::{backing}_{granule}_{what}");
        trials.push(trial(name("fills_the_pool_first"), move || fills(backing, granule)));
        trials.push(trial(name("reads_zeros"), move || zeros(backing, granule)));
        trials.push(trial(name("can_be_left"), move || can_be_left(backing, granule)));
    }
    trials
}

fn plan(backing: Backing, granule: GranuleSize, ram: u64, pool: u64) -> Plan {
    Plan {
        policy: PolicyName::FirstTouch,
        prefault: false,
        regions: vec![(pool, neap_memory::granule::Kind::Public)],
        ..Plan::new(backing, granule, ram)
    }
}

/// Granules of RAM that are in the pool, once all are settled: whoever
/// touches one goes on a little before it is entered in the books.
fn in_pool(rig: &Rig) -> u64 {
    let deadline = Instant::now() + LIMIT;
    loop {
        let runs = rig.tiers.residency();
        if runs.iter().all(|run| !run.moving) {
            let away = runs.iter().filter(|run| is_at(run.place, POOL));
            return away.map(|run| run.range.size() / rig.granule).sum();
        }
        assert!(Instant::now() < deadline, "{runs:?}");
        std::thread::yield_now();
    }
}

fn fills(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let mut rig = plan(backing, granule, ram, ram / 2).build(2);
    let all = rig.granules(rig.ram);
    assert_eq!(in_pool(&rig), 0);
    rig.hammer(rig.ram);
    // Both vCPUs have been everywhere.
    assert_eq!(in_pool(&rig), all / 2, "{:?}", rig.tiers.status());
    assert_eq!(rig.tiers.status().counts.first_touches, all);
    rig.check();
    let verified = rig.tiers.verify().unwrap();
    assert_eq!((verified.mismatches, verified.checked), (vec![], all));
    for _ in 0..5 {
        rig.bring(rig.ram, Target::Home);
        rig.migrate(rig.ram, POOL);
    }
    rig.bring(rig.ram, Target::Home);
    rig.check();
    rig.check_home();
    Ok(())
}

/// Faults that the fault thread has served, once there are as many as `least`:
/// whoever waited goes on a little before it is counted.
fn timed(rig: &Rig, least: u64) -> u64 {
    let deadline = Instant::now() + LIMIT;
    loop {
        let latency = rig.tiers.status().counts.latency;
        let served = latency.buckets.iter().sum();
        if served >= least {
            assert!(!latency.total.is_zero());
            return served;
        }
        assert!(Instant::now() < deadline, "{latency:?}");
        std::thread::yield_now();
    }
}

/// Another policy decides from the next touch on, and back again.
fn can_be_left(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let mut rig = plan(backing, granule, ram, ram).build(1);
    let all = rig.granules(rig.ram);
    assert_eq!(rig.tiers.policies(), PolicyName::ALL);
    assert_eq!(rig.tiers.set_policy(PolicyName::Static), Ok(PolicyName::FirstTouch));
    assert_eq!(rig.tiers.status().policy, PolicyName::Static);
    rig.hammer(rig.ram);
    assert_eq!(in_pool(&rig), 0, "{:?}", rig.tiers.status());
    // Every touch was an event all the same, and was timed.
    assert_eq!(rig.tiers.status().counts.first_touches, all);
    assert!(timed(&rig, all) >= all);
    assert_eq!(rig.tiers.set_policy(PolicyName::FirstTouch), Ok(PolicyName::Static));
    rig.check();
    drop(rig);
    let unwatched = Plan::new(backing, granule, ram).build(1);
    let refused = unwatched.tiers.set_policy(PolicyName::FirstTouch).unwrap_err().to_string();
    assert!(refused.contains("--policy first-touch"), "{refused}");
    assert_eq!(unwatched.tiers.policy(), PolicyName::Static);
    Ok(())
}

fn zeros(backing: Backing, granule: GranuleSize) -> Ran {
    let (size, half) = (granule.bytes(), ram_for(granule) / 2);
    let _pages = HugePages::behind(backing, 3 * half)?;
    let mut rig = plan(backing, granule, 2 * half, half).build(1);
    let (low, high) = (range(0, half), range(half, half));
    // Dirties every frame of the pool, and leaves all of them free.
    rig.hammer(low);
    assert_eq!(in_pool(&rig), half / size);
    rig.bring(low, Target::Home);
    rig.guest.stop(LIMIT).unwrap();
    // The second half of the frames once more, each with another value.
    let mut page = vec![0xffu8; 4096];
    for address in (half..2 * half).step_by(4096) {
        let mut read = vec![0xaau8; 4096];
        rig.memory.view().read_slice(&mut read, GuestAddress(address)).unwrap();
        assert!(read.iter().all(|byte| *byte == 0), "{address:#x} did not read as zeros");
        page.fill((address >> 12) as u8 | 1);
        rig.memory.view().write_slice(&page, GuestAddress(address)).unwrap();
    }
    assert_eq!(in_pool(&rig), half / size, "{:?}", rig.tiers.status());
    rig.bring(high, Target::Home);
    for address in (half..2 * half).step_by(4096) {
        let mut read = vec![0u8; 4096];
        rig.memory.view().read_slice(&mut read, GuestAddress(address)).unwrap();
        let expected = (address >> 12) as u8 | 1;
        assert!(read.iter().all(|byte| *byte == expected), "{address:#x} lost its bytes");
    }
    rig.guest.start().unwrap();
    rig.check();
    rig.check_home();
    Ok(())
}
