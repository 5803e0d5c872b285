//! Devices of the machine, and the bus that a vCPU's port and memory accesses
//! go through.
//!
//! Invariants:
//! * Nothing a guest does panics, blocks for good, or grows memory.
//! * A device answers an access or says why not ([`IoError`]); the [`Bus`]
//!   turns a refused read into all ones, as an undecoded bus cycle does on a
//!   PC, and drops a refused write.
//! * The only lock is the one of the device (or PCI function) that is hit. A
//!   device holds no other device's lock, and never calls back into the bus.
//!
//! This crate sees guest memory through vm-memory traits only, and knows
//! nothing of KVM or of `neap-memory`.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod bus;
pub mod io;
pub mod irq;
pub mod pci;
pub mod reset;
pub mod serial;

pub use bus::{Bus, BusBuilder, BusError};
pub use io::{Device, IoError, IoResult};
pub use irq::EventFdTrigger;
pub use reset::{PowerEvent, PowerSink};
