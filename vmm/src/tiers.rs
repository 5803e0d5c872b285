//! The tiers of a machine, as its options ask for them, on this host.

use std::env;
use std::sync::Arc;

use neap_memory::GuestMemory;
use neap_memory::park::Park;
use neap_memory::tiers::{RegionConfig, Tiers, TiersConfig, TiersError};
use neap_memory::uffd::abi::Door;
use neap_memory::uffd::{Features, Userfaultfd};
use neap_memory::{Backing, engine::EngineName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::config::VmConfig;
use crate::failure::{VM_FAILED, tell};
use crate::{console, fd, memory_failure};

/// Names what this process is to do without, separated by commas, so that
/// tests reach the ways for older hosts: `move` (UFFDIO_MOVE),
/// `wp-files` (write-protection of files in memory), `minor` (faults on pages
/// that are there), `syscall`
/// (userfaultfd(2), which leaves /dev/userfaultfd).
pub const MASK: &str = "NEAP_WITHOUT";

fn masked(name: &str) -> bool {
    env::var(MASK).is_ok_and(|names| names.split(',').any(|masked| masked == name))
}

fn features() -> Features {
    let without = |name, feature: Features| if masked(name) { feature.0 } else { 0 };
    let masks = without("move", Features::MOVE)
        | without("wp-files", Features::WRITE_PROTECT_FILES)
        | without("minor", Features::MINOR_SHMEM.with(Features::MINOR_HUGETLB));
    Features(Features::ALL.0 & !masks)
}

fn doors() -> Vec<Door> {
    let mut doors = vec![Door::SystemCall, Door::Device];
    doors.retain(|door| *door != Door::SystemCall || !masked("syscall"));
    doors
}

/// Memory that can be moved on this host: anonymous memory becomes files in
/// memory on one that cannot move pages (before Linux 6.8), unless somebody
/// asked for the engine by name.
pub fn suited_to_host(config: &VmConfig) -> VmConfig {
    let mut config = config.clone();
    let Some(tiers) = &mut config.tiers else { return config };
    if tiers.engine != EngineName::Move || tiers.engine_named {
        return config;
    }
    let has = Userfaultfd::probe(&doors()).map(|opened| opened.features.only(features()));
    if has.is_ok_and(|has| !has.contains(Features::MOVE)) {
        let nodes = config.ram.backing.node().is_some()
            || config.regions.iter().any(|region| region.backing.node().is_some());
        if nodes {
            tiers.engine = EngineName::Node;
            config.warnings.push(
                "this kernel cannot move pages itself (UFFDIO_MOVE, since Linux 6.8): guest \
                 memory moves by engine=node"
                    .to_owned(),
            );
            return config;
        }
        tiers.engine = EngineName::Remap;
        config.ram.backing = Backing::Memfd;
        for region in &mut config.regions {
            region.backing = Backing::Memfd;
        }
        config.warnings.push(
            "this kernel cannot move pages (UFFDIO_MOVE, since Linux 6.8): guest memory is \
             backing=memfd and moves by engine=remap"
                .to_owned(),
        );
    }
    config
}

/// The tiers of `config` over `memory`, whose vCPUs `park` parks; none if nothing asks for them.
///
/// # Errors
/// This host cannot have them.
pub fn build(
    config: &VmConfig,
    memory: &Arc<GuestMemory>,
    park: Arc<dyn Park>,
) -> Result<Option<Tiers>, TiersError> {
    let Some(wanted) = &config.tiers else { return Ok(None) };
    let regions = config.regions.iter().map(|region| RegionConfig {
        window: region
            .window
            .and_then(|window| memory.slots().iter().position(|slot| slot.range == window)),
        pool: region.pool,
        kind: region.kind,
        backing: region.backing,
    });
    let tiers = TiersConfig {
        policy: wanted.policy,
        copy_threads: usize::from(wanted.copy_threads),
        heat: wanted.heat,
        ram: config.ram.backing,
        engine: Some(wanted.engine),
        regions: regions.collect(),
        park: Some(park),
        features: features(),
        doors: doors(),
        on_gone: memory_failure::region_gone,
        ..TiersConfig::new(wanted.granule, die)
    };
    Tiers::new(memory, tiers).map(Some)
}

/// Ends the process where guest memory cannot be kept whole: nothing is
/// dropped, because closing the userfaultfd would let the guest read zeros.
pub fn die(message: &str) -> ! {
    console::restore();
    // A pipe that nobody reads must not keep the process.
    let soon = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    let stderr = rustix::stdio::stderr();
    if poll(&mut [PollFd::from_borrowed_fd(stderr, PollFlags::OUT)], Some(&soon)) == Ok(1) {
        tell(message);
    }
    fd::exit_now(VM_FAILED)
}
