//! What lies in guest memory when the boot processor starts: kernel, initial
//! RAM disk, command line, and the structures that tell the kernel about its
//! machine.

pub mod efi;
pub mod elf;
pub mod initrd;
pub mod kernel;
pub mod load;
pub mod map;
pub mod params;
pub mod pvh;
pub mod reset_vector;
pub mod tables;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use neap_memory::Gpa;

/// Guest memory that a boot structure does not fit into.
#[derive(Debug, thiserror::Error)]
#[error("boot structure at {at}: {source}")]
pub struct WriteError {
    /// Where it was to go.
    pub at: Gpa,
    /// Why it cannot.
    #[source]
    pub source: GuestMemoryError,
}

/// Writes a boot structure into guest memory.
///
/// # Errors
/// The range is no guest memory.
pub fn write(memory: &GuestMemoryMmap, at: Gpa, bytes: &[u8]) -> Result<(), WriteError> {
    memory.write_slice(bytes, GuestAddress(at.0)).map_err(|source| WriteError { at, source })
}
