//! Where the parts of the machine lie: guest-physical addresses, I/O ports
//! and interrupt lines. One table, so that the boot code, the ACPI tables and
//! the devices cannot disagree.

use neap_memory::addr::{GIB, KIB, MIB};
use neap_memory::{Gpa, layout};

/// Segment descriptors of the boot processor.
pub const GDT: Gpa = Gpa(0x500);
/// PVH `hvm_start_info`, its module list and its memory map.
pub const PVH_START_INFO: Gpa = Gpa(0x1000);
/// The zero page (`struct boot_params`) of the 64-bit boot protocol.
pub const ZERO_PAGE: Gpa = Gpa(0x7000);
/// Identity page tables of the 64-bit boot protocol: one PML4, one PDPT and
/// four page directories.
pub const PAGE_TABLES: Gpa = Gpa(0x9000);
/// Initial stack pointer; grows down.
pub const BOOT_STACK: Gpa = Gpa(0x8ff0);
/// Kernel command line.
pub const CMDLINE: Gpa = Gpa(0x20000);
/// Longest command line with its final NUL, in bytes (`COMMAND_LINE_SIZE`,
/// arch/x86/include/asm/setup.h).
pub const CMDLINE_MAX: usize = 2048;
/// Synthetic UEFI system table, configuration table and memory map.
pub const EFI_BASE: Gpa = Gpa(0x30000);
/// Bytes kept for the UEFI structures.
pub const EFI_SIZE: u64 = 0x20000;
/// End of conventional memory below 1 MiB (start of the EBDA on a PC).
pub const LOW_RAM_END: Gpa = Gpa(0x9fc00);
/// ACPI tables: the BIOS area, which e820 lists as reserved.
pub const ACPI_BASE: Gpa = Gpa(0xe0000);
/// Bytes kept for the ACPI tables.
pub const ACPI_SIZE: u64 = 128 * KIB;
/// Where a processor looks for its firmware in real mode: the last 16 bytes
/// of the BIOS area, after the ACPI tables.
pub const RESET_VECTOR: Gpa = Gpa(0xf_fff0);
const _: () = assert!(ACPI_BASE.0 + ACPI_SIZE == RESET_VECTOR.0 + 16);
/// Where memory above the BIOS area begins, and where kernels are loaded.
pub const HIGH_RAM: Gpa = Gpa(MIB);

/// 32-bit window for PCI memory BARs.
pub const PCI_MMIO_BASE: Gpa = layout::HOLE_BASE;
/// Bytes of the 32-bit PCI memory window.
pub const PCI_MMIO_SIZE: u64 = ECAM_BASE.0 - PCI_MMIO_BASE.0;
/// PCI configuration space, memory-mapped (ECAM), segment 0.
pub const ECAM_BASE: Gpa = Gpa(0xe000_0000);
/// Buses that the ECAM range covers. Only bus 0 has anything, and Linux looks
/// for a bridge on every device of every bus there could be
/// (`pcibios_fixup_peer_bridges`, arch/x86/pci/legacy.c): 256 buses cost a
/// boot 16384 exits.
pub const ECAM_BUSES: u64 = 1;
/// Bytes of the ECAM range: 1 MiB a bus.
pub const ECAM_SIZE: u64 = ECAM_BUSES * MIB;
/// IOAPIC registers.
pub const IOAPIC: Gpa = Gpa(0xfec0_0000);
/// Local APIC registers.
pub const LOCAL_APIC: Gpa = Gpa(0xfee0_0000);
/// Three pages that KVM needs on Intel for a task state segment.
pub const KVM_TSS: Gpa = Gpa(0xfffb_d000);
/// One page that KVM needs on Intel for an identity map.
pub const KVM_IDENTITY_MAP: Gpa = Gpa(0xfffb_c000);
const _: () = assert!(KVM_TSS.0 + 3 * 4 * KIB <= 4 * GIB);

/// First serial port: base port and number of ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt line of the first serial port.
pub const SERIAL_IRQ: u32 = 4;
/// Keyboard controller command port; 0xfe written here resets the machine.
pub const I8042_COMMAND: u16 = 0x64;
/// PCI configuration mechanism #1: address at 0xcf8, data at 0xcfc.
pub const PCI_CONFIG_PORT: u16 = 0xcf8;
/// ACPI sleep control register (hardware-reduced ACPI, section 4.8.3.7).
pub const ACPI_SLEEP_CONTROL: u16 = 0x600;
/// ACPI sleep status register.
pub const ACPI_SLEEP_STATUS: u16 = 0x601;
/// ACPI reset register.
pub const ACPI_RESET: u16 = 0x602;
/// Value that resets the machine when written to [`ACPI_RESET`].
pub const ACPI_RESET_VALUE: u8 = 1;
/// SLP_TYP of S5 in the DSDT's `\_S5`.
pub const ACPI_S5: u8 = 5;
