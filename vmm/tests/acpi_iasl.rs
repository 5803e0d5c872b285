//! What ACPICA's disassembler makes of the ACPI tables: an independent reader
//! of every length, checksum and field.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use neap_memory::addr::GIB;
use neap_memory::{Gpa, GpaRange};
use neap_vmm::topology::{Cpu, MemoryKind, NodeMemory, Performance, Topology};
use neap_vmm::{acpi, platform};

/// Two nodes with CPUs (one of them with an x2APIC id) and one with SPM.
fn topology() -> Topology {
    let memory = |node, base: u64, size, kind| NodeMemory {
        node,
        range: GpaRange::new(Gpa(base), size).unwrap(),
        kind,
    };
    let performance = |initiator, read, bandwidth| Performance {
        initiator,
        target: 2,
        read_latency_ns: Some(read),
        write_latency_ns: Some(read + 50),
        read_bandwidth_mbps: Some(bandwidth),
        write_bandwidth_mbps: Some(bandwidth),
    };
    Topology {
        core_bits: 0,
        cpus: vec![Cpu { apic_id: 0, node: 0 }, Cpu { apic_id: 300, node: 1 }],
        memory: vec![
            memory(0, 0, GIB, MemoryKind::Ram),
            memory(1, GIB, GIB, MemoryKind::Ram),
            memory(2, 4 * GIB, GIB, MemoryKind::Spm),
        ],
        numa: true,
        distances: vec![vec![10, 20, 30], vec![20, 10, 40], vec![30, 40, 10]],
        performance: vec![performance(0, 300, 25_000), performance(1, 400, 12_000)],
    }
}

/// Splits the blob at its table headers: signature and bytes.
fn split(tables: &acpi::Tables) -> Vec<(String, Vec<u8>)> {
    let bytes = &tables.bytes;
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut at = 48;
    let mut found = Vec::new();
    while at < bytes.len() {
        let name = String::from_utf8(bytes[at..at + 4].to_vec()).unwrap();
        found.push((name, bytes[at..at + word(at + 4)].to_vec()));
        at = (at + word(at + 4)).next_multiple_of(16);
    }
    found
}

/// Runs iasl in `directory`; what it prints. It reads files only, and
/// `timeout` ends it should it not end.
fn iasl(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["60", "iasl"])
        .args(arguments)
        .current_dir(directory)
        .output()
        .expect("timeout(1) is part of coreutils");
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "iasl {arguments:?} ended with {}; if it is missing, `apt-get install acpica-tools`\n{text}",
        output.status
    );
    text
}

/// The disassembly of one table, blanks squeezed so that columns do not
/// matter.
fn disassembled(directory: &Path, name: &str) -> String {
    let text = fs::read_to_string(directory.join(format!("{name}.dsl"))).unwrap();
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn acpica_reads_every_table_without_complaint() {
    let tables = acpi::build(&topology(), platform::ACPI_BASE, platform::ACPI_SIZE).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<_> = split(&tables)
        .into_iter()
        .map(|(name, bytes)| {
            fs::write(directory.path().join(format!("{name}.dat")), bytes).unwrap();
            name
        })
        .collect();
    assert_eq!(names, ["XSDT", "DSDT", "FACP", "APIC", "MCFG", "SRAT", "SLIT", "HMAT"]);

    for name in &names {
        let text = iasl(directory.path(), &["-d", &format!("{name}.dat")]);
        let dsl = disassembled(directory.path(), name);
        for complaint in ["Error", "Warning", "Invalid", "Unknown", "Incorrect", "****"] {
            assert!(!text.contains(complaint), "{name}: iasl says {complaint}\n{text}");
            assert!(!dsl.contains(complaint), "{name}: {complaint} in\n{dsl}");
        }
    }

    let expected = [
        ("FACP", "Hardware Reduced (V5) : 1"),
        ("FACP", "Reset Register Supported (V2) : 1"),
        ("FACP", "Value to cause reset : 01"),
        ("FACP", "8042 Present on ports 60/64 (V2) : 0"),
        ("FACP", "CMOS RTC Not Present (V5) : 1"),
        ("APIC", "Local Apic Address : FEE00000"),
        ("APIC", "Processor x2Apic ID : 0000012C"),
        ("APIC", "Address : FEC00000"),
        ("MCFG", "Base Address : 00000000E0000000"),
        ("MCFG", "End Bus Number : 00"),
        ("SRAT", "Apic ID : 0000012C"),
        ("SRAT", "Base Address : 0000000100000000"),
        ("SRAT", "Address Length : 0000000040000000"),
        ("SLIT", "Locality 1 : 14 0A 28"),
        ("HMAT", "Entry Base Unit : 00000000000003E8"),
        ("HMAT", "Processor Proximity Domain Valid : 1"),
        ("DSDT", "Name (_HID, EisaId (\"PNP0A08\")"),
        ("DSDT", "Name (_PXM, Zero)"),
        ("DSDT", "Name (\\_S5, Package (0x04)"),
    ];
    for (name, line) in expected {
        let dsl = disassembled(directory.path(), name);
        assert!(dsl.contains(line), "no {line:?} in\n{dsl}");
    }
}

#[test]
fn the_dsdt_compiles_again_without_an_error() {
    let tables = acpi::build(&topology(), platform::ACPI_BASE, platform::ACPI_SIZE).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (_, dsdt) = split(&tables).into_iter().find(|(name, _)| name == "DSDT").unwrap();
    fs::write(directory.path().join("dsdt.dat"), dsdt).unwrap();
    iasl(directory.path(), &["-d", "dsdt.dat"]);
    let text = iasl(directory.path(), &["-f", "dsdt.dsl"]);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
}
