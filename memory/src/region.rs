//! A range of this process's address space that holds guest memory.
//!
//! The range is reserved first and the memory is mapped into it, so that its
//! start has the alignment that a guest-physical huge page needs: KVM maps
//! 2 MiB at once only where host and guest addresses agree modulo 2 MiB.
//!
//! Invariant: the reservation belongs to one [`Region`] and is unmapped when
//! that is dropped; nothing else maps into it.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::addr::HUGE_PAGE_SIZE;

/// An owned mapping of guest memory, aligned to a huge page.
#[derive(Debug)]
pub struct Region {
    reservation: NonNull<libc::c_void>,
    reserved: usize,
    start: NonNull<u8>,
    size: usize,
}

// SAFETY: a Region is an address range; it hands out no references, and the
// kernel calls made on it may come from any thread.
unsafe impl Send for Region {}
// SAFETY: as above; no method changes the range.
unsafe impl Sync for Region {}

/// What is mapped into a region.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// Private anonymous memory, without a reservation of swap space.
    Anonymous,
    /// A file from offset 0, shared.
    File(BorrowedFd<'a>),
    /// The same, without a reservation of huge pages: each is got when it is
    /// populated, or not.
    FileUnreserved(BorrowedFd<'a>),
}

impl Region {
    /// Maps `size` bytes (a multiple of the page size) of `source`.
    ///
    /// # Errors
    /// Whatever mmap(2) says; ENOMEM for hugetlb files means that there are
    /// too few free huge pages.
    pub fn map(size: usize, source: Source<'_>) -> Result<Self, Errno> {
        let align = HUGE_PAGE_SIZE as usize;
        let reserved = size.checked_add(align).ok_or(Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches
        // no memory that exists.
        let reservation = unsafe {
            mm::mmap_anonymous(
                std::ptr::null_mut(),
                reserved,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start = reservation.map_addr(|addr| addr.next_multiple_of(align));
        // The two are not null: mmap without MAP_FIXED never returns 0.
        let (Some(reservation), Some(start)) =
            (NonNull::new(reservation), NonNull::new(start.cast::<u8>()))
        else {
            return Err(Errno::NOMEM);
        };
        // From here on `drop` unmaps the reservation if the mapping fails.
        let region = Self { reservation, reserved, start, size };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: [start, start + size) lies within the reservation, because
        // `start` is less than `align` above its base and it is `size + align`
        // long; the reservation is ours and holds no memory yet.
        let mapped = unsafe {
            match source {
                Source::Anonymous => mm::mmap_anonymous(
                    start.as_ptr().cast(),
                    size,
                    prot,
                    MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED,
                ),
                Source::File(file) => mm::mmap(
                    start.as_ptr().cast(),
                    size,
                    prot,
                    MapFlags::SHARED | MapFlags::FIXED,
                    file,
                    0,
                ),
                Source::FileUnreserved(file) => mm::mmap(
                    start.as_ptr().cast(),
                    size,
                    prot,
                    MapFlags::SHARED | MapFlags::NORESERVE | MapFlags::FIXED,
                    file,
                    0,
                ),
            }
        };
        mapped.map(|_| region)
    }

    /// First byte, aligned to a huge page.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Fills all of it with zeros. Nobody else may use it yet.
    pub(crate) fn zero(&self) {
        // SAFETY: the range is ours, mapped and writable; it is plain memory,
        // to which no reference exists.
        unsafe { std::ptr::write_bytes(self.start.as_ptr(), 0, self.size) }
    }

    /// Tells the kernel how the range will be used, from byte `from` on.
    ///
    /// # Errors
    /// Whatever madvise(2) says; EINVAL if this kernel does not know `advice`
    /// or `from` is no multiple of the page size.
    pub fn advise(&self, from: usize, advice: Advice) -> Result<(), Errno> {
        let Some(length) = self.size.checked_sub(from).filter(|length| *length > 0) else {
            return Ok(());
        };
        // SAFETY: the range from `from`, which is less than the size, to the
        // end is ours and mapped. The advice used in this project (huge pages,
        // no fork, populate) changes no contents.
        unsafe { mm::madvise(self.start.as_ptr().add(from).cast(), length, advice) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the reservation is ours; whoever was given its address
        // (KVM's memory slots, vm-memory's regions) is dropped before it, as
        // `guest::GuestMemory` orders its fields.
        let _ = unsafe { mm::munmap(self.reservation.as_ptr(), self.reserved) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::MIB;

    #[test]
    fn regions_start_on_a_huge_page() {
        for size in [4096, 2 * MIB as usize, 3 * MIB as usize] {
            let region = Region::map(size, Source::Anonymous).unwrap();
            assert_eq!(region.start().as_ptr() as usize % HUGE_PAGE_SIZE as usize, 0);
            assert_eq!(region.size(), size);
        }
    }

    #[test]
    fn an_impossible_size_is_an_error() {
        assert!(Region::map(usize::MAX - 4095, Source::Anonymous).is_err());
    }
}
