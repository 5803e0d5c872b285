//! The zero page of the 64-bit boot protocol (`struct boot_params`,
//! Documentation/arch/x86/zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, efi_info, setup_header};
use neap_memory::{Gpa, GpaRange};
use vm_memory::ByteValued;

use super::map::{MapEntry, MapKind};
use crate::platform;

/// e820 types (arch/x86/include/asm/e820/types.h); the last is
/// `E820_TYPE_SOFT_RESERVED`, which Linux takes from the loader as it is.
const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;
const E820_SOFT_RESERVED: u32 = 0xefff_ffff;

/// Entries that the zero page has room for (`E820_MAX_ENTRIES_ZEROPAGE`).
pub const MAX_E820: usize = 128;

/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// `LOADED_HIGH`: the protected-mode code is at 1 MiB.
const LOADED_HIGH: u8 = 1;

/// The e820 type of a range of the map; PVH's memory map uses the same
/// numbers (Xen's public/arch-x86/hvm/start_info.h).
pub fn e820_type(kind: MapKind) -> u32 {
    match kind {
        MapKind::Ram => E820_RAM,
        MapKind::Reserved => E820_RESERVED,
        MapKind::Acpi => E820_ACPI,
        MapKind::Spm => E820_SOFT_RESERVED,
    }
}

/// What the zero page says.
#[derive(Debug)]
pub struct ZeroPage<'a> {
    /// Setup header of a bzImage; a vmlinux has none.
    pub setup_header: Option<setup_header>,
    /// Memory map, [`MAX_E820`] entries at the most.
    pub map: &'a [MapEntry],
    /// Initial RAM disk.
    pub initrd: Option<GpaRange>,
    /// Length of the command line at [`platform::CMDLINE`] without its NUL.
    pub cmdline_len: usize,
    /// ACPI root pointer.
    pub rsdp: Gpa,
    /// UEFI memory map.
    pub efi: Option<efi_info>,
}

/// A memory map longer than the zero page can hold.
#[derive(Debug, thiserror::Error)]
#[error(
    "the memory map has {0} entries, the zero page holds {MAX_E820}: use fewer device regions or nodes"
)]
pub struct MapTooLong(pub usize);

impl ZeroPage<'_> {
    /// The 4096 bytes.
    ///
    /// # Errors
    /// The memory map is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MapTooLong> {
        let plain = setup_header { boot_flag: 0xaa55, header: 0x5372_6448, ..Default::default() };
        let hdr = self.setup_header.unwrap_or(plain);
        let mut params = boot_params { hdr, ..Default::default() };
        params.hdr.type_of_loader = LOADER_UNDEFINED;
        params.hdr.loadflags |= LOADED_HIGH;
        params.hdr.cmd_line_ptr = platform::CMDLINE.0 as u32;
        params.hdr.cmdline_size = self.cmdline_len as u32;
        if let Some(initrd) = self.initrd {
            // Below 3 GiB, so that 32 bits hold it.
            params.hdr.ramdisk_image = initrd.base().0 as u32;
            params.hdr.ramdisk_size = initrd.size() as u32;
        }
        params.acpi_rsdp_addr = self.rsdp.0;
        if let Some(efi) = self.efi {
            params.efi_info = efi;
        }
        if self.map.len() > MAX_E820 {
            return Err(MapTooLong(self.map.len()));
        }
        params.e820_entries = self.map.len() as u8;
        for (slot, entry) in params.e820_table.iter_mut().zip(self.map) {
            *slot = boot_e820_entry {
                addr: entry.range.base().0,
                size: entry.range.size(),
                r#type: e820_type(entry.kind),
            };
        }
        Ok(params.as_slice().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use neap_memory::addr::{GIB, MIB};

    use super::*;

    fn entry(base: u64, size: u64, kind: MapKind) -> MapEntry {
        MapEntry { range: GpaRange::new(Gpa(base), size).unwrap(), kind }
    }

    /// Offsets from Documentation/arch/x86/zero-page.rst and boot.rst.
    #[test]
    fn the_bytes_are_where_the_kernel_looks() {
        let map = [entry(0, GIB, MapKind::Ram), entry(GIB, 512 * MIB, MapKind::Spm)];
        let page = ZeroPage {
            setup_header: None,
            map: &map,
            initrd: GpaRange::new(Gpa(0x1000_0000), 0x1234),
            cmdline_len: 7,
            rsdp: Gpa(0xe0000),
            efi: None,
        }
        .to_bytes()
        .unwrap();
        let word = |at: usize| u32::from_le_bytes(page[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
        assert_eq!(page.len(), 4096);
        assert_eq!(long(0x070), 0xe0000);
        assert_eq!(page[0x1e8], 2);
        assert_eq!(&page[0x202..0x206], b"HdrS");
        assert_eq!(page[0x210], 0xff);
        assert_eq!((word(0x218), word(0x21c)), (0x1000_0000, 0x1234));
        assert_eq!((word(0x228), word(0x238)), (0x20000, 7));
        assert_eq!((long(0x2d0), long(0x2d8), word(0x2e0)), (0, GIB, 1));
        assert_eq!((long(0x2e4), long(0x2ec), word(0x2f4)), (GIB, 512 * MIB, 0xefff_ffff));
    }

    #[test]
    fn a_map_that_is_too_long_is_refused() {
        let map = vec![entry(0, GIB, MapKind::Ram); MAX_E820 + 1];
        let page = ZeroPage {
            setup_header: None,
            map: &map,
            initrd: None,
            cmdline_len: 0,
            rsdp: Gpa(0),
            efi: None,
        };
        assert!(page.to_bytes().is_err());
    }
}
