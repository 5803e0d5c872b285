//! What a child must do between fork and exec, the end of all processes of the
//! lab, and the processor's counter: what has no safe form.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::Signal;

/// Makes the child keep `descriptor` open and die by SIGKILL with the thread
/// that spawns it, however that ends.
///
/// The thread must outlive the child's purpose: its return from `main` or
/// from its closure kills the child too (prctl(2), PR_SET_PDEATHSIG).
pub(super) fn tie_to_parent(command: &mut Command, descriptor: RawFd) {
    let parent = rustix::process::getpid();
    let prepare = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // A parent that died before the line above sends no signal.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        // SAFETY: the caller owns the descriptor and keeps it open across
        // the spawn; it is borrowed for this call only.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        rustix::io::fcntl_setfd(descriptor, rustix::io::FdFlags::empty())?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor
    // takes a lock, so it may run in the child of a process with threads.
    unsafe { command.pre_exec(prepare) };
}

/// Puts the child into a session of its own; with `terminal`, its stdin
/// becomes the session's controlling terminal.
pub(super) fn lead_session(command: &mut Command, terminal: bool) {
    let prepare = move || {
        rustix::process::setsid()?;
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        Ok(())
    };
    // SAFETY: as above, system calls only.
    unsafe { command.pre_exec(prepare) };
}

/// Sends SIGKILL to every process but the first and the caller's own, which
/// has to be the first: the agent is the lab's init.
pub(super) fn kill_all_others() {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return;
    }
    // SAFETY: kill(2) takes no memory; -1 spares the caller, and every other
    // process of the lab is the program's or a child of it.
    unsafe { libc::kill(-1, libc::SIGKILL) };
}

/// The time stamp counter.
pub(super) fn ticks() -> u64 {
    // SAFETY: the instruction takes and changes no memory, and Linux lets every
    // process have it.
    unsafe { std::arch::x86_64::_rdtsc() }
}
