//! Holding off everything that touches guest memory, for moves out of memory
//! that nobody can watch (/dev/dax).
//!
//! Devices that access guest memory by themselves are held off by their pins.

use std::fmt;
use std::time::Duration;

/// Somebody who can have vCPUs park outside the guest. Whoever runs vCPUs
/// implements it.
///
/// It must neither wait for a pause that somebody else wants nor end one, and
/// holds of several threads may overlap.
pub trait Park: fmt::Debug + Send + Sync {
    /// Has every vCPU leave the guest and stay out of it until what is
    /// returned is dropped; `None` if one did not leave within `patience`, and
    /// then all go on.
    fn park(&self, patience: Duration) -> Option<Box<dyn Parked>>;
}

/// vCPUs that are parked; they go on when this is dropped.
pub trait Parked {
    /// How many there are.
    fn vcpus(&self) -> usize;
}

/// How long vCPUs were parked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// How often.
    pub batches: u64,
    /// Granules that were moved meanwhile.
    pub granules: u64,
    /// All of it, nanoseconds.
    pub nanos: u64,
    /// Of that, until the last vCPU had parked.
    pub parking_nanos: u64,
    /// Of that, copying.
    pub copying_nanos: u64,
    /// Of that, mapping over.
    pub mapping_nanos: u64,
    /// The longest, nanoseconds.
    pub longest_nanos: u64,
    /// The most that one took beside the copying, for each parked vCPU.
    pub longest_beside_copy_nanos: u64,
    /// How often a vCPU did not park in time.
    pub given_up: u64,
}
