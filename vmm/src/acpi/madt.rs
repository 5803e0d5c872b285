//! MADT (ACPI 6.5, section 5.2.12): local APICs and the IOAPIC.
//!
//! No interrupt source overrides: the legacy timer is not used on a
//! hardware-reduced machine, there is no SCI, and KVM's routing connects every
//! other ISA interrupt to the IOAPIC pin of the same number, edge-triggered
//! and active high as ISA has it. PCAT_COMPAT is clear: the 8259 pair that KVM
//! has is not for the guest to use.

use acpi_tables::sdt::Sdt;

use super::table;
use crate::platform;
use crate::topology::Topology;

const REVISION: u8 = 5;
/// Smallest id that needs an x2APIC entry; 0xff is "all" in the old one.
pub(super) const FIRST_X2APIC: u32 = 255;

const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 0xa;

/// Local APIC flags: enabled.
const ENABLED: u32 = 1;
/// NMIs arrive at this local interrupt pin of every processor.
const NMI_LINT: u8 = 1;
/// MPS INTI flags: polarity and trigger mode as the bus has them.
const CONFORMS: u16 = 0;

/// The MADT.
pub(super) fn build(topology: &Topology) -> Sdt {
    let mut body = Vec::new();
    body.extend((platform::LOCAL_APIC.0 as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());

    let mut any_x2apic = false;
    for (uid, cpu) in (0u32..).zip(&topology.cpus) {
        if let Some(id) = old_id(cpu.apic_id) {
            // The uid is below 255 as well: ids ascend with the index.
            body.extend([LOCAL_APIC, 8, uid as u8, id]);
            body.extend(ENABLED.to_le_bytes());
        } else {
            any_x2apic = true;
            body.extend([LOCAL_X2APIC, 16, 0, 0]);
            body.extend(cpu.apic_id.to_le_bytes());
            body.extend(ENABLED.to_le_bytes());
            body.extend(uid.to_le_bytes());
        }
    }

    body.extend([IO_APIC, 12, IO_APIC_ID, 0]);
    body.extend((platform::IOAPIC.0 as u32).to_le_bytes());
    body.extend(0u32.to_le_bytes());

    body.extend([LOCAL_APIC_NMI, 6, 0xff]);
    body.extend(CONFORMS.to_le_bytes());
    body.push(NMI_LINT);
    if any_x2apic {
        body.extend([LOCAL_X2APIC_NMI, 12]);
        body.extend(CONFORMS.to_le_bytes());
        body.extend(u32::MAX.to_le_bytes());
        body.extend([NMI_LINT, 0, 0, 0]);
    }
    table(*b"APIC", REVISION, &body)
}

/// KVM gives its IOAPIC this id.
const IO_APIC_ID: u8 = 0;

/// The id as an xAPIC structure carries it, if one can.
pub(super) fn old_id(apic_id: u32) -> Option<u8> {
    u8::try_from(apic_id).ok().filter(|_| apic_id < FIRST_X2APIC)
}
