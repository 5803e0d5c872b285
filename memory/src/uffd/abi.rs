//! Structures and ioctl numbers of userfaultfd, with their sizes asserted
//! (include/uapi/linux/userfaultfd.h), and opening a descriptor.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr;

use linux_raw_sys::general::{
    _UFFDIO_API, _UFFDIO_CONTINUE, _UFFDIO_COPY, _UFFDIO_MOVE, _UFFDIO_POISON, _UFFDIO_REGISTER,
    _UFFDIO_UNREGISTER, _UFFDIO_WAKE, _UFFDIO_WRITEPROTECT, USERFAULTFD_IOC,
};
pub use linux_raw_sys::general::{
    UFFD_API, UFFD_EVENT_PAGEFAULT, UFFD_EVENT_REMOVE, UFFD_EVENT_UNMAP, UFFD_PAGEFAULT_FLAG_MINOR,
    UFFD_PAGEFAULT_FLAG_WP, UFFD_PAGEFAULT_FLAG_WRITE, UFFDIO_COPY_MODE_DONTWAKE,
    UFFDIO_REGISTER_MODE_MINOR, UFFDIO_REGISTER_MODE_MISSING, UFFDIO_REGISTER_MODE_WP, uffd_msg,
    uffdio_api, uffdio_continue, uffdio_copy, uffdio_move, uffdio_poison, uffdio_range,
    uffdio_register, uffdio_writeprotect,
};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

const GROUP: u8 = USERFAULTFD_IOC as u8;

/// Handshake.
pub const UFFDIO_API: Opcode = opcode::read_write::<uffdio_api>(GROUP, _UFFDIO_API as u8);
/// Watches a range.
pub const UFFDIO_REGISTER: Opcode =
    opcode::read_write::<uffdio_register>(GROUP, _UFFDIO_REGISTER as u8);
/// Watches it no more.
pub const UFFDIO_UNREGISTER: Opcode = opcode::read::<uffdio_range>(GROUP, _UFFDIO_UNREGISTER as u8);
/// Lets waiters try again.
pub const UFFDIO_WAKE: Opcode = opcode::read::<uffdio_range>(GROUP, _UFFDIO_WAKE as u8);
/// Fills missing pages with a copy.
pub const UFFDIO_COPY: Opcode = opcode::read_write::<uffdio_copy>(GROUP, _UFFDIO_COPY as u8);
/// Maps pages in that their file has.
pub const UFFDIO_CONTINUE: Opcode =
    opcode::read_write::<uffdio_continue>(GROUP, _UFFDIO_CONTINUE as u8);
/// Moves pages from one place to another.
pub const UFFDIO_MOVE: Opcode = opcode::read_write::<uffdio_move>(GROUP, _UFFDIO_MOVE as u8);
/// Makes missing pages ones whose contents are lost.
pub const UFFDIO_POISON: Opcode = opcode::read_write::<uffdio_poison>(GROUP, _UFFDIO_POISON as u8);
/// Write-protects pages, or ends it.
pub const UFFDIO_WRITEPROTECT: Opcode =
    opcode::read_write::<uffdio_writeprotect>(GROUP, _UFFDIO_WRITEPROTECT as u8);
/// `UFFDIO_WRITEPROTECT_MODE_WP`.
pub const WRITEPROTECT_ON: u64 = 1;
/// A new descriptor from `/dev/userfaultfd`.
const USERFAULTFD_IOC_NEW: Opcode = opcode::none(GROUP, 0);

const _: () = assert!(UFFDIO_API == 0xc018_aa3f && size_of::<uffdio_api>() == 24);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00 && size_of::<uffdio_register>() == 32);
const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01 && size_of::<uffdio_range>() == 16);
const _: () = assert!(UFFDIO_WAKE == 0x8010_aa02);
const _: () = assert!(UFFDIO_COPY == 0xc028_aa03 && size_of::<uffdio_copy>() == 40);
const _: () = assert!(UFFDIO_MOVE == 0xc028_aa05 && size_of::<uffdio_move>() == 40);
const _: () = assert!(UFFDIO_CONTINUE == 0xc020_aa07 && size_of::<uffdio_continue>() == 32);
const _: () = assert!(UFFDIO_POISON == 0xc020_aa08 && size_of::<uffdio_poison>() == 32);
const _: () = assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06 && size_of::<uffdio_writeprotect>() == 24);
const _: () = assert!(USERFAULTFD_IOC_NEW == 0xaa00);
const _: () = assert!(size_of::<uffd_msg>() == 32);

/// By which door a userfaultfd was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// userfaultfd(2).
    SystemCall,
    /// `/dev/userfaultfd`, since Linux 6.1.
    Device,
}

/// Opens a userfaultfd that also sees faults of the kernel, as guest memory
/// needs it: KVM's own accesses fault too. Where the system call is not
/// permitted (`vm.unprivileged_userfaultfd`, seccomp), or `doors` leaves it
/// out, through the device.
///
/// # Errors
/// That of the system call, which every kernel has; or of the device if only
/// that was to be tried.
pub fn open(doors: &[Door]) -> io::Result<(OwnedFd, Door)> {
    let mut first = None;
    for door in doors {
        let opened = match door {
            Door::SystemCall => by_system_call(),
            Door::Device => by_device(),
        };
        match opened {
            Ok(fd) => return Ok((fd, *door)),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::Unsupported.into()))
}

fn by_system_call() -> io::Result<OwnedFd> {
    // SAFETY: nothing is registered with the descriptor by opening it.
    Ok(unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }?)
}

fn by_device() -> io::Result<OwnedFd> {
    let device = File::open("/dev/userfaultfd")?;
    // SAFETY: `New` describes USERFAULTFD_IOC_NEW, and the file is the device
    // that knows it.
    Ok(unsafe { rustix::ioctl::ioctl(device, New) }?)
}

/// `USERFAULTFD_IOC_NEW`: flags by value, a new descriptor as the result.
struct New;

// SAFETY: the opcode takes an integer and no pointer, and answers with a
// descriptor that nobody else owns.
unsafe impl Ioctl for New {
    type Output = OwnedFd;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        USERFAULTFD_IOC_NEW
    }

    fn as_ptr(&mut self) -> *mut c_void {
        let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
        ptr::without_provenance_mut(flags.bits() as usize)
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        // SAFETY: a success of this ioctl is a descriptor made for the caller.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
