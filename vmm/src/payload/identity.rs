//! Page tables that map ranges of guest-physical memory at equal virtual
//! addresses, for payloads that the host starts in long mode.

use std::collections::BTreeMap;

use neap_memory::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};
use neap_memory::{Gpa, GpaRange};

use super::long_mode::{LARGE, PRESENT, TOUCHED, USER, WRITABLE};

/// Virtual addresses of user mode end here in four-level paging.
pub const LIMIT: Gpa = Gpa(1 << 47);

const ENTRIES: usize = (PAGE_SIZE / 8) as usize;
/// Address bits below the index of each level: page directory, page directory
/// pointer table, PML4.
const SHIFTS: [u32; 3] = [21, 30, 39];

/// Page tables to be placed at `base`, a multiple of the page size, and open
/// to user mode. Every 2 MiB page that shares a byte with one of `ranges` is
/// mapped, writable. The first table is the PML4. `None` if a range passes
/// [`LIMIT`].
pub fn identity_tables(base: Gpa, ranges: &[GpaRange]) -> Option<Vec<u8>> {
    let mut tables = Tables { base, pages: vec![[0; ENTRIES]], of: BTreeMap::new() };
    for range in ranges {
        if range.end() > LIMIT {
            return None;
        }
        let first = range.base().0 & !(HUGE_PAGE_SIZE - 1);
        for page in (first..range.end().0).step_by(HUGE_PAGE_SIZE as usize) {
            let directory = tables.directory(page);
            let flags = PRESENT | WRITABLE | USER | LARGE | TOUCHED;
            tables.pages[directory][index(page, 0)] = page | flags;
        }
    }
    Some(tables.pages.as_flattened().iter().flat_map(|entry| entry.to_le_bytes()).collect())
}

struct Tables {
    base: Gpa,
    pages: Vec<[u64; ENTRIES]>,
    /// Index in `pages` of the table of a level that covers an address.
    of: BTreeMap<(usize, u64), usize>,
}

impl Tables {
    /// The page directory for `address`, made if it is not there, with the
    /// table above it.
    fn directory(&mut self, address: u64) -> usize {
        let mut above = 0;
        for level in [1, 0] {
            let key = (level, address >> SHIFTS[level + 1]);
            let new = self.pages.len();
            let table = *self.of.entry(key).or_insert(new);
            if table == new {
                self.pages.push([0; ENTRIES]);
                let place = self.base.0 + new as u64 * PAGE_SIZE;
                self.pages[above][index(address, level + 1)] = place | PRESENT | WRITABLE | USER;
            }
            above = table;
        }
        above
    }
}

fn index(address: u64, level: usize) -> usize {
    (address >> SHIFTS[level]) as usize % ENTRIES
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_memory::addr::{GIB, MIB, TIB};

    fn range(base: u64, size: u64) -> GpaRange {
        GpaRange::new(Gpa(base), size).unwrap()
    }

    /// Walks the tables as a processor does; the physical address, if mapped.
    fn walk(tables: &[u8], base: u64, address: u64) -> Option<u64> {
        let mut table = base;
        for level in [2, 1, 0] {
            let offset = (table - base) as usize + index(address, level) * 8;
            let entry = u64::from_le_bytes(tables[offset..][..8].try_into().unwrap());
            assert!(entry == 0 || entry & 7 == 7, "{entry:#x}");
            if entry & PRESENT == 0 {
                return None;
            }
            table = entry & !0xfff;
        }
        Some(table + address % HUGE_PAGE_SIZE)
    }

    #[test]
    fn what_is_named_is_mapped_at_its_own_address_and_nothing_else() {
        let base = 0x7000;
        let ranges = [range(0, 4 * MIB), range(GIB - 2 * MIB, 4 * MIB), range(TIB + 4096, 4096)];
        let tables = identity_tables(Gpa(base), &ranges).unwrap();
        for address in [0, 4 * MIB - 1, GIB - 1, GIB, TIB, TIB + 2 * MIB - 1] {
            assert_eq!(walk(&tables, base, address), Some(address));
        }
        for address in [4 * MIB, GIB - 2 * MIB - 1, GIB + 2 * MIB, TIB - 1, TIB + 2 * MIB] {
            assert_eq!(walk(&tables, base, address), None);
        }
        // PML4, two pointer tables, three directories.
        assert_eq!(tables.len(), 6 * 4096);
    }

    #[test]
    fn a_range_beyond_user_addresses_is_refused() {
        assert!(identity_tables(Gpa(0), &[range(LIMIT.0 - 4096, 8192)]).is_none());
    }
}
