//! Heat: which granules are used, and what should move because of it.
//!
//! Pure: no clock, no thread, no lock, no system call. A tick is whatever its
//! user says it is. In each one the user
//!
//! 1. tells what was seen of the granules that were watched, for a part of a tick
//!    ([`HeatPolicy::observe`]),
//! 2. asks what is to move ([`HeatPolicy::plan`]),
//! 3. asks what to watch next ([`HeatPolicy::watch`]), and for how much of the
//!    tick ([`HeatPolicy::watch_for`]).
//!
//! [`entry`] is what is known of a granule, in 8 bytes; [`policy`] decides;
//! [`watch`] chooses what to watch, [`span`] for how long; [`bucket`] is the budget of bytes;
//! [`purse`] that of the guest's time; [`sim`] replays touches of memory and
//! compares.
//!
//! What keeps memory from moving to and fro:
//! * a granule is hot only after touches were seen in several ticks
//!   ([`Settings::seen`]), so that a scan, which comes by once, moves nothing;
//! * it must be among the hottest that the fast tier has room for altogether, as
//!   far as is known, and used more than the coldest granule of the fast tier by a margin
//!   ([`Settings::margin`]), which is wider the less is known of both, and
//!   narrower while the load as a whole is changing;
//! * what has moved rests for [`Settings::rest`] ticks, and four times as long
//!   each time that it moves again soon;
//! * nothing leaves the fast tier but to make room for something hotter.

pub mod bucket;
pub mod entry;
pub mod policy;
pub mod purse;
mod scale;
pub mod settings;
pub mod sim;
mod span;
#[cfg(test)]
mod tests;
mod unrest;
mod watch;

pub use bucket::Bucket;
pub use policy::{HeatPolicy, Moves, Seen, Touch, Where};
pub use purse::{Looks, Price, Purse};
pub use settings::{Settings, SettingsError};
