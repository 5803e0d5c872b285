//! A userfaultfd and its calls.
//!
//! The calls that change pages are `unsafe`: they act on raw ranges of this
//! process, and only the engines know that these are guest memory or frames
//! to which no Rust reference exists.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use linux_raw_sys::general as raw;
use rustix::io::Errno;
use rustix::ioctl::{Setter, Updater};

use super::abi::{self, Door};
use crate::hva::{Hva, HvaRange};

/// Feature bits of userfaultfd (`UFFD_FEATURE_*`).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Write-protection of anonymous memory.
    pub const WRITE_PROTECT: Self = Self(raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64);
    /// Write-protection of shmem and hugetlb, since Linux 5.19.
    pub const WRITE_PROTECT_FILES: Self = Self(raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64);
    /// Missing pages of shmem.
    pub const MISSING_SHMEM: Self = Self(raw::UFFD_FEATURE_MISSING_SHMEM as u64);
    /// Missing pages of hugetlb.
    pub const MISSING_HUGETLB: Self = Self(raw::UFFD_FEATURE_MISSING_HUGETLBFS as u64);
    /// Pages of shmem that are there and not mapped, since Linux 5.14.
    pub const MINOR_SHMEM: Self = Self(raw::UFFD_FEATURE_MINOR_SHMEM as u64);
    /// The same of hugetlb, since Linux 5.13.
    pub const MINOR_HUGETLB: Self = Self(raw::UFFD_FEATURE_MINOR_HUGETLBFS as u64);
    /// `UFFDIO_MOVE`, since Linux 6.8.
    pub const MOVE: Self = Self(raw::UFFD_FEATURE_MOVE as u64);
    /// Writes to protected pages are noted and do not wait, since Linux 6.7.
    pub const WRITES_NOTED: Self = Self(raw::UFFD_FEATURE_WP_ASYNC as u64);
    /// None.
    pub const NONE: Self = Self(0);
    /// Every bit, known or not.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether every bit of `other` is among these.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Bits of either.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Bits of both.
    pub const fn only(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}

/// Which faults of a range become events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modes {
    /// Access to pages that are not there.
    Missing,
    /// Writes to protected pages.
    WriteProtect,
    /// Both.
    Both,
    /// Writes to protected pages, and access to pages that are there and not
    /// mapped; of files.
    Minor,
}

impl Modes {
    fn bits(self) -> u64 {
        let (missing, protect) = (abi::UFFDIO_REGISTER_MODE_MISSING, abi::UFFDIO_REGISTER_MODE_WP);
        u64::from(match self {
            Self::Missing => missing,
            Self::WriteProtect => protect,
            Self::Both => missing | protect,
            Self::Minor => abi::UFFDIO_REGISTER_MODE_MINOR | protect,
        })
    }
}

/// A fault that somebody waits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Address, rounded down to a page.
    pub address: Hva,
    /// Whether it was a write to a protected page; a missing one otherwise.
    pub write_protect: bool,
    /// Whether the page is there and not mapped.
    pub minor: bool,
    /// Whether it was a write.
    pub write: bool,
}

/// Why no userfaultfd could be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Neither the system call nor the device.
    #[error(
        "userfaultfd: {0}: run as root, or sysctl vm.unprivileged_userfaultfd=1, \
         or give access to /dev/userfaultfd"
    )]
    Open(#[source] io::Error),
    /// The kernel does not shake hands.
    #[error("UFFDIO_API: {0}")]
    Handshake(#[source] io::Error),
}

/// A [`Userfaultfd`] with what it took to get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// What the kernel has and the caller did not mask.
    pub features: Features,
    /// By which door.
    pub door: Door,
}

/// Why pages stayed where they were, in part or all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoveError {
    /// Bytes that arrived before the page that did not.
    pub moved: usize,
    /// What the kernel said of that page.
    pub errno: Errno,
}

/// An open userfaultfd after its handshake.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
    opened: Opened,
}

impl Userfaultfd {
    /// Opens one with every feature in `wanted` that the kernel has.
    ///
    /// # Errors
    /// Not permitted, or not there.
    pub fn open(wanted: Features, doors: &[Door]) -> Result<Self, OpenError> {
        // A handshake fixes the features of a descriptor, so the kernel is
        // asked on another one what it has.
        let has = Self::probe(doors)?.features;
        let (fd, door) = abi::open(doors).map_err(OpenError::Open)?;
        let features = has.only(wanted);
        handshake(fd.as_fd(), features).map_err(OpenError::Handshake)?;
        Ok(Self { fd, opened: Opened { features, door } })
    }

    /// What the kernel has, and by which door it is had.
    ///
    /// # Errors
    /// Not permitted, or not there.
    pub fn probe(doors: &[Door]) -> Result<Opened, OpenError> {
        let (fd, door) = abi::open(doors).map_err(OpenError::Open)?;
        let features = handshake(fd.as_fd(), Features::NONE).map_err(OpenError::Handshake)?;
        Ok(Opened { features, door })
    }

    /// What it took to get it.
    pub fn opened(&self) -> Opened {
        self.opened
    }

    /// Watches `range`, or changes how it is watched.
    ///
    /// # Errors
    /// EINVAL for memory that cannot be watched, EBUSY if another userfaultfd
    /// does, ENOMEM if the process has too many VMAs.
    pub fn register(&self, range: HvaRange, modes: Modes) -> Result<(), Errno> {
        let mut request =
            abi::uffdio_register { range: raw_range(range), mode: modes.bits(), ioctls: 0 };
        // SAFETY: opcode and structure belong together, as `abi` asserts.
        let call = unsafe { Updater::<{ abi::UFFDIO_REGISTER }, _>::new(&mut request) };
        // SAFETY: watching a range changes no contents; the kernel writes into
        // `request` only.
        unsafe { rustix::ioctl::ioctl(&self.fd, call) }
    }

    /// Lets whoever waits on `range` try again.
    ///
    /// # Errors
    /// EINVAL for a range that is not whole pages.
    pub fn wake(&self, range: HvaRange) -> Result<(), Errno> {
        // SAFETY: opcode and structure belong together, as `abi` asserts.
        let call = unsafe { Setter::<{ abi::UFFDIO_WAKE }, _>::new(raw_range(range)) };
        // SAFETY: waking changes no contents.
        unsafe { rustix::ioctl::ioctl(&self.fd, call) }
    }

    /// Protects `range` from writes, or ends that and wakes writers.
    ///
    /// # Errors
    /// ENOENT if the range is not watched for it; EAGAIN while mappings change.
    pub fn write_protect(&self, range: HvaRange, on: bool) -> Result<(), Errno> {
        let mode = if on { abi::WRITEPROTECT_ON } else { 0 };
        let mut request = abi::uffdio_writeprotect { range: raw_range(range), mode };
        // SAFETY: opcode and structure belong together, as `abi` asserts.
        let call = unsafe { Updater::<{ abi::UFFDIO_WRITEPROTECT }, _>::new(&mut request) };
        // SAFETY: protection changes no contents.
        unsafe { rustix::ioctl::ioctl(&self.fd, call) }
    }

    /// Moves the pages of `from` to `to`, which has none, and wakes whoever
    /// waits there.
    ///
    /// # Safety
    /// Both ranges are private anonymous memory that the caller owns; no
    /// reference to either exists, and `to` is watched by this descriptor.
    ///
    /// # Errors
    /// How far it came, and what the kernel said of the page after that.
    pub unsafe fn move_pages(&self, from: HvaRange, to: Hva) -> Result<(), MoveError> {
        let mut done = 0;
        loop {
            let mut request = abi::uffdio_move {
                dst: (to.0 + done) as u64,
                src: (from.start().0 + done) as u64,
                len: (from.len() - done) as u64,
                mode: 0,
                move_: 0,
            };
            // SAFETY: opcode and structure belong together, as `abi` asserts.
            let call = unsafe { Updater::<{ abi::UFFDIO_MOVE }, _>::new(&mut request) };
            // SAFETY: as this function's contract says.
            let result = unsafe { rustix::ioctl::ioctl(&self.fd, call) };
            // A positive count is progress; the ioctl itself then says EAGAIN.
            let moved = usize::try_from(request.move_).unwrap_or(0);
            done += moved;
            match result {
                Ok(()) => return Ok(()),
                Err(_) if moved > 0 && done < from.len() => {}
                Err(_) if done == from.len() => return Ok(()),
                Err(errno) => return Err(MoveError { moved: done, errno }),
            }
        }
    }

    /// Fills the missing pages of `to` with a copy of `from` and wakes whoever
    /// waits there.
    ///
    /// # Safety
    /// `to` is memory that the caller owns, without references to it; `from`
    /// is readable for as long.
    ///
    /// # Errors
    /// How far it came, and what the kernel said of the page after that.
    pub unsafe fn copy(&self, from: Hva, to: HvaRange) -> Result<(), MoveError> {
        let mut done = 0;
        loop {
            let mut request = abi::uffdio_copy {
                dst: (to.start().0 + done) as u64,
                src: (from.0 + done) as u64,
                len: (to.len() - done) as u64,
                mode: 0,
                copy: 0,
            };
            // SAFETY: opcode and structure belong together, as `abi` asserts.
            let call = unsafe { Updater::<{ abi::UFFDIO_COPY }, _>::new(&mut request) };
            // SAFETY: as this function's contract says.
            let result = unsafe { rustix::ioctl::ioctl(&self.fd, call) };
            let copied = usize::try_from(request.copy).unwrap_or(0);
            done += copied;
            match result {
                Ok(()) => return Ok(()),
                Err(_) if copied > 0 && done < to.len() => {}
                Err(_) if done == to.len() => return Ok(()),
                Err(errno) => return Err(MoveError { moved: done, errno }),
            }
        }
    }

    /// Maps pages in that the file of `range` has and that are not mapped, and
    /// wakes whoever waits for them. Since Linux 5.13.
    ///
    /// # Errors
    /// How far it came, and what the kernel said of the page after that: EEXIST
    /// if it is mapped, EFAULT if the file has none.
    pub fn map_cached(&self, range: HvaRange) -> Result<(), MoveError> {
        let mut done = 0;
        loop {
            let rest = abi::uffdio_range {
                start: (range.start().0 + done) as u64,
                len: (range.len() - done) as u64,
            };
            let mut request = abi::uffdio_continue { range: rest, mode: 0, mapped: 0 };
            // SAFETY: opcode and structure belong together, as `abi` asserts.
            let call = unsafe { Updater::<{ abi::UFFDIO_CONTINUE }, _>::new(&mut request) };
            // SAFETY: the kernel maps what the mapping's file holds there, over
            // nothing but empty entries, and refuses ranges that this descriptor
            // does not watch.
            let result = unsafe { rustix::ioctl::ioctl(&self.fd, call) };
            let mapped = usize::try_from(request.mapped).unwrap_or(0);
            done += mapped;
            match result {
                Ok(()) => return Ok(()),
                Err(_) if mapped > 0 && done < range.len() => {}
                Err(_) if done == range.len() => return Ok(()),
                Err(errno) => return Err(MoveError { moved: done, errno }),
            }
        }
    }

    /// Makes the missing pages of `range` ones whose contents are lost: whoever
    /// touches one, or waits for it, gets SIGBUS; for a vCPU that is
    /// `BUS_MCEERR_AR`. Since Linux 6.6.
    ///
    /// # Errors
    /// What the kernel said of the first page that it could not do.
    pub fn poison(&self, range: HvaRange) -> Result<(), Errno> {
        let mut done = 0;
        while done < range.len() {
            let rest = abi::uffdio_range {
                start: (range.start().0 + done) as u64,
                len: (range.len() - done) as u64,
            };
            let mut request = abi::uffdio_poison { range: rest, mode: 0, updated: 0 };
            // SAFETY: opcode and structure belong together, as `abi` asserts.
            let call = unsafe { Updater::<{ abi::UFFDIO_POISON }, _>::new(&mut request) };
            // SAFETY: the kernel fills missing pages only and refuses ranges
            // that this descriptor does not watch.
            let result = unsafe { rustix::ioctl::ioctl(&self.fd, call) };
            let updated = usize::try_from(request.updated).unwrap_or(0);
            done += updated;
            match result {
                Err(errno) if updated == 0 => return Err(errno),
                _ => {}
            }
        }
        Ok(())
    }

    /// Appends the faults that wait to be read, without blocking.
    ///
    /// # Errors
    /// read(2) failed.
    pub fn read(&self, events: &mut Vec<Event>) -> Result<(), Errno> {
        /// Messages read at once.
        const MESSAGES: usize = 16;
        const SIZE: usize = size_of::<abi::uffd_msg>();
        let mut buffer = [0; MESSAGES * SIZE];
        let length = match rustix::io::read(&self.fd, &mut buffer) {
            Ok(length) => length,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => return Err(error),
        };
        events.extend(buffer[..length].chunks_exact(SIZE).filter_map(parse));
        Ok(())
    }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `struct uffd_msg`: the event in its first byte, and for a page fault flags
/// at 8 and the address at 16.
fn parse(message: &[u8]) -> Option<Event> {
    let word = |at: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(message.get(at..at + 8)?.try_into().ok()?))
    };
    if u32::from(*message.first()?) != abi::UFFD_EVENT_PAGEFAULT {
        return None;
    }
    let flags = word(8)?;
    let address = usize::try_from(word(16)?).ok()?;
    Some(Event {
        address: Hva(address & !0xfff),
        write_protect: flags & u64::from(abi::UFFD_PAGEFAULT_FLAG_WP) != 0,
        minor: flags & u64::from(abi::UFFD_PAGEFAULT_FLAG_MINOR) != 0,
        write: flags & u64::from(abi::UFFD_PAGEFAULT_FLAG_WRITE) != 0,
    })
}

fn handshake(fd: BorrowedFd<'_>, features: Features) -> io::Result<Features> {
    let mut api = abi::uffdio_api { api: abi::UFFD_API.into(), features: features.0, ioctls: 0 };
    // SAFETY: opcode and structure belong together, as `abi` asserts.
    let call = unsafe { Updater::<{ abi::UFFDIO_API }, _>::new(&mut api) };
    // SAFETY: the kernel writes into `api` only.
    unsafe { rustix::ioctl::ioctl(fd, call) }?;
    Ok(Features(api.features))
}

fn raw_range(range: HvaRange) -> abi::uffdio_range {
    abi::uffdio_range { start: range.start().0 as u64, len: range.len() as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_the_kernel_writes_it() {
        let mut message = [0u8; 32];
        message[0] = 0x12;
        message[8] = 3;
        message[16..24].copy_from_slice(&0x7f00_0000_1234u64.to_ne_bytes());
        let event = parse(&message).unwrap();
        assert_eq!(
            event,
            Event {
                address: Hva(0x7f00_0000_1000),
                write_protect: true,
                minor: false,
                write: true
            }
        );
        message[0] = 0x15;
        assert_eq!(parse(&message), None);
        assert_eq!(parse(&[]), None);
    }

    #[test]
    fn features_that_are_not_wanted_are_masked() {
        let doors = [Door::SystemCall, Door::Device];
        let uffd = Userfaultfd::open(Features::MISSING_SHMEM, &doors).unwrap();
        assert!(!uffd.opened().features.contains(Features::MOVE));
    }
}
