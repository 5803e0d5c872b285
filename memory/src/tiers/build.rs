//! Putting tiers together over the memory of a guest that has not started.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::ftruncate;
use rustix::io::Errno;

use super::budget::VmaBudget;
use super::core::Core;
use super::counters::Counters;
use super::failure::{Damaged, Listener};
use super::fault::FaultThread;
use super::gone::Gone;
use super::heat::{Echo, HeatThread};
use super::movers::Movers;
use super::room::Room;
use super::{RegionConfig, Tiers, TiersConfig, TiersError};
use crate::backing::{self, Backing, BackingError};
use crate::dax;
use crate::engine::hurry::Hurry;
use crate::engine::mover::MoveEngine;
use crate::engine::node::NodeEngine;
use crate::engine::remap::{Area, Areas, RemapEngine};
use crate::engine::{Engine, EngineName};
use crate::granule::{Frame, Granule, GranuleSize, Kind, PoolId};
use crate::guest::GuestMemory;
use crate::hva::{Hva, HvaRange};
use crate::migrate::crew::Crew;
use crate::numa::{Placement, calls, hugepages};
use crate::policy::{self, PolicyName};
use crate::pool::Pool;
use crate::space::{Origin, Space};
use crate::table::GranuleTable;
use crate::uffd::{Features, Userfaultfd};

fn refused(what: &'static str) -> impl Fn(Errno) -> TiersError {
    move |errno| TiersError::Refused { what, source: errno.into() }
}

impl Tiers {
    /// Tiers over `memory`, which they keep. What is loaded into it so far
    /// stays as it is. They are dropped after the machine that runs in it:
    /// without them a vCPU would read zeros where a granule is away.
    ///
    /// # Errors
    /// A configuration that cannot be, or a host that has too little.
    pub fn new(memory: &Arc<GuestMemory>, config: TiersConfig) -> Result<Self, TiersError> {
        check(&config)?;
        let space = Arc::new(space(memory, &config)?);
        let uffd = Arc::new(open(&config)?);
        let frames = frames(&space, &config)?;
        let placement = config.placement();
        bind_ram(&space, &placement).map_err(refused("NUMA nodes for guest memory"))?;
        let engine: Box<dyn Engine> = match config.engine() {
            EngineName::Move => Box::new(
                MoveEngine::new(
                    Arc::clone(&uffd),
                    Arc::clone(&space),
                    &frames,
                    config.wants_huge_pages(),
                    placement,
                    Arc::clone(&config.hooks),
                    config.fatal,
                )
                .map_err(refused("memory of the pools"))?,
            ),
            EngineName::Node => Box::new(NodeEngine::new(
                Arc::clone(&space),
                placement,
                config.wants_huge_pages(),
                Arc::clone(&config.hooks),
                config.fatal,
            )),
            EngineName::Remap => Box::new(remap(memory, &space, &uffd, &frames, &config)?),
        };
        let mut pools = Vec::new();
        for ((id, region), count) in (0u8..).zip(&config.regions).zip(&frames) {
            let mut pool = Pool::new(PoolId(id), *count, region.kind);
            if let Some(part) = region.window.and_then(|slot| space.parts().get(slot)) {
                pool.allocate_window(Frame(0), part.count, Granule(part.first));
            }
            pools.push(Mutex::new(pool));
        }
        let core = Arc::new(Core {
            uffd,
            table: GranuleTable::new(space.granules()),
            space,
            pools,
            kinds: config.regions.iter().map(|region| region.kind).collect(),
            engine,
            policy: Mutex::new(policy::make(config.policy)),
            budget: Mutex::new(VmaBudget::new()),
            room: Mutex::new(Room::new(config.cgroups.clone())),
            adopting: Mutex::new(()),
            hurry: Hurry::default(),
            inbox: Mutex::default(),
            fault_wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
                .map_err(refused("a descriptor"))?,
            watches_first_touch: config.policy == PolicyName::FirstTouch,
            counters: Counters::default(),
            damaged: Damaged::default(),
            on_failure: Listener::default(),
            on_gone: config.on_gone,
            gone: Gone::new(config.regions.len()),
            touched: Mutex::default(),
            recorder: Mutex::default(),
            park: config.park.clone(),
            mapped: OnceLock::new(),
            echo: Echo::default(),
            over: AtomicBool::new(false),
            fatal: config.fatal,
        });
        let thread = |source| TiersError::Refused { what: "threads", source };
        let fault = FaultThread::start(&core).map_err(thread)?;
        let crew = Crew::new(&core, config.copy_threads).map_err(thread)?;
        if config.policy == PolicyName::FirstTouch {
            core.watch_first_touches().map_err(refused("watching guest memory"))?;
        }
        let movers = Arc::new(Movers::new(Arc::clone(&core), crew));
        let heat = match config.policy {
            PolicyName::Heat if core.kinds.contains(&Kind::Public) => {
                Some(HeatThread::start(&movers, config.heat)?)
            }
            _ => None,
        };
        let memory = Arc::clone(memory);
        let heat = Mutex::new(heat);
        let backings = config.regions.iter().map(|region| region.backing).collect();
        Ok(Self {
            heat,
            fault,
            movers,
            plugging: Mutex::default(),
            backings: Mutex::new(backings),
            core,
            config,
            _memory: memory,
        })
    }
}

/// RAM comes from the nodes of home, also what is in it already.
fn bind_ram(space: &Space, placement: &Placement) -> Result<(), Errno> {
    if placement.home.is_empty() {
        return Ok(());
    }
    for part in space.parts().iter().filter(|part| part.origin == Origin::Ram) {
        let range = HvaRange::new(part.hva, part.count as usize * space.bytes());
        calls::bind(range, &placement.home)?;
    }
    Ok(())
}

fn check(config: &TiersConfig) -> Result<(), TiersError> {
    let files = |backing: Backing| !backing.is_anonymous();
    for (index, region) in config.regions.iter().enumerate() {
        if files(region.backing) != files(config.ram) {
            return Err(TiersError::Mixed { index, region: region.backing, ram: config.ram });
        }
    }
    if config.engine() == EngineName::Node {
        check_nodes(config)?;
    }
    let dax = |region: &RegionConfig| matches!(region.backing, Backing::Dax(_));
    if config.regions.iter().any(dax) && config.park.is_none() {
        return Err(TiersError::Missing("nobody parks vCPUs, as /dev/dax needs it".to_owned()));
    }
    let hugetlb = config.ram.is_hugetlb()
        || config.regions.iter().any(|region| region.backing.is_hugetlb() || dax(region));
    if hugetlb && config.granule != GranuleSize::M2 {
        return Err(TiersError::Granule { granule: config.granule });
    }
    Ok(())
}

/// What move_pages(2) cannot do.
fn check_nodes(config: &TiersConfig) -> Result<(), TiersError> {
    let why = if !config.ram.is_anonymous() {
        "moves no files: use --memory SIZE,backing=anon"
    } else if config.regions.iter().any(|region| !matches!(region.backing, Backing::Node(_))) {
        "needs a node for every region: use backing=node:N, or engine=move"
    } else if config.regions.iter().any(|region| region.kind == Kind::Private) {
        "leaves no granule unmapped: use kind=public, or engine=move"
    } else if config.granule != GranuleSize::M2 {
        "moves whole huge pages: use --granule 2M, or engine=move"
    } else if config.policy == PolicyName::FirstTouch {
        "does not place first touches: use --policy static or on-fault, or engine=move"
    } else {
        return Ok(());
    };
    Err(TiersError::Node(why))
}

fn space(memory: &GuestMemory, config: &TiersConfig) -> Result<Space, TiersError> {
    let parts = memory.slots().iter().enumerate().map(|(index, slot)| {
        let region = config.regions.iter().position(|region| region.window == Some(index));
        // There are at the most 255 regions.
        let origin = region.map_or(Origin::Ram, |region| Origin::Window(PoolId(region as u8)));
        (slot.range, Hva(slot.hva as usize), origin)
    });
    Space::new(config.granule, parts).ok_or(TiersError::Space(config.granule))
}

/// Frames of each region: those of its window and those of its pool.
fn frames(space: &Space, config: &TiersConfig) -> Result<Vec<u32>, TiersError> {
    let (granule, size) = (config.granule, config.granule.bytes());
    let count = |region: &RegionConfig| {
        let window = region.window.and_then(|slot| space.parts().get(slot));
        let window = window.map_or(0, |part| part.count);
        let bad = TiersError::Pool { bytes: region.pool, granule };
        let pool = match region.pool % size {
            0 => u32::try_from(region.pool / size).ok(),
            _ => None,
        };
        pool.and_then(|pool| pool.checked_add(window)).filter(|frames| *frames > 0).ok_or(bad)
    };
    config.regions.iter().map(count).collect()
}

fn open(config: &TiersConfig) -> Result<Userfaultfd, TiersError> {
    let needed = match config.engine() {
        EngineName::Move => Features::MOVE.with(Features::WRITE_PROTECT),
        EngineName::Node => Features::NONE,
        EngineName::Remap => Features::WRITE_PROTECT
            .with(Features::WRITE_PROTECT_FILES)
            .with(Features::MISSING_SHMEM)
            .with(Features::MISSING_HUGETLB),
    };
    // Without these policy `heat` does not see what is read.
    let wanted = match config.engine() {
        EngineName::Remap => needed.with(Features::MINOR_SHMEM).with(Features::MINOR_HUGETLB),
        EngineName::Move | EngineName::Node => needed,
    };
    let uffd = Userfaultfd::open(wanted.only(config.features), &config.doors)?;
    if !uffd.opened().features.contains(needed) {
        return Err(TiersError::Missing(match config.engine() {
            EngineName::Move => "this kernel cannot move pages (UFFDIO_MOVE, since Linux 6.8): \
                                 use --memory SIZE,backing=memfd and the same for the regions"
                .to_owned(),
            EngineName::Node => "this kernel cannot watch memory (userfaultfd)".to_owned(),
            EngineName::Remap => "this kernel cannot write-protect files in memory \
                                  (UFFD_FEATURE_WP_HUGETLBFS_SHMEM, since Linux 5.19): \
                                  use a newer one"
                .to_owned(),
        }));
    }
    Ok(uffd)
}

fn remap(
    memory: &GuestMemory,
    space: &Arc<Space>,
    uffd: &Arc<Userfaultfd>,
    frames: &[u32],
    config: &TiersConfig,
) -> Result<RemapEngine, TiersError> {
    let size = config.granule.bytes();
    let placement = config.placement();
    let alias = |file: OwnedFd, first: u32, count: u32, reserve: bool, nodes: &[u32]| {
        Area::new(file, first, count, space, reserve, nodes)
            .map_err(refused("an alias of guest memory"))
    };
    let file_of = |index: usize| -> Result<OwnedFd, TiersError> {
        let file = memory.file(index).ok_or(TiersError::Space(config.granule))?;
        file.try_clone_to_owned()
            .map_err(|source| TiersError::Refused { what: "a descriptor of guest memory", source })
    };
    let home = placement.home.as_slice();
    let mut homes = Vec::new();
    for (index, part) in space.parts().iter().enumerate() {
        homes.push(match part.origin {
            Origin::Ram => alias(file_of(index)?, part.first, part.count, true, home)?,
            // Where granules of a window go when their region is evacuated.
            // Memory is got for each as it comes.
            Origin::Window(_) => {
                let file = backing::file(u64::from(part.count) * size, config.ram)?;
                alias(file, part.first, part.count, false, home)?
            }
        });
    }
    let mut pools = Vec::new();
    for ((id, region), count) in (0u8..).zip(&config.regions).zip(frames) {
        let bytes = u64::from(*count) * size;
        if region.backing.is_hugetlb() {
            backing::check_huge_pages(region.pool)?;
        }
        if let Backing::HugetlbNode(node) = region.backing {
            hugepages::check(node, region.pool)?;
        }
        let file = match region.window {
            Some(slot) => {
                let file = file_of(slot)?;
                if let Backing::Dax(path) = region.backing {
                    dax::check_size(&file, path, bytes).map_err(BackingError::from)?;
                } else {
                    ftruncate(file.as_fd(), bytes).map_err(refused("the size of a pool"))?;
                }
                file
            }
            None => backing::file(bytes, region.backing)?,
        };
        let area = alias(file, 0, *count, true, placement.of_pool(PoolId(id)))?;
        if let Backing::HugetlbNode(_) = region.backing {
            area.back_all().map_err(refused("huge pages of a node"))?;
        }
        pools.push(if config.unwatched_pools { area.unwatched() } else { area });
    }
    RemapEngine::new(
        Arc::clone(uffd),
        Arc::clone(space),
        Areas { homes, pools, placement },
        config.park.clone(),
        Arc::clone(&config.hooks),
        config.fatal,
    )
    .map_err(refused("watching guest memory"))
}
