//! The memory map that the guest is told, in one form for the zero page, for
//! PVH and for UEFI. Pure.

use neap_memory::addr::MIB;
use neap_memory::{Gpa, GpaRange};

use crate::platform;
use crate::topology::{MemoryKind, NodeMemory};

/// What a range of the map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// RAM.
    Ram,
    /// Not to be touched.
    Reserved,
    /// ACPI tables.
    Acpi,
    /// Special-purpose memory.
    Spm,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Where.
    pub range: GpaRange,
    /// What.
    pub kind: MapKind,
}

/// The map.
pub fn memory_map(memory: &[NodeMemory]) -> Vec<MapEntry> {
    let mut map: Vec<MapEntry> = Vec::new();
    let mut push = |base: u64, end: u64, kind| {
        map.extend(
            GpaRange::new(Gpa(base), end.saturating_sub(base))
                .map(|range| MapEntry { range, kind }),
        );
    };
    for part in memory {
        let (base, end) = (part.range.base().0, part.range.end().0);
        match part.kind {
            MemoryKind::Ram if base < MIB => {
                push(base, platform::LOW_RAM_END.0, MapKind::Ram);
                push(platform::LOW_RAM_END.0, MIB, MapKind::Reserved);
                push(MIB, end, MapKind::Ram);
            }
            MemoryKind::Ram => push(base, end, MapKind::Ram),
            MemoryKind::Spm => push(base, end, MapKind::Spm),
        }
    }
    push(platform::ECAM_BASE.0, platform::ECAM_BASE.0 + platform::ECAM_SIZE, MapKind::Reserved);
    map.sort_by_key(|entry| entry.range.base());
    map
}
