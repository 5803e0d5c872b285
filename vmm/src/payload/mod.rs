//! Tiny guest programs, assembled here: no toolchain, no binary in the tree.
//!
//! | program | starts in | for |
//! |---|---|---|
//! | [`hello`] | PVH entry, protected mode | start-up time, order of a machine's life |
//! | [`stay`] | PVH entry, protected mode | memory use of a machine that only exists |
//! | [`count`] | PVH entry, protected mode | a machine that never leaves the guest by itself |
//! | [`memory_probe`] | PVH entry, goes to long mode | words at any guest-physical address |
//! | [`smp_elf`] | PVH entry; the others in real mode | all vCPUs come up |
//! | [`speed::COUNTING_LOOP`] | long mode, CPL 0 or 3 | speed of guest kernel and user mode |
//! | [`bare`] | long mode, CPL 3 | memory that moves: contents, speed and stalls |
//!
//! All but the last two come as a PVH ELF ([`elf`]), so that any VMM boots
//! them like a kernel; the last are raw code for [`long_mode`] state, because
//! only the host can start a vCPU in CPL 3 without running CPL 0 code first.

mod asm;
pub mod bare;
pub mod elf;
pub mod identity;
pub mod long_mode;
pub mod probe;
mod smp;
pub mod speed;

use neap_memory::Gpa;

use crate::platform::{ACPI_S5, ACPI_SLEEP_CONTROL, HIGH_RAM, SERIAL_PORT};
use asm::Code;

pub use elf::pvh_elf;
pub use probe::memory_probe;
pub use smp::smp_elf;

/// Where [`hello`] and [`stay`] are loaded and entered.
pub const LOAD: Gpa = HIGH_RAM;

/// The byte that [`hello`] and [`stay`] write to the serial port first.
pub const GREETING: u8 = b'N';

/// What requests S5 (power off) when written to the sleep control register:
/// SLP_EN, and SLP_TYP from bit 2 on (ACPI 6.5, section 4.8.3.7).
pub const POWER_OFF: u8 = ACPI_S5 << 2 | 1 << 5;

/// Writes [`GREETING`] to the serial port, powers off, and should power-off
/// not come, halts for ever.
///
/// Its third instruction is the port write: the time until the byte arrives
/// is the time until the guest runs.
pub fn hello() -> Vec<u8> {
    let mut code = Code::default();
    greet(&mut code);
    power_off(&mut code);
    halt(&mut code);
    code.bytes()
}

/// Writes [`GREETING`] to the serial port and halts for ever: a machine that
/// exists and does nothing, to be looked at from outside.
pub fn stay() -> Vec<u8> {
    let mut code = Code::default();
    greet(&mut code);
    halt(&mut code);
    code.bytes()
}

/// Where [`count`] keeps its number, 4 bytes.
pub const COUNTER: Gpa = Gpa(LOAD.0 + 0x1000);

/// Counts at [`COUNTER`] for ever, without an exit.
pub fn count() -> Vec<u8> {
    let mut code = Code::default();
    let again = code.here();
    code.inc_dword_at(COUNTER.0 as u32);
    code.jmp(again);
    code.bytes()
}

/// [`count`] as a PVH ELF.
pub fn count_elf() -> Vec<u8> {
    pvh_elf(LOAD, LOAD, &count())
}

/// An invalid instruction where the interrupt table is empty, as PVH entry
/// leaves it: the fault cannot be delivered, nor can the fault about that, and
/// the processor shuts down.
pub fn triple_fault_elf() -> Vec<u8> {
    let mut code = Code::default();
    code.ud2();
    pvh_elf(LOAD, LOAD, &code.bytes())
}

/// [`hello`] as a PVH ELF.
pub fn hello_elf() -> Vec<u8> {
    pvh_elf(LOAD, LOAD, &hello())
}

/// [`stay`] as a PVH ELF.
pub fn stay_elf() -> Vec<u8> {
    pvh_elf(LOAD, LOAD, &stay())
}

fn greet(code: &mut Code) {
    code.mov_dx(SERIAL_PORT);
    code.mov_al(GREETING);
    code.out_dx_al();
}

fn power_off(code: &mut Code) {
    code.mov_dx(ACPI_SLEEP_CONTROL);
    code.mov_al(POWER_OFF);
    code.out_dx_al();
}

/// With interrupts off, as PVH entry leaves them, only an NMI wakes `hlt`.
fn halt(code: &mut Code) {
    let again = code.here();
    code.hlt();
    code.jmp(again);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_is_these_instructions() {
        #[rustfmt::skip]
        let golden = [
            0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
            0xb0, b'N',             // mov al, 'N'
            0xee,                   // out dx, al
            0x66, 0xba, 0x00, 0x06, // mov dx, 0x600
            0xb0, 0x34,             // mov al, 0x34
            0xee,                   // out dx, al
            0xf4,                   // hlt
            0xeb, 0xfd,             // jmp short -3
        ];
        assert_eq!(hello(), golden);
    }

    #[test]
    fn stay_differs_from_hello_only_by_not_powering_off() {
        let hello = hello();
        let mut expected = hello[..7].to_vec();
        expected.extend_from_slice(&hello[14..]);
        assert_eq!(stay(), expected);
    }
}
