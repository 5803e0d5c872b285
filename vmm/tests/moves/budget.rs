//! Alternating frames of 4 KiB over 1 GiB would take more VMAs than a process
//! may have. A migration stops before the kernel does, says so for each
//! granule, and the guest goes on; what went away can always come home.

use std::fs;
use std::time::Instant;

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::addr::{GIB, MIB, PAGE_SIZE};
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::migrate::{MigrateRequest, Outcome, Target};

use crate::rig::{LIMIT, POOL, Plan, carry_out, range, request};
use crate::{Ran, Unfit, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("budget::alternating_frames_over_1_gib", alternating)]
}

/// VMAs of this process.
fn vmas() -> u64 {
    fs::read_to_string("/proc/self/maps").unwrap().lines().count() as u64
}

fn alternating() -> Ran {
    let max = fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    let max: u64 = max.trim().parse().unwrap();
    let pages = GIB / PAGE_SIZE;
    if max > pages / 2 {
        return Err(Unfit(format!("vm.max_map_count is {max}: 1 GiB does not reach it")));
    }
    let mut rig = Plan {
        regions: vec![(GIB / 2, Kind::Public)],
        ..Plan::new(Backing::Memfd, GranuleSize::K4, GIB)
    }
    .build(1);
    // Where granules are of both sorts, moved and refused.
    rig.hammer(range(GIB / 4 - 8 * MIB, 16 * MIB));
    let odd = MigrateRequest {
        ranges: (0..pages / 2).map(|n| range((2 * n + 1) * PAGE_SIZE, PAGE_SIZE)).collect(),
        ..request(rig.ram, POOL)
    };
    for round in 0..2 {
        let since = Instant::now();
        let report = carry_out(&rig.tiers, &odd).unwrap();
        let (moved, refused) = (report.moved.granules, report.count(Outcome::VmaBudget));
        println!("round {round}: {moved} moved, {refused} refused, {:?}", since.elapsed());
        assert_eq!(moved + refused, pages / 2, "{:?}", report.counts);
        assert!(refused > 0 && moved > max / 4, "{:?} of {max} VMAs", report.counts);
        assert!(vmas() < max, "{} VMAs", vmas());
        // There is still room for everybody else.
        drop(std::thread::spawn(|| vec![0u8; 8 << 20]).join().unwrap());
        rig.check();
        let since = Instant::now();
        let home = carry_out(&rig.tiers, &request(rig.ram, Target::Home)).unwrap();
        println!("round {round}: home {:?}, {:?}", home.counts, since.elapsed());
        assert_eq!(home.moved.granules, moved, "{:?}", home.counts);
        assert!(since.elapsed() < LIMIT);
        rig.check();
    }
    // Neighbours in neighbouring frames share a VMA, so that all of it can go.
    let low = range(0, GIB / 2);
    assert_eq!(rig.bring(low, POOL), rig.granules(low));
    assert_eq!(rig.bring(low, Target::Home), rig.granules(low));
    rig.check();
    rig.check_home();
    Ok(())
}
