//! Descriptors of rust-vmm types for rustix' calls.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The eventfd's descriptor; vmm-sys-util has no `AsFd` for it.
pub fn of_event(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an `EventFd` owns its descriptor and keeps it open, and the
    // result cannot outlive the reference.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Ends the process at once: no destructor runs, no buffer is written, and no
/// other thread goes on.
pub fn exit_now(status: u8) -> ! {
    // SAFETY: `_exit` takes any state that the process is in.
    unsafe { libc::_exit(i32::from(status)) }
}
