//! What the options mean together: one [`VmConfig`] that the builder can
//! carry out, or one [`ConfigError`] that names the option and the value.
//! Reads no file and touches no device.

use std::path::PathBuf;

use neap_memory::addr::{MIB, display_size};
use neap_memory::guest::RangeSpec;
use neap_memory::layout::{Layout, LayoutError, WindowRequest};
use neap_memory::{Backing, Gpa, GpaRange};

use super::spec::{DeviceMemoryOption, MemoryOption, VmOptions};
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
    /// Device regions, in the order of [`Layout::windows`].
    pub regions: Vec<DeviceRegion>,
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

/// A device region and the SPM window that the guest sees of it.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRegion {
    /// SPM window.
    pub window: GpaRange,
    /// Kind of host memory.
    pub backing: Backing,
}

impl VmConfig {
    /// Every range of guest memory: RAM in order, then the device regions.
    pub fn ranges(&self) -> Vec<RangeSpec> {
        let RamConfig { backing, prefault } = self.ram;
        let ram = self.layout.ram().iter().map(|&range| RangeSpec { range, backing, prefault });
        let regions = self.regions.iter().map(|region| RangeSpec {
            range: region.window,
            backing: region.backing,
            prefault: false,
        });
        ram.chain(regions).collect()
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
    let layout = lay_out(memory.size.0, &regions, address_bits, memory_option)?;
    let region_nodes: Vec<_> = regions.iter().map(|region| region.node).collect();
    let request = topology::Request {
        cpus,
        numa: &numa,
        distances: &options.numa_distance,
        hmat: &hmat,
        region_nodes: &region_nodes,
    };
    let topology = topology::resolve(&request, &layout)?;
    let warnings = warnings(&layout, &topology);
    let regions = layout
        .windows()
        .iter()
        .zip(&regions)
        .map(|(&window, region)| DeviceRegion { window, backing: region.backing })
        .collect();
    Ok(VmConfig {
        kernel,
        protocol: options.boot_protocol,
        initrd: options.initrd,
        cmdline,
        layout,
        ram: RamConfig { backing: memory.backing, prefault: memory.prefault.0 },
        regions,
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

/// `memory_option` is the option that says how much RAM there is.
fn lay_out(
    ram: u64,
    regions: &[DeviceMemoryOption],
    bits: u8,
    memory_option: &'static str,
) -> Result<Layout, ConfigError> {
    let windows: Vec<_> = regions
        .iter()
        .map(|region| WindowRequest {
            size: region.size.0,
            addr: region.addr.map(|address| Gpa(address.0)),
        })
        .collect();
    Layout::new(ram, &windows, bits).map_err(|error| match error {
        LayoutError::Window { index, reason } if regions.len() > 1 => {
            ConfigError::new("--device-memory", format!("region {index}: {reason}"))
        }
        LayoutError::Window { reason, .. } => ConfigError::new("--device-memory", reason),
        other => ConfigError::new(memory_option, other),
    })
}

fn warnings(layout: &Layout, topology: &Topology) -> Vec<String> {
    let mut warnings = Vec::new();
    let block = layout.memory_block();
    let clipped: Vec<String> = layout
        .windows()
        .iter()
        .enumerate()
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
    warnings
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
    fn spm_that_kmem_would_clip_is_a_warning() {
        let config = resolve(options(&["size=130M"]), 46).unwrap();
        assert!(config.warnings[0].contains("memory blocks of 128M"), "{:?}", config.warnings);
    }
}
