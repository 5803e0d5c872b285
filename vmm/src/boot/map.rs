//! The guest's map of memory: the one list that e820, the PVH memory map and
//! the UEFI map are all written from. Pure.

use neap_memory::{Gpa, GpaRange};

use crate::platform;
use crate::topology::{MemoryKind, NodeMemory};

/// What a range of the map is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapKind {
    /// RAM to use.
    Ram,
    /// Not to be touched: registers, or nothing at all.
    Reserved,
    /// ACPI tables.
    Acpi,
    /// Special-purpose memory, left for a driver.
    Spm,
}

/// One range of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// Guest-physical range.
    pub range: GpaRange,
    /// What it is.
    pub kind: MapKind,
}

/// The map of a guest with this memory, whose ranges are disjoint and keep out
/// of the 32-bit hole.
///
/// Sorted by address and disjoint. RAM is listed but for what a PC keeps below
/// 1 MiB ([`platform::LOW_RAM_END`]); RAM ranges that touch become one, since
/// their nodes are told by ACPI; SPM windows never do, since each is a device
/// of its own.
pub fn memory_map(memory: &[NodeMemory]) -> Vec<MapEntry> {
    let mut map = Vec::new();
    let mut list = |base: Gpa, end: Gpa, kind| {
        let size = end.0.saturating_sub(base.0);
        map.extend(GpaRange::new(base, size).map(|range| MapEntry { range, kind }));
    };
    let acpi_end = Gpa(platform::ACPI_BASE.0 + platform::ACPI_SIZE);
    list(platform::LOW_RAM_END, platform::ACPI_BASE, MapKind::Reserved);
    list(platform::ACPI_BASE, acpi_end, MapKind::Acpi);
    list(acpi_end, platform::HIGH_RAM, MapKind::Reserved);
    // Linux uses the ECAM before it can read the DSDT only if e820 reserves
    // it (pci_mmcfg_reserved, arch/x86/pci/mmconfig-shared.c).
    list(platform::ECAM_BASE, Gpa(platform::ECAM_BASE.0 + platform::ECAM_SIZE), MapKind::Reserved);
    for NodeMemory { range, kind, .. } in memory {
        match kind {
            MemoryKind::Spm => list(range.base(), range.end(), MapKind::Spm),
            MemoryKind::Ram => {
                list(range.base(), range.end().min(platform::LOW_RAM_END), MapKind::Ram);
                list(range.base().max(platform::HIGH_RAM), range.end(), MapKind::Ram);
            }
        }
    }
    map.sort_unstable_by_key(|entry| entry.range);
    map.dedup_by(|next, kept| join_ram(kept, next));
    map
}

/// Makes two RAM entries that touch one.
fn join_ram(first: &mut MapEntry, second: &MapEntry) -> bool {
    let both_ram = first.kind == MapKind::Ram && second.kind == MapKind::Ram;
    if !both_ram || first.range.end() != second.range.base() {
        return false;
    }
    match GpaRange::new(first.range.base(), first.range.size() + second.range.size()) {
        Some(range) => {
            first.range = range;
            true
        }
        None => false,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use neap_memory::addr::{GIB, MIB};
    use neap_memory::layout;
    use proptest::prelude::*;

    use super::*;

    fn node_memory(node: u32, base: u64, size: u64, kind: MemoryKind) -> NodeMemory {
        NodeMemory { node, range: GpaRange::new(Gpa(base), size).unwrap(), kind }
    }

    fn entry(base: u64, end: u64, kind: MapKind) -> MapEntry {
        MapEntry { range: GpaRange::new(Gpa(base), end - base).unwrap(), kind }
    }

    #[test]
    fn a_guest_with_ram_on_both_sides_of_the_hole_and_two_windows() {
        use MapKind::{Acpi, Ram, Reserved, Spm};
        let map = memory_map(&[
            node_memory(0, 0, GIB, MemoryKind::Ram),
            node_memory(1, GIB, 2 * GIB, MemoryKind::Ram),
            node_memory(1, 4 * GIB, GIB, MemoryKind::Ram),
            node_memory(2, 5 * GIB, GIB, MemoryKind::Spm),
            node_memory(3, 6 * GIB, GIB, MemoryKind::Spm),
        ]);
        let expected = [
            entry(0, 0x9_fc00, Ram),
            entry(0x9_fc00, 0xe_0000, Reserved),
            entry(0xe_0000, 0x10_0000, Acpi),
            entry(0x10_0000, 3 * GIB, Ram),
            entry(0xe000_0000, 0xe010_0000, Reserved),
            entry(4 * GIB, 5 * GIB, Ram),
            entry(5 * GIB, 6 * GIB, Spm),
            entry(6 * GIB, 7 * GIB, Spm),
        ];
        assert_eq!(map, expected);
    }

    prop_compose! {
        /// Memory as the configuration resolves it: RAM from 0, around the
        /// hole, then RAM and SPM in any order above it, with and without
        /// gaps; sometimes SPM below the hole.
        pub(crate) fn memories()(
            low in prop::collection::vec(32u64..500, 1..4),
            low_spm in prop::option::of(1u64..200),
            high in prop::collection::vec((1u64..3000, any::<bool>(), 0u64..3), 0..12),
        ) -> Vec<NodeMemory> {
            let mut memory = Vec::new();
            let mut next = 0;
            for size in low {
                memory.push(node_memory(memory.len() as u32, next, size * 2 * MIB, MemoryKind::Ram));
                next += size * 2 * MIB;
            }
            if let Some(size) = low_spm.filter(|size| next + size * 2 * MIB < layout::HOLE_BASE.0) {
                memory.push(node_memory(7, next, size * 2 * MIB, MemoryKind::Spm));
            }
            let mut next = layout::HOLE_END.0;
            for (size, spm, gap) in high {
                let kind = if spm { MemoryKind::Spm } else { MemoryKind::Ram };
                next += gap * 2 * MIB;
                memory.push(node_memory(memory.len() as u32, next, size * 2 * MIB, kind));
                next += size * 2 * MIB;
            }
            memory
        }
    }

    /// Bytes of `range` that entries of `kind` list.
    fn listed(map: &[MapEntry], range: GpaRange, kind: MapKind) -> u64 {
        map.iter()
            .filter(|entry| entry.kind == kind)
            .map(|entry| {
                let end = entry.range.end().min(range.end());
                end.0.saturating_sub(entry.range.base().max(range.base()).0)
            })
            .sum()
    }

    proptest! {
        #[test]
        fn entries_are_sorted_and_every_byte_is_listed_once(memory in memories()) {
            let map = memory_map(&memory);
            for pair in map.windows(2) {
                prop_assert!(pair[0].range.end() <= pair[1].range.base());
            }
            for NodeMemory { range, kind, .. } in &memory {
                match kind {
                    MemoryKind::Spm => {
                        prop_assert_eq!(listed(&map, *range, MapKind::Spm), range.size());
                        let whole = MapEntry { range: *range, kind: MapKind::Spm };
                        prop_assert!(map.contains(&whole), "a window is one entry");
                    }
                    MemoryKind::Ram => {
                        let hole = GpaRange::new(
                            platform::LOW_RAM_END,
                            platform::HIGH_RAM.0 - platform::LOW_RAM_END.0,
                        ).unwrap();
                        let kept = if range.overlaps(&hole) { hole.size() } else { 0 };
                        prop_assert_eq!(listed(&map, *range, MapKind::Ram), range.size() - kept);
                        prop_assert_eq!(listed(&map, *range, MapKind::Spm), 0);
                    }
                }
            }
            let total = |kind| listed(&map, GpaRange::new(Gpa(0), u64::MAX).unwrap(), kind);
            let given: u64 = memory.iter().map(|m| m.range.size()).sum();
            let hole = platform::HIGH_RAM.0 - platform::LOW_RAM_END.0;
            prop_assert_eq!(total(MapKind::Ram) + total(MapKind::Spm), given - hole);
        }
    }
}
