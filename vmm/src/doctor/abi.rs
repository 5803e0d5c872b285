//! What the checks try out on memory of their own: moving a page and scanning
//! one. All `unsafe` code of the doctor but the test guest's memory slot is
//! here.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr;

use linux_raw_sys::general::pm_scan_arg;
use neap_memory::addr::PAGE_SIZE;
use neap_memory::hva::{Hva, HvaRange};
pub(super) use neap_memory::uffd::abi::Door;
use neap_memory::uffd::{Features, Modes, OpenError, Opened, Userfaultfd};
use rustix::ioctl::{Opcode, Updater, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// include/uapi/linux/fs.h
const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);
const PAGE_IS_WRITTEN: u64 = 1 << 1;

const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610 && size_of::<pm_scan_arg>() == 96);

/// Doors to a userfaultfd, in the order in which they are tried.
const DOORS: [Door; 2] = [Door::SystemCall, Door::Device];

/// What the kernel has of userfaultfd, and by which door.
pub(super) fn userfaultfd() -> io::Result<Opened> {
    Userfaultfd::probe(&DOORS).map_err(system_error)
}

fn system_error(error: OpenError) -> io::Error {
    match error {
        OpenError::Open(error) | OpenError::Handshake(error) => error,
    }
}

/// Moves a page with `UFFDIO_MOVE` and looks whether its content arrived.
pub(super) fn try_move() -> io::Result<bool> {
    const MARK: u8 = 0x5a;
    let page = PAGE_SIZE as usize;
    let pages = Pages::new(2 * page)?;
    let from = pages.start.cast::<u8>();
    let to = from.wrapping_add(page);
    // SAFETY: the first byte of a mapping that `pages` owns, writable.
    unsafe { from.write_volatile(MARK) };

    let uffd = Userfaultfd::open(Features::MOVE, &DOORS).map_err(system_error)?;
    let start = Hva(from.expose_provenance());
    uffd.register(HvaRange::new(start, 2 * page), Modes::Missing)?;
    // SAFETY: both pages are within `pages`, watched, and no reference to them
    // exists.
    unsafe { uffd.move_pages(HvaRange::new(start, page), start.offset(page)) }
        .map_err(|error| error.errno)?;

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
