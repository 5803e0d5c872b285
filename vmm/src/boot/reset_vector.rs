//! The code at the reset vector of a PC, f000:fff0, where a firmware would be.
//!
//! On a hardware-reduced machine Linux restarts by UEFI and, where there is
//! none, by a jump to this place in real mode (`reboot_init` and `BOOT_BIOS`,
//! arch/x86/kernel/reboot.c). It writes the ACPI reset register.

use crate::platform;

const PORT: [u8; 2] = platform::ACPI_RESET.to_le_bytes();

/// What goes to [`platform::RESET_VECTOR`]: 16-bit code.
#[rustfmt::skip]
pub const CODE: [u8; 9] = [
    0xba, PORT[0], PORT[1],             // mov dx, PORT
    0xb0, platform::ACPI_RESET_VALUE,   // mov al, ACPI_RESET_VALUE
    0xee,                               // out dx, al
    0xf4,                               // wait: hlt
    0xeb, 0xfd,                         // jmp wait
];
