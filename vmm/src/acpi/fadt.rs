//! FADT (ACPI 6.5, section 5.2.9): what hardware there is for power.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::platform;

/// IAPC_BOOT_ARCH: no VGA to probe for.
const NO_VGA: u16 = 1 << 2;
/// IAPC_BOOT_ARCH: leave ASPM alone.
const NO_ASPM: u16 = 1 << 4;
/// IAPC_BOOT_ARCH: no CMOS clock, so that nobody polls ports 0x70 and 0x71.
/// With bit 1 clear there is no keyboard controller to look for either.
const NO_CMOS_RTC: u16 = 1 << 5;

/// The FADT, with the DSDT at `dsdt`.
pub(super) fn build(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::Wbinvd)
        // These two bits say that the fixed-hardware buttons do *not* exist.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM | NO_CMOS_RTC).into();
    fadt.reset_reg = port(platform::ACPI_RESET);
    fadt.reset_value = platform::ACPI_RESET_VALUE;
    fadt.sleep_control_reg = port(platform::ACPI_SLEEP_CONTROL);
    fadt.sleep_status_reg = port(platform::ACPI_SLEEP_STATUS);
    fadt.finalize()
}

/// A byte-wide register at an I/O port.
fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}
