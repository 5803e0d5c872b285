//! The guest's own memory: page tables, code, and a block for each vCPU, in a
//! slot behind all others.
//!
//! Host and guest use the blocks at the same time, so every word of them is
//! an atomic.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use neap_memory::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};
use neap_memory::guest::Slot;
use neap_memory::region::{Region, Source};
use neap_memory::{Gpa, GpaRange};
use rustix::mm::Advice;

use super::BareError;
use crate::payload::bare::{self, Control, Entry, Stall};
use crate::payload::identity::identity_tables;

/// Bytes of a vCPU's block: the control block and its table.
const BLOCK: u64 = HUGE_PAGE_SIZE;
/// Bytes behind the blocks that are in the page tables, but not in the slot.
const DOORBELL: u64 = HUGE_PAGE_SIZE;
/// Where the table begins in a block.
const TABLE: u64 = (size_of::<Control>() as u64).next_multiple_of(PAGE_SIZE);
/// Stalls that fit into a table.
pub(super) const STALLS_MAX: u64 = (BLOCK - TABLE) / size_of::<Stall>() as u64;
/// Addresses that fit into a table.
pub(super) const LIST_MAX: u64 = (BLOCK - TABLE) / 8;

/// Memory of the programs themselves.
#[derive(Debug)]
pub(super) struct ControlMemory {
    region: Region,
    base: Gpa,
    /// Offset of the code; page tables lie before it.
    code: u64,
    /// Offset of the first block.
    blocks: u64,
    /// What the guest's slots are.
    ranges: Vec<GpaRange>,
}

impl ControlMemory {
    /// Memory for `cpus` vCPUs above all of `ranges`, with page tables that
    /// map both.
    pub(super) fn beside(ranges: &[GpaRange], cpus: usize) -> Result<Self, BareError> {
        let refused = || BareError::Refused("the guest's memory leaves no room above it".into());
        let end = ranges.iter().map(GpaRange::end).max().unwrap_or_default();
        let base = end.align_up(HUGE_PAGE_SIZE).ok_or_else(refused)?;
        // The tables' size does not depend on how long the last range is as
        // long as it is rounded up to what one table covers.
        let blocks_size = BLOCK * cpus as u64 + DOORBELL;
        let whole = |size| GpaRange::new(base, size).ok_or_else(refused);
        let tables_for = |size| {
            let all: Vec<_> = ranges.iter().copied().chain([whole(size)?]).collect();
            identity_tables(base, &all).ok_or_else(refused)
        };
        let guess = tables_for(blocks_size)?.len() as u64 + 4 * PAGE_SIZE;
        let code_size = (bare::code().len() as u64).next_multiple_of(PAGE_SIZE);
        let blocks = (guess + code_size).next_multiple_of(BLOCK);
        let tables = tables_for(blocks + blocks_size)?;
        let size = blocks + blocks_size - DOORBELL;
        let code = (tables.len() as u64).next_multiple_of(PAGE_SIZE);
        if code + code_size > blocks {
            return Err(refused());
        }
        let region = Region::map(size as usize, Source::Anonymous).map_err(|error| {
            BareError::System { what: "memory of the programs", source: error.into() }
        })?;
        // Small pages are only slower; a kernel that cannot populate faults
        // them in later.
        let _ = region.advise(0, Advice::LinuxHugepage);
        let _ = region.advise(0, Advice::LinuxPopulateWrite);
        let memory = Self { region, base, code, blocks, ranges: ranges.to_vec() };
        memory.fill(0, &tables);
        memory.fill(code, bare::code());
        Ok(memory)
    }

    /// The slot to be given to KVM; mapped as long as this lives.
    pub(super) fn slot(&self) -> Slot {
        // The size is that of a range that was made of the same numbers.
        let range = GpaRange::new(self.base, self.region.size() as u64);
        let range = range.unwrap_or(self.ranges[0]);
        Slot { range, hva: self.region.start().as_ptr().addr() as u64 }
    }

    /// Where the page tables are.
    pub(super) fn page_tables(&self) -> Gpa {
        self.base
    }

    /// Where a program starts.
    pub(super) fn entry(&self, entry: Entry) -> Gpa {
        Gpa(self.base.0 + self.code + entry.offset())
    }

    /// Where the block of vCPU `cpu` is.
    pub(super) fn block(&self, cpu: usize) -> Gpa {
        Gpa(self.base.0 + self.blocks + BLOCK * cpu as u64)
    }

    /// Where the table of vCPU `cpu` is.
    pub(super) fn table(&self, cpu: usize) -> Gpa {
        Gpa(self.block(cpu).0 + TABLE)
    }

    /// Where no memory is, behind the last block.
    pub(super) fn doorbell(&self) -> Gpa {
        Gpa(self.base.0 + self.region.size() as u64)
    }

    /// Whether the guest's own slots hold all of `range`.
    pub(super) fn guest_has(&self, range: &GpaRange) -> bool {
        // Slots may be side by side, so they are walked in order.
        let mut ranges = self.ranges.clone();
        ranges.sort_unstable();
        let mut next = range.base();
        for slot in ranges {
            if slot.base() <= next && next < slot.end() {
                next = slot.end();
            }
        }
        next >= range.end()
    }

    /// Reads the word at byte `offset` of the block of vCPU `cpu`.
    pub(super) fn load(&self, cpu: usize, offset: usize) -> u64 {
        self.word(cpu, offset as u64).load(Ordering::Acquire)
    }

    /// Writes the word at byte `offset` of the block of vCPU `cpu`.
    pub(super) fn store(&self, cpu: usize, offset: usize, value: u64) {
        self.word(cpu, offset as u64).store(value, Ordering::Release);
    }

    /// Reads word `index` of the table of vCPU `cpu`.
    pub(super) fn load_table(&self, cpu: usize, index: u64) -> u64 {
        self.word(cpu, TABLE + 8 * index).load(Ordering::Acquire)
    }

    /// Writes word `index` of the table of vCPU `cpu`.
    pub(super) fn store_table(&self, cpu: usize, index: u64, value: u64) {
        self.word(cpu, TABLE + 8 * index).store(value, Ordering::Release);
    }

    /// Sets all of the control block of vCPU `cpu`, but not its table, to zero.
    pub(super) fn clear(&self, cpu: usize) {
        const _: () = assert!(offset_of!(Control, start) == 0);
        for offset in (0..size_of::<Control>()).step_by(8) {
            self.store(cpu, offset, 0);
        }
    }

    fn word(&self, cpu: usize, offset: u64) -> &AtomicU64 {
        let offset = self.blocks + BLOCK * cpu as u64 + offset % BLOCK;
        self.at(offset)
    }

    fn at(&self, offset: u64) -> &AtomicU64 {
        let offset = offset as usize;
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.region.size(), "within the region");
        // SAFETY: eight aligned bytes of the mapping that `self.region` owns,
        // as just checked; this process uses them by this function only, and
        // the guest's accesses are plain loads and stores of aligned words.
        unsafe { AtomicU64::from_ptr(self.region.start().as_ptr().add(offset).cast()) }
    }

    fn fill(&self, offset: u64, bytes: &[u8]) {
        for (index, chunk) in bytes.chunks(8).enumerate() {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.at(offset + 8 * index as u64).store(u64::from_le_bytes(word), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_memory::addr::{GIB, TIB};

    fn range(base: u64, size: u64) -> GpaRange {
        GpaRange::new(Gpa(base), size).unwrap()
    }

    #[test]
    fn blocks_lie_apart_and_behind_tables_and_code() {
        for ranges in [vec![range(0, 4096)], vec![range(0, 3 * GIB), range(TIB, 64 * GIB)]] {
            let memory = ControlMemory::beside(&ranges, 2).unwrap();
            let end = ranges.iter().map(GpaRange::end).max().unwrap();
            assert!(memory.page_tables() >= end);
            assert!(memory.entry(Entry::Write) > memory.page_tables());
            assert!(memory.block(0) > memory.entry(Entry::TouchRead));
            assert_eq!(memory.block(1).0 - memory.block(0).0, BLOCK);
            let slot = memory.slot().range;
            assert!(slot.contains(&range(memory.block(1).0, BLOCK)));
        }
    }

    #[test]
    fn slots_side_by_side_are_one_piece_of_memory() {
        let memory = ControlMemory::beside(&[range(8192, 4096), range(0, 8192)], 1).unwrap();
        assert!(memory.guest_has(&range(0, 12288)));
        assert!(memory.guest_has(&range(4096, 8192)));
        assert!(!memory.guest_has(&range(4096, 12288)));
    }

    #[test]
    fn words_are_shared_by_offset() {
        let memory = ControlMemory::beside(&[range(0, 4096)], 2).unwrap();
        memory.store(1, 0x100, 7);
        memory.store_table(1, 3, 9);
        assert_eq!((memory.load(0, 0x100), memory.load(1, 0x100)), (0, 7));
        memory.clear(1);
        assert_eq!((memory.load(1, 0x100), memory.load_table(1, 3)), (0, 9));
    }
}
