//! The guest-physical memory map: RAM around the 32-bit hole, and one window
//! of special-purpose memory (SPM) for each device region. Pure.

use crate::addr::{GIB, Gpa, MIB};

/// The 32-bit hole: PCI memory, ECAM, IOAPIC and local APIC live here and no
/// RAM does.
pub const HOLE_BASE: Gpa = Gpa(3 * GIB);
/// End of the 32-bit hole; RAM goes on here.
pub const HOLE_END: Gpa = Gpa(4 * GIB);
/// Alignment that every SPM window must have: a huge page, which is also the
/// alignment of a device-dax instance.
pub const SPM_ALIGN: u64 = 2 * MIB;
/// Linux onlines memory in blocks of at least this size on x86_64
/// (`MIN_MEMORY_BLOCK_SIZE`, arch/x86/mm/init_64.c); kmem drops what does not
/// fill a block.
pub const MEMORY_BLOCK: u64 = 128 * MIB;
