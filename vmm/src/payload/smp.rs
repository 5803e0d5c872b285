//! A payload that wakes every other processor and counts those that come.
//!
//! It is what a kernel does to start its processors (MultiProcessor
//! Specification, appendix B.4), without a kernel: on any KVM it takes
//! milliseconds, so up to 64 vCPUs can be tested without a Linux guest.

use neap_memory::Gpa;

use super::asm::Code;
use super::probe::{BAD, GOOD};
use super::{LOAD, halt, power_off, pvh_elf};
use crate::platform::{LOCAL_APIC, SERIAL_PORT};

/// Where the others start: below 1 MiB, and a page number that fits into the
/// vector of a start-up IPI. Memory that nothing else is in once PVH entry is
/// past.
const START: Gpa = Gpa(0x8000);
/// Where they count, 4 bytes, in the same page.
const ARRIVED: Gpa = Gpa(START.0 + 0x100);

/// Registers of the local APIC (Intel SDM volume 3A, section 12.4.1): spurious
/// interrupt vector, and low half of the interrupt command.
const SPURIOUS: u32 = LOCAL_APIC.0 as u32 + 0xf0;
const COMMAND: u32 = LOCAL_APIC.0 as u32 + 0x300;
/// The APIC on, spurious interrupts at vector 0xff.
const APIC_ON: u32 = 1 << 8 | 0xff;
/// Interrupt command: to all processors but this one, level asserted.
const TO_OTHERS: u32 = 3 << 18 | 1 << 14;
const INIT: u32 = 5 << 8;
const START_UP: u32 = 6 << 8 | (START.0 >> 12) as u32;

/// How often the boot processor looks before it gives up. Each look writes a
/// port, which takes 2 µs or more on any KVM, and leaves the host's processor
/// to the vCPUs that are waited for.
const LOOKS: u32 = 300_000;
/// The port that is written for the time that it takes; on a PC it shows
/// progress codes of the firmware.
const DELAY_PORT: u8 = 0x80;

/// A PVH ELF whose boot processor starts all others at once, waits until
/// `cpus - 1` of them have counted themselves, writes one character to the
/// serial port ([`GOOD`], or [`BAD`] if some did not come in time) and powers
/// off.
pub fn smp_elf(cpus: u32) -> Vec<u8> {
    pvh_elf(LOAD, LOAD, &boot_processor(cpus.saturating_sub(1)))
}

fn boot_processor(others: u32) -> Vec<u8> {
    let mut code = Code::default();
    for (word, address) in other_processor().as_chunks().0.iter().zip((START.0 as u32..).step_by(4))
    {
        code.store_dword_at(address, u32::from_le_bytes(*word));
    }
    code.store_dword_at(SPURIOUS, APIC_ON);
    code.store_dword_at(COMMAND, TO_OTHERS | INIT);
    code.store_dword_at(COMMAND, TO_OTHERS | START_UP);
    code.mov_ecx(LOOKS);
    let again = code.here();
    code.out_al(DELAY_PORT);
    code.compare_dword_at(ARRIVED.0 as u32, others);
    code.loop_while_unequal(again);
    code.mov_dx(SERIAL_PORT);
    code.mov_al(GOOD);
    code.mov_al_if_unequal(BAD);
    code.out_dx_al();
    power_off(&mut code);
    halt(&mut code);
    code.bytes()
}

/// In real mode, from offset 0 of the code segment at [`START`]; the data
/// segment starts at 0, as INIT leaves it. A whole number of words.
fn other_processor() -> Vec<u8> {
    let mut code = Code::default();
    code.lock_inc_word_at(ARRIVED.0 as u16);
    halt(&mut code);
    code.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_processors_run_these_instructions() {
        #[rustfmt::skip]
        let golden = [
            0xf0, 0xff, 0x06, 0x00, 0x81, // lock inc word [0x8100]
            0xf4,                         // hlt
            0xeb, 0xfd,                   // jmp short -3
        ];
        assert_eq!(other_processor(), golden);
    }

    #[test]
    fn the_boot_processor_runs_these_instructions() {
        #[rustfmt::skip]
        let golden = [
            0xc7, 0x05, 0x00, 0x80, 0, 0, 0xf0, 0xff, 0x06, 0x00, // mov dword [0x8000], …
            0xc7, 0x05, 0x04, 0x80, 0, 0, 0x81, 0xf4, 0xeb, 0xfd, // mov dword [0x8004], …
            0xc7, 0x05, 0xf0, 0, 0xe0, 0xfe, 0xff, 0x01, 0, 0,    // mov dword [0xfee000f0], 0x1ff
            0xc7, 0x05, 0, 3, 0xe0, 0xfe, 0x00, 0x45, 0x0c, 0,    // mov dword [0xfee00300], 0xc4500
            0xc7, 0x05, 0, 3, 0xe0, 0xfe, 0x08, 0x46, 0x0c, 0,    // mov dword [0xfee00300], 0xc4608
            0xb9, 0xe0, 0x93, 0x04, 0x00,                         // mov ecx, 300000
            0xe6, 0x80,                                           // out 0x80, al
            0x81, 0x3d, 0x00, 0x81, 0, 0, 63, 0, 0, 0,            // cmp dword [0x8100], 63
            0xe0, 0xf2,                                           // loopne -14
            0x66, 0xba, 0xf8, 0x03,                               // mov dx, 0x3f8
            0xb0, b'.',                                           // mov al, '.'
            0x74, 0x02,                                           // je over the next
            0xb0, b'x',                                           // mov al, 'x'
            0xee,                                                 // out dx, al
        ];
        assert_eq!(boot_processor(63)[..golden.len()], golden);
    }
}
