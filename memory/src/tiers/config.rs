//! What tiers are made of, as the builder of a machine gives it.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::RegionGone;
use crate::Backing;
use crate::account::cgroup::Cgroups;
use crate::engine::EngineName;
use crate::engine::hooks::{Hooks, NoHooks};
use crate::granule::{GranuleSize, Kind};
use crate::heat::Settings;
use crate::numa::Placement;
use crate::park::Park;
use crate::policy::PolicyName;
use crate::uffd::Features;
use crate::uffd::abi::Door;

/// A device region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionConfig {
    /// Which slot of the guest's memory is its SPM window, if it has one; the
    /// window's granules are born in the first frames.
    pub window: Option<usize>,
    /// Bytes of frames beside the window, whole granules.
    pub pool: u64,
    /// What its frames are to vCPUs.
    pub kind: Kind,
    /// Host memory behind it.
    pub backing: Backing,
}

/// Numbers of policy `heat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeatConfig {
    /// Bytes that may move in a second, both ways together; not 0.
    pub budget: u64,
    /// Time from one look at what is used to the next.
    pub period: Duration,
    /// What looking may cost the guest, in hundredths of a percent of its time.
    pub cost: u32,
    /// Whether granules move; without, they are watched only, for benches.
    pub moves: bool,
}

impl HeatConfig {
    /// Bytes a second that move if nobody says otherwise.
    pub const BUDGET: u64 = 100 << 20;
    /// Period if nobody says otherwise: a granule that the guest uses at all is
    /// used within it, and a hundredth of it is time for some faults.
    pub const PERIOD: Duration = Duration::from_millis(100);
    /// Periods that can be.
    pub const PERIODS: RangeInclusive<Duration> =
        Duration::from_millis(10)..=Duration::from_secs(10);

    /// Cost if nobody says otherwise: 1 %.
    pub const COST: u32 = 100;
    /// Costs that can be: up to a tenth of the guest's time.
    pub const COSTS: RangeInclusive<u32> = 1..=1000;

    /// The guest's time that looks may take in a period.
    pub(crate) fn cost_per_period(&self) -> Duration {
        self.period * self.cost / 10_000
    }

    /// Settings of the policy for granules of that size.
    pub(crate) fn settings(&self, granule: GranuleSize) -> Settings {
        let budget = u128::from(self.budget) * self.period.as_micros() / 1_000_000;
        // A budget of a byte a tick still lets something move now and then.
        let budget = u64::try_from(budget).unwrap_or(u64::MAX).max(self.budget.min(1));
        Settings::new(granule, budget)
    }
}

impl Default for HeatConfig {
    fn default() -> Self {
        Self { budget: Self::BUDGET, period: Self::PERIOD, cost: Self::COST, moves: true }
    }
}

/// Tiers of a guest.
#[derive(Clone, Debug)]
pub struct TiersConfig {
    /// Unit of tracking and moving.
    pub granule: GranuleSize,
    /// What moves by itself.
    pub policy: PolicyName,
    /// Threads that copy for migrations; faults have one of their own.
    pub copy_threads: usize,
    /// Host memory behind RAM.
    pub ram: Backing,
    /// How granules move; `None`: as suits the memory.
    pub engine: Option<EngineName>,
    /// Whether granules of 2 MiB of anonymous memory are to be huge pages;
    /// benches measure small ones too.
    pub huge_pages: bool,
    /// Device regions, at the most 255.
    pub regions: Vec<RegionConfig>,
    /// Features of userfaultfd that may be used; tests mask some.
    pub features: Features,
    /// Doors to userfaultfd, in the order in which they are tried.
    pub doors: Vec<Door>,
    /// Who parks vCPUs; a region on /dev/dax needs it, and policy `heat` costs less
    /// with it.
    pub park: Option<Arc<dyn Park>>,
    /// Treats the files of pools as if nobody could watch them, like a device,
    /// for tests on machines without one.
    #[doc(hidden)]
    pub unwatched_pools: bool,
    /// Whose limits moves keep to; tests have some of their own.
    #[doc(hidden)]
    pub cgroups: Cgroups,
    /// Interference by tests.
    pub hooks: Arc<dyn Hooks>,
    /// Numbers of policy `heat`.
    pub heat: HeatConfig,
    /// Told of a region whose device was taken from its driver; what was in it is
    /// lost. From whichever thread finds it.
    pub on_gone: fn(RegionGone),
    /// Ends the process when guest memory cannot be kept whole: restores the
    /// terminal and exits, without dropping anything.
    pub fatal: fn(&str) -> !,
}

impl TiersConfig {
    /// Tiers without regions, with defaults.
    pub fn new(granule: GranuleSize, fatal: fn(&str) -> !) -> Self {
        Self {
            granule,
            policy: PolicyName::Static,
            copy_threads: 1,
            ram: Backing::Anon,
            engine: None,
            huge_pages: true,
            regions: Vec::new(),
            features: Features::ALL,
            doors: vec![Door::SystemCall, Door::Device],
            park: None,
            unwatched_pools: false,
            cgroups: Cgroups::of_this_process(),
            hooks: Arc::new(NoHooks),
            heat: HeatConfig::default(),
            on_gone: |_| {},
            fatal,
        }
    }

    /// Whether anonymous memory is to be had in huge pages: with smaller
    /// granules, one that moves would split them.
    pub(crate) fn wants_huge_pages(&self) -> bool {
        self.huge_pages && self.granule == GranuleSize::M2
    }

    /// The engine that was asked for, or that this kind of memory takes.
    pub fn engine(&self) -> EngineName {
        match self.engine {
            Some(engine) => engine,
            None if self.ram.is_anonymous() => EngineName::Move,
            None => EngineName::Remap,
        }
    }

    /// Which nodes the tiers are on.
    pub(crate) fn placement(&self) -> Placement {
        let pools = self.regions.iter().map(|region| region.backing.node());
        let pools: Vec<_> = pools.collect();
        match self.ram.is_anonymous() || self.ram.node().is_some() {
            true => Placement::new(self.ram.node(), pools),
            // Files are where they are: huge pages are reserved on no node, and
            // a guest that touched one that its node has not would get SIGBUS.
            false => Placement { home: Vec::new(), pools },
        }
    }
}

/// Why there are no tiers.
#[derive(Debug, thiserror::Error)]
pub enum TiersError {
    /// No userfaultfd.
    #[error(transparent)]
    Open(#[from] crate::uffd::OpenError),
    /// A kernel without what the engine needs.
    #[error("{0}")]
    Missing(String),
    /// RAM and a region of kinds that no engine serves together.
    #[error(
        "backing={region} of device region {index} and backing={ram} of RAM cannot exchange \
         pages: use anon for both, or memfd and hugetlb"
    )]
    Mixed {
        /// Index of the region.
        index: usize,
        /// Its backing.
        region: Backing,
        /// That of RAM.
        ram: Backing,
    },
    /// What the `node` engine cannot move.
    #[error("engine=node {0}")]
    Node(&'static str),
    /// A granule that the backing cannot have.
    #[error(
        "granules of {granule} cannot be had of hugetlb pages or /dev/dax, which are not split: use 2M"
    )]
    Granule {
        /// The granule.
        granule: GranuleSize,
    },
    /// More granules than can be numbered, or memory that is not whole ones.
    #[error("guest memory is not whole granules of {0}, or too many of them")]
    Space(GranuleSize),
    /// A pool of less than a granule, or of too many.
    #[error("a pool of {bytes} bytes is not 1 to 2^32-1 granules of {granule}")]
    Pool {
        /// Bytes.
        bytes: u64,
        /// Size of a granule.
        granule: GranuleSize,
    },
    /// A policy `heat` that cannot be.
    #[error("policy heat: {0}")]
    Heat(String),
    /// Host memory that is not to be had.
    #[error(transparent)]
    Backing(#[from] crate::backing::BackingError),
    /// The kernel refused something.
    #[error(
        "{what}: {source}: ask for less, or look at ulimit -v and sysctl vm.overcommit_memory, \
         vm.max_map_count"
    )]
    Refused {
        /// What.
        what: &'static str,
        /// The answer.
        source: std::io::Error,
    },
}
