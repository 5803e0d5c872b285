//! The words of the granule table: where a granule is, and why it could not be
//! had.

use thiserror::Error;

use crate::granule::{Frame, PoolId};

/// Where a granule's contents are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Place {
    /// Nowhere: nobody has touched it, and it reads as zeroes.
    #[default]
    Untouched,
    /// In host memory.
    Home,
    /// In a device frame.
    Device {
        /// The frame's pool.
        pool: PoolId,
        /// The frame.
        frame: Frame,
    },
}

impl Place {
    /// Whether it is a device frame.
    pub fn is_device(self) -> bool {
        matches!(self, Self::Device { .. })
    }
}

/// A granule's state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Where its contents are; in a move, where they come from.
    pub place: Place,
    /// How many pins hold it there.
    pub pins: u16,
    /// Whether somebody is moving it.
    pub moving: bool,
    /// Whether the guest reaches it without a fault: false for an untouched
    /// granule and for one in a frame of kind `private`.
    pub mapped: bool,
}

/// Why a granule cannot be claimed now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ClaimError {
    /// Somebody else moves it.
    #[error("the granule is being moved by somebody else")]
    Moving,
    /// It is pinned.
    #[error("the granule is pinned")]
    Pinned,
}

/// Why a granule was not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PinError {
    /// It was still moving at the deadline.
    #[error("the granule was still moving at the deadline")]
    TimedOut,
    /// It has 65535 pins already.
    #[error("the granule has as many pins as can be counted")]
    TooMany,
}

/// Why a granule was not pinned at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum TryPinError {
    /// It is moving.
    #[error("the granule is moving")]
    Moving,
    /// It has 65535 pins already.
    #[error("the granule has as many pins as can be counted")]
    TooMany,
}
