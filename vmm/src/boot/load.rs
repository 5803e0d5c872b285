//! Puts everything that the boot processor needs into guest memory, in the
//! order in which one part needs to know where the other ended up.

use std::path::PathBuf;

use linux_loader::loader::bootparam::efi_info;
use neap_memory::{Gpa, GpaRange};
use vm_memory::GuestMemoryMmap;

use super::initrd::{self, InitrdError};
use super::kernel::{KernelError, KernelImage, Protocol};
use super::map::{MapEntry, memory_map};
use super::params::{MapTooLong, ZeroPage};
use super::{WriteError, efi, pvh, reset_vector, tables, write};
use crate::acpi::{self, AcpiError};
use crate::config::VmConfig;
use crate::kvm::state::{self, Entry};
use crate::platform;

/// Why there is nothing to boot. Each names the option it comes from.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The kernel.
    #[error("--kernel: {} {source}", .path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: KernelError,
    },
    /// The initial RAM disk.
    #[error("--initrd: {} {source}", .path.display())]
    Initrd {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: InitrdError,
    },
    /// PVH has no place for a UEFI map.
    #[error("--efi: {} starts by PVH, which carries no UEFI map: use a bzImage or a Linux vmlinux, or leave --efi out", .0.display())]
    EfiWithPvh(PathBuf),
    /// A bzImage asked to start by PVH.
    #[error("--boot-protocol: pvh needs an ELF file, and {} is a bzImage", .0.display())]
    PvhBzImage(PathBuf),
    /// Too many ranges.
    #[error("--device-memory: {0}")]
    Map(#[from] MapTooLong),
    /// Tables that cannot be.
    #[error("{option}: {0}", option = option_of(.0))]
    Acpi(#[from] AcpiError),
    /// UEFI structures that cannot be.
    #[error("--efi: {0}")]
    Efi(#[from] efi::EfiError),
    /// Guest memory that does not take them.
    #[error("{0}")]
    Write(#[from] WriteError),
}

/// The option that the tables' contents come from.
fn option_of(error: &AcpiError) -> &'static str {
    match error {
        AcpiError::DoesNotFit { .. } => "--device-memory",
        AcpiError::Distances { .. } => "--numa-distance",
        AcpiError::NotAnInitiator(_) | AcpiError::NotATarget(_) | AcpiError::Performance { .. } => {
            "--hmat"
        }
    }
}

/// Opens the kernel and decides how to start it. Needs no guest memory, so
/// that a wrong file is known before a machine is made.
///
/// # Errors
/// The file is no kernel, or `--efi` meets PVH.
pub fn open_kernel(config: &VmConfig) -> Result<(KernelImage, Protocol), BootError> {
    let path = &config.kernel;
    let image = KernelImage::open(path)
        .map_err(|source| BootError::Kernel { path: path.clone(), source })?;
    let own = if image.is_linux() { Protocol::Linux64 } else { Protocol::Pvh };
    let protocol = config.protocol.unwrap_or(own);
    if protocol == Protocol::Pvh && image.is_bzimage() {
        return Err(BootError::PvhBzImage(path.clone()));
    }
    if protocol == Protocol::Pvh && config.efi {
        return Err(BootError::EfiWithPvh(path.clone()));
    }
    Ok((image, protocol))
}

/// Fills guest memory and returns where the boot processor starts.
///
/// # Errors
/// What does not fit, with its option.
pub fn fill(
    memory: &GuestMemoryMmap,
    config: &VmConfig,
    image: KernelImage,
    protocol: Protocol,
) -> Result<Entry, BootError> {
    let low_ram = config.layout.ram().first().map_or(Gpa(0), GpaRange::end);
    let kernel = image
        .load(memory, low_ram, protocol)
        .map_err(|source| BootError::Kernel { path: config.kernel.clone(), source })?;
    let initrd_limit = kernel
        .setup_header
        .map_or(low_ram, |header| low_ram.min(Gpa(u64::from(header.initrd_addr_max) + 1)));
    let initrd = match &config.initrd {
        None => None,
        Some(path) => Some(
            initrd::load(memory, path, kernel.end, initrd_limit)
                .map_err(|source| BootError::Initrd { path: path.clone(), source })?,
        ),
    };
    let acpi_size = platform::RESET_VECTOR.0 - platform::ACPI_BASE.0;
    let acpi = acpi::build(&config.topology, platform::ACPI_BASE, acpi_size)?;
    write(memory, platform::ACPI_BASE, &acpi.bytes)?;
    write(memory, platform::RESET_VECTOR, &reset_vector::CODE)?;
    let mut cmdline = config.cmdline.clone().into_bytes();
    cmdline.push(0);
    write(memory, platform::CMDLINE, &cmdline)?;
    let gdt: Vec<u8> = state::gdt(kernel.entry).into_iter().flat_map(u64::to_le_bytes).collect();
    write(memory, platform::GDT, &gdt)?;
    let map = memory_map(&config.topology.memory);
    match protocol {
        Protocol::Pvh => {
            let info = pvh::start_info(&map, initrd, acpi.rsdp);
            write(memory, platform::PVH_START_INFO, &info)?;
        }
        Protocol::Linux64 => {
            let efi = if config.efi { Some(write_efi(memory, &map, acpi.rsdp)?) } else { None };
            let page = ZeroPage {
                setup_header: kernel.setup_header,
                map: &map,
                initrd,
                cmdline_len: config.cmdline.len(),
                rsdp: acpi.rsdp,
                efi,
            };
            write(memory, platform::ZERO_PAGE, &page.to_bytes()?)?;
            write(memory, platform::PAGE_TABLES, &tables::identity())?;
        }
    }
    Ok(kernel.entry)
}

fn write_efi(memory: &GuestMemoryMmap, map: &[MapEntry], rsdp: Gpa) -> Result<efi_info, BootError> {
    let tables = efi::build(map, rsdp)?;
    write(memory, tables.base, &tables.bytes)?;
    Ok(tables.info)
}
