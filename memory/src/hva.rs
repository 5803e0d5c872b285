//! Addresses of this process (HVA), as numbers: nothing here is read or
//! written, so they may point at anything.

use std::fmt;

/// A host-virtual address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hva(pub usize);

impl Hva {
    /// The address `bytes` further up. Callers stay inside a mapping.
    pub fn offset(self, bytes: usize) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// As a pointer, for a system call or a copy.
    pub fn as_ptr(self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.0)
    }
}

impl fmt::Debug for Hva {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hva({:#x})", self.0)
    }
}

/// `len` bytes from an address, within one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvaRange {
    start: Hva,
    len: usize,
}

impl HvaRange {
    /// The range of `len` bytes from `start`.
    pub fn new(start: Hva, len: usize) -> Self {
        debug_assert!(start.0.checked_add(len).is_some(), "a range within a mapping");
        Self { start, len }
    }

    /// First byte.
    pub fn start(&self) -> Hva {
        self.start
    }

    /// First byte after it.
    pub fn end(&self) -> Hva {
        self.start.offset(self.len)
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
