//! Long-mode state for a payload that the host starts directly in CPL 0 or
//! CPL 3: page tables, descriptor table and segment registers.
//!
//! CPL 3 is what runs natively even on a KVM that interprets guest kernel
//! mode. It takes DPL-3 segments, pages that user mode may touch, and I/O
//! privilege level 3 in RFLAGS, so that port accesses need no bitmap in a TSS.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use neap_memory::Gpa;
use neap_memory::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};

pub(super) const PRESENT: u64 = 1;
pub(super) const WRITABLE: u64 = 1 << 1;
pub(super) const USER: u64 = 1 << 2;
/// In a page directory entry: it maps a 2 MiB page.
pub(super) const LARGE: u64 = 1 << 7;
/// Accessed and dirty, set beforehand so that no walk has to.
pub(super) const TOUCHED: u64 = 1 << 5 | 1 << 6;

/// CR0 with protection and paging on: PG, NE, ET, PE.
pub(super) const CR0: u64 = 1 << 31 | 1 << 5 | 1 << 4 | 1;
/// CR4 with physical address extension, which long mode needs.
pub(super) const CR4_PAE: u64 = 1 << 5;
/// EFER with long mode enabled and active: LME, LMA.
pub(super) const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// RFLAGS: the bit that is always set, and I/O privilege level 3.
const RFLAGS_IOPL3: u64 = 1 << 1 | 3 << 12;

/// Bytes of [`page_tables`].
pub const PAGE_TABLES_SIZE: u64 = 3 * PAGE_SIZE;
/// Virtual pages of 2 MiB that [`page_tables`] can map.
pub const MAX_PAGES: usize = 512;

/// The privilege that a payload starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privilege {
    /// CPL 0: guest kernel mode.
    Kernel,
    /// CPL 3: guest user mode.
    User,
}

impl Privilege {
    fn level(self) -> u8 {
        match self {
            Self::Kernel => 0,
            Self::User => 3,
        }
    }
}

/// Page tables to be placed at `base`: PML4, PDPT and one page directory.
/// Virtual page `i` of 2 MiB maps the 2 MiB guest-physical page at
/// `frames[i]`, writable and open to user mode. At most [`MAX_PAGES`] frames
/// are taken.
pub fn page_tables(base: Gpa, frames: &[Gpa]) -> Vec<u8> {
    let table = PRESENT | WRITABLE | USER;
    let mut entries = vec![0u64; (PAGE_TABLES_SIZE / 8) as usize];
    entries[0] = (base.0 + PAGE_SIZE) | table;
    entries[512] = (base.0 + 2 * PAGE_SIZE) | table;
    for (entry, frame) in entries[1024..].iter_mut().zip(frames) {
        *entry = (frame.0 & !(HUGE_PAGE_SIZE - 1)) | table | LARGE | TOUCHED;
    }
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// Puts `sregs` into long mode at `privilege` with the page tables at
/// `tables`. Descriptor tables stay empty: segment registers hold what they
/// need, and an exception is a triple fault, which ends the run.
pub fn enter(sregs: &mut kvm_sregs, tables: Gpa, privilege: Privilege) {
    let level = privilege.level();
    let segment = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        dpl: level,
        s: 1,
        g: 1,
        ..Default::default()
    };
    // Type 11: code, readable, accessed; type 3: data, writable, accessed.
    let code = kvm_segment { selector: 0x08 | u16::from(level), type_: 11, l: 1, db: 0, ..segment };
    let data = kvm_segment { selector: 0x10 | u16::from(level), type_: 3, l: 0, db: 1, ..segment };
    sregs.cs = code;
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *register = data;
    }
    sregs.gdt = kvm_dtable::default();
    sregs.idt = kvm_dtable::default();
    sregs.cr0 = CR0;
    sregs.cr3 = tables.0;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER_LME | EFER_LMA;
}

/// General registers that start at `entry` with an empty stack pointer and
/// the right to use I/O ports at every privilege.
pub fn registers(entry: Gpa) -> kvm_regs {
    kvm_regs { rip: entry.0, rflags: RFLAGS_IOPL3, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tables: &[u8], index: usize) -> u64 {
        u64::from_le_bytes(tables[index * 8..][..8].try_into().unwrap())
    }

    #[test]
    fn three_levels_point_at_each_other_and_at_the_frames() {
        let tables = page_tables(Gpa(0x1000), &[Gpa(0), Gpa(0x123_4560_0000)]);
        assert_eq!(tables.len(), 3 * 4096);
        assert_eq!(entry(&tables, 0), 0x2007);
        assert_eq!(entry(&tables, 512), 0x3007);
        assert_eq!(entry(&tables, 1024), 0xe7);
        assert_eq!(entry(&tables, 1025), 0x123_4560_00e7);
        assert_eq!(entry(&tables, 1026), 0);
    }

    #[test]
    fn user_mode_has_dpl_3_everywhere() {
        let mut sregs = kvm_sregs::default();
        enter(&mut sregs, Gpa(0x1000), Privilege::User);
        for segment in [sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] {
            assert_eq!((segment.dpl, segment.selector & 3), (3, 3));
        }
        assert_eq!(sregs.cs.l, 1);
        assert_eq!(registers(Gpa(0)).rflags >> 12 & 3, 3);
    }
}
