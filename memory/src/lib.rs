//! Guest memory of Neap: where RAM and special-purpose memory (SPM) lie in
//! the guest-physical address space, and the host memory behind them.
//!
//! This crate knows nothing of devices or of KVM exits.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod addr;
pub mod backing;
pub mod granule;
pub mod guest;
pub mod layout;
pub mod policy;
pub mod pool;
pub mod region;
mod sync;
pub mod table;
mod zeroed;

pub use addr::{Gpa, GpaRange};
pub use backing::Backing;
pub use guest::GuestMemory;
