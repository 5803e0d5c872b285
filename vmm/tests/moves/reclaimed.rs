//! Pages that the kernel unmaps for reasons of its own, of granules that policy
//! `heat` has looked at: a touch maps them in again.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::addr::{HUGE_PAGE_SIZE, MIB, PAGE_SIZE};
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::{HeatConfig, Tiers};
use neap_memory::{Backing, GuestMemory};
use rustix::mm::{Advice, madvise};

use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, carry_out, range, request};
use crate::{Ran, trial};

const RAM: u64 = 8 * MIB;

pub(crate) fn trials() -> Vec<Trial> {
    let ways = [(Backing::Hugetlb, Backing::Memfd), (Backing::Memfd, Backing::Hugetlb)];
    let trials = ways.map(|(home, region)| {
        trial(format!("heat::reclaimed_pages_of_{region}_from_{home}_come_back"), move || {
            come_back(home, region)
        })
    });
    trials.into()
}

/// Pages of RAM and of the region are of different sizes.
fn come_back(home: Backing, region: Backing) -> Ran {
    let _pages = HugePages::behind(Backing::Hugetlb, RAM)?;
    let plan = Plan {
        policy: PolicyName::Heat,
        heat: HeatConfig {
            period: Duration::from_millis(10),
            cost: 1000,
            moves: false,
            ..HeatConfig::default()
        },
        ..Plan::new(home, GranuleSize::M2, RAM)
    };
    let memory = plan.memory();
    let mut config = plan.config();
    for config in &mut config.regions {
        (config.backing, config.kind) = (region, Kind::Public);
    }
    let tiers = Tiers::new(&memory, config).unwrap();
    let report = carry_out(&tiers, &request(range(0, RAM), POOL)).unwrap();
    assert_eq!(report.moved.granules, RAM / HUGE_PAGE_SIZE, "{report:?}");
    look_at_all(&tiers);
    for page in [0, HUGE_PAGE_SIZE + 5 * PAGE_SIZE] {
        unmap(&memory, page, region);
        touch(&memory, page);
    }
    assert_eq!(tiers.verify().unwrap().mismatches, []);
    Ok(())
}

/// Waits until policy `heat` has looked at all of memory where it is now, and
/// ends it.
fn look_at_all(tiers: &Tiers) {
    let (since, before) = (Instant::now(), tiers.status().counts.heat.watched);
    while tiers.status().counts.heat.watched < before + 4 * RAM / HUGE_PAGE_SIZE {
        assert!(since.elapsed() < LIMIT, "{:?}", tiers.status());
        thread::sleep(Duration::from_millis(5));
    }
    tiers.set_policy(PolicyName::Static).unwrap();
}

fn address(memory: &GuestMemory, at: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut((memory.slots()[0].hva + at) as usize)
}

/// Unmaps the page at `at` of memory that is in `backing`.
fn unmap(memory: &GuestMemory, at: u64, backing: Backing) {
    let bytes = if backing == Backing::Hugetlb { HUGE_PAGE_SIZE } else { PAGE_SIZE };
    let start = address(memory, at / bytes * bytes).cast();
    // SAFETY: guest memory of the test, of a file, which keeps what is in it.
    unsafe { madvise(start, bytes as usize, Advice::LinuxDontNeed) }.unwrap();
}

/// Reads a byte, in a thread of its own: it may wait for ever.
fn touch(memory: &Arc<GuestMemory>, at: u64) {
    let (done, receiver) = mpsc::channel();
    let memory = Arc::clone(memory);
    thread::spawn(move || {
        // SAFETY: guest memory of the test, which the thread has a share of.
        let found = unsafe { address(&memory, at).read_volatile() };
        done.send(found)
    });
    assert_eq!(receiver.recv_timeout(LIMIT / 4), Ok(0), "{at:#x}");
}
