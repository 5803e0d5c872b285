//! Checks of the bytes: against structures written out by hand from the
//! specification, and of what holds for every topology.

use std::collections::BTreeMap;

use neap_memory::GpaRange;
use neap_memory::addr::{GIB, MIB};
use proptest::prelude::*;

use super::*;
use crate::topology::{Cpu, MemoryKind, NodeMemory, Performance};

fn range(base: u64, size: u64) -> GpaRange {
    GpaRange::new(Gpa(base), size).unwrap()
}

fn ram(node: u32, base: u64, size: u64) -> NodeMemory {
    NodeMemory { node, range: range(base, size), kind: MemoryKind::Ram }
}

fn performance(initiator: u32, target: u32) -> Performance {
    Performance {
        initiator,
        target,
        read_latency_ns: None,
        write_latency_ns: None,
        read_bandwidth_mbps: None,
        write_bandwidth_mbps: None,
    }
}

/// Two nodes with a CPU each, and a third with SPM only.
fn three_nodes() -> Topology {
    let spm = NodeMemory { node: 2, range: range(4 * GIB, GIB), kind: MemoryKind::Spm };
    Topology {
        core_bits: 0,
        cpus: vec![Cpu { apic_id: 0, node: 0 }, Cpu { apic_id: 1, node: 1 }],
        memory: vec![ram(0, 0, GIB), ram(1, GIB, GIB), spm],
        numa: true,
        distances: vec![vec![10, 21, 30], vec![22, 10, 31], vec![40, 41, 10]],
        performance: vec![
            Performance { read_latency_ns: Some(300), ..performance(0, 2) },
            Performance {
                read_latency_ns: Some(350),
                write_bandwidth_mbps: Some(400_000),
                ..performance(1, 2)
            },
        ],
    }
}

fn flat() -> Topology {
    Topology {
        core_bits: 0,
        cpus: vec![Cpu { apic_id: 0, node: 0 }],
        memory: vec![ram(0, 0, 64 * MIB)],
        numa: false,
        distances: Vec::new(),
        performance: Vec::new(),
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// Follows the pointers from the RSDP as a guest does, checking every sum and
/// length on the way.
fn walk(tables: &Tables) -> BTreeMap<String, Vec<u8>> {
    let base = tables.rsdp.0;
    let table = |at: u64| {
        assert!(at.is_multiple_of(16));
        let bytes = &tables.bytes[(at - base) as usize..];
        let bytes = &bytes[..u32_at(bytes, 4) as usize];
        assert_eq!(sum(bytes), 0, "checksum");
        (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes.to_vec())
    };
    // RSDP: section 5.2.5.3.
    let rsdp = &tables.bytes[..36];
    assert_eq!(rsdp[..8], *b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(rsdp)), (0, 0));
    assert_eq!((rsdp[15], u32_at(rsdp, 20)), (2, 36), "revision, length");
    let (signature, xsdt) = table(u64_at(rsdp, 24));
    assert_eq!(signature, "XSDT");
    let mut found = BTreeMap::new();
    for entry in xsdt[36..].chunks(8) {
        let (signature, bytes) = table(u64_at(entry, 0));
        if signature == "FACP" {
            let (signature, dsdt) = table(u64_at(&bytes, 140));
            found.insert(signature, dsdt);
        }
        assert!(found.insert(signature, bytes).is_none(), "a table twice");
    }
    found
}

fn built(topology: &Topology) -> BTreeMap<String, Vec<u8>> {
    walk(&build(topology, platform::ACPI_BASE, platform::ACPI_SIZE).unwrap())
}

#[test]
fn a_machine_without_numa_has_no_numa_tables() {
    let names: Vec<_> = built(&flat()).into_keys().collect();
    assert_eq!(names, ["APIC", "DSDT", "FACP", "MCFG"]);
    let names: Vec<_> = built(&three_nodes()).into_keys().collect();
    assert_eq!(names, ["APIC", "DSDT", "FACP", "HMAT", "MCFG", "SLIT", "SRAT"]);
}

#[test]
fn fadt_is_hardware_reduced_with_its_registers() {
    // Offsets: table 5.9. A generic address: table 5.1.
    let fadt = &built(&flat())["FACP"];
    assert_eq!((fadt.len(), fadt[8], fadt[131]), (276, 6, 5), "ACPI 6.5");
    // HW_REDUCED_ACPI, RESET_REG_SUP, no buttons, WBINVD.
    assert_eq!(u32_at(fadt, 112), 1 << 20 | 1 << 10 | 1 << 5 | 1 << 4 | 1);
    assert_eq!(fadt[109..111], [0x34, 0], "no VGA, ASPM, CMOS clock, i8042");
    assert_eq!(fadt[116..128], [1, 8, 0, 1, 0x02, 0x06, 0, 0, 0, 0, 0, 0], "reset register");
    assert_eq!(fadt[128], 1, "reset value");
    assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0], "sleep control");
    assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0], "sleep status");
    assert_eq!(u32_at(fadt, 40), 0, "the DSDT has its 64-bit pointer only");
}

#[test]
fn mcfg_names_the_whole_ecam() {
    let mcfg = &built(&flat())["MCFG"];
    assert_eq!(mcfg[36..44], [0; 8]);
    assert_eq!(mcfg[44..], [0, 0, 0, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn madt_matches_a_table_written_by_hand() {
    let topology = Topology {
        core_bits: 0,
        cpus: vec![Cpu { apic_id: 3, node: 0 }, Cpu { apic_id: 0x123, node: 0 }],
        ..flat()
    };
    let madt = &built(&topology)["APIC"];
    assert_eq!(madt[36..44], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0], "address, no PCAT_COMPAT");
    #[rustfmt::skip]
    assert_eq!(madt[44..], [
        // Local APIC: uid 0, id 3, enabled (section 5.2.12.2).
        0, 8, 0, 3, 1, 0, 0, 0,
        // Local x2APIC: id 0x123, enabled, uid 1 (section 5.2.12.12).
        9, 16, 0, 0, 0x23, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0,
        // IOAPIC: id 0 at 0xfec00000, from GSI 0 (section 5.2.12.3).
        1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0,
        // NMI at LINT1 of all processors (sections 5.2.12.7 and 5.2.12.13).
        4, 6, 0xff, 0, 0, 1,
        0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
    ]);
}

#[test]
fn srat_matches_a_table_written_by_hand() {
    let topology = Topology {
        core_bits: 0,
        cpus: vec![Cpu { apic_id: 7, node: 0x102 }, Cpu { apic_id: 0x123, node: 1 }],
        memory: vec![ram(1, 0x1_0000_0000, 0x8000_0000)],
        numa: true,
        ..flat()
    };
    let srat = &built(&topology)["SRAT"];
    assert_eq!(srat[8], 3);
    #[rustfmt::skip]
    assert_eq!(srat[36..], [
        1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // x2APIC: node 1, id 0x123, enabled (section 5.2.16.3).
        2, 24, 0, 0, 1, 0, 0, 0, 0x23, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // Processor: node low, id 7, enabled, node high (section 5.2.16.1).
        0, 16, 2, 7, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0,
        // Memory: node 1, 2 GiB at 4 GiB, enabled (section 5.2.16.2).
        1, 40, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0,
        0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ]);
}

#[test]
fn slit_keeps_the_direction_of_distances() {
    let slit = &built(&three_nodes())["SLIT"];
    assert_eq!(u64_at(slit, 36), 3);
    assert_eq!(slit[44..], [10, 21, 30, 22, 10, 31, 40, 41, 10]);
}

#[test]
fn hmat_matches_a_table_written_by_hand() {
    let hmat = &built(&three_nodes())["HMAT"];
    assert_eq!(hmat[8], 2);
    #[rustfmt::skip]
    let expected: Vec<u8> = [
        &[0, 0, 0, 0][..],
        // Memory domains (section 5.2.28.3): node 0 and 1 with their own CPUs
        // as initiator, node 2 with none.
        &[0, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[0; 20],
        &[0, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], &[0; 20],
        &[0, 0, 0, 0, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0], &[0; 20],
        // Read latency (section 5.2.28.4): 2 initiators, 3 targets, in steps
        // of 1000 ps; 64 = 32 + 4 * 5 + 2 * 6 bytes.
        &[1, 0, 0, 0, 64, 0, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[0xe8, 3, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 1, 0, 0, 0],
        &[0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
        &[0, 0, 0, 0, 0x2c, 1], // 300 ns
        &[0, 0, 0, 0, 0x5e, 1], // 350 ns
        // Write bandwidth in steps of 400000 MB/s.
        &[1, 0, 0, 0, 64, 0, 0, 0, 0, 5, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0],
        &[0x80, 0x1a, 6, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 1, 0, 0, 0],
        &[0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0],
        &[0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 0, 1, 0],
    ]
    .concat();
    assert_eq!(hmat[36..], expected);
}

#[test]
fn contradictions_are_refused() {
    let refused = |change: fn(&mut Topology)| {
        let mut topology = three_nodes();
        change(&mut topology);
        build(&topology, platform::ACPI_BASE, platform::ACPI_SIZE).unwrap_err()
    };
    assert_eq!(
        refused(|t| t.distances[1].truncate(2)),
        AcpiError::Distances { node: 1, entries: 2, nodes: 3 }
    );
    assert_eq!(refused(|t| t.performance.push(performance(2, 0))), AcpiError::NotAnInitiator(2));
    assert_eq!(refused(|t| t.performance.push(performance(0, 3))), AcpiError::NotATarget(3));
    let slow = refused(|t| t.performance[0].read_latency_ns = Some(u64::MAX));
    assert!(matches!(slow, AcpiError::Performance { initiator: 0, target: 2, unit: "ns", .. }));
    let needed = build(&flat(), Gpa(0), 1 << 20).unwrap().bytes.len() as u64;
    assert!(build(&flat(), Gpa(0), needed).is_ok());
    assert_eq!(
        build(&flat(), Gpa(0), needed - 1),
        Err(AcpiError::DoesNotFit { needed, available: needed - 1 })
    );
}

#[test]
fn the_largest_machine_fits_its_place() {
    let nodes = 0..64u32;
    let all = |initiator, target| Performance {
        read_latency_ns: Some(100),
        write_latency_ns: Some(100),
        read_bandwidth_mbps: Some(100),
        write_bandwidth_mbps: Some(100),
        ..performance(initiator, target)
    };
    // Ids from 255 on need the larger structures.
    let topology = Topology {
        core_bits: 0,
        cpus: nodes.clone().map(|n| Cpu { apic_id: n + madt::FIRST_X2APIC, node: n }).collect(),
        // Two ranges a node, which is all that Linux keeps.
        memory: (0..128).map(|i| ram(i / 2, u64::from(i) * GIB, GIB)).collect(),
        numa: true,
        distances: vec![vec![10; 64]; 64],
        performance: nodes.clone().flat_map(|i| nodes.clone().map(move |t| all(i, t))).collect(),
    };
    assert!(built(&topology)["HMAT"].len() > 4 * 64 * 64 * 2);
}

prop_compose! {
    fn topologies()(
        cpu_nodes in prop::collection::vec(0u32..6, 1..65),
        first_id in prop_oneof![Just(0u32), 200u32..300],
        sizes in prop::collection::vec((0u32..6, 1u64..64, any::<bool>(), 0u64..4), 1..12),
        distances in prop::collection::vec(11u8..=254, 36),
        latencies in prop::collection::vec((0usize..64, 0usize..12, 1u64..100_000), 0..12),
    ) -> Topology {
        let cpus: Vec<_> =
            (first_id..).zip(cpu_nodes).map(|(apic_id, node)| Cpu { apic_id, node }).collect();
        let mut next = 0;
        let memory: Vec<_> = sizes.into_iter().map(|(node, size, spm, gap)| {
            let kind = if spm { MemoryKind::Spm } else { MemoryKind::Ram };
            let at = next + gap * MIB;
            next = at + size * MIB;
            NodeMemory { node, range: range(at, size * MIB), kind }
        }).collect();
        let performance = latencies.into_iter().map(|(cpu, target, latency)| Performance {
            read_latency_ns: Some(latency),
            write_bandwidth_mbps: Some(latency),
            ..performance(cpus[cpu % cpus.len()].node, memory[target % memory.len()].node)
        }).collect();
        let distances = (0..6)
            .map(|i| (0..6).map(|j| if i == j { 10 } else { distances[i * 6 + j] }).collect())
            .collect();
        Topology { cpus, core_bits: 0, memory, numa: true, distances, performance }
    }
}

/// The structures after a table's fixed part, as (type, bytes).
fn structures(table: &[u8], start: usize) -> Vec<(u8, &[u8])> {
    let mut rest = &table[start..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (structure, tail) = rest.split_at(rest[1] as usize);
        found.push((structure[0], structure));
        rest = tail;
    }
    found
}

proptest! {
    #[test]
    fn every_cpu_and_every_range_is_listed_once(topology in topologies()) {
        let tables = built(&topology);
        let mut in_madt: Vec<u32> = structures(&tables["APIC"], 44).iter().filter_map(|(t, s)| {
            match t {
                0 => Some(u32::from(s[3])),
                9 => Some(u32_at(s, 4)),
                _ => None,
            }
        }).collect();
        in_madt.sort_unstable();
        let ids: Vec<u32> = topology.cpus.iter().map(|cpu| cpu.apic_id).collect();
        prop_assert_eq!(in_madt, ids);

        let srat = structures(&tables["SRAT"], 48);
        let cpus: Vec<Cpu> = srat.iter().filter_map(|(t, s)| match t {
            0 => Some(Cpu {
                apic_id: u32::from(s[3]),
                node: u32::from_le_bytes([s[2], s[9], s[10], s[11]]),
            }),
            2 => Some(Cpu { apic_id: u32_at(s, 8), node: u32_at(s, 4) }),
            _ => None,
        }).collect();
        let mut by_node = topology.cpus.clone();
        by_node.sort_by_key(|cpu| cpu.node);
        prop_assert_eq!(cpus, by_node);
        let memory: Vec<(u32, u64, u64)> = srat.iter().filter(|(t, _)| *t == 1)
            .map(|(_, s)| (u32_at(s, 2), u64_at(s, 8), u64_at(s, 16)))
            .collect();
        let expected: Vec<_> = topology.memory.iter()
            .map(|m| (m.node, m.range.base().0, m.range.size()))
            .collect();
        prop_assert_eq!(memory, expected);

        let slit = &tables["SLIT"];
        let nodes = u64_at(slit, 36) as usize;
        prop_assert_eq!(slit.len(), 44 + nodes * nodes);
        for (from, row) in topology.distances.iter().enumerate() {
            prop_assert_eq!(&slit[44 + from * nodes..44 + (from + 1) * nodes], &row[..]);
        }
    }

    #[test]
    fn hmat_says_what_was_given_and_nothing_of_other_pairs(topology in topologies()) {
        let tables = built(&topology);
        let Some(hmat) = tables.get("HMAT") else {
            prop_assert!(topology.performance.is_empty());
            return Ok(());
        };
        let mut at = 40;
        while at < hmat.len() {
            let structure = &hmat[at..at + u32_at(hmat, at + 4) as usize];
            at += structure.len();
            if structure[0] != 1 {
                continue;
            }
            let unit = u64_at(structure, 24) / if structure[9] < 3 { 1000 } else { 1 };
            let (initiators, targets) =
                (u32_at(structure, 12) as usize, u32_at(structure, 16) as usize);
            for i in 0..initiators {
                for t in 0..targets {
                    let initiator = u32_at(structure, 32 + 4 * i);
                    let target = u32_at(structure, 32 + 4 * (initiators + t));
                    let entry = 32 + 4 * (initiators + targets) + 2 * (i * targets + t);
                    let entry = u16::from_le_bytes([structure[entry], structure[entry + 1]]);
                    let given = topology.performance.iter()
                        .find(|p| p.initiator == initiator && p.target == target)
                        .and_then(|p| p.read_latency_ns);
                    let told = u64::from(entry) * unit;
                    prop_assert!(given.unwrap_or(0).abs_diff(told) < unit.max(2));
                    prop_assert_eq!(given.is_some(), entry != 0);
                }
            }
        }
    }
}
