//! The kernel image: what kind it is, whether it fits, and loading it.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use neap_memory::Gpa;
use neap_memory::addr::display_size;
use vm_memory::{Address, GuestAddress, GuestMemoryMmap};

use super::elf::{self, ElfError};
use crate::kvm::state::Entry;
use crate::platform;

/// How a kernel is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// 64-bit boot protocol.
    Linux64,
    /// PVH.
    Pvh,
}

/// A kernel image that has been opened and recognised, not yet loaded.
#[derive(Debug)]
pub struct KernelImage {
    file: File,
    kind: Kind,
    /// First guest-physical byte that the kernel does not need at start.
    end: Gpa,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    BzImage,
    Elf { linux: bool },
}

/// A kernel in guest memory.
#[derive(Debug)]
pub struct LoadedKernel {
    /// Where it starts.
    pub entry: Entry,
    /// First byte after it.
    pub end: Gpa,
    /// Setup header of a bzImage.
    pub setup_header: Option<setup_header>,
}

/// Why a kernel image is refused.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A folder, a pipe, a device.
    #[error("is not a regular file")]
    NotAFile,
    /// Nothing that starts on x86-64.
    #[error("is neither a bzImage nor an ELF file")]
    Unknown,
    /// Less than its header promises.
    #[error("is a bzImage that was cut short: {length} bytes of {expected}")]
    Truncated {
        /// Bytes there are.
        length: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// A kernel without a 64-bit entry.
    #[error(
        "is a bzImage without a 64-bit entry point (boot protocol 2.12 or later, 64-bit kernel)"
    )]
    No64BitEntry,
    /// An ELF file without the note that PVH needs.
    #[error("has no PVH note (XEN_ELFNOTE_PHYS32_ENTRY) to start from")]
    NoPvhEntry,
    /// An ELF file that is no kernel.
    #[error("{0}")]
    Elf(#[from] ElfError),
    /// More than RAM.
    #[error("needs memory up to {}, but RAM below 4G ends at {}: give more --memory", display_size(*.end), display_size(*.ram))]
    TooLarge {
        /// Guest-physical end of the kernel.
        end: u64,
        /// End of low RAM.
        ram: u64,
    },
    /// linux-loader refused.
    #[error("cannot be loaded: {0}")]
    Load(linux_loader::loader::Error),
}

const BOOT_FLAG: usize = 0x1fe;
const SETUP_SECTS: usize = 0x1f1;
const SYSSIZE: usize = 0x1f4;
const HEADER_MAGIC: usize = 0x202;
const VERSION: usize = 0x206;
const XLOADFLAGS: usize = 0x236;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// Bytes that recognising a kernel needs.
const HEAD_LEN: usize = 0x268;
/// Protocol 2.12 brought `xloadflags`.
const MIN_VERSION: u16 = 0x020c;
/// `XLF_KERNEL_64`: a 64-bit entry point at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// The 64-bit entry point lies this far into the protected-mode code.
const ENTRY_64_OFFSET: u64 = 0x200;

fn field<const N: usize>(head: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    if let Some(found) = head.get(offset..offset + N) {
        bytes.copy_from_slice(found);
    }
    bytes
}

impl KernelImage {
    /// Opens and recognises the kernel at `path`. Does not wait for the other
    /// end of a pipe.
    ///
    /// # Errors
    /// [`KernelError`]; its text goes on from "FILE: " or "FILE ".
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(KernelError::NotAFile);
        }
        let mut head = Vec::with_capacity(HEAD_LEN);
        (&file).take(HEAD_LEN as u64).read_to_end(&mut head)?;
        let length = metadata.len();
        let (kind, end) = if elf::is_elf(&head) {
            let summary = elf::summarize(&file, &head, length)?;
            (Kind::Elf { linux: summary.kernel_half }, summary.end)
        } else {
            (Kind::BzImage, check_bzimage(&head, length)?)
        };
        Ok(Self { file, kind, end: Gpa(end) })
    }

    /// Whether it is a bzImage, or a vmlinux that Linux built: both know the
    /// 64-bit boot protocol. Any other ELF is started by its PVH note.
    pub fn is_linux(&self) -> bool {
        !matches!(self.kind, Kind::Elf { linux: false })
    }

    /// Whether it is a bzImage, which has no PVH note.
    pub fn is_bzimage(&self) -> bool {
        matches!(self.kind, Kind::BzImage)
    }

    /// Loads the kernel and says where it starts. `ram` is the end of RAM
    /// below 4 GiB.
    ///
    /// # Errors
    /// It does not fit, or has no entry point for the protocol.
    pub fn load(
        mut self,
        memory: &GuestMemoryMmap,
        ram: Gpa,
        protocol: Protocol,
    ) -> Result<LoadedKernel, KernelError> {
        if self.end > ram {
            return Err(KernelError::TooLarge { end: self.end.0, ram: ram.0 });
        }
        let start = Some(GuestAddress(platform::HIGH_RAM.0));
        match self.kind {
            Kind::BzImage => {
                let loaded = BzImage::load(memory, None, &mut self.file, start)
                    .map_err(KernelError::Load)?;
                let rip = Gpa(loaded.kernel_load.raw_value() + ENTRY_64_OFFSET);
                let end = self.end.max(Gpa(loaded.kernel_end));
                let entry = Entry::Linux64 { rip };
                Ok(LoadedKernel { entry, end, setup_header: loaded.setup_header })
            }
            Kind::Elf { .. } => {
                let loaded =
                    Elf::load(memory, None, &mut self.file, start).map_err(KernelError::Load)?;
                let entry = match (protocol, loaded.pvh_boot_cap) {
                    (Protocol::Linux64, _) => {
                        Entry::Linux64 { rip: Gpa(loaded.kernel_load.raw_value()) }
                    }
                    (Protocol::Pvh, PvhBootCapability::PvhEntryPresent(rip)) => {
                        Entry::Pvh { rip: Gpa(rip.raw_value()) }
                    }
                    (Protocol::Pvh, _) => return Err(KernelError::NoPvhEntry),
                };
                Ok(LoadedKernel { entry, end: self.end, setup_header: None })
            }
        }
    }
}

/// Checks the setup header (Documentation/arch/x86/boot.rst, "The real-mode
/// kernel header") and returns the end of the memory that the kernel needs to
/// unpack itself.
fn check_bzimage(head: &[u8], length: u64) -> Result<u64, KernelError> {
    if u16::from_le_bytes(field(head, BOOT_FLAG)) != 0xaa55
        || &field::<4>(head, HEADER_MAGIC) != b"HdrS"
    {
        return Err(KernelError::Unknown);
    }
    let setup_sectors = match field::<1>(head, SETUP_SECTS) {
        [0] => 4,
        [sectors] => u64::from(sectors),
    };
    let code = u64::from(u32::from_le_bytes(field(head, SYSSIZE))) * 16;
    let expected = (setup_sectors + 1) * 512 + code;
    if head.len() < HEAD_LEN || length < expected {
        return Err(KernelError::Truncated { length, expected });
    }
    if u16::from_le_bytes(field(head, VERSION)) < MIN_VERSION
        || u16::from_le_bytes(field(head, XLOADFLAGS)) & XLF_KERNEL_64 == 0
    {
        return Err(KernelError::No64BitEntry);
    }
    let preferred = u64::from_le_bytes(field(head, PREF_ADDRESS));
    let needed = u64::from(u32::from_le_bytes(field(head, INIT_SIZE)));
    Ok(preferred.saturating_add(needed))
}

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "linux64" => Ok(Self::Linux64),
            "pvh" => Ok(Self::Pvh),
            _ => Err(format!("\"{text}\" is neither linux64 nor pvh")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn open_bytes(bytes: &[u8]) -> Result<KernelImage, KernelError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        KernelImage::open(file.path())
    }

    fn bzimage() -> Vec<u8> {
        let mut bytes = vec![0; 5 * 512 + 64];
        bytes[BOOT_FLAG..BOOT_FLAG + 2].copy_from_slice(&[0x55, 0xaa]);
        bytes[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        bytes[SYSSIZE] = 4;
        bytes[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        bytes[XLOADFLAGS] = 1;
        bytes[PREF_ADDRESS..PREF_ADDRESS + 8].copy_from_slice(&0x100_0000u64.to_le_bytes());
        bytes[INIT_SIZE..INIT_SIZE + 4].copy_from_slice(&0x20_0000u32.to_le_bytes());
        bytes
    }

    #[test]
    fn a_bzimage_needs_the_memory_it_unpacks_into() {
        let image = open_bytes(&bzimage()).unwrap();
        assert!(image.is_linux());
        assert_eq!(image.end, Gpa(0x120_0000));
    }

    #[test]
    fn files_that_are_no_kernel_say_what_they_are() {
        assert!(matches!(open_bytes(b"#!/bin/sh\n"), Err(KernelError::Unknown)));
        assert!(matches!(open_bytes(b""), Err(KernelError::Unknown)));
        assert!(matches!(KernelImage::open(Path::new("/")), Err(KernelError::NotAFile)));
        let short = &bzimage()[..5 * 512];
        assert!(matches!(open_bytes(short), Err(KernelError::Truncated { expected: 2624, .. })));
        let mut old = bzimage();
        old[XLOADFLAGS] = 0;
        assert!(matches!(open_bytes(&old), Err(KernelError::No64BitEntry)));
    }

    proptest! {
        #[test]
        fn no_header_panics(bytes in prop::collection::vec(any::<u8>(), 0..1024)) {
            let _ = open_bytes(&bytes);
            let mut header = bzimage();
            for (place, byte) in header.iter_mut().zip(&bytes).skip(1).step_by(3) {
                *place ^= byte;
            }
            let _ = open_bytes(&header);
        }
    }
}
