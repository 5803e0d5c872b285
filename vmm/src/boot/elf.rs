//! The headers of a 64-bit x86 ELF file, as far as booting one needs them
//! (System V ABI, "Object Files"). Loading itself is linux-loader's.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::platform;

/// Length of the file header.
pub const HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// More program headers than any kernel has (Linux has five).
const MAX_PROGRAM_HEADERS: u16 = 64;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Longest note segment that is read, in bytes (Linux' has about 500).
const MAX_NOTES: u64 = 1 << 16;
const EM_X86_64: u16 = 62;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
/// Canonical addresses of the kernel's half begin here.
const KERNEL_HALF: u64 = 1 << 63;

/// Why an ELF file cannot be a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// Not enough bytes.
    #[error("is an ELF file that was cut short")]
    Truncated,
    /// Another architecture.
    #[error("is an ELF file for another machine (number {0}, not 62, x86-64)")]
    OtherMachine(u16),
    /// Not 64-bit little-endian.
    #[error("is not a 64-bit little-endian ELF file")]
    NotElf64,
    /// Segments where the boot structures go.
    #[error("is an ELF file with a segment at {0:#x}, below 1 MiB, where boot structures lie")]
    TooLow(u64),
    /// Nothing to load.
    #[error("is an ELF file without anything to load (an object file or a module?)")]
    NothingToLoad,
}

/// What the headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElfSummary {
    /// First byte after the highest segment, guest-physical.
    pub end: u64,
    /// Whether the segments are linked into the kernel's half of the address
    /// space, as Linux' vmlinux is and a bare payload is not.
    pub kernel_half: bool,
}

/// Whether `head`, the first bytes of a file, is ELF's magic number.
pub fn is_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF")
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], ElfError> {
    bytes.get(offset..offset + N).and_then(|slice| slice.try_into().ok()).ok_or(ElfError::Truncated)
}

fn u16_at(bytes: &[u8], offset: usize) -> Result<u16, ElfError> {
    array(bytes, offset).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Result<u32, ElfError> {
    array(bytes, offset).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], offset: usize) -> Result<u64, ElfError> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// Reads the headers of `file`, which begins with `head` and is `length`
/// bytes long.
///
/// # Errors
/// [`ElfError`] when it is no kernel for x86-64.
pub fn summarize(file: &File, head: &[u8], length: u64) -> Result<ElfSummary, ElfError> {
    if head.len() < HEADER_LEN {
        return Err(ElfError::Truncated);
    }
    if head[5] != LITTLE_ENDIAN {
        return Err(ElfError::NotElf64);
    }
    match u16_at(head, 18)? {
        EM_X86_64 if head[4] == CLASS_64 => {}
        EM_X86_64 => return Err(ElfError::NotElf64),
        other => return Err(ElfError::OtherMachine(other)),
    }
    let table = u64_at(head, 32)?;
    let count = u16_at(head, 56)?;
    if usize::from(u16_at(head, 54)?) != PROGRAM_HEADER_LEN || count > MAX_PROGRAM_HEADERS {
        return Err(ElfError::NothingToLoad);
    }
    let mut headers = vec![0; usize::from(count) * PROGRAM_HEADER_LEN];
    file.read_exact_at(&mut headers, table).map_err(|_| ElfError::Truncated)?;
    let mut summary = None;
    for header in headers.chunks_exact(PROGRAM_HEADER_LEN) {
        let kind = u32_at(header, 0)?;
        if kind == PT_NOTE {
            let (offset, size) = (u64_at(header, 8)?, u64_at(header, 32)?);
            if size > MAX_NOTES || offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(ElfError::Truncated);
            }
        }
        // linux-loader loads nothing of a segment without bytes in the file.
        if kind != PT_LOAD {
            continue;
        }
        let (offset, vaddr, paddr) = (u64_at(header, 8)?, u64_at(header, 16)?, u64_at(header, 24)?);
        let (file_size, memory_size) = (u64_at(header, 32)?, u64_at(header, 40)?);
        if offset.checked_add(file_size).is_none_or(|end| end > length) {
            return Err(ElfError::Truncated);
        }
        if file_size > 0 && paddr < platform::HIGH_RAM.0 {
            return Err(ElfError::TooLow(paddr));
        }
        let end = paddr.saturating_add(memory_size.max(file_size));
        let known = summary.get_or_insert(ElfSummary { end: 0, kernel_half: false });
        known.end = known.end.max(end);
        known.kernel_half |= vaddr >= KERNEL_HALF;
    }
    summary.ok_or(ElfError::NothingToLoad)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn summarize_bytes(bytes: &[u8]) -> Result<ElfSummary, ElfError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        summarize(&file, &bytes[..bytes.len().min(HEADER_LEN)], bytes.len() as u64)
    }

    fn minimal() -> Vec<u8> {
        let mut bytes = vec![0u8; HEADER_LEN + PROGRAM_HEADER_LEN];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[18] = 62;
        bytes[32] = HEADER_LEN as u8;
        bytes[54] = PROGRAM_HEADER_LEN as u8;
        bytes[56] = 1;
        bytes[64] = 1; // PT_LOAD
        bytes[64 + 24..64 + 32].copy_from_slice(&0x10_0000u64.to_le_bytes());
        bytes[64 + 40..64 + 48].copy_from_slice(&0x2000u64.to_le_bytes());
        bytes
    }

    #[test]
    fn headers_are_summarized() {
        let summary = summarize_bytes(&minimal()).unwrap();
        assert_eq!(summary, ElfSummary { end: 0x10_2000, kernel_half: false });
    }

    #[test]
    fn wrong_files_say_what_they_are() {
        let mut other = minimal();
        other[18] = 183;
        assert_eq!(summarize_bytes(&other), Err(ElfError::OtherMachine(183)));
        let mut narrow = minimal();
        narrow[4] = 1;
        assert_eq!(summarize_bytes(&narrow), Err(ElfError::NotElf64));
        assert_eq!(summarize_bytes(&minimal()[..100]), Err(ElfError::Truncated));
        let mut low = minimal();
        low[64 + 26] = 0; // paddr 0
        low[64 + 32] = 1; // one byte in the file
        assert_eq!(summarize_bytes(&low), Err(ElfError::TooLow(0)));
        let mut notes = minimal();
        notes[64] = PT_NOTE as u8;
        notes[64 + 34] = 2; // 128 KiB
        assert_eq!(summarize_bytes(&notes), Err(ElfError::Truncated));
        let mut object = minimal();
        object[56] = 0;
        assert_eq!(summarize_bytes(&object), Err(ElfError::NothingToLoad));
    }

    proptest! {
        #[test]
        fn no_file_panics(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = summarize_bytes(&bytes);
            let head = minimal();
            let overlay = bytes.len().min(6);
            bytes[..overlay].copy_from_slice(&head[..overlay]);
            let _ = summarize_bytes(&bytes);
        }
    }
}
