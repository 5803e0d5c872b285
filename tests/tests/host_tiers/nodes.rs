//! NUMA nodes of the host under a bare guest: huge pages of hugetlb on each,
//! and a node that goes offline while it is in use.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::addr::{HUGE_PAGE_SIZE, MIB};
use neap_memory::engine::EngineName;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::migrate::{MigrateRequest, Outcome, Report, Select, Target};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::{RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory};
use neap_vmm::bare::{Guest, Writer};
use neap_vmm::images;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![
        trial("nodes::huge_pages_of_hugetlb_stay_on_their_nodes", || hugetlb(Kind::Public)),
        trial("nodes::huge_pages_of_hugetlb_come_home_on_demand", || hugetlb(Kind::Private)),
    ];
    for engine in [EngineName::Move, EngineName::Node] {
        let name = format!("nodes::one_that_goes_offline_while_in_use_by_{engine}");
        trials.push(trial(&name, move || offline(engine)));
    }
    trials
}

const PATIENCE: Duration = Duration::from_secs(60);
const RAM: u64 = 64 * MIB;
const GRANULES: u64 = RAM / HUGE_PAGE_SIZE;
const POOL: Target = Target::Pool(PoolId(0));

fn fatal(message: &str) -> ! {
    eprintln!("fatal: {message}");
    std::process::abort()
}

fn all() -> GpaRange {
    GpaRange::new(Gpa(0), RAM).unwrap()
}

fn send(tiers: &Tiers, to: Target) -> Report {
    let ranges = vec![all()];
    let request = MigrateRequest { ranges, to, select: Select::ALL, from_pool: None, limit: None };
    tiers.migrate(&request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Sends all of it, also what is in other hands for a moment.
fn bring(tiers: &Tiers, to: Target) {
    let (mut moved, deadline) = (0, Instant::now() + PATIENCE);
    while moved < RAM {
        let report = send(tiers, to);
        moved += report.moved.bytes;
        assert!(Instant::now() < deadline, "{report:?}");
    }
}

struct Rig {
    guest: Guest,
    tiers: Tiers,
}

fn rig(ram: Backing, region: Backing, kind: Kind, engine: Option<EngineName>) -> Rig {
    let spec = RangeSpec { range: all(), backing: ram, prefault: true };
    let memory = Arc::new(GuestMemory::new(&[spec]).unwrap());
    let config = TiersConfig {
        ram,
        engine,
        policy: PolicyName::OnFault,
        regions: vec![RegionConfig { window: None, pool: RAM, kind, backing: region }],
        ..TiersConfig::new(GranuleSize::M2, fatal)
    };
    let tiers = Tiers::new(&memory, config).unwrap();
    let mut guest = Guest::new(memory, 1).unwrap();
    guest.load_writer(0, &Writer::over(all())).unwrap();
    guest.start().unwrap();
    Rig { guest, tiers }
}

impl Rig {
    fn end(mut self) {
        self.guest.wait_passes(1, PATIENCE).unwrap();
        self.guest.stop(PATIENCE).unwrap();
        assert_eq!(self.guest.counters(0).errors, 0, "{:?}", self.guest.wrong_words(0));
    }
}

/// A pool of the kernel's on one node, which has its old size when this is
/// dropped.
struct NodePages {
    node: u32,
    before: u64,
}

fn pages_file(node: u32, name: &str) -> PathBuf {
    format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/{name}").into()
}

fn pages(node: u32, name: &str) -> u64 {
    fs::read_to_string(pages_file(node, name)).unwrap().trim().parse().unwrap()
}

impl NodePages {
    fn have(node: u32, count: u64) -> Self {
        let before = pages(node, "nr_hugepages");
        fs::write(pages_file(node, "nr_hugepages"), count.to_string()).unwrap();
        assert_eq!(pages(node, "nr_hugepages"), count);
        Self { node, before }
    }
}

impl Drop for NodePages {
    fn drop(&mut self) {
        fs::write(pages_file(self.node, "nr_hugepages"), self.before.to_string()).unwrap();
    }
}

fn hugetlb(kind: Kind) {
    // One more on each than is needed: the kernel could take a wrong one.
    let _near = NodePages::have(0, GRANULES + 8);
    let _far = NodePages::have(1, GRANULES + 8);
    let free = || [0, 1].map(|node| pages(node, "free_hugepages"));
    let rig = rig(Backing::HugetlbNode(0), Backing::HugetlbNode(1), kind, None);
    // All of it from the start.
    assert_eq!(free(), [8, 8]);
    for _ in 0..5 {
        match kind {
            Kind::Private => {
                // The guest fetches them back.
                let moved = send(&rig.tiers, POOL).moved.granules;
                assert!(moved > 0);
                rig.guest.wait_passes(1, PATIENCE).unwrap();
            }
            _ => bring(&rig.tiers, POOL),
        }
        let found = rig.tiers.verify().unwrap();
        assert_eq!(found.mismatches, []);
        if kind == Kind::Public {
            assert_eq!(found.checked, GRANULES);
            bring(&rig.tiers, Target::Home);
            assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
            assert_eq!(free(), [8, 8]);
        }
    }
    rig.end();
}

/// The device's memory as a node, until this is dropped: all of it movable, so
/// that it can go offline whole.
struct DeviceNode;

/// Which node that is (`neap_vmm::lab`).
const DEVICE_NODE: u32 = 2;
const DEVICE: &str = "dax0.0";
const DRIVERS: &str = "/sys/bus/dax/drivers";

fn driver(file: &str) {
    fs::write(format!("{DRIVERS}/{file}"), DEVICE)
        .unwrap_or_else(|error| panic!("{file}: {error}"));
}

/// Files with the state of each block of memory of the node.
fn blocks() -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/sys/devices/system/node/node{DEVICE_NODE}")).unwrap();
    let block = |name: &str| name.strip_prefix("memory").is_some_and(|n| n.parse::<u32>().is_ok());
    entries
        .map(|entry| entry.unwrap())
        .filter(|entry| block(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path().join("state"))
        .collect()
}

fn set_blocks(state: &str) {
    // A page may be in other hands for a moment.
    let deadline = Instant::now() + PATIENCE;
    let is = |block: &PathBuf| fs::read_to_string(block).unwrap().trim() == "offline";
    for block in blocks().iter().filter(|block| is(block) != (state == "offline")) {
        while let Err(error) = fs::write(block, state) {
            assert!(Instant::now() < deadline, "{}: {error}", block.display());
        }
    }
}

impl DeviceNode {
    fn online() -> Self {
        driver("device_dax/unbind");
        if !Path::new(DRIVERS).join("kmem").exists() {
            let module = images::locate().unwrap().modules.join("kmem.ko");
            let loaded = Command::new("/sbin/insmod").arg(module).status().unwrap();
            assert!(loaded.success());
        }
        driver("kmem/new_id");
        set_blocks("online_movable");
        assert!(neap_memory::numa::nodes::with_memory().contains(&DEVICE_NODE));
        Self
    }
}

impl Drop for DeviceNode {
    fn drop(&mut self) {
        set_blocks("offline");
        driver("kmem/unbind");
        driver("kmem/remove_id");
        driver("device_dax/bind");
    }
}

/// The kernel moves what is on the node elsewhere. The guest loses nothing,
/// moves are told that there is no room, and what is on another node than Neap
/// has it is named.
fn offline(engine: EngineName) {
    let _node = DeviceNode::online();
    let region = Backing::Node(DEVICE_NODE);
    let rig = rig(Backing::Node(0), region, Kind::Public, Some(engine));
    bring(&rig.tiers, POOL);
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    let since = Instant::now();
    set_blocks("offline");
    eprintln!("offline after {} ms", since.elapsed().as_millis());
    rig.guest.wait_passes(2, PATIENCE).unwrap();
    let found = rig.tiers.verify().unwrap();
    let (range, what) = found.mismatches.first().expect("they are elsewhere now");
    assert!(what.contains("other nodes"), "{range}: {what}");
    // Home is there, nothing waits, and nothing goes where nothing is.
    bring(&rig.tiers, Target::Home);
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    let report = send(&rig.tiers, POOL);
    assert_eq!(report.count(Outcome::NoFrame), GRANULES, "{report:?}");
    rig.guest.wait_passes(1, PATIENCE).unwrap();
    set_blocks("online_movable");
    bring(&rig.tiers, POOL);
    assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    bring(&rig.tiers, Target::Home);
    rig.end();
}
