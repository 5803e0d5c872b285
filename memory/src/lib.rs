//! Guest memory of Neap: where RAM and special-purpose memory (SPM) lie in
//! the guest-physical address space, and the host memory behind them.
//!
//! This crate knows nothing of devices or of KVM exits.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod account;
pub mod addr;
pub mod backing;
pub mod dax;
#[cfg(not(feature = "loom"))]
pub mod engine;
pub mod granule;
pub mod guest;
pub mod heat;
pub mod hva;
pub mod layout;
pub mod mapped;
pub mod migrate;
pub mod numa;
pub mod park;
#[cfg(not(feature = "loom"))]
pub mod poison;
pub mod policy;
pub mod pool;
pub mod region;
pub mod space;
mod sync;
pub mod table;
#[cfg(not(feature = "loom"))]
pub mod tiers;
pub mod uffd;
mod zeroed;

pub use addr::{Gpa, GpaRange};
pub use backing::Backing;
pub use guest::GuestMemory;
