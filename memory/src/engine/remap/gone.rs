//! Devices that are taken from their driver while they are in use. The kernel
//! unmaps all of it, and who touches it gets SIGBUS with BUS_ADRERR, or KVM_RUN
//! an EFAULT that names no address (`kvm_handle_error_pfn` in
//! arch/x86/kvm/mmu/mmu.c).
#![allow(unsafe_code)]

use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect, munmap};

use super::RemapEngine;
use super::files::{Area, FileKind};
use super::over::shut;
use crate::addr::HUGE_PAGE_SIZE;
use crate::hva::HvaRange;
use crate::uffd::Modes;

impl Area {
    /// Whether it was found to be gone.
    pub(super) fn was_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Whether it is a device that nobody can map any more (`dax_mmap` in
    /// drivers/dax/device.c). One that comes back is gone all the same: others
    /// may have written to it.
    pub(super) fn is_gone(&self) -> bool {
        if self.kind != FileKind::Dax || self.was_gone() {
            return self.was_gone();
        }
        let size = HUGE_PAGE_SIZE as usize;
        // SAFETY: a new mapping at an address of the kernel's choice, of a file
        // that is open; nobody is told of it.
        let mapped =
            unsafe { mmap(null_mut(), size, ProtFlags::READ, MapFlags::SHARED, &self.file, 0) };
        match mapped {
            Ok(start) => {
                // SAFETY: it was mapped above, and nobody has its address.
                let _ = unsafe { munmap(start, size) };
            }
            Err(Errno::NXIO | Errno::NODEV) => self.gone.store(true, Ordering::Release),
            // Out of address space, for instance: that says nothing of the device.
            Err(_) => {}
        }
        self.was_gone()
    }
}

impl RemapEngine {
    /// Maps memory that has failed over `range` of the guest.
    pub(super) fn void(&self, range: HvaRange) -> Result<(), Errno> {
        let start = range.start().as_ptr().cast();
        // Nobody reaches it until every page of it is marked: it would read as
        // zeros.
        // SAFETY: the range is guest memory of this engine, whose contents are
        // lost, and which no reference points to.
        unsafe { shut(range, MapFlags::FIXED) }?;
        let all = MprotectFlags::READ | MprotectFlags::WRITE;
        let marked = self.uffd.register(range, Modes::Missing).and_then(|()| {
            self.uffd.poison(range)?;
            // SAFETY: as above.
            unsafe { mprotect(start, range.len(), all) }
        });
        self.wake(range);
        marked
    }
}
