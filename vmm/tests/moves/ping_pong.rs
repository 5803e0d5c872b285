//! Every granule goes to the pool and comes home again and again, while the
//! guest checks and writes every page.

use std::fs;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::granule::GranuleSize;
use neap_memory::migrate::Target;

use crate::census::Census;
use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, ram_for};
use crate::{Ran, Unfit, trial};

/// Least moves of each granule, each way.
const MOVES: u32 = 20;
/// Least passes of each vCPU meanwhile.
const PASSES: u64 = 20;
/// How long each proof goes on at least: there is more to meet in twice the
/// time.
const AT_LEAST: Duration = Duration::from_millis(500);

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        for cpus in [1, 2] {
            let name = format!("ping_pong::{backing}_{granule}_{cpus}_vcpus");
            trials.push(trial(name, move || ping_pong(backing, granule, cpus, 1)));
        }
    }
    trials.push(trial("ping_pong::anon_2M_with_three_copy_threads", || {
        ping_pong(Backing::Anon, GranuleSize::M2, 2, 3)
    }));
    trials
}

fn ping_pong(backing: Backing, granule: GranuleSize, cpus: usize, copy_threads: usize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let huge = backing == Backing::Anon && granule == GranuleSize::M2;
    if huge && !has_thp() {
        return Err(Unfit("transparent huge pages are off".into()));
    }
    let mut rig = Plan { copy_threads, ..Plan::new(backing, granule, ram) }.build(cpus);
    rig.hammer(rig.ram);
    let (all, since, before) = (rig.ram, Instant::now(), rig.passes());
    let mut census = Census::new(&rig.tiers, rig.granule);
    let enough = |rig: &Rig, census: &Census| {
        let (out, home) = census.least();
        out.min(home) >= MOVES && rig.passes() - before >= PASSES && since.elapsed() >= AT_LEAST
    };
    while !enough(&rig, &census) {
        assert!(since.elapsed() < LIMIT, "{:?}, {:?}", census.least(), rig.tiers.status());
        rig.bring(all, POOL);
        census.look(&rig.tiers);
        assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
        rig.bring(all, Target::Home);
        census.look(&rig.tiers);
    }
    rig.check();
    rig.check_home();
    assert_eq!(rig.tiers.verify().unwrap().checked, rig.granules(all));
    if huge {
        assert_eq!(rig.tiers.verify().unwrap().huge, ram);
        let hva = rig.memory.slots()[0].hva;
        assert_eq!(anon_huge_pages(hva, hva + ram), ram);
    }
    Ok(())
}

pub(crate) fn has_thp() -> bool {
    let enabled = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    enabled.is_ok_and(|modes| !modes.contains("[never]"))
}

/// `AnonHugePages` of the mappings between two addresses, in bytes
/// (proc_pid_smaps(5)).
fn anon_huge_pages(start: u64, end: u64) -> u64 {
    let (mut inside, mut bytes) = (false, 0);
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or("");
        let addresses = first.split_once('-').and_then(|(from, to)| {
            Some((u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?))
        });
        if let Some((from, to)) = addresses {
            inside = from >= start && to <= end;
        } else if inside && first == "AnonHugePages:" {
            let kib: u64 = line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
            bytes += kib * 1024;
        }
    }
    bytes
}
