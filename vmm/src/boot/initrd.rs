//! The initial RAM disk: as high in low RAM as the kernel can reach, so that
//! it is out of the way of a kernel that unpacks itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use neap_memory::addr::{PAGE_SIZE, display_size};
use neap_memory::{Gpa, GpaRange};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Why an initial RAM disk is refused.
#[derive(Debug, thiserror::Error)]
pub enum InitrdError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A folder, a pipe, a device, or nothing in it.
    #[error("is not a regular file with something in it")]
    NotAFile,
    /// No place for it.
    #[error("{} do not fit between the kernel's end at {kernel_end} and {limit}: give more --memory", display_size(*.size))]
    TooLarge {
        /// Bytes of the file.
        size: u64,
        /// First byte after the kernel.
        kernel_end: Gpa,
        /// End of the RAM that the kernel can reach it in.
        limit: Gpa,
    },
    /// Reading into guest memory failed.
    #[error("cannot be read: {0}")]
    Load(vm_memory::GuestMemoryError),
}

/// Reads the file at `path` to the top of the RAM below `limit`.
///
/// # Errors
/// [`InitrdError`]; its text goes on from "FILE: " or "FILE ".
pub fn load(
    memory: &GuestMemoryMmap,
    path: &Path,
    kernel_end: Gpa,
    limit: Gpa,
) -> Result<GpaRange, InitrdError> {
    let mut file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(InitrdError::NotAFile);
    }
    let size = metadata.len();
    let range =
        place(size, kernel_end, limit).ok_or(InitrdError::TooLarge { size, kernel_end, limit })?;
    memory
        .read_exact_volatile_from(GuestAddress(range.base().0), &mut file, size as usize)
        .map_err(InitrdError::Load)?;
    Ok(range)
}

fn place(size: u64, kernel_end: Gpa, limit: Gpa) -> Option<GpaRange> {
    let base = limit.0.checked_sub(size)? & !(PAGE_SIZE - 1);
    GpaRange::new(Gpa(base), size).filter(|range| range.base() >= kernel_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_to_the_top_on_a_page() {
        let range = place(0x1801, Gpa(0x10_0000), Gpa(0x20_0000)).unwrap();
        assert_eq!((range.base(), range.end()), (Gpa(0x1f_e000), Gpa(0x1f_f801)));
    }

    #[test]
    fn it_never_overlaps_the_kernel() {
        assert!(place(0x10_0001, Gpa(0x10_0000), Gpa(0x20_0000)).is_none());
        assert!(place(0x10_0000, Gpa(0x10_0000), Gpa(0x20_0000)).is_some());
        assert!(place(u64::MAX, Gpa(0), Gpa(0x20_0000)).is_none());
    }
}
