//! The host bridge at 00:00.0: an ordinary, empty type 0 function.
//!
//! It must exist even when no PCI device does. Without a function that
//! answers, Linux decides that there is no PCI at all, and then never inserts
//! the *Soft Reserved* resources from which dax_hmem makes its devices
//! (`pcibios_resource_survey`, arch/x86/pci/i386.c).

use super::{ConfigSpace, PciFunction};
use crate::io::IoResult;

/// Vendor and device id of a plain Intel host bridge that no Linux driver and
/// no early quirk takes an interest in.
const VENDOR: u16 = 0x8086;
const DEVICE: u16 = 0x0d57;
/// Bridge device, host bridge.
const CLASS: u32 = 0x06_00_00;
/// Command register.
const COMMAND: usize = 0x04;
/// Memory space, bus master, SERR# and interrupt disable are for the guest to
/// set.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 8 | 1 << 10;

/// An empty host bridge.
#[derive(Clone)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// A host bridge as after reset.
    pub fn new() -> Self {
        let mut config = ConfigSpace::new(VENDOR, DEVICE, CLASS, 0);
        config.define(COMMAND, &[0; 2], &COMMAND_WRITABLE.to_le_bytes());
        Self { config }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl PciFunction for HostBridge {
    fn read_config(&mut self, register: u16, data: &mut [u8]) -> IoResult {
        self.config.read(register, data)
    }

    fn write_config(&mut self, register: u16, data: &[u8]) -> IoResult {
        self.config.write(register, data)
    }
}
