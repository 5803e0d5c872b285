//! What the guest finds in memory when it starts.

pub mod efi;
pub mod map;
