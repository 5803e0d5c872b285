//! What the options mean together: one [`VmConfig`] that the builder can
//! carry out, or one [`ConfigError`] that names the option and the value.
//! Reads no file and touches no device.

use std::path::PathBuf;

use neap_memory::addr::{MIB, display_size};
use neap_memory::dax::DaxPath;
use neap_memory::granule::Kind;
use neap_memory::guest::RangeSpec;
use neap_memory::layout::{Layout, LayoutError, Occupant, WindowError, WindowRequest};
use neap_memory::{Backing, Gpa, GpaRange};

use super::heat::HeatRequest;
use super::spec::{DeviceMemoryOption, MemoryOption, VmOptions};
use super::tiers::{self, TiersConfig};
use super::units::{Size, Switch};
use super::{ConfigError, topology};
use crate::boot::kernel::Protocol;
use crate::platform::CMDLINE_MAX;
use crate::topology::Topology;

/// Most vCPUs of a guest.
pub const MAX_CPUS: u32 = 64;
const DEFAULT_RAM: u64 = 512 * MIB;
const DEFAULT_CMDLINE: &str = "console=ttyS0 panic=-1";

/// A virtual machine that can be built.
#[derive(Clone, Debug)]
pub struct VmConfig {
    /// Kernel image.
    pub kernel: PathBuf,
    /// How to start it, if somebody said.
    pub protocol: Option<Protocol>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, without NUL, short enough for the kernel.
    pub cmdline: String,
    /// Where RAM and SPM lie.
    pub layout: Layout,
    /// Host memory behind RAM.
    pub ram: RamConfig,
    /// Device regions, in the order in which they were given.
    pub regions: Vec<DeviceRegion>,
    /// How guest memory moves; `None`: nobody could ask for it.
    pub tiers: Option<TiersConfig>,
    /// Where the socket for requests is made.
    pub api_socket: Option<PathBuf>,
    /// New file for what policy `heat` sees.
    pub heat_trace: Option<PathBuf>,
    /// vCPUs and nodes.
    pub topology: Topology,
    /// Whether there is a UEFI memory map.
    pub efi: bool,
    /// Where the numbers of exits go.
    pub exit_stats: Option<PathBuf>,
    /// What works and may surprise, a line each.
    pub warnings: Vec<String>,
}

/// Host memory behind RAM.
#[derive(Clone, Copy, Debug)]
pub struct RamConfig {
    /// Kind.
    pub backing: Backing,
    /// Whether every page is there before the guest starts.
    pub prefault: bool,
}

/// A device region: the SPM window that the guest sees of it, and the pool of
/// frames for guest memory that is moved there. It has one of them or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRegion {
    /// SPM window.
    pub window: Option<GpaRange>,
    /// Bytes of the pool, whole granules; 0: none.
    pub pool: u64,
    /// What its frames are to vCPUs.
    pub kind: Kind,
    /// Kind of host memory.
    pub backing: Backing,
}

impl VmConfig {
    /// Every range of guest memory: RAM in order, then the windows of the
    /// device regions. Pools are none.
    pub fn ranges(&self) -> Vec<RangeSpec> {
        let RamConfig { backing, prefault } = self.ram;
        let ram = self.layout.ram().iter().map(|&range| RangeSpec { range, backing, prefault });
        let regions = self.regions.iter().filter_map(|region| {
            let (range, backing) = (region.window?, region.backing);
            Some(RangeSpec { range, backing, prefault: false })
        });
        ram.chain(regions).collect()
    }

    /// Bytes of 2 MiB pages that the machine takes from the host's pool of
    /// them, and the options that ask for them; `None`: none.
    pub fn hugetlb(&self) -> Option<(u64, &'static str)> {
        let of = |backing, bytes| if Backing::is_hugetlb(backing) { bytes } else { 0 };
        let ram = self.layout.ram().iter().map(|range| of(self.ram.backing, range.size())).sum();
        let regions = self.regions.iter().fold(0, |sum: u64, region| {
            let window = region.window.map_or(0, |window| window.size());
            sum.saturating_add(of(region.backing, window.saturating_add(region.pool)))
        });
        let option = match (ram, regions) {
            (0, 0) => return None,
            (_, 0) => "--memory",
            (0, _) => "--device-memory",
            (_, _) => "--memory and --device-memory",
        };
        Some((regions.saturating_add(ram), option))
    }

    /// Bytes that the machine takes of each NUMA node that an option names,
    /// whether in huge pages of hugetlb, and the option.
    pub fn nodes(&self) -> Vec<(u32, bool, u64, &'static str)> {
        let ram: u64 = self.layout.ram().iter().map(GpaRange::size).sum();
        let regions = self.regions.iter().map(|region| {
            let window = region.window.map_or(0, |window| window.size());
            (region.backing, window.saturating_add(region.pool), "--device-memory")
        });
        let mut nodes: Vec<(u32, bool, u64, &'static str)> = Vec::new();
        for (backing, bytes, option) in
            std::iter::once((self.ram.backing, ram, "--memory")).chain(regions)
        {
            let Some(node) = backing.node() else { continue };
            let huge = backing.is_hugetlb();
            match nodes.iter_mut().find(|(known, kind, ..)| (*known, *kind) == (node, huge)) {
                Some((.., sum, last)) => (*sum, *last) = (sum.saturating_add(bytes), option),
                None => nodes.push((node, huge, bytes, option)),
            }
        }
        nodes
    }

    /// The /dev/dax of each device region that is one, and how many bytes of it
    /// are taken.
    pub fn dax(&self) -> impl Iterator<Item = (DaxPath, u64)> + '_ {
        self.regions.iter().filter_map(|region| {
            let Backing::Dax(path) = region.backing else { return None };
            let window = region.window.map_or(0, |window| window.size());
            Some((path, window.saturating_add(region.pool)))
        })
    }

    /// The option that range `index` of [`Self::ranges`] comes from.
    pub fn option_of_range(&self, index: usize) -> &'static str {
        if index < self.layout.ram().len() { "--memory" } else { "--device-memory" }
    }
}

/// Resolves `options` for a host whose guests have `address_bits` physical
/// address bits.
///
/// # Errors
/// The first option that cannot be met.
pub fn resolve(options: VmOptions, address_bits: u8) -> Result<VmConfig, ConfigError> {
    let kernel = options.kernel.ok_or_else(|| {
        ConfigError::new("--kernel", "missing: give a bzImage, a vmlinux or an ELF with a PVH note")
    })?;
    let cmdline = check_cmdline(options.cmdline.unwrap_or_else(|| DEFAULT_CMDLINE.to_owned()))?;
    let cpus = options.cpus.unwrap_or(1);
    if !(1..=MAX_CPUS).contains(&cpus) {
        return Err(ConfigError::new("--cpus", format!("{cpus} is not 1 to {MAX_CPUS}")));
    }
    let numa: Vec<_> = options.numa.into_iter().map(|option| option.0).collect();
    let hmat: Vec<_> = options.hmat.into_iter().map(|option| option.0).collect();
    let regions: Vec<_> = options.device_memory.into_iter().map(|option| option.0).collect();
    let memory_option = if options.memory.is_some() { "--memory" } else { "--numa" };
    let memory = options.memory.map_or_else(
        || MemoryOption {
            size: Size(topology::named_ram(&numa).unwrap_or(DEFAULT_RAM)),
            prefault: Switch(false),
            backing: Backing::Anon,
        },
        |option| option.0,
    );
    let mut warnings = Vec::new();
    let tiers = tiers::resolve(
        &tiers::Request {
            memory: &memory,
            regions: &regions,
            policy: options.policy,
            granule: options.granule,
            copy_threads: options.copy_threads,
            heat: HeatRequest {
                budget: options.heat_budget,
                period: options.heat_period,
                cost: options.heat_cost,
                trace: options.heat_trace.is_some(),
            },
            api_socket: options.api_socket.as_deref(),
        },
        &mut warnings,
    )?;
    let layout = lay_out(memory.size.0, &regions, address_bits, memory_option)?;
    let region_nodes: Vec<_> =
        regions.iter().filter(|region| has_window(region)).map(|region| region.node).collect();
    let request = topology::Request {
        cpus,
        numa: &numa,
        distances: &options.numa_distance,
        hmat: &hmat,
        region_nodes: &region_nodes,
    };
    let topology = topology::resolve(&request, &layout)?;
    let mut windows = layout.windows().iter().copied();
    let regions: Vec<_> = regions
        .iter()
        .map(|region| DeviceRegion {
            window: if has_window(region) { windows.next() } else { None },
            pool: region.pool.map_or(0, |pool| pool.0),
            kind: region.kind,
            backing: region.backing,
        })
        .collect();
    warn(&layout, &regions, &topology, &mut warnings);
    Ok(VmConfig {
        kernel,
        protocol: options.boot_protocol,
        initrd: options.initrd,
        cmdline,
        layout,
        ram: RamConfig { backing: memory.backing, prefault: memory.prefault.0 },
        regions,
        tiers,
        api_socket: options.api_socket,
        heat_trace: options.heat_trace,
        topology,
        efi: options.efi,
        exit_stats: options.exit_stats,
        warnings,
    })
}

fn check_cmdline(cmdline: String) -> Result<String, ConfigError> {
    if cmdline.len() >= CMDLINE_MAX {
        let message = format!(
            "{} bytes are too long: the kernel takes {} at the most",
            cmdline.len(),
            CMDLINE_MAX - 1
        );
        return Err(ConfigError::new("--cmdline", message));
    }
    if let Some(bad) = cmdline.chars().find(|c| c.is_control()) {
        return Err(ConfigError::new("--cmdline", format!("{bad:?} is a control character")));
    }
    Ok(cmdline)
}

/// A region without a window is nothing that the guest sees. One that is
/// nothing at all is left to [`Layout`] to refuse.
fn has_window(region: &DeviceMemoryOption) -> bool {
    region.size.0 > 0 || region.pool.is_none()
}

/// `memory_option` is the option that says how much RAM there is.
fn lay_out(
    ram: u64,
    regions: &[DeviceMemoryOption],
    bits: u8,
    memory_option: &'static str,
) -> Result<Layout, ConfigError> {
    let (indices, windows): (Vec<_>, Vec<_>) = regions
        .iter()
        .enumerate()
        .filter(|(_, region)| has_window(region))
        .map(|(index, region)| {
            let addr = region.addr.map(|address| Gpa(address.0));
            (index, WindowRequest { size: region.size.0, addr })
        })
        .unzip();
    // The layout numbers windows, the user regions.
    let region_of = |window: usize| indices.get(window).copied().unwrap_or(window);
    Layout::new(ram, &windows, bits).map_err(|error| match error {
        LayoutError::Window { index, reason } => {
            let reason = match reason {
                WindowError::Overlaps { range, what: Occupant::Window(other), other: at } => {
                    let what = Occupant::Window(region_of(other));
                    WindowError::Overlaps { range, what, other: at }
                }
                reason => reason,
            };
            let message = match regions.len() {
                1 => reason.to_string(),
                _ => format!("region {}: {reason}", region_of(index)),
            };
            ConfigError::new("--device-memory", message)
        }
        other => ConfigError::new(memory_option, other),
    })
}

fn warn(
    layout: &Layout,
    regions: &[DeviceRegion],
    topology: &Topology,
    warnings: &mut Vec<String>,
) {
    let block = layout.memory_block();
    let clipped: Vec<String> = regions
        .iter()
        .enumerate()
        .filter_map(|(index, region)| Some((index, region.window?)))
        .filter(|(_, window)| {
            !window.base().is_aligned(block) || !window.size().is_multiple_of(block)
        })
        .map(|(index, window)| format!("region {index} at {window}"))
        .collect();
    if let Some(first) = clipped.first() {
        let others = match clipped.len() - 1 {
            0 => String::new(),
            others => format!(" (and {others} more)"),
        };
        warnings.push(format!(
            "--device-memory: {first}{others} is not whole memory blocks of {}: \
             a guest that onlines it (kmem) loses the ends",
            display_size(block)
        ));
    }
    // Linux numbers nodes in the order in which SRAT names them, processors
    // first (acpi_map_pxm_to_node, drivers/acpi/numa/srat.c).
    let first_without_cpu = (0..topology.distances.len() as u32)
        .find(|node| topology.cpus.iter().all(|cpu| cpu.node != *node));
    let last_with_cpu = topology.cpus.iter().map(|cpu| cpu.node).max();
    if let (Some(without), Some(with)) = (first_without_cpu, last_with_cpu)
        && without < with
    {
        warnings.push(format!(
            "--numa: node {without} has no vCPU and comes before node {with}: \
             Linux numbers nodes with processors first, so the guest's numbers will differ"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::keyvalue::KeyValues;

    fn options(device_memory: &[&str]) -> VmOptions {
        VmOptions {
            kernel: Some("vmlinux".into()),
            device_memory: device_memory
                .iter()
                .map(|text| text.parse::<KeyValues<DeviceMemoryOption>>().unwrap())
                .collect(),
            ..VmOptions::default()
        }
    }

    fn refused(options: VmOptions) -> String {
        resolve(options, 46).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_one_vcpu_and_512_mib() {
        let config = resolve(options(&[]), 46).unwrap();
        assert_eq!(config.topology.cpus.len(), 1);
        assert!(!config.topology.numa);
        assert_eq!(config.layout.ram()[0].size(), DEFAULT_RAM);
        assert_eq!(config.warnings, [""; 0]);
    }

    #[test]
    fn mistakes_name_the_option() {
        assert!(refused(VmOptions::default()).starts_with("--kernel: missing"));
        for cpus in [0, 65] {
            let message = refused(VmOptions { cpus: Some(cpus), ..options(&[]) });
            assert_eq!(message, format!("--cpus: {cpus} is not 1 to 64"));
        }
        let cmdline = Some("x".repeat(CMDLINE_MAX));
        assert!(refused(VmOptions { cmdline, ..options(&[]) }).contains("2047"));
        let cmdline = Some("a\0b".to_owned());
        assert!(refused(VmOptions { cmdline, ..options(&[]) }).contains("control character"));
        let message = refused(options(&["size=2M", "size=1M"]));
        assert_eq!(message, "--device-memory: region 1: size=1M is not a multiple of 2M");
    }

    #[test]
    fn the_longest_command_line_is_accepted() {
        let cmdline = Some("x".repeat(CMDLINE_MAX - 1));
        assert!(resolve(VmOptions { cmdline, ..options(&[]) }, 46).is_ok());
    }

    #[test]
    fn a_region_without_a_window_is_nothing_that_the_guest_sees() {
        let only = resolve(options(&["size=0,pool=4M"]), 46).unwrap();
        assert_eq!(only.ranges().len(), 1);
        assert!(!only.topology.numa);
        let config = resolve(options(&["size=0,pool=4M", "size=128M,node=1"]), 46).unwrap();
        let window = config.layout.windows()[0];
        let windows: Vec<_> = config.regions.iter().map(|region| region.window).collect();
        assert_eq!(windows, [None, Some(window)]);
        assert_eq!(config.regions[0].pool, 4 * MIB);
        assert_eq!(config.topology.memory.last().map(|part| (part.range, part.node)), {
            Some((window, 1))
        });
    }

    #[test]
    fn regions_keep_their_number_where_others_have_no_window() {
        let message = refused(options(&["size=0,pool=4M", "size=1M"]));
        assert!(message.starts_with("--device-memory: region 1: size=1M"), "{message}");
        let at = "size=2M,addr=0x200000000";
        let message = refused(options(&["size=0,pool=4M", at, at]));
        assert!(message.contains("region 2") && message.contains("region 1"), "{message}");
        let config = resolve(options(&["size=0,pool=4M", "size=2M"]), 46).unwrap();
        assert!(config.warnings[0].contains("region 1 at"), "{:?}", config.warnings);
    }

    #[test]
    fn huge_pages_are_counted_with_the_pools() {
        let hugetlb = |memory: &str, regions: &[&str]| {
            let memory = Some(memory.parse().unwrap());
            resolve(VmOptions { memory, ..options(regions) }, 46).unwrap().hugetlb()
        };
        let region = "size=128M,pool=2M,backing=hugetlb";
        assert_eq!(hugetlb("64M", &["size=128M,pool=2M"]), None);
        assert_eq!(hugetlb("64M,backing=hugetlb", &[]), Some((64 * MIB, "--memory")));
        let both = Some((194 * MIB, "--memory and --device-memory"));
        assert_eq!(hugetlb("64M,backing=hugetlb", &[region]), both);
    }

    #[test]
    fn spm_that_kmem_would_clip_is_a_warning() {
        let config = resolve(options(&["size=130M"]), 46).unwrap();
        assert!(config.warnings[0].contains("memory blocks of 128M"), "{:?}", config.warnings);
    }
}
