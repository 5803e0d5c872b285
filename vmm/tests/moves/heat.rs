//! Policy `heat`: what the guest uses comes to the device region by itself,
//! also what it only reads, and a scan does not drive it out.

use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::addr::MIB;
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::{Counts, HeatConfig};
use neap_memory::{Backing, GpaRange};
use neap_vmm::bare::{Access, Writer};

use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, range};
use crate::{Ran, trial};

const PERIOD: Duration = Duration::from_millis(20);

pub(crate) fn trials() -> Vec<Trial> {
    let memory = [
        (Backing::Anon, GranuleSize::M2, 256 * MIB),
        (Backing::Anon, GranuleSize::K64, 16 * MIB),
        (Backing::Hugetlb, GranuleSize::M2, 256 * MIB),
        (Backing::Memfd, GranuleSize::M2, 256 * MIB),
        (Backing::Memfd, GranuleSize::K64, 16 * MIB),
    ];
    let trials = memory.map(|(backing, granule, ram)| {
        trial(format!("heat::hot_sets_and_a_scan_{backing}_{granule}"), move || {
            hot_sets(backing, granule, ram)
        })
    });
    trials.into()
}

/// A quarter of RAM is what the pool holds, a sixteenth each is written and
/// only read, and a scan goes over all of it.
fn hot_sets(backing: Backing, granule: GranuleSize, ram: u64) -> Ran {
    let _pages = HugePages::behind(backing, ram + ram / 4)?;
    let plan = Plan {
        policy: PolicyName::Heat,
        regions: vec![(ram / 4, Kind::Public)],
        // Looking may cost much: the proof is not of that, and is to be short.
        heat: HeatConfig { budget: 512 << 20, period: PERIOD, cost: 1000, ..HeatConfig::default() },
        ..Plan::new(backing, granule, ram)
    };
    let mut rig = plan.build(3);
    let written = range(ram / 8, ram / 16);
    let read = range(ram / 2, ram / 16);
    let sets = rig.granules(written) + rig.granules(read);

    // What the reader is to find.
    let filler = Writer { passes: Some(1), ..Writer::over(read).own_words(1) };
    rig.guest.load_writer(1, &filler).unwrap();
    rig.guest.start().unwrap();
    rig.guest.wait_done(LIMIT).unwrap();
    rig.guest.load_writer(0, &Writer::over(written)).unwrap();
    let reader = Writer { access: Access::Check, passes: None, after: 1, ..filler };
    rig.guest.load_writer(1, &reader).unwrap();
    rig.guest.start().unwrap();
    wait_in_pool(&rig, &[written, read]);
    settle();
    let counts = rig.tiers.status().counts;
    check(&rig, &counts, sets);

    rig.guest.stop(LIMIT).unwrap();
    let scan = Writer {
        access: Access::Write,
        passes: Some(1),
        words: 4,
        word_step: 1024,
        ..Writer::over(rig.ram).own_words(2)
    };
    rig.guest.load_writer(2, &scan).unwrap();
    rig.guest.start().unwrap();
    let deadline = Instant::now() + LIMIT;
    while rig.guest.counters(2).passes < 1 {
        assert!(Instant::now() < deadline, "{:?}", rig.guest.counters(2));
        thread::sleep(PERIOD);
    }
    settle();
    for set in [written, read] {
        assert!(rig.all_at(set, POOL), "{set}: {:?}", rig.tiers.residency());
    }
    let counts = rig.tiers.status().counts;
    check(&rig, &counts, sets);
    assert_eq!(counts.heat.demoted, 0, "{counts:?}");
    for cpu in 0..2 {
        let wrong = rig.guest.wrong_words(cpu);
        assert_eq!(rig.guest.counters(cpu).errors, 0, "vCPU {cpu} found {wrong:x?}");
    }
    rig.guest.stop(LIMIT).unwrap();
    rig.tiers.stop();
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    Ok(())
}

fn wait_in_pool(rig: &Rig, sets: &[GpaRange]) {
    let deadline = Instant::now() + LIMIT;
    while !sets.iter().all(|set| rig.all_at(*set, POOL)) {
        assert!(Instant::now() < deadline, "{:?}", rig.tiers.status().counts);
        thread::sleep(PERIOD);
    }
}

/// Time for fifty more ticks, in which nothing should happen.
fn settle() {
    thread::sleep(50 * PERIOD);
}

/// No more than twice the hot sets moved, and that only by the policy.
fn check(rig: &Rig, counts: &Counts, sets: u64) {
    let heat = counts.heat;
    assert!(heat.promoted + heat.demoted <= 2 * sets, "{sets} granules: {counts:?}");
    assert_eq!(heat.bytes, (heat.promoted + heat.demoted) * rig.granule);
    assert!(heat.touched > 0, "{counts:?}");
}
