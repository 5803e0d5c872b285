//! Memory of the engines outside of the guest's mappings, for whoever counts
//! it: each row belongs to one tier.

use std::os::fd::BorrowedFd;

use super::memory::Slots;
use crate::granule::PoolId;

/// Whose memory a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Home pages: slot 0 is of this granule, and so on.
    Home(u32),
    /// The frames of a pool.
    Pool(PoolId),
}

/// A row of slots.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) holder: Holder,
    /// Which of them have memory; where a file is behind them, this is its alias.
    pub(crate) slots: &'a Slots,
    /// The file, whose first byte is that of slot 0; none: private memory.
    pub(crate) file: Option<BorrowedFd<'a>>,
}
