//! Identity page tables for the 64-bit boot protocol: the first 4 GiB in
//! 2 MiB pages (Intel SDM volume 3A, section 4.5).

use neap_memory::addr::HUGE_PAGE_SIZE;

use crate::platform;

const PRESENT_WRITABLE: u64 = 0b11;
const HUGE: u64 = 1 << 7;
const ENTRIES: usize = 512;
const DIRECTORIES: usize = 4;

/// One PML4, one PDPT, four page directories, as they go to
/// [`platform::PAGE_TABLES`].
pub fn identity() -> Vec<u8> {
    let base = platform::PAGE_TABLES.0;
    let table = |index: usize| (base + index as u64 * 4096) | PRESENT_WRITABLE;
    let mut entries = vec![0u64; (2 + DIRECTORIES) * ENTRIES];
    entries[0] = table(1);
    for (index, entry) in entries[ENTRIES..][..DIRECTORIES].iter_mut().enumerate() {
        *entry = table(2 + index);
    }
    for (index, entry) in entries[2 * ENTRIES..].iter_mut().enumerate() {
        *entry = (index as u64 * HUGE_PAGE_SIZE) | PRESENT_WRITABLE | HUGE;
    }
    entries.into_iter().flat_map(u64::to_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_below_4_gib_maps_to_itself() {
        let bytes = identity();
        let entry = |at: usize| u64::from_le_bytes(bytes[at * 8..at * 8 + 8].try_into().unwrap());
        let index_of = |entry: u64| (entry as usize & !0xfff) - platform::PAGE_TABLES.0 as usize;
        for gib in 0..4usize {
            for huge in [0, 1, 511] {
                let directory_pointer = index_of(entry(0)) / 8;
                let directory = index_of(entry(directory_pointer + gib)) / 8;
                let mapped = entry(directory + huge);
                assert_eq!(mapped & !0xfff, ((gib << 30) + (huge << 21)) as u64);
                assert_eq!(mapped & 0x83, 0x83);
            }
        }
        assert!(platform::PAGE_TABLES.0 + bytes.len() as u64 <= platform::CMDLINE.0);
    }
}
