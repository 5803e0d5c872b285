//! The code of the UEFI runtime services, which the guest's kernel calls in
//! ring 0 with the Microsoft x64 convention (first argument in RCX, result in
//! RAX). It is position-independent and keeps no state, so it needs no
//! relocation when the guest maps it elsewhere.

use crate::platform;

/// Pointers in EFI_RUNTIME_SERVICES.
pub(super) const SERVICES: usize = 14;

/// The services that do something, as EFI_RT_PROPERTIES_TABLE counts them
/// (UEFI 2.10, section 4.6.2): SetVirtualAddressMap and ResetSystem.
pub(super) const SUPPORTED: u32 = 0x80 | 0x400;

/// EFI_RESET_TYPE EfiResetShutdown. Cold, warm and platform-specific resets
/// are all the same here.
const RESET_SHUTDOWN: u8 = 2;
/// Sleep control: SLP_EN, and where SLP_TYP begins.
const SLP_EN: u8 = 1 << 5;
const SLP_TYP_SHIFT: u8 = 2;

const RESET_PORT: [u8; 2] = platform::ACPI_RESET.to_le_bytes();
const SLEEP_PORT: [u8; 2] = platform::ACPI_SLEEP_CONTROL.to_le_bytes();
const SLEEP_VALUE: u8 = platform::ACPI_S5 << SLP_TYP_SHIFT | SLP_EN;

/// Offsets of the three routines.
const UNSUPPORTED: u64 = 0x00;
const SET_VIRTUAL_ADDRESS_MAP: u64 = 0x10;
const RESET_SYSTEM: u64 = 0x20;

/// Offset of each service, in the order of EFI_RUNTIME_SERVICES.
pub(super) const ENTRIES: [u64; SERVICES] = {
    let mut entries = [UNSUPPORTED; SERVICES];
    entries[4] = SET_VIRTUAL_ADDRESS_MAP;
    entries[10] = RESET_SYSTEM;
    entries
};

/// The routines. Each begins with `endbr64`, as a call needs that comes
/// through a pointer while indirect branches are tracked.
#[rustfmt::skip]
pub(super) const CODE: [u8; 0x48] = [
    // 0x00, every other service: return EFI_UNSUPPORTED.
    0xf3, 0x0f, 0x1e, 0xfa,                         // endbr64
    0x48, 0xb8, 3, 0, 0, 0, 0, 0, 0, 0x80,          // mov rax, 0x8000000000000003
    0xc3,                                           // ret
    0xcc,
    // 0x10, SetVirtualAddressMap: there are no pointers to convert.
    0xf3, 0x0f, 0x1e, 0xfa,                         // endbr64
    0x31, 0xc0,                                     // xor eax, eax
    0xc3,                                           // ret
    0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
    // 0x20, ResetSystem(type in ecx).
    0xf3, 0x0f, 0x1e, 0xfa,                         // endbr64
    0x83, 0xf9, RESET_SHUTDOWN,                     // cmp ecx, RESET_SHUTDOWN
    0x74, 0x0b,                                     // je shutdown
    0xba, RESET_PORT[0], RESET_PORT[1], 0, 0,       // mov edx, RESET_PORT
    0xb0, platform::ACPI_RESET_VALUE,               // mov al, ACPI_RESET_VALUE
    0xee,                                           // out dx, al
    0xf4,                                           // wait: hlt
    0xeb, 0xfd,                                     // jmp wait
    // shutdown:
    0xba, SLEEP_PORT[0], SLEEP_PORT[1], 0, 0,       // mov edx, SLEEP_PORT
    0xb0, SLEEP_VALUE,                              // mov al, SLEEP_VALUE
    0xee,                                           // out dx, al
    0xf4,                                           // wait: hlt
    0xeb, 0xfd,                                     // jmp wait
    0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc,
];
