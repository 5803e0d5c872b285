//! userfaultfd(2): faults on chosen ranges of this process come as events, and
//! pages are moved, copied, protected and unblocked by ioctl.
//!
//! [`abi`] has the kernel's structures and numbers, [`fd`] the calls;
//! [`written`] is memory whose writes the kernel notes by itself.
//!
//! Known hole: closing the descriptor, or unregistering a range, wakes every
//! waiter, and a waiter on a page that is away then reads zeros. Whoever owns
//! a [`Userfaultfd`] over a guest that may still run must not drop it.

pub mod abi;
pub mod fd;
pub mod written;

pub use fd::{Event, Features, Modes, MoveError, OpenError, Opened, Userfaultfd};
