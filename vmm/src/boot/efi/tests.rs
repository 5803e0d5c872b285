use neap_memory::GpaRange;
use neap_memory::addr::{GIB, MIB};
use proptest::prelude::*;

use super::*;
use crate::boot::map::{memory_map, tests::memories};
use crate::topology::{MemoryKind, NodeMemory};

fn u32_at(bytes: &[u8], at: u64) -> u32 {
    u32::from_le_bytes(bytes[at as usize..][..4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: u64) -> u64 {
    u64::from_le_bytes(bytes[at as usize..][..8].try_into().unwrap())
}

fn guest() -> Vec<NodeMemory> {
    let memory = |base, size, kind| NodeMemory {
        node: 0,
        range: GpaRange::new(Gpa(base), size).unwrap(),
        kind,
    };
    vec![memory(0, GIB, MemoryKind::Ram), memory(GIB, 512 * MIB, MemoryKind::Spm)]
}

const RSDP: Gpa = platform::ACPI_BASE;

/// A pointer in the tables as an offset in the bytes.
fn offset(tables: &EfiTables, pointer: u64) -> u64 {
    pointer - tables.base.0
}

#[test]
fn the_kernel_finds_its_way_from_boot_params_to_the_rsdp() {
    let tables = build(&memory_map(&guest()), RSDP).unwrap();
    let bytes = &tables.bytes;
    let info = tables.info;
    assert_eq!({ info.efi_loader_signature }.to_le_bytes(), *b"EL64");
    assert_eq!((info.efi_memdesc_size, info.efi_memdesc_version), (40, 1));
    assert_eq!((info.efi_systab_hi, info.efi_memmap_hi), (0, 0));

    let system = offset(&tables, info.efi_systab.into());
    assert_eq!(bytes[system as usize..][..8], *b"IBI SYST");
    assert_eq!((u32_at(bytes, system + 8), u32_at(bytes, system + 12)), (0x20064, 120));
    let vendor = offset(&tables, u64_at(bytes, system + 24)) as usize;
    assert_eq!(bytes[vendor..vendor + 10], *b"N\0e\0a\0p\0\0\0");

    assert_eq!(u64_at(bytes, system + 104), 2, "configuration tables");
    let config = offset(&tables, u64_at(bytes, system + 112));
    assert_eq!(bytes[config as usize..][..16], ACPI_GUID);
    assert_eq!(u64_at(bytes, config + 16), RSDP.0);
    assert_eq!(bytes[config as usize + 24..][..16], PROPERTIES_GUID);
    let properties = offset(&tables, u64_at(bytes, config + 40));
    assert_eq!(bytes[properties as usize..][..8], [1, 0, 8, 0, 0x80, 4, 0, 0]);
}

#[test]
fn the_runtime_table_points_at_code_in_its_page() {
    let tables = build(&memory_map(&guest()), RSDP).unwrap();
    let bytes = &tables.bytes;
    let runtime = offset(&tables, u64_at(bytes, SYSTEM_TABLE as u64 + 88));
    assert_eq!(bytes[runtime as usize..][..8], *b"RUNTSERV");
    assert_eq!(u32_at(bytes, runtime + 12), 24 + 14 * 8);
    for service in 0..14 {
        let entry = offset(&tables, u64_at(bytes, runtime + 24 + 8 * service));
        assert_eq!(bytes[entry as usize..][..4], [0xf3, 0x0f, 0x1e, 0xfa], "endbr64");
        let first = bytes[entry as usize + 4];
        let expected = match service {
            4 => 0x31,
            10 => 0x83,
            _ => 0x48,
        };
        assert_eq!(first, expected, "service {service}");
    }
}

#[test]
fn reset_system_jumps_to_its_own_instructions() {
    let routine = &runtime::CODE[0x20..];
    // je at 7, two bytes long, over the reset: to the mov of the shutdown.
    let target = 9 + usize::from(routine[8]);
    assert_eq!(routine[target], 0xba);
    assert_eq!(routine[target + 1..target + 5], [0x00, 0x06, 0, 0]);
    assert_eq!(routine[target + 6], 5 << 2 | 1 << 5);
    assert_eq!(routine[10..14], [0x02, 0x06, 0, 0]);
    for jump in [18, target + 9] {
        assert_eq!((routine[jump], routine[jump - 1]), (0xeb, 0xf4));
        assert_eq!(jump + 2 - usize::from(routine[jump + 1].wrapping_neg()), jump - 1);
    }
}

#[test]
fn the_map_of_a_small_guest() {
    use MemoryType::*;
    let expected = [
        (Conventional, 0, 0x3_0000, WB),
        (RuntimeData, 0x3_0000, 0x3_1000, RUNTIME | WB),
        (RuntimeCode, 0x3_1000, 0x3_2000, RUNTIME | WB),
        (LoaderData, 0x3_2000, 0x5_0000, WB),
        (Conventional, 0x5_0000, 0x9_f000, WB),
        (Reserved, 0x9_f000, 0xe_0000, UC),
        (AcpiReclaim, 0xe_0000, 0x10_0000, WB),
        (Conventional, 0x10_0000, GIB, WB),
        (Conventional, GIB, GIB + 512 * MIB, SP | WB),
        (Reserved, 0xe000_0000, 0xe010_0000, UC),
    ]
    .map(|(memory_type, first, end, attributes)| Descriptor {
        memory_type,
        first,
        end,
        attributes,
    });
    assert_eq!(descriptors(&memory_map(&guest())), expected);

    let tables = build(&memory_map(&guest()), RSDP).unwrap();
    assert_eq!({ tables.info.efi_memmap_size }, 400);
    let map = offset(&tables, tables.info.efi_memmap.into());
    // The SPM descriptor, by hand: type 7, 1 GiB, no virtual address, 0x20000
    // pages, SP and WB.
    #[rustfmt::skip]
    assert_eq!(tables.bytes[map as usize + 8 * 40..][..40], [
        7, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0x40, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 2, 0, 0, 0, 0, 0,
        8, 0, 4, 0, 0, 0, 0, 0,
    ]);
}

#[test]
fn a_map_that_does_not_fit_is_refused() {
    let window = |i: u64| MapEntry {
        range: GpaRange::new(Gpa(4 * GIB + i * 2 * MIB), 2 * MIB).unwrap(),
        kind: MapKind::Spm,
    };
    let room = (platform::EFI_SIZE - 2 * PAGE_SIZE) / 40 - 3;
    let map: Vec<_> = (0..=room).map(window).collect();
    assert!(build(&map[..room as usize], RSDP).is_ok());
    assert!(matches!(build(&map, RSDP), Err(EfiError::MapTooLong { .. })));
}

proptest! {
    #[test]
    fn the_map_is_full_sorted_and_agrees_with_e820(memory in memories()) {
        let map = memory_map(&memory);
        let tables = build(&map, RSDP).unwrap();
        prop_assert!(tables.bytes.len() as u64 <= platform::EFI_SIZE);

        let descriptors = descriptors(&map);
        for pair in descriptors.windows(2) {
            prop_assert!(pair[0].end <= pair[1].first);
        }
        for descriptor in &descriptors {
            prop_assert!(descriptor.first.is_multiple_of(PAGE_SIZE));
            prop_assert!(descriptor.first < descriptor.end);
            prop_assert!(descriptor.end.is_multiple_of(PAGE_SIZE));
        }
        for entry in &map {
            let size: u64 = descriptors.iter().map(|d| {
                let end = d.end.min(entry.range.end().0);
                end.saturating_sub(d.first.max(entry.range.base().0))
            }).sum();
            prop_assert_eq!(size, entry.range.size(), "{:?}", entry);
            if entry.kind == MapKind::Spm {
                let whole = Descriptor {
                    memory_type: MemoryType::Conventional,
                    first: entry.range.base().0,
                    end: entry.range.end().0,
                    attributes: SP | WB,
                };
                prop_assert!(descriptors.contains(&whole));
            }
        }
        let special = descriptors.iter().filter(|d| d.attributes & SP != 0).count();
        prop_assert_eq!(special, map.iter().filter(|e| e.kind == MapKind::Spm).count());
    }
}
