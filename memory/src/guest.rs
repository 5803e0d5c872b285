//! The guest's memory: its map, and the host memory behind every range of it.
//!
//! Each range is a memory slot of its own, so that a device region can be
//! told from RAM by the kernel too.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionCollectionError, GuestRegionMmap};

use crate::addr::{Gpa, GpaRange, HUGE_PAGE_SIZE};
use crate::backing::{self, Backing, BackingError, Mapped};
use crate::region::Region;

/// A range of guest memory and how the host memory behind it is got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeSpec {
    /// Where the guest sees it.
    pub range: GpaRange,
    /// Kind of host memory.
    pub backing: Backing,
    /// Whether every page is there before the guest starts.
    pub prefault: bool,
}

/// A range of guest memory as KVM wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Where the guest sees it.
    pub range: GpaRange,
    /// Host-virtual address of its first byte (HVA).
    pub hva: u64,
}

/// The guest's memory. The fields are dropped in order: the view first, the
/// mappings after it.
#[derive(Debug)]
pub struct GuestMemory {
    view: GuestMemoryMmap,
    slots: Vec<Slot>,
    files: Vec<Option<OwnedFd>>,
    _regions: Vec<Region>,
}

/// Why there is no guest memory.
#[derive(Debug, thiserror::Error)]
pub enum GuestMemoryError {
    /// The host memory of one range could not be got.
    #[error("{source}")]
    Backing {
        /// Index of the range in the request.
        index: usize,
        /// Why.
        #[source]
        source: BackingError,
    },
    /// A mapping that vm-memory refuses.
    #[error("guest memory: {0}")]
    Mapping(#[from] MmapRegionError),
    /// A collection that vm-memory refuses: ranges overlap or are unsorted.
    #[error("guest memory: {0}")]
    Collection(#[from] GuestRegionCollectionError),
    /// A range that wraps.
    #[error("guest memory: {0} does not fit the address space")]
    Wraps(GpaRange),
}

impl GuestMemory {
    /// Maps every range; they may come in any order and must not overlap.
    ///
    /// # Errors
    /// [`GuestMemoryError::Backing`] with the index of the range whose host
    /// memory is not to be had.
    pub fn new(ranges: &[RangeSpec]) -> Result<Self, GuestMemoryError> {
        let mut mapped = Vec::with_capacity(ranges.len());
        for (index, spec) in ranges.iter().enumerate() {
            let RangeSpec { range, backing, prefault } = *spec;
            // The first huge page of RAM holds little more than the boot
            // structures; to zero it whole would be a third of the processor
            // time that a tiny guest takes. With `prefault` it is all wanted.
            let low = range.base() == Gpa(0) && !prefault;
            let huge_from = if low { HUGE_PAGE_SIZE as usize } else { 0 };
            let memory = backing::map(range.size(), backing, huge_from, prefault)
                .map_err(|source| GuestMemoryError::Backing { index, source })?;
            mapped.push((range, memory));
        }
        mapped.sort_by_key(|(range, _)| range.base());
        let mut parts = Vec::with_capacity(mapped.len());
        let mut slots = Vec::with_capacity(mapped.len());
        let mut regions = Vec::with_capacity(mapped.len());
        let mut files = Vec::with_capacity(mapped.len());
        for (range, Mapped { region, file }) in mapped {
            // SAFETY: the mapping is `region.size()` bytes from
            // `region.start()`, readable and writable, and outlives the view,
            // because `GuestMemory` drops the view first.
            let mmap = unsafe {
                MmapRegionBuilder::new(region.size())
                    .with_raw_mmap_pointer(region.start().as_ptr())
                    .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                    .with_mmap_flags(libc::MAP_NORESERVE)
                    .build()
            }?;
            let part = GuestRegionMmap::new(mmap, GuestAddress(range.base().0))
                .ok_or(GuestMemoryError::Wraps(range))?;
            parts.push(part);
            slots.push(Slot { range, hva: region.start().as_ptr() as u64 });
            regions.push(region);
            files.push(file);
        }
        let view = GuestMemoryMmap::from_regions(parts)?;
        Ok(Self { view, slots, files, _regions: regions })
    }

    /// The memory as vm-memory sees it.
    pub fn view(&self) -> &GuestMemoryMmap {
        &self.view
    }

    /// The file behind slot `index`; none if it is anonymous memory.
    pub fn file(&self, index: usize) -> Option<BorrowedFd<'_>> {
        self.files.get(index)?.as_ref().map(AsFd::as_fd)
    }

    /// Memory slots, in order of address.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;
    use crate::addr::MIB;

    fn spec(base: u64, size: u64) -> RangeSpec {
        let range = GpaRange::new(Gpa(base), size).unwrap();
        RangeSpec { range, backing: Backing::Anon, prefault: false }
    }

    #[test]
    fn every_range_is_a_slot_of_its_own_in_order() {
        let memory = GuestMemory::new(&[spec(4 * MIB, 2 * MIB), spec(0, 4 * MIB)]).unwrap();
        let bases: Vec<_> = memory.slots().iter().map(|slot| slot.range.base().0).collect();
        assert_eq!(bases, [0, 4 * MIB]);
        assert_eq!(memory.view().num_regions(), 2);
        memory.view().write_obj(0x5au8, GuestAddress(4 * MIB)).unwrap();
        assert_eq!(memory.view().read_obj::<u8>(GuestAddress(4 * MIB)).unwrap(), 0x5a);
        assert!(memory.view().write_obj(1u8, GuestAddress(6 * MIB)).is_err());
    }

    #[test]
    fn ranges_that_overlap_are_refused() {
        assert!(GuestMemory::new(&[spec(0, 4 * MIB), spec(2 * MIB, 2 * MIB)]).is_err());
    }
}
