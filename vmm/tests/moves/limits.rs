//! At the limit of a memory cgroup a granule whose move would take memory
//! stays where it is, and says so; what has its memory moves on. The cgroup
//! here is a folder with the files that the kernel would have there; with the
//! kernel's own it is tried in the lab (`tests/tests/guests/limits.rs`).

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::account::cgroup::Cgroups;
use neap_memory::addr::{GIB, MIB};
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::migrate::{Outcome, Report, Target};
use tempfile::TempDir;

use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, ram_for};
use crate::{Ran, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in [
        (Backing::Anon, GranuleSize::K4),
        (Backing::Anon, GranuleSize::M2),
        (Backing::Memfd, GranuleSize::K64),
        (Backing::Memfd, GranuleSize::M2),
    ] {
        trials.push(trial(format!("limits::a_full_cgroup_{backing}_{granule}"), move || {
            full(backing, granule)
        }));
    }
    trials.push(trial("limits::a_punched_home_page_waits_for_room", punched));
    trials.push(trial("limits::hugetlb_is_charged_elsewhere", hugetlb));
    trials
}

/// A cgroup that says what it is told to.
struct Fake(TempDir);

const SIZE: u64 = GIB;

impl Fake {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let fake = Self(folder);
        let mounts = format!("1 0 0:1 / {} rw - cgroup2 none rw\n", fake.path().display());
        fs::write(fake.path().join("mounts"), mounts).unwrap();
        fs::write(fake.path().join("own"), "0::/\n").unwrap();
        fs::write(fake.path().join("memory.current"), SIZE.to_string()).unwrap();
        fake.limit("max");
        fake
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn cgroups(&self) -> Cgroups {
        Cgroups::told_by(self.path().join("own"), self.path().join("mounts"))
    }

    /// Sets the limit, and waits until it is known.
    fn limit(&self, limit: &str) {
        fs::write(self.path().join("memory.max"), limit).unwrap();
        // A limit that comes is seen a tenth of a second later.
        thread::sleep(Duration::from_millis(110));
    }

    fn full(&self) {
        self.limit(&SIZE.to_string());
    }

    fn open(&self) {
        self.limit("max");
    }
}

/// All of RAM there, until nothing is busy.
fn settled(rig: &Rig, to: Target) -> Report {
    let deadline = Instant::now() + LIMIT;
    loop {
        let report = rig.migrate(rig.ram, to);
        if report.count(Outcome::Busy) == 0 {
            return report;
        }
        assert!(Instant::now() < deadline, "{report:?}");
    }
}

fn full(backing: Backing, granule: GranuleSize) -> Ran {
    let fake = Fake::new();
    let plan = Plan::new(backing, granule, ram_for(granule));
    let mut rig = plan.build_with(1, |config| config.cgroups = fake.cgroups());
    let all = rig.granules(rig.ram);
    rig.hammer(rig.ram);
    fake.full();
    let report = settled(&rig, POOL);
    assert_eq!(report.count(Outcome::NoMemory), all, "{report:?}");
    assert_eq!(rig.tiers.status().pools[0].stats.used, 0);
    rig.check();
    // Half of it gets its frames.
    fake.open();
    let half = neap_memory::GpaRange::new(rig.ram.base(), rig.ram.size() / 2).unwrap();
    assert_eq!(rig.bring(half, POOL), all / 2);
    fake.full();
    // What has memory on both sides moves on, the rest does not.
    for _ in 0..3 {
        assert_eq!(rig.bring(half, Target::Home), all / 2);
        assert_eq!(rig.bring(half, POOL), all / 2);
    }
    let report = settled(&rig, POOL);
    assert_eq!(report.count(Outcome::NoMemory), all / 2, "{report:?}");
    rig.check();
    fake.open();
    assert_eq!(rig.bring(rig.ram, POOL), all / 2);
    // A limit that leaves room is none.
    fake.limit(&(8 * SIZE).to_string());
    assert_eq!(rig.bring(rig.ram, Target::Home), all);
    rig.check();
    rig.check_home();
    Ok(())
}

/// The home page of a `private` granule of a file is given up while it is
/// away, and takes memory when it comes back.
fn punched() -> Ran {
    let (fake, granule) = (Fake::new(), GranuleSize::K64);
    let plan = Plan::new(Backing::Memfd, granule, ram_for(granule)).kind(Kind::Private);
    let mut rig = plan.build_with(1, |config| config.cgroups = fake.cgroups());
    let all = rig.granules(rig.ram);
    assert_eq!(rig.bring(rig.ram, POOL), all);
    fake.full();
    let report = settled(&rig, Target::Home);
    assert_eq!(report.count(Outcome::NoMemory), all, "{report:?}");
    // Whoever touches it waits, and goes on when there is room.
    let guest = rig.ram;
    let writer = neap_vmm::bare::Writer::over(guest);
    rig.guest.load_writer(0, &writer).unwrap();
    rig.guest.start().unwrap();
    let deadline = Instant::now() + LIMIT;
    while rig.tiers.status().counts.retried < 5 {
        assert!(Instant::now() < deadline, "{:?}", rig.tiers.status());
        thread::yield_now();
    }
    assert_eq!(rig.tiers.status().counts.come_home, 0);
    fake.limit(&(8 * MIB * MIB).to_string());
    rig.guest.wait_passes(1, LIMIT).unwrap();
    assert_eq!(rig.tiers.status().counts.come_home, all);
    rig.check_home();
    Ok(())
}

fn hugetlb() -> Ran {
    let (fake, granule) = (Fake::new(), GranuleSize::M2);
    let ram = ram_for(granule);
    let _pages = HugePages::behind(Backing::Hugetlb, 2 * ram)?;
    let plan = Plan::new(Backing::Hugetlb, granule, ram);
    let rig = plan.build_with(1, |config| config.cgroups = fake.cgroups());
    fake.full();
    assert_eq!(rig.bring(rig.ram, POOL), rig.granules(rig.ram));
    Ok(())
}
