//! The start info of a PVH guest (`struct hvm_start_info`, Xen's
//! public/arch-x86/hvm/start_info.h): start info, one module, memory map, one
//! after the other from [`platform::PVH_START_INFO`].

use neap_memory::{Gpa, GpaRange};

use super::map::MapEntry;
use super::params::e820_type;
use crate::platform;

/// "xEn3" with the high bit of the E set.
const MAGIC: u32 = 0x336e_c578;
/// Version 1 brought the memory map.
const VERSION: u32 = 1;
const START_INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;

/// The structures as bytes.
pub fn start_info(map: &[MapEntry], initrd: Option<GpaRange>, rsdp: Gpa) -> Vec<u8> {
    let base = platform::PVH_START_INFO.0;
    let modules = base + START_INFO_LEN;
    let memmap = modules + MODULE_LEN;
    let mut bytes = Vec::with_capacity((START_INFO_LEN + MODULE_LEN) as usize + map.len() * 24);
    for word in [MAGIC, VERSION, 0, u32::from(initrd.is_some())] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    for long in [modules, platform::CMDLINE.0, rsdp.0, memmap] {
        bytes.extend_from_slice(&long.to_le_bytes());
    }
    for word in [map.len() as u32, 0] {
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    let (paddr, size) = initrd.map_or((0, 0), |range| (range.base().0, range.size()));
    for long in [paddr, size, 0, 0] {
        bytes.extend_from_slice(&long.to_le_bytes());
    }
    for entry in map {
        bytes.extend_from_slice(&entry.range.base().0.to_le_bytes());
        bytes.extend_from_slice(&entry.range.size().to_le_bytes());
        bytes.extend_from_slice(&e820_type(entry.kind).to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::map::MapKind;

    #[test]
    fn the_bytes_are_where_the_kernel_looks() {
        let range = GpaRange::new(Gpa(0x1_0000_0000), 0x2000_0000).unwrap();
        let map = [MapEntry { range, kind: MapKind::Spm }];
        let bytes = start_info(&map, GpaRange::new(Gpa(0x50_0000), 0x1234), Gpa(0xe0000));
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((word(0), word(4), word(12)), (0x336e_c578, 1, 1));
        assert_eq!((long(16), long(24), long(32), long(40)), (0x1038, 0x20000, 0xe0000, 0x1058));
        assert_eq!(word(48), 1);
        assert_eq!((long(56), long(64)), (0x50_0000, 0x1234));
        assert_eq!((long(88), long(96), word(104)), (0x1_0000_0000, 0x2000_0000, 0xefff_ffff));
        assert_eq!(bytes.len(), 112);
    }
}
