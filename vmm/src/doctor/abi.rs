//! The kernel interfaces behind the checks that no safe wrapper offers:
//! userfaultfd and `PAGEMAP_SCAN`. All `unsafe` code of the doctor but the
//! test guest's memory slot is here.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;

use linux_raw_sys::general::{
    _UFFDIO_API, _UFFDIO_MOVE, _UFFDIO_REGISTER, UFFD_API, UFFDIO_REGISTER_MODE_MISSING,
    USERFAULTFD_IOC, pm_scan_arg, uffdio_api, uffdio_move, uffdio_range, uffdio_register,
};
use neap_memory::addr::PAGE_SIZE;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Updater, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, munmap, userfaultfd};

const GROUP: u8 = USERFAULTFD_IOC as u8;
const UFFDIO_API: Opcode = opcode::read_write::<uffdio_api>(GROUP, _UFFDIO_API as u8);
const UFFDIO_REGISTER: Opcode =
    opcode::read_write::<uffdio_register>(GROUP, _UFFDIO_REGISTER as u8);
const UFFDIO_MOVE: Opcode = opcode::read_write::<uffdio_move>(GROUP, _UFFDIO_MOVE as u8);
const USERFAULTFD_IOC_NEW: Opcode = opcode::none(GROUP, 0);
/// include/uapi/linux/fs.h
const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);
const PAGE_IS_WRITTEN: u64 = 1 << 1;

// Numbers and sizes as in include/uapi/linux/userfaultfd.h and fs.h.
const _: () = assert!(UFFDIO_API == 0xc018_aa3f && size_of::<uffdio_api>() == 24);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00 && size_of::<uffdio_register>() == 32);
const _: () = assert!(UFFDIO_MOVE == 0xc028_aa05 && size_of::<uffdio_move>() == 40);
const _: () = assert!(USERFAULTFD_IOC_NEW == 0xaa00);
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610 && size_of::<pm_scan_arg>() == 96);

/// By which door a userfaultfd was had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// userfaultfd(2).
    SystemCall,
    /// `/dev/userfaultfd`, since Linux 6.1.
    Device,
}

/// Opens a userfaultfd that also sees faults of the kernel, as guest memory
/// needs it. The error is that of the system call, which every kernel has.
pub(super) fn open() -> io::Result<(OwnedFd, Door)> {
    // SAFETY: nothing is registered with the descriptor by opening it.
    match unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC) } {
        Ok(fd) => Ok((fd, Door::SystemCall)),
        Err(error) => match File::open("/dev/userfaultfd") {
            Ok(device) => {
                // SAFETY: `New` describes USERFAULTFD_IOC_NEW, and the file
                // is the device that knows it.
                let fd = unsafe { rustix::ioctl::ioctl(device, New) }?;
                Ok((fd, Door::Device))
            }
            Err(_) => Err(error.into()),
        },
    }
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
        ptr::without_provenance_mut(UserfaultfdFlags::CLOEXEC.bits() as usize)
    }

    unsafe fn output_from_ptr(fd: IoctlOutput, _: *mut c_void) -> rustix::io::Result<OwnedFd> {
        use std::os::fd::FromRawFd;
        // SAFETY: a success of this ioctl is a descriptor made for the caller.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

/// Shakes hands, asking for `features`; answers all features that the kernel
/// has. Once for each descriptor.
pub(super) fn handshake(uffd: impl AsFd, features: u64) -> io::Result<u64> {
    let mut api = uffdio_api { api: UFFD_API.into(), features, ioctls: 0 };
    // SAFETY: opcode and structure belong together, as asserted above.
    let call = unsafe { Updater::<UFFDIO_API, _>::new(&mut api) };
    // SAFETY: the kernel writes into `api` only.
    unsafe { rustix::ioctl::ioctl(uffd, call) }?;
    Ok(api.features)
}

/// Moves a page with `UFFDIO_MOVE` and looks whether its content arrived.
/// `features` are those that the handshake has to ask for.
pub(super) fn try_move(features: u64) -> io::Result<bool> {
    const MARK: u8 = 0x5a;
    let page = PAGE_SIZE as usize;
    let pages = Pages::new(2 * page)?;
    let from = pages.start.cast::<u8>();
    let to = from.wrapping_add(page);
    // SAFETY: the first byte of a mapping that `pages` owns, writable.
    unsafe { from.write_volatile(MARK) };

    let (uffd, _) = open()?;
    handshake(&uffd, features)?;
    let mut register = uffdio_register {
        range: uffdio_range { start: from.addr() as u64, len: 2 * PAGE_SIZE },
        mode: UFFDIO_REGISTER_MODE_MISSING.into(),
        ioctls: 0,
    };
    // SAFETY: opcode and structure belong together, as asserted above.
    let call = unsafe { Updater::<UFFDIO_REGISTER, _>::new(&mut register) };
    // SAFETY: the range is that of `pages`, which nobody else uses.
    unsafe { rustix::ioctl::ioctl(&uffd, call) }?;
    let mut request = uffdio_move {
        dst: to.addr() as u64,
        src: from.addr() as u64,
        len: PAGE_SIZE,
        mode: 0,
        move_: 0,
    };
    // SAFETY: opcode and structure belong together, as asserted above.
    let call = unsafe { Updater::<UFFDIO_MOVE, _>::new(&mut request) };
    // SAFETY: both pages are within `pages`, and no reference to them exists.
    unsafe { rustix::ioctl::ioctl(&uffd, call) }?;

    // Closed before the look: a page that did not arrive then reads as zero
    // instead of waiting for somebody to fill it.
    drop(uffd);
    // SAFETY: within the mapping that `pages` owns.
    Ok(unsafe { to.read_volatile() } == MARK)
}

/// Scans one page of this process with `PAGEMAP_SCAN`.
pub(super) fn try_pagemap_scan() -> io::Result<()> {
    let pages = Pages::new(PAGE_SIZE as usize)?;
    let start = pages.start.addr() as u64;
    let mut request = pm_scan_arg {
        size: size_of::<pm_scan_arg>() as u64,
        flags: 0,
        start,
        end: start + PAGE_SIZE,
        walk_end: 0,
        vec: 0,
        vec_len: 0,
        max_pages: 0,
        category_inverted: 0,
        category_mask: 0,
        category_anyof_mask: PAGE_IS_WRITTEN,
        return_mask: PAGE_IS_WRITTEN,
    };
    let pagemap = File::open("/proc/self/pagemap")?;
    // SAFETY: opcode and structure belong together, as asserted above.
    let call = unsafe { Updater::<PAGEMAP_SCAN, _>::new(&mut request) };
    // SAFETY: without a vector the kernel writes into `request` only.
    unsafe { rustix::ioctl::ioctl(pagemap, call) }?;
    Ok(())
}

/// Anonymous private memory that no Rust reference points to.
struct Pages {
    start: *mut c_void,
    size: usize,
}

impl Pages {
    fn new(size: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), size, access, MapFlags::PRIVATE) }?;
        Ok(Self { start, size })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`, whole and only once. A
        // failure would leave it mapped, which harms nobody.
        let _ = unsafe { munmap(self.start, self.size) };
    }
}
