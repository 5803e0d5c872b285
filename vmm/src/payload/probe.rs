//! A payload that writes and reads words anywhere in guest-physical space,
//! for instance above 1 TiB.
//!
//! It is a PVH ELF that goes to long mode by itself, and not raw vCPU state,
//! so that the machine under test is built and booted in the ordinary way:
//! what is tested is the map that every guest gets. It needs no more than two
//! dozen instructions and four for each word in CPL 0, so it is quick even on
//! a KVM that interprets them. Its page tables are part of the image and map
//! only the pages in question, so the payload is small however large the
//! guest is.

use neap_memory::Gpa;
use neap_memory::addr::HUGE_PAGE_SIZE;

use super::asm::Code;
use super::long_mode::{CR0, CR4_PAE, EFER_LME, MAX_PAGES, PAGE_TABLES_SIZE, page_tables};
use super::{LOAD, halt, power_off, pvh_elf};
use crate::platform::SERIAL_PORT;

/// Written for a word that reads back as it was written.
pub const GOOD: u8 = b'.';
/// Written for a word that reads back as something else.
pub const BAD: u8 = b'x';

const EFER_MSR: u32 = 0xc000_0080;
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
/// Null; 64-bit code; data. Flat, DPL 0, accessed.
const GDT: [u64; 3] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Offsets into the image: page tables first, as they need the alignment.
const GDT_OFFSET: u32 = PAGE_TABLES_SIZE as u32;
const GDTR_OFFSET: u32 = GDT_OFFSET + size_of::<[u64; 3]>() as u32;
const CODE_OFFSET: u32 = GDTR_OFFSET + 8;
const IMAGE: u32 = LOAD.0 as u32;

/// Why there is no probe.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ProbeError {
    /// One page of the directory is the payload's own, the others one word's.
    #[error("{0} words to probe; at most {max} fit", max = MAX_PAGES - 1)]
    TooMany(usize),
    /// A word could cross into the next page.
    #[error("the word to probe at {0} is not aligned to 8 bytes")]
    Misaligned(Gpa),
}

/// A PVH ELF that writes a different 8-byte word at each of `words`, then
/// reads all of them, writes one character for each to the serial port
/// ([`GOOD`] or [`BAD`]) and a newline, and powers off. Two addresses that
/// reach the same memory give at least one [`BAD`].
///
/// # Errors
/// Too many addresses, or one that is not a multiple of 8.
pub fn memory_probe(words: &[Gpa]) -> Result<Vec<u8>, ProbeError> {
    if words.len() >= MAX_PAGES {
        return Err(ProbeError::TooMany(words.len()));
    }
    if let Some(word) = words.iter().find(|word| !word.is_aligned(8)) {
        return Err(ProbeError::Misaligned(*word));
    }
    // Virtual page 0 is the payload's own memory, page i + 1 that of word i.
    let frames: Vec<Gpa> = std::iter::once(Gpa(0)).chain(words.iter().copied()).collect();
    let mut image = page_tables(LOAD, &frames);
    image.extend(GDT.iter().flat_map(|descriptor| descriptor.to_le_bytes()));
    image.extend((size_of_val(&GDT) as u16 - 1).to_le_bytes());
    image.extend((IMAGE + GDT_OFFSET).to_le_bytes());
    image.extend([0; 2]);
    image.extend(program(words));
    Ok(pvh_elf(LOAD, Gpa((IMAGE + CODE_OFFSET).into()), &image))
}

fn program(words: &[Gpa]) -> Vec<u8> {
    let mut code = Code::default();
    enter_long_mode(&mut code);
    let accesses = words.iter().enumerate().map(|(index, word)| {
        let page = (index as u64 + 1) * HUGE_PAGE_SIZE;
        (page + word.0 % HUGE_PAGE_SIZE, pattern(index))
    });
    for (address, value) in accesses.clone() {
        code.mov_rbx(address);
        code.mov_rsi(value);
        code.store_rsi_at_rbx();
    }
    code.mov_dx(SERIAL_PORT);
    for (address, value) in accesses {
        code.mov_rbx(address);
        code.mov_rsi(value);
        code.mov_al(GOOD);
        code.compare_rsi_at_rbx();
        code.mov_al_if_unequal(BAD);
        code.out_dx_al();
    }
    code.mov_al(b'\n');
    code.out_dx_al();
    power_off(&mut code);
    halt(&mut code);
    code.bytes()
}

/// From 32-bit protected mode without paging (Intel SDM, volume 3, 10.8.5).
fn enter_long_mode(code: &mut Code) {
    code.lgdt(IMAGE + GDTR_OFFSET);
    code.mov_eax(IMAGE);
    code.mov_cr3_eax();
    code.mov_eax(CR4_PAE as u32);
    code.mov_cr4_eax();
    code.mov_ecx(EFER_MSR);
    code.mov_eax(EFER_LME as u32);
    code.clear_edx();
    code.wrmsr();
    code.mov_eax(CR0 as u32);
    code.mov_cr0_eax();
    let next = IMAGE + CODE_OFFSET + code.len() as u32 + Code::FAR_JMP_LEN;
    code.far_jmp(CODE, next);
    code.mov_eax(DATA.into());
    code.mov_ds_eax();
}

/// A word that differs from that of every other index, and from 0.
fn pattern(index: usize) -> u64 {
    (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use neap_memory::addr::TIB;

    use super::*;

    #[test]
    fn the_way_to_long_mode_is_these_instructions() {
        let mut code = Code::default();
        enter_long_mode(&mut code);
        #[rustfmt::skip]
        let golden = [
            0x0f, 0x01, 0x15, 0x18, 0x30, 0x10, 0x00,   // lgdt [0x103018]
            0xb8, 0x00, 0x00, 0x10, 0x00,               // mov eax, 0x100000
            0x0f, 0x22, 0xd8,                           // mov cr3, eax
            0xb8, 0x20, 0x00, 0x00, 0x00,               // mov eax, 0x20
            0x0f, 0x22, 0xe0,                           // mov cr4, eax
            0xb9, 0x80, 0x00, 0x00, 0xc0,               // mov ecx, 0xc0000080
            0xb8, 0x00, 0x01, 0x00, 0x00,               // mov eax, 0x100
            0x31, 0xd2,                                 // xor edx, edx
            0x0f, 0x30,                                 // wrmsr
            0xb8, 0x31, 0x00, 0x00, 0x80,               // mov eax, 0x80000031
            0x0f, 0x22, 0xc0,                           // mov cr0, eax
            0xea, 0x54, 0x30, 0x10, 0x00, 0x08, 0x00,   // jmp 0x08:0x103054
            0xb8, 0x10, 0x00, 0x00, 0x00,               // mov eax, 0x10
            0x8e, 0xd8,                                 // mov ds, eax
        ];
        assert_eq!(code.bytes(), golden);
    }

    #[test]
    fn each_word_has_a_page_table_entry_of_its_own() {
        let words = [Gpa(TIB + 8), Gpa(0x40_0000)];
        let elf = memory_probe(&words).unwrap();
        let image = &elf[elf.len() - program(&words).len() - CODE_OFFSET as usize..];
        let entry =
            |index: usize| u64::from_le_bytes(image[0x2000 + index * 8..][..8].try_into().unwrap());
        assert_eq!(entry(1), TIB | 0xe7);
        assert_eq!(entry(2), 0x40_00e7);
        assert_eq!(entry(3), 0);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert_eq!(memory_probe(&[Gpa(12)]), Err(ProbeError::Misaligned(Gpa(12))));
        assert_eq!(memory_probe(&[Gpa(0); 512]), Err(ProbeError::TooMany(512)));
        assert!(memory_probe(&[Gpa(0); 511]).is_ok());
    }
}
