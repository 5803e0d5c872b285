//! DSDT: the devices that a guest cannot find by itself, in AML.
//!
//! No processor objects: the MADT lists the CPUs, and none can be added
//! later. No `_PRT` either: the one PCI function has no interrupt pin, and
//! later ones use MSI-X.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, Path, ResourceTemplate,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::table;
use crate::platform;
use crate::topology::Topology;

/// First I/O port that the host bridge hands to PCI devices: above everything
/// with a fixed port.
const PCI_IO_FIRST: u16 = 0x1000;
/// The configuration ports, which the host bridge keeps for itself.
const PCI_CONFIG_PORTS: u8 = 8;
/// Ports of the three ACPI registers, and of the serial port.
const ACPI_PORTS: u8 = neap_devices::reset::AcpiPower::SIZE as u8;
const SERIAL_PORTS: u8 = neap_devices::serial::SerialPort::SIZE as u8;

/// Revision 2: integers of 64 bits.
const REVISION: u8 = 2;

/// The DSDT.
pub(super) fn build(topology: &Topology) -> Sdt {
    let mut aml = Vec::new();
    sleep_states(&mut aml);
    host_bridge(&mut aml, topology);
    motherboard(&mut aml);
    serial(&mut aml);
    table(*b"DSDT", REVISION, &aml)
}

/// `\_S5`: the SLP_TYP that switches the machine off. The other three
/// elements have no meaning on hardware-reduced machines.
fn sleep_states(aml: &mut dyn AmlSink) {
    let package = Package::new(vec![&platform::ACPI_S5, &0u8, &0u8, &0u8]);
    Name::new(Path::new("\\_S5_"), &package).to_aml_bytes(aml);
}

/// The PCI Express host bridge, with what it decodes and hands on. It sits
/// beside the first CPU.
fn host_bridge(aml: &mut dyn AmlSink, topology: &Topology) {
    let buses = AddressSpace::<u16>::new_bus_number(0, (platform::ECAM_BUSES - 1) as u16);
    let config = IO::new(platform::PCI_CONFIG_PORT, platform::PCI_CONFIG_PORT, 1, PCI_CONFIG_PORTS);
    let ports = AddressSpace::<u16>::new_io(PCI_IO_FIRST, u16::MAX, None);
    let window = AddressSpace::<u32>::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        low(platform::PCI_MMIO_BASE.0),
        low(platform::PCI_MMIO_BASE.0 + platform::PCI_MMIO_SIZE - 1),
        None,
    );
    let resources = ResourceTemplate::new(vec![&buses, &config, &ports, &window]);

    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0A08"));
    let cid = Name::new(Path::new("_CID"), &EISAName::new("PNP0A03"));
    let uid = Name::new(Path::new("_UID"), &0u8);
    let segment = Name::new(Path::new("_SEG"), &0u8);
    let bus = Name::new(Path::new("_BBN"), &0u8);
    let crs = Name::new(Path::new("_CRS"), &resources);
    let mut children: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &segment, &bus, &crs];
    // Linux complains of a bridge of no node where there are several.
    let node = topology.cpus.first().filter(|_| topology.numa).map(|cpu| cpu.node);
    let node = node.map(|node| Name::new(Path::new("_PXM"), &node));
    children.extend(node.as_ref().map(|name| name as &dyn Aml));
    Device::new(Path::new("_SB_.PCI0"), children).to_aml_bytes(aml);
}

/// Motherboard resources: the ECAM must be reserved this way, or Linux does
/// not use it (`pci_mmcfg_reserved`, arch/x86/pci/mmconfig-shared.c).
fn motherboard(aml: &mut dyn AmlSink) {
    let ecam = Memory32Fixed::new(true, low(platform::ECAM_BASE.0), low(platform::ECAM_SIZE));
    let power = IO::new(platform::ACPI_SLEEP_CONTROL, platform::ACPI_SLEEP_CONTROL, 1, ACPI_PORTS);
    Device::new(
        Path::new("_SB_.MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ecam, &power])),
        ],
    )
    .to_aml_bytes(aml);
}

/// The serial port. On a hardware-reduced machine Linux maps no ISA interrupt
/// by itself, so the port needs this to have one.
fn serial(aml: &mut dyn AmlSink) {
    let ports = IO::new(platform::SERIAL_PORT, platform::SERIAL_PORT, 1, SERIAL_PORTS);
    // Edge-triggered: the device sends a pulse (irqfd without resampling).
    let interrupt = Interrupt::new(true, true, false, false, platform::SERIAL_IRQ);
    Device::new(
        Path::new("_SB_.COM1"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
            &Name::new(Path::new("_UID"), &0u8),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_aml_bytes(aml);
}

/// An address or size of the platform that lies below 4 GiB.
const fn low(value: u64) -> u32 {
    assert!(value <= u32::MAX as u64);
    value as u32
}

const _: () = {
    low(platform::ECAM_BASE.0 + platform::ECAM_SIZE - 1);
    low(platform::PCI_MMIO_BASE.0 + platform::PCI_MMIO_SIZE - 1);
};
