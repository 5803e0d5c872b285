//! PCI: one root with its functions, reached by configuration mechanism #1
//! (ports 0xcf8 and 0xcfc) and by the memory-mapped ECAM. Both end in the same
//! [`PciRoot`], so they cannot disagree.
//!
//! A function sits behind a lock of its own; the table of functions is frozen
//! when the root is built. A later device with BARs or MSI-X implements
//! [`PciFunction`] around a [`ConfigSpace`] and puts its BAR windows on the
//! MMIO bus.

mod address;
mod config_space;
mod ecam;
mod host_bridge;
mod ports;
mod root;

pub use address::PciAddress;
pub use config_space::ConfigSpace;
pub use ecam::Ecam;
pub use host_bridge::HostBridge;
pub use ports::ConfigPorts;
pub use root::{PciFunction, PciRoot, PciRootBuilder, SlotTaken};

/// Bytes of configuration space that a function has, PCI Express part included.
pub const CONFIG_SIZE: usize = 4096;
