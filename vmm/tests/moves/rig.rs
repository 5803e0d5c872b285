//! A guest, its memory and its tiers, and the few things that every proof does
//! with them.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neap_memory::addr::{GIB, MIB};
use neap_memory::engine::hooks::{Hooks, NoHooks};
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::migrate::{MigrateRequest, Report, RequestError, Select, Target};
use neap_memory::policy::PolicyName;
use neap_memory::table::Place;
use neap_memory::tiers::{HeatConfig, RegionConfig, Tiers, TiersConfig, TiersError};
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory};
use neap_vmm::bare::{Guest, Writer};
use neap_vmm::kvm::gate::{Gate, Holder, Wanted};

/// What nothing here takes on a machine that is not overloaded.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Where the window of the first region begins.
const WINDOW: Gpa = Gpa(4 * GIB);

/// What to build.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) backing: Backing,
    pub(crate) granule: GranuleSize,
    /// Bytes of RAM, from address 0.
    pub(crate) ram: u64,
    /// Bytes of the SPM window of the first region; 0: none.
    pub(crate) window: u64,
    /// Pool and kind of each region.
    pub(crate) regions: Vec<(u64, Kind)>,
    pub(crate) policy: PolicyName,
    pub(crate) hooks: Arc<dyn Hooks>,
    pub(crate) copy_threads: usize,
    pub(crate) prefault: bool,
    pub(crate) heat: HeatConfig,
    pub(crate) fatal: fn(&str) -> !,
}

fn fatal(message: &str) -> ! {
    eprintln!("fatal: {message}");
    std::process::abort()
}

impl Plan {
    /// RAM that is all there, and a public region as large.
    pub(crate) fn new(backing: Backing, granule: GranuleSize, ram: u64) -> Self {
        Self {
            backing,
            granule,
            ram,
            window: 0,
            regions: vec![(ram, Kind::Public)],
            policy: PolicyName::Static,
            hooks: Arc::new(NoHooks),
            copy_threads: 1,
            prefault: true,
            heat: HeatConfig::default(),
            fatal,
        }
    }

    /// The same with a region of another kind.
    pub(crate) fn kind(mut self, kind: Kind) -> Self {
        self.regions = vec![(self.ram, kind)];
        self
    }

    /// The same with interference.
    pub(crate) fn hooks(mut self, hooks: Arc<dyn Hooks>) -> Self {
        self.hooks = hooks;
        self
    }

    pub(crate) fn memory(&self) -> Arc<GuestMemory> {
        let spec = |base, size| RangeSpec {
            range: range(base, size),
            backing: self.backing,
            prefault: self.prefault,
        };
        let mut specs = vec![spec(0, self.ram)];
        if self.window > 0 {
            specs.push(spec(WINDOW.0, self.window));
        }
        Arc::new(GuestMemory::new(&specs).unwrap())
    }

    pub(crate) fn config(&self) -> TiersConfig {
        let regions = self.regions.iter().enumerate().map(|(index, (pool, kind))| RegionConfig {
            window: (index == 0 && self.window > 0).then_some(1),
            pool: *pool,
            kind: *kind,
            backing: self.backing,
        });
        TiersConfig {
            policy: self.policy,
            ram: self.backing,
            regions: regions.collect(),
            hooks: Arc::clone(&self.hooks),
            copy_threads: self.copy_threads,
            heat: self.heat,
            ..TiersConfig::new(self.granule, self.fatal)
        }
    }

    /// The tiers alone.
    pub(crate) fn tiers(&self) -> Result<(Arc<GuestMemory>, Tiers), TiersError> {
        let memory = self.memory();
        let tiers = Tiers::new(&memory, self.config())?;
        Ok((memory, tiers))
    }

    /// All of it, with a guest of so many vCPUs.
    pub(crate) fn build(&self, cpus: usize) -> Rig {
        self.build_with(cpus, |_| {})
    }

    /// The same with something of its own in the configuration.
    pub(crate) fn build_with(&self, cpus: usize, change: impl FnOnce(&mut TiersConfig)) -> Rig {
        let memory = self.memory();
        let mut config = self.config();
        change(&mut config);
        // Policy `heat` holds vCPUs still, as it does those of a machine.
        let gate = Arc::new(Gate::new(0, Wanted::Run));
        config.park.get_or_insert_with(|| Arc::new(Holder(Arc::clone(&gate))));
        let tiers = Tiers::new(&memory, config).unwrap();
        let guest = Guest::at_gate(Arc::clone(&memory), cpus, gate).unwrap();
        if let Some(pages) = guest.mapped_pages() {
            tiers.mapped_by(Arc::new(pages));
        }
        let ram = range(0, self.ram);
        let window = GpaRange::new(WINDOW, self.window);
        Rig { guest, tiers, memory, ram, window, granule: self.granule.bytes() }
    }
}

pub(crate) fn range(base: u64, size: u64) -> GpaRange {
    GpaRange::new(Gpa(base), size).unwrap()
}

/// A guest over memory that moves. Dropped in order.
pub(crate) struct Rig {
    pub(crate) guest: Guest,
    pub(crate) tiers: Tiers,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) ram: GpaRange,
    pub(crate) window: Option<GpaRange>,
    /// Bytes.
    pub(crate) granule: u64,
}

/// The first pool.
pub(crate) const POOL: Target = Target::Pool(PoolId(0));

/// Everything that may move in `range`.
pub(crate) fn request(range: GpaRange, to: Target) -> MigrateRequest {
    MigrateRequest { ranges: vec![range], to, select: Select::ALL, from_pool: None, limit: None }
}

/// Carries a request out that nobody breaks off.
pub(crate) fn carry_out(tiers: &Tiers, request: &MigrateRequest) -> Result<Report, RequestError> {
    tiers.migrate(request, &mut |_| ControlFlow::Continue(()))
}

/// Whether a granule at `place` is where `to` says.
pub(crate) fn is_at(place: Place, to: Target) -> bool {
    match (place, to) {
        (Place::Device { pool, .. }, Target::Pool(to)) => pool == to,
        (place, to) => to == Target::Home && !place.is_device(),
    }
}

impl Rig {
    /// How many granules `range` is.
    pub(crate) fn granules(&self, range: GpaRange) -> u64 {
        range.size() / self.granule
    }

    /// Lets every vCPU check and write words of its own at both ends of every
    /// page of `range` for ever, so that they meet on every page.
    pub(crate) fn hammer(&mut self, range: GpaRange) {
        for cpu in 0..self.guest.cpus() {
            let writer = Writer { words: 2, word_step: 3840, ..Writer::over(range).own_words(cpu) };
            self.guest.load_writer(cpu, &writer).unwrap();
        }
        self.guest.start().unwrap();
        self.guest.wait_passes(1, LIMIT).unwrap();
    }

    /// Words that the guest found wrong so far.
    pub(crate) fn errors(&self) -> u64 {
        (0..self.guest.cpus()).map(|cpu| self.guest.counters(cpu).errors).sum()
    }

    /// The least number of passes that a vCPU has made.
    pub(crate) fn passes(&self) -> u64 {
        (0..self.guest.cpus()).map(|cpu| self.guest.counters(cpu).passes).min().unwrap()
    }

    /// Waits until the guest has looked at every word again; asserts that none
    /// was ever wrong.
    pub(crate) fn check(&self) {
        self.guest.wait_passes(2, LIMIT).unwrap();
        for cpu in 0..self.guest.cpus() {
            let wrong = self.guest.wrong_words(cpu);
            assert_eq!(self.guest.counters(cpu).errors, 0, "vCPU {cpu} found {wrong:x?}");
        }
    }

    /// One request over `range`.
    pub(crate) fn migrate(&self, range: GpaRange, to: Target) -> Report {
        carry_out(&self.tiers, &request(range, to)).unwrap()
    }

    /// Whether all of `range` is there.
    pub(crate) fn all_at(&self, range: GpaRange, to: Target) -> bool {
        let residency = self.tiers.residency();
        let mut inside = residency.iter().filter(|run| run.range.overlaps(&range));
        inside.all(|run| is_at(run.place, to) && !run.moving)
    }

    /// Asks until all of `range` is there: the kernel may hold a page for a
    /// moment. Returns how many granules moved.
    pub(crate) fn bring(&self, range: GpaRange, to: Target) -> u64 {
        let (deadline, mut moved) = (Instant::now() + LIMIT, 0);
        loop {
            let report = self.migrate(range, to);
            moved += report.moved.granules;
            if self.all_at(range, to) {
                return moved;
            }
            assert!(Instant::now() < deadline, "{report:?}, {:?}", self.tiers.status());
        }
    }

    /// Everything came home: the books and the kernel agree on that.
    pub(crate) fn check_home(&self) {
        let verified = self.tiers.verify().unwrap();
        assert_eq!(verified.mismatches, []);
        assert!(self.all_at(self.ram, Target::Home), "{:?}", self.tiers.residency());
        let status = self.tiers.status();
        let window = self.window.map_or(0, |window| self.granules(window));
        let used: u64 = status.pools.iter().map(|pool| u64::from(pool.stats.used)).sum();
        assert_eq!(used, window, "{status:?}");
        for pool in status.pools {
            let stats = pool.stats;
            assert_eq!(stats.free + stats.used + stats.retired, stats.frames);
        }
    }
}

/// Memory that is large enough for a guest to be elsewhere most of the time,
/// and small enough to move 20 times in a second or so.
pub(crate) fn ram_for(granule: GranuleSize) -> u64 {
    match granule {
        GranuleSize::M2 => 32 * MIB,
        GranuleSize::K64 => 16 * MIB,
        GranuleSize::K4 => 4 * MIB,
    }
}

/// Every kind of memory with every granule that it can have.
pub(crate) const WAYS: [(Backing, GranuleSize); 7] = [
    (Backing::Anon, GranuleSize::K4),
    (Backing::Anon, GranuleSize::K64),
    (Backing::Anon, GranuleSize::M2),
    (Backing::Memfd, GranuleSize::K4),
    (Backing::Memfd, GranuleSize::K64),
    (Backing::Memfd, GranuleSize::M2),
    (Backing::Hugetlb, GranuleSize::M2),
];
