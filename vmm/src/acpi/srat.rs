//! SRAT (ACPI 6.5, section 5.2.16): which node each processor and each range
//! of memory belongs to.
//!
//! SPM ranges are listed like RAM. Linux finds no RAM in them, and keeps their
//! node aside (`numa_cleanup_meminfo`, mm/numa_memblks.c) for the day dax asks
//! for a target node (`phys_to_target_node`). They are not marked
//! hot-pluggable, because they are always there; Linux does not need the mark.

use acpi_tables::sdt::Sdt;

use super::{madt::old_id, table};
use crate::topology::Topology;

/// Below revision 2 Linux takes only the low 8 bits of a node number.
const REVISION: u8 = 3;

const PROCESSOR: u8 = 0;
const MEMORY: u8 = 1;
const X2APIC: u8 = 2;

/// Processor and memory affinity flags: enabled.
const ENABLED: u32 = 1;

/// The SRAT.
pub(super) fn build(topology: &Topology) -> Sdt {
    let mut body = Vec::new();
    // One reserved field that must be 1, and one that must be 0.
    body.extend(1u32.to_le_bytes());
    body.extend(0u64.to_le_bytes());

    // Linux numbers nodes in the order in which they are named here first
    // (acpi_map_pxm_to_node, drivers/acpi/numa/srat.c).
    let mut cpus = topology.cpus.clone();
    cpus.sort_by_key(|cpu| cpu.node);
    for cpu in &cpus {
        let [node, high @ ..] = cpu.node.to_le_bytes();
        if let Some(id) = old_id(cpu.apic_id) {
            body.extend([PROCESSOR, 16, node, id]);
            body.extend(ENABLED.to_le_bytes());
            body.push(0);
            body.extend(high);
            body.extend(0u32.to_le_bytes());
        } else {
            body.extend([X2APIC, 24, 0, 0]);
            for field in [cpu.node, cpu.apic_id, ENABLED, 0, 0] {
                body.extend(field.to_le_bytes());
            }
        }
    }

    for memory in &topology.memory {
        body.extend([MEMORY, 40]);
        body.extend(memory.node.to_le_bytes());
        body.extend([0; 2]);
        body.extend(memory.range.base().0.to_le_bytes());
        body.extend(memory.range.size().to_le_bytes());
        body.extend([0; 4]);
        body.extend(ENABLED.to_le_bytes());
        body.extend([0; 8]);
    }
    table(*b"SRAT", REVISION, &body)
}
