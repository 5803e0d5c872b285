//! Getting a vCPU thread out of guest mode, without ever losing the kick.
//!
//! A signal alone can be lost: if it arrives between the thread's last look at
//! what is wanted and KVM_RUN, the handler runs and KVM_RUN then blocks. So
//! the handler sets `immediate_exit` in the thread's own `kvm_run`, which
//! makes the next KVM_RUN return EINTR at once
//! (Documentation/virt/kvm/api.rst, section 5, `immediate_exit`). The thread
//! clears it *before* it looks at what is wanted; whoever kicks changes what
//! is wanted *before* the signal. Whichever order the two meet in, the thread
//! sees the change or does not enter the guest.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // A signal that arrives after the thread-local's destruction, when the
    // thread is ending, has nothing to do.
    let _ = IMMEDIATE_EXIT.try_with(|cell| {
        let flag = cell.get();
        if !flag.is_null() {
            // SAFETY: `Kickable` set the pointer on this very thread and
            // clears it before the mapping goes. The kernel reads the byte
            // only inside KVM_RUN, and only this thread runs that vCPU.
            unsafe { flag.write_volatile(1) };
        }
    });
}

/// Installs the handler, once for the process.
///
/// # Errors
/// What sigaction(2) says.
pub fn install() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// A thread that runs a vCPU, to be kicked by whoever knows that it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuThread(libc::pthread_t);

impl VcpuThread {
    /// This thread.
    pub fn this() -> Self {
        // SAFETY: it has no preconditions (pthread_self(3)).
        Self(unsafe { libc::pthread_self() })
    }

    /// Kicks it out of KVM_RUN. Only for the gate, whose lock keeps the thread
    /// from ending meanwhile.
    pub(super) fn kick(self) {
        // SAFETY: the thread lives: it takes itself off the gate's list, under
        // the lock that the caller holds, before it ends.
        unsafe { libc::pthread_kill(self.0, SIGRTMIN()) };
    }
}

/// Kicks the thread out of KVM_RUN. A thread that has ended is no error.
pub fn kick<T>(thread: &JoinHandle<T>) {
    let _ = thread.kill(SIGRTMIN());
}

/// The current thread's right to run `vcpu` and be kicked out of it.
#[derive(Debug)]
pub struct Kickable<'a> {
    vcpu: &'a mut VcpuFd,
}

impl<'a> Kickable<'a> {
    /// Makes this thread the one that a kick finds.
    pub fn new(vcpu: &'a mut VcpuFd) -> Self {
        let flag = ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit);
        IMMEDIATE_EXIT.set(flag);
        Self { vcpu }
    }

    /// Forgets kicks that came so far. Look at what is wanted after this.
    pub fn rearm(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
        // The handler runs on this thread, so program order is all that
        // counts; a load with acquire order alone would let the compiler move
        // the store behind it.
        compiler_fence(Ordering::SeqCst);
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        self.vcpu
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
