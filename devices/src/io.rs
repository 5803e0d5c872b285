//! What a device is to the bus, and how an access can fail.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a device (or the bus) refused an access. The guest sees all ones on a
/// read and nothing on a write; the value is for counters and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum IoError {
    /// Nothing decodes this address.
    #[error("no device at this address")]
    NoDevice,
    /// The access begins in a device and ends beyond it.
    #[error("the access runs past the end of the device")]
    Straddles,
    /// The register does not take accesses of this width or alignment.
    #[error("the register does not take accesses of this width")]
    BadWidth,
    /// A write to a register that can only be read.
    #[error("the register is read-only")]
    ReadOnly,
    /// A read of a register that can only be written.
    #[error("the register is write-only")]
    WriteOnly,
}

/// Result of an access.
pub type IoResult = Result<(), IoError>;

/// Something that answers accesses to a range of ports or of guest-physical
/// addresses.
///
/// `offset` counts bytes from the start of the range the device was inserted
/// with, and the bus promises that `offset..offset + data.len()` lies inside
/// it. `data` has the width of the access in little-endian order; the width is
/// whatever the guest chose, so a device checks it.
pub trait Device: Send {
    /// Fills `data` with the value read. What `data` holds after an error does
    /// not matter: the bus overwrites it.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> IoResult;

    /// Takes the value written.
    fn write(&mut self, offset: u64, data: &[u8]) -> IoResult;
}

/// Locks a device even when a thread panicked while holding it: the registers
/// of a device are plain values, and a half-made change of them is no worse
/// than what a guest can write there.
pub(crate) fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one byte of a byte-wide access.
pub(crate) fn byte(data: &[u8]) -> Result<u8, IoError> {
    match data {
        [value] => Ok(*value),
        _ => Err(IoError::BadWidth),
    }
}

/// The place for the one byte of a byte-wide read.
pub(crate) fn byte_mut(data: &mut [u8]) -> Result<&mut u8, IoError> {
    match data {
        [value] => Ok(value),
        _ => Err(IoError::BadWidth),
    }
}
