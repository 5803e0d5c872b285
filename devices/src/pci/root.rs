//! The functions below the root, by address.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};

use super::PciAddress;
use crate::io::{IoError, IoResult, lock};

/// One PCI function, as its configuration space shows it.
///
/// The root has checked that an access is 1, 2 or 4 bytes wide, aligned to its
/// width, and inside the 4 KiB of configuration space.
pub trait PciFunction: Send {
    /// Fills `data` from `register` on.
    fn read_config(&mut self, register: u16, data: &mut [u8]) -> IoResult;

    /// Takes a write from `register` on.
    fn write_config(&mut self, register: u16, data: &[u8]) -> IoResult;
}

/// Two functions were given the same address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is a PCI function at {0} already")]
pub struct SlotTaken(pub PciAddress);

/// Collects functions for a [`PciRoot`].
#[derive(Default)]
pub struct PciRootBuilder {
    functions: BTreeMap<PciAddress, Arc<Mutex<dyn PciFunction>>>,
}

impl PciRootBuilder {
    /// A root with nothing below it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a function at an address.
    ///
    /// # Errors
    /// When one is there already; the builder is unchanged then.
    pub fn insert(
        &mut self,
        address: PciAddress,
        function: Arc<Mutex<dyn PciFunction>>,
    ) -> Result<&mut Self, SlotTaken> {
        if self.functions.contains_key(&address) {
            return Err(SlotTaken(address));
        }
        self.functions.insert(address, function);
        Ok(self)
    }

    /// Freezes the root.
    pub fn build(self) -> PciRoot {
        PciRoot { functions: self.functions }
    }
}

/// The root complex: finds the function that an access is for. Shared by both
/// access ways.
pub struct PciRoot {
    functions: BTreeMap<PciAddress, Arc<Mutex<dyn PciFunction>>>,
}

impl PciRoot {
    /// Reads configuration registers.
    ///
    /// # Errors
    /// When there is no such function, or the access is not 1, 2 or 4 aligned
    /// bytes.
    pub fn read(&self, address: PciAddress, register: u16, data: &mut [u8]) -> IoResult {
        check(register, data.len())?;
        lock(self.function(address)?).read_config(register, data)
    }

    /// Writes configuration registers.
    ///
    /// # Errors
    /// As [`PciRoot::read`].
    pub fn write(&self, address: PciAddress, register: u16, data: &[u8]) -> IoResult {
        check(register, data.len())?;
        lock(self.function(address)?).write_config(register, data)
    }

    fn function(&self, address: PciAddress) -> Result<&Mutex<dyn PciFunction>, IoError> {
        self.functions.get(&address).map(Arc::as_ref).ok_or(IoError::NoDevice)
    }
}

/// A configuration request carries one dword with byte enables: nothing wider,
/// and nothing that crosses a dword.
fn check(register: u16, width: usize) -> IoResult {
    match width {
        1 | 2 | 4 if usize::from(register).is_multiple_of(width) => Ok(()),
        _ => Err(IoError::BadWidth),
    }
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.functions.keys()).finish()
    }
}
