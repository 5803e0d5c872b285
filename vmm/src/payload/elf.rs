//! A PVH ELF file around a payload: what `neap run --kernel` and any other
//! VMM with PVH support boots.

use neap_memory::Gpa;

/// Type of the Xen note that holds the 32-bit entry point
/// (`XEN_ELFNOTE_PHYS32_ENTRY`, include/xen/interface/elfnote.h).
const PHYS32_ENTRY: u32 = 18;

const EHDR_SIZE: u16 = 64;
const PHDR_SIZE: u16 = 56;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const READ_WRITE_EXECUTE: u32 = 7;
const READ: u32 = 4;

/// An ELF-64 executable for x86-64 with one loadable segment, `image` at
/// guest-physical `load`, and a PVH note that names `entry`.
///
/// A VMM enters it in 32-bit protected mode without paging and with flat
/// segments (Xen's docs/misc/pvh.pandoc). `entry` must lie below 4 GiB, as
/// the note holds 32 bits; higher bits are dropped.
pub fn pvh_elf(load: Gpa, entry: Gpa, image: &[u8]) -> Vec<u8> {
    let note = note(entry.0 as u32);
    let note_offset = u64::from(EHDR_SIZE) + 2 * u64::from(PHDR_SIZE);
    let image_offset = note_offset + note.len() as u64;

    let mut file = Vec::with_capacity(image_offset as usize + image.len());
    file.extend(file_header(entry));
    file.extend(program_header(PT_NOTE, READ, note_offset, Gpa(0), note.len() as u64));
    file.extend(program_header(
        PT_LOAD,
        READ_WRITE_EXECUTE,
        image_offset,
        load,
        image.len() as u64,
    ));
    file.extend(note);
    file.extend_from_slice(image);
    file
}

/// `Elf64_Ehdr` of a file whose two program headers follow at once.
fn file_header(entry: Gpa) -> Vec<u8> {
    let mut header = Vec::with_capacity(EHDR_SIZE.into());
    // Magic, 64-bit, little-endian, version 1, System V ABI, padding.
    header.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    header.extend(2u16.to_le_bytes()); // e_type: ET_EXEC
    header.extend(62u16.to_le_bytes()); // e_machine: EM_X86_64
    header.extend(1u32.to_le_bytes()); // e_version
    header.extend(entry.0.to_le_bytes()); // e_entry
    header.extend(u64::from(EHDR_SIZE).to_le_bytes()); // e_phoff
    header.extend(0u64.to_le_bytes()); // e_shoff
    header.extend(0u32.to_le_bytes()); // e_flags
    // e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
    for half in [EHDR_SIZE, PHDR_SIZE, 2, 0, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header
}

/// `Elf64_Phdr` of a segment as long in memory as in the file.
fn program_header(kind: u32, flags: u32, offset: u64, address: Gpa, size: u64) -> Vec<u8> {
    let mut header = Vec::with_capacity(PHDR_SIZE.into());
    header.extend(kind.to_le_bytes()); // p_type
    header.extend(flags.to_le_bytes()); // p_flags
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for word in [offset, address.0, address.0, size, size, 4] {
        header.extend(word.to_le_bytes());
    }
    header
}

/// `Elf64_Nhdr`, name and descriptor.
fn note(entry: u32) -> Vec<u8> {
    let name = b"Xen\0";
    let mut note = Vec::new();
    // n_namesz, n_descsz, n_type
    for word in [name.len() as u32, size_of_val(&entry) as u32, PHYS32_ENTRY] {
        note.extend(word.to_le_bytes());
    }
    note.extend_from_slice(name);
    note.extend(entry.to_le_bytes());
    note
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use linux_loader::loader::{KernelLoader, elf, elf::PvhBootCapability};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;
    use crate::payload::{LOAD, hello, hello_elf};

    #[test]
    fn the_loader_finds_the_pvh_entry_and_puts_the_image_in_place() {
        let memory: GuestMemoryMmap<()> =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let loaded = elf::Elf::load(&memory, None, &mut Cursor::new(&hello_elf()), None).unwrap();
        assert_eq!(loaded.pvh_boot_cap, PvhBootCapability::PvhEntryPresent(GuestAddress(LOAD.0)));
        assert_eq!(loaded.kernel_end, LOAD.0 + hello().len() as u64);
        let mut image = vec![0; hello().len()];
        memory.read_slice(&mut image, GuestAddress(LOAD.0)).unwrap();
        assert_eq!(image, hello());
    }

    #[test]
    fn offsets_in_the_file_are_aligned_as_the_headers_say() {
        let file = pvh_elf(Gpa(0x10_0000), Gpa(0x10_0004), &[0xf4; 5]);
        assert_eq!(file.len(), 64 + 2 * 56 + 20 + 5);
        assert_eq!(file[24..32], 0x10_0004u64.to_le_bytes());
        assert_eq!(file[64 + 2 * 56 + 16..][..4], 0x10_0004u32.to_le_bytes());
    }
}
