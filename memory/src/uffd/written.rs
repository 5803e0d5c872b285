//! Which pages were written to, without an event for each: a userfaultfd of
//! its own in asynchronous mode (`UFFD_FEATURE_WP_ASYNC`, Linux 6.7), in which
//! the kernel lets a writer of a protected page go on and notes it, and
//! `PAGEMAP_SCAN`, which tells and protects anew
//! (Documentation/admin-guide/mm/pagemap.rst).
//!
//! That mode is one of the whole descriptor, and a range has one descriptor. So
//! this cannot watch memory that another one protects from writes that wait.
//!
//! It sees writes only. What is read all the time looks to it like what is not
//! used at all.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use linux_raw_sys::general as raw;
use linux_raw_sys::general::pm_scan_arg;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};

use super::abi::Door;
use super::fd::{Features, Modes, OpenError, Userfaultfd};
use crate::hva::HvaRange;

/// include/uapi/linux/fs.h
const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610 && size_of::<pm_scan_arg>() == 96);
const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Protects what was found.
const WP_MATCHING: u64 = 1 << 0;
/// Refuses memory that is not watched in this mode.
const CHECK_WPASYNC: u64 = 1 << 1;

/// Why writes cannot be seen.
#[derive(Debug, thiserror::Error)]
pub enum WrittenError {
    /// No userfaultfd.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A kernel without the mode.
    #[error("this kernel does not note writes by itself (UFFD_FEATURE_WP_ASYNC, since Linux 6.7)")]
    Missing,
    /// /proc/self/pagemap.
    #[error("/proc/self/pagemap: {0}")]
    Pagemap(#[source] io::Error),
    /// Memory that cannot be watched.
    #[error("memory cannot be watched for writes: {0}")]
    Register(#[source] Errno),
}

/// Memory that is watched for writes. Dropped, it watches nothing, and nobody
/// waits for it: writers never do.
#[derive(Debug)]
pub struct WriteWatch {
    // Open for as long as the ranges are watched.
    _uffd: Userfaultfd,
    pagemap: File,
}

impl WriteWatch {
    /// Watches `ranges`, which no other userfaultfd does.
    ///
    /// # Errors
    /// A kernel or memory that cannot.
    pub fn new(
        doors: &[Door],
        ranges: impl IntoIterator<Item = HvaRange>,
    ) -> Result<Self, WrittenError> {
        let wanted = Features::WRITE_PROTECT.with(Features::WRITES_NOTED);
        let uffd = Userfaultfd::open(wanted, doors)?;
        if !uffd.opened().features.contains(wanted) {
            return Err(WrittenError::Missing);
        }
        let pagemap = File::open("/proc/self/pagemap").map_err(WrittenError::Pagemap)?;
        for range in ranges {
            uffd.register(range, Modes::WriteProtect).map_err(WrittenError::Register)?;
        }
        Ok(Self { _uffd: uffd, pagemap })
    }

    /// Has writes to `range` noted from now on, and forgets those before.
    ///
    /// # Errors
    /// EPERM for memory that is not watched.
    pub fn begin(&self, range: HvaRange) -> Result<(), Errno> {
        self.scan(range, WP_MATCHING | CHECK_WPASYNC).map(drop)
    }

    /// Whether any of `range` was written to since [`Self::begin`].
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub fn is_written(&self, range: HvaRange) -> Result<bool, Errno> {
        self.scan(range, CHECK_WPASYNC)
    }

    /// Goes over all of `range`; says whether a page of it was written to.
    fn scan(&self, range: HvaRange, flags: u64) -> Result<bool, Errno> {
        let (mut start, end) = (range.start().0 as u64, range.end().0 as u64);
        let mut any = false;
        while start < end {
            // `struct page_region`: start, end, categories.
            let mut region = [0u64; 3];
            let mut request = pm_scan_arg {
                size: size_of::<pm_scan_arg>() as u64,
                flags,
                start,
                end,
                walk_end: 0,
                vec: region.as_mut_ptr() as u64,
                vec_len: 1,
                max_pages: 0,
                category_inverted: 0,
                category_mask: PAGE_IS_WRITTEN,
                category_anyof_mask: 0,
                return_mask: PAGE_IS_WRITTEN,
            };
            // SAFETY: opcode and structure belong together, as asserted above.
            let call = unsafe { Updater::<PAGEMAP_SCAN, _>::new(&mut request) };
            // SAFETY: the kernel writes into `request` and one entry into
            // `region`, which live until after the call; write-protection that
            // nobody waits for changes no contents.
            unsafe { rustix::ioctl::ioctl(&self.pagemap, call) }?;
            any |= region[0] < region[1];
            if any && flags & WP_MATCHING == 0 || request.walk_end <= start {
                break;
            }
            start = request.walk_end;
        }
        Ok(any)
    }
}

const _: () = assert!(raw::UFFD_FEATURE_WP_ASYNC == 1 << 15);
