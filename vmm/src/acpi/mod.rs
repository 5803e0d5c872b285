//! The ACPI tables of the machine (ACPI 6.5), made from its [`Topology`] and
//! the addresses in [`crate::platform`].
//!
//! The machine is *hardware-reduced*: no PM timer, no SCI, no legacy
//! interrupt controllers as far as the guest is told. Linux then takes its
//! interrupts from the IOAPIC and its time from the TSC and kvmclock, and
//! powers off through the sleep control register.
//!
//! acpi_tables encodes AML, RSDP, XSDT, FADT and MCFG. MADT, SRAT, SLIT and
//! HMAT are put together here: the crate (0.2.1) has no x2APIC, NMI or
//! processor affinity structures, writes SRAT and HMAT at revision 1 (where
//! Linux takes 8 bits of a node number and other units), makes every SLIT
//! symmetric, and strides the HMAT matrix by the wrong dimension.

mod dsdt;
mod fadt;
mod hmat;
mod madt;
mod slit;
mod srat;

use std::collections::BTreeSet;

use acpi_tables::Aml;
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use neap_memory::Gpa;

use crate::platform;
use crate::topology::Topology;

/// OEM id of every table.
const OEM_ID: [u8; 6] = *b"NEAP  ";
/// OEM table id of every table.
const OEM_TABLE_ID: [u8; 8] = *b"NEAPVMM ";
/// OEM revision of every table.
const OEM_REVISION: u32 = 1;
/// Bytes of the header that every table but the RSDP begins with.
const HEADER_SIZE: u32 = 36;
/// Alignment of tables; the RSDP needs it where a guest searches for it.
const ALIGN: usize = 16;

/// Why tables cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AcpiError {
    /// The tables are larger than their place.
    #[error(
        "the ACPI tables take {needed} bytes and {available} are kept for them: use fewer device regions or nodes"
    )]
    DoesNotFit {
        /// Bytes that the tables take.
        needed: u64,
        /// Bytes that are there.
        available: u64,
    },
    /// A row of distances has not one entry for each node.
    #[error("node {node} has {entries} distances for {nodes} nodes")]
    Distances {
        /// The node whose row it is.
        node: usize,
        /// Entries in the row.
        entries: usize,
        /// Nodes in the table.
        nodes: usize,
    },
    /// Latency or bandwidth was given from a node without CPUs.
    #[error("node {0} has no CPUs from which memory could be accessed")]
    NotAnInitiator(u32),
    /// Latency or bandwidth was given to a node without memory.
    #[error("node {0} has no memory to be accessed")]
    NotATarget(u32),
    /// A latency or bandwidth that HMAT, as Linux reads it, cannot carry.
    #[error(
        "{value} {unit} from node {initiator} to node {target} is more than can be told: at most {limit}"
    )]
    Performance {
        /// Node whose CPUs access.
        initiator: u32,
        /// Node whose memory is accessed.
        target: u32,
        /// What was given.
        value: u64,
        /// Its unit.
        unit: &'static str,
        /// The largest value that can be told.
        limit: u64,
    },
}

/// All tables, to be written to guest memory at the address they were built
/// for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// The bytes; the RSDP comes first.
    pub bytes: Vec<u8>,
    /// Where the RSDP is: the address the tables were built for.
    pub rsdp: Gpa,
}

/// Builds all tables for `size` bytes at `base`, which is a multiple of 16.
///
/// # Errors
/// When the tables do not fit, or the topology contradicts itself.
pub fn build(topology: &Topology, base: Gpa, size: u64) -> Result<Tables, AcpiError> {
    let mut tables = vec![bytes(&madt::build(topology)), bytes(&mcfg())];
    if topology.numa {
        tables.push(bytes(&srat::build(topology)));
        tables.extend(slit::build(topology)?.as_ref().map(|t| bytes(t)));
        tables.extend(hmat::build(topology)?.as_ref().map(|t| bytes(t)));
    }

    // XSDT entries: the tables above and the FADT. The DSDT hangs on the FADT.
    let xsdt_len = HEADER_SIZE as usize + 8 * (tables.len() + 1);
    let xsdt_at = Rsdp::len().next_multiple_of(ALIGN);
    let mut blob = vec![0; xsdt_at + xsdt_len];
    let mut place = |table: &[u8]| {
        let at = blob.len().next_multiple_of(ALIGN);
        blob.resize(at, 0);
        blob.extend_from_slice(table);
        base.0.saturating_add(at as u64)
    };

    let dsdt = place(&bytes(&dsdt::build(topology)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(place(&bytes(&fadt::build(dsdt))));
    for table in &tables {
        xsdt.add_entry(place(table));
    }

    let xsdt = bytes(&xsdt);
    let rsdp = bytes(&Rsdp::new(OEM_ID, base.0.saturating_add(xsdt_at as u64)));
    blob.splice(xsdt_at..xsdt_at + xsdt.len(), xsdt);
    blob.splice(..rsdp.len(), rsdp);
    if blob.len() as u64 > size {
        return Err(AcpiError::DoesNotFit { needed: blob.len() as u64, available: size });
    }
    Ok(Tables { bytes: blob, rsdp: base })
}

/// The bytes of a table.
fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// A table with the standard header before `body`.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut sdt = Sdt::new(signature, HEADER_SIZE, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    sdt.append_slice(body);
    sdt
}

/// MCFG (PCI firmware specification 3.3, section 4.1.2): where the ECAM is.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(platform::ECAM_BASE.0, 0, 0, (platform::ECAM_BUSES - 1) as u8);
    mcfg
}

/// Nodes with CPUs, in ascending order.
fn cpu_nodes(topology: &Topology) -> BTreeSet<u32> {
    topology.cpus.iter().map(|cpu| cpu.node).collect()
}

/// Nodes with memory, in ascending order.
fn memory_nodes(topology: &Topology) -> BTreeSet<u32> {
    topology.memory.iter().map(|memory| memory.node).collect()
}

#[cfg(test)]
mod tests;
