//! A UEFI environment for a directly booted Linux: the system table, its
//! configuration tables, the memory map, and as much of the runtime services
//! as makes the guest content.
//!
//! Everything lies in [`platform::EFI_BASE`]:
//!
//! | page | memory type | contents |
//! |---|---|---|
//! | 0 | runtime services data | system, runtime and configuration tables |
//! | 1 | runtime services code | the runtime services |
//! | 2… | loader data | the memory map |
//!
//! A runtime with no services would not do: without a descriptor that has the
//! RUNTIME attribute Linux warns, and on a hardware-reduced machine it powers
//! off and reboots by `ResetSystem` (`efi_poweroff_required`,
//! arch/x86/platform/efi/quirks.c). So there is real code for
//! `SetVirtualAddressMap`, which has nothing to do, and `ResetSystem`, which
//! writes the ACPI registers; the rest is unsupported, and a runtime
//! properties table says so.
//!
//! The map is a full one, since Linux replaces what e820 says by it as soon as
//! it has an SPM descriptor. With a full map the decompressor of a bzImage
//! also randomises the kernel's address again (KASLR looks at conventional
//! memory without the SP attribute only).
//!
//! Known hole: the CRC fields of the tables are 0, and there are no boot
//! services. Linux looks at neither; a boot loader would.

use linux_loader::loader::bootparam::efi_info;
use neap_memory::Gpa;
use neap_memory::addr::PAGE_SIZE;

use super::map::{MapEntry, MapKind};
use crate::platform;

mod runtime;

/// UEFI 2.10, in the form of header revisions.
const UEFI_2_10: u32 = 2 << 16 | 100;
/// "IBI SYST".
const SYSTEM_SIGNATURE: u64 = 0x5453_5953_2049_4249;
/// "RUNTSERV".
const RUNTIME_SIGNATURE: u64 = 0x5652_4553_544e_5552;
const SYSTEM_TABLE_SIZE: usize = 120;
const RUNTIME_TABLE_SIZE: usize = 24 + 8 * runtime::SERVICES;

/// Offsets in page 0.
const SYSTEM_TABLE: usize = 0x000;
const RUNTIME_TABLE: usize = 0x100;
const CONFIG_TABLES: usize = 0x200;
const RUNTIME_PROPERTIES: usize = 0x280;
const VENDOR: usize = 0x2c0;
const _: () = assert!(SYSTEM_TABLE + SYSTEM_TABLE_SIZE <= RUNTIME_TABLE);
const _: () = assert!(RUNTIME_TABLE + RUNTIME_TABLE_SIZE <= CONFIG_TABLES);
/// Offset of page 1.
const CODE: usize = PAGE_SIZE as usize;
/// Offset of page 2.
const MAP: usize = 2 * PAGE_SIZE as usize;

/// EFI_ACPI_20_TABLE_GUID, 8868e871-e4f1-11d3-bc22-0080c73c8881.
const ACPI_GUID: [u8; 16] = [
    0x71, 0xe8, 0x68, 0x88, 0xf1, 0xe4, 0xd3, 0x11, 0xbc, 0x22, 0x00, 0x80, 0xc7, 0x3c, 0x88, 0x81,
];
/// EFI_RT_PROPERTIES_TABLE_GUID, eb66918a-7eef-402a-842e-931d21c38ae9.
const PROPERTIES_GUID: [u8; 16] = [
    0x8a, 0x91, 0x66, 0xeb, 0xef, 0x7e, 0x2a, 0x40, 0x84, 0x2e, 0x93, 0x1d, 0x21, 0xc3, 0x8a, 0xe9,
];
/// EFI_RT_PROPERTIES_TABLE: version 1, 8 bytes (UEFI 2.10, section 4.6.2).
const PROPERTIES_VERSION: u16 = 1;
const PROPERTIES_SIZE: u16 = 8;

/// Bytes of a memory descriptor, and its version (UEFI 2.10, section 7.2.3).
const DESCRIPTOR_SIZE: usize = 40;
const DESCRIPTOR_VERSION: u32 = 1;
/// Memory attributes: can be uncached, write-back; special purpose; needs a
/// mapping at runtime.
const UC: u64 = 1 << 0;
const WB: u64 = 1 << 3;
const SP: u64 = 1 << 18;
const RUNTIME: u64 = 1 << 63;

/// `efi_loader_signature` of a 64-bit environment: "EL64".
const LOADER_SIGNATURE: u32 = u32::from_le_bytes(*b"EL64");

/// EFI_MEMORY_TYPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum MemoryType {
    Reserved = 0,
    LoaderData = 2,
    RuntimeCode = 5,
    RuntimeData = 6,
    Conventional = 7,
    AcpiReclaim = 9,
}

/// Why the UEFI structures cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EfiError {
    /// The memory map is larger than its place.
    #[error("a UEFI memory map of {descriptors} descriptors does not fit; {limit} do")]
    MapTooLong {
        /// Descriptors of the map.
        descriptors: usize,
        /// Descriptors for which there is room.
        limit: usize,
    },
}

/// What to write to guest memory, and what to tell the kernel of it.
#[derive(Clone, Debug)]
pub struct EfiTables {
    /// Where `bytes` go: [`platform::EFI_BASE`].
    pub base: Gpa,
    /// At most [`platform::EFI_SIZE`] bytes.
    pub bytes: Vec<u8>,
    /// `boot_params.efi_info`.
    pub info: efi_info,
}

/// Builds the UEFI structures of a guest with this memory map and the RSDP at
/// `rsdp`.
///
/// # Errors
/// When the map has too many entries.
pub fn build(map: &[MapEntry], rsdp: Gpa) -> Result<EfiTables, EfiError> {
    let descriptors = descriptors(map);
    let limit = (platform::EFI_SIZE as usize - MAP) / DESCRIPTOR_SIZE;
    if descriptors.len() > limit {
        return Err(EfiError::MapTooLong { descriptors: descriptors.len(), limit });
    }

    let mut bytes = vec![0; MAP];
    put(&mut bytes, SYSTEM_TABLE, &system_table());
    put(&mut bytes, RUNTIME_TABLE, &runtime_table());
    let config = [(ACPI_GUID, rsdp.0), (PROPERTIES_GUID, address(RUNTIME_PROPERTIES))];
    let config = config.map(|(guid, table)| [&guid[..], &table.to_le_bytes()].concat()).concat();
    put(&mut bytes, CONFIG_TABLES, &config);
    put(&mut bytes, RUNTIME_PROPERTIES, &properties());
    put(&mut bytes, VENDOR, &utf16("Neap"));
    put(&mut bytes, CODE, &runtime::CODE);
    for descriptor in &descriptors {
        bytes.extend(descriptor.bytes());
    }

    let memmap = address(MAP);
    let info = efi_info {
        efi_loader_signature: LOADER_SIGNATURE,
        efi_systab: address(SYSTEM_TABLE) as u32,
        efi_systab_hi: (address(SYSTEM_TABLE) >> 32) as u32,
        efi_memdesc_size: DESCRIPTOR_SIZE as u32,
        efi_memdesc_version: DESCRIPTOR_VERSION,
        efi_memmap: memmap as u32,
        efi_memmap_hi: (memmap >> 32) as u32,
        efi_memmap_size: (descriptors.len() * DESCRIPTOR_SIZE) as u32,
    };
    Ok(EfiTables { base: platform::EFI_BASE, bytes, info })
}

/// The guest-physical address of an offset in the UEFI area.
fn address(offset: usize) -> u64 {
    platform::EFI_BASE.0 + offset as u64
}

/// Copies `data` to `offset`; both are constants of this module that fit.
fn put(bytes: &mut [u8], offset: usize, data: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset).zip(data) {
        *to = *from;
    }
}

/// A NUL-terminated string of 16-bit characters.
fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().chain([0]).flat_map(u16::to_le_bytes).collect()
}

/// EFI_TABLE_HEADER (UEFI 2.10, section 4.2.1).
fn header(signature: u64, size: usize) -> Vec<u8> {
    let mut bytes = signature.to_le_bytes().to_vec();
    for field in [UEFI_2_10, size as u32, 0, 0] {
        bytes.extend(field.to_le_bytes());
    }
    bytes
}

/// EFI_SYSTEM_TABLE (UEFI 2.10, section 4.3.1), without consoles and boot
/// services.
fn system_table() -> Vec<u8> {
    let mut table = header(SYSTEM_SIGNATURE, SYSTEM_TABLE_SIZE);
    table.resize(SYSTEM_TABLE_SIZE, 0);
    put(&mut table, 24, &address(VENDOR).to_le_bytes());
    put(&mut table, 88, &address(RUNTIME_TABLE).to_le_bytes());
    put(&mut table, 104, &2u64.to_le_bytes());
    put(&mut table, 112, &address(CONFIG_TABLES).to_le_bytes());
    table
}

/// EFI_RUNTIME_SERVICES (UEFI 2.10, section 4.5.1).
fn runtime_table() -> Vec<u8> {
    let mut table = header(RUNTIME_SIGNATURE, RUNTIME_TABLE_SIZE);
    for entry in runtime::ENTRIES {
        table.extend((address(CODE) + entry).to_le_bytes());
    }
    table
}

/// EFI_RT_PROPERTIES_TABLE: the services that do something.
fn properties() -> Vec<u8> {
    let mut table = PROPERTIES_VERSION.to_le_bytes().to_vec();
    table.extend(PROPERTIES_SIZE.to_le_bytes());
    table.extend(runtime::SUPPORTED.to_le_bytes());
    table
}

/// EFI_MEMORY_DESCRIPTOR, with whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    memory_type: MemoryType,
    first: u64,
    end: u64,
    attributes: u64,
}

impl Descriptor {
    fn bytes(&self) -> [u8; DESCRIPTOR_SIZE] {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        put(&mut bytes, 0, &(self.memory_type as u32).to_le_bytes());
        put(&mut bytes, 8, &self.first.to_le_bytes());
        put(&mut bytes, 24, &((self.end - self.first) / PAGE_SIZE).to_le_bytes());
        put(&mut bytes, 32, &self.attributes.to_le_bytes());
        bytes
    }
}

/// The descriptors of a memory map, in order of address, with the UEFI area
/// cut out of its RAM.
fn descriptors(map: &[MapEntry]) -> Vec<Descriptor> {
    let own = [
        (MemoryType::RuntimeData, 0, CODE as u64, RUNTIME | WB),
        (MemoryType::RuntimeCode, CODE as u64, MAP as u64, RUNTIME | WB),
        (MemoryType::LoaderData, MAP as u64, platform::EFI_SIZE, WB),
    ];
    let mut found: Vec<_> = own
        .into_iter()
        .map(|(memory_type, from, to, attributes)| Descriptor {
            memory_type,
            first: platform::EFI_BASE.0 + from,
            end: platform::EFI_BASE.0 + to,
            attributes,
        })
        .collect();
    for entry in map {
        let (memory_type, attributes) = match entry.kind {
            MapKind::Ram => (MemoryType::Conventional, WB),
            MapKind::Reserved => (MemoryType::Reserved, UC),
            MapKind::Acpi => (MemoryType::AcpiReclaim, WB),
            MapKind::Spm => (MemoryType::Conventional, SP | WB),
        };
        let (first, end) = pages(entry);
        let cut = platform::EFI_BASE.0..platform::EFI_BASE.0 + platform::EFI_SIZE;
        for (first, end) in [(first, end.min(cut.start)), (first.max(cut.end), end)] {
            if first < end {
                found.push(Descriptor { memory_type, first, end, attributes });
            }
        }
    }
    found.sort_unstable_by_key(|descriptor| descriptor.first);
    found
}

/// The whole pages of an entry. A page that is only partly RAM goes to the
/// reserved entry beside it.
fn pages(entry: &MapEntry) -> (u64, u64) {
    let up = |at: Gpa| at.align_up(PAGE_SIZE).map_or(at.0 & !(PAGE_SIZE - 1), |at| at.0);
    let down = |at: Gpa| at.0 & !(PAGE_SIZE - 1);
    let (base, end) = (entry.range.base(), entry.range.end());
    match entry.kind {
        MapKind::Reserved => (down(base), up(end)),
        MapKind::Ram | MapKind::Acpi | MapKind::Spm => (up(base), down(end)),
    }
}

#[cfg(test)]
mod tests;
