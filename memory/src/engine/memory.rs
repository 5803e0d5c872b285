//! Raw memory for the engines: copying, zeroing, populating, asking the
//! kernel what is there. The addresses are those of guest memory and of
//! frames, to which no Rust reference ever exists.
#![allow(unsafe_code)]

use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general::pm_scan_arg;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};

use super::TRIES;
use crate::addr::PAGE_SIZE;
use crate::granule::GranuleSize;
use crate::hva::{Hva, HvaRange};
use crate::numa::calls;
use crate::poison::{self, Lost};
use crate::region::{Region, Source};
use crate::zeroed;

/// include/uapi/linux/fs.h
const PAGEMAP_SCAN: Opcode = opcode::read_write::<pm_scan_arg>(b'f', 16);
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610 && size_of::<pm_scan_arg>() == 96);
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
const PAGE_IS_HUGE: u64 = 1 << 6;

/// Copies `len` bytes; `private`: of private anonymous memory.
///
/// # Safety
/// Both ranges are mapped, do not overlap, and nobody else writes to either
/// meanwhile; guest vCPUs are held off by the engine.
///
/// # Errors
/// Memory of either has failed; see [`poison::copying`].
pub(crate) unsafe fn copy(from: Hva, to: Hva, len: usize, private: bool) -> Result<(), Vec<Lost>> {
    let ranges = [from, to].map(|start| HvaRange::new(start, len));
    poison::copying(ranges[0], ranges[1], private, || {
        // SAFETY: as this function's contract says.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), len) }
    })
}

/// Gives up the pages of `range`, private memory, and what is in them.
pub(crate) fn drop_pages(range: HvaRange) -> Result<(), Errno> {
    advise(range, libc::MADV_DONTNEED)
}

/// Makes the host's page at `page` one that has failed, for tests of what
/// follows (madvise(2), `MADV_HWPOISON`).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; EINVAL from a kernel without
/// CONFIG_MEMORY_FAILURE.
pub(crate) fn fail_page(page: Hva) -> Result<(), Errno> {
    advise_once(HvaRange::new(page, PAGE_SIZE as usize), libc::MADV_HWPOISON)
}

/// Fills `range` with zeros.
///
/// # Safety
/// The range is mapped and nobody else uses it meanwhile.
///
/// # Errors
/// As [`copy`].
pub(crate) unsafe fn zero(range: HvaRange, private: bool) -> Result<(), Vec<Lost>> {
    poison::copying(range, range, private, || {
        // SAFETY: as this function's contract says.
        unsafe { std::ptr::write_bytes(range.start().as_ptr(), 0, range.len()) }
    })
}

/// Makes every page of `range` present and writable. Changes no contents.
pub(crate) fn populate(range: HvaRange) -> Result<(), Errno> {
    advise(range, libc::MADV_POPULATE_WRITE)
}

/// Has pages that there are mapped, so that nobody faults on them later.
pub(crate) fn map_in(range: HvaRange) -> Result<(), Errno> {
    advise(range, libc::MADV_POPULATE_READ)
}

/// Makes huge pages of small ones, where the kernel can (since Linux 6.1). It
/// says EAGAIN for as long as anybody else holds one of them.
pub(crate) fn collapse(range: HvaRange) -> Result<(), Errno> {
    advise_once(range, libc::MADV_COLLAPSE)
}

/// Lets transparent huge pages be, or be not.
pub(crate) fn advise_huge(range: HvaRange, huge: bool) -> Result<(), Errno> {
    advise(range, if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE })
}

fn advise(range: HvaRange, advice: libc::c_int) -> Result<(), Errno> {
    let mut result = advise_once(range, advice);
    for _ in 0..TRIES {
        match result {
            Err(Errno::INTR | Errno::AGAIN) => std::thread::yield_now(),
            other => return other,
        }
        result = advise_once(range, advice);
    }
    result
}

fn advise_once(range: HvaRange, advice: libc::c_int) -> Result<(), Errno> {
    // SAFETY: every caller's advice leaves contents as they are, or its caller
    // means to lose them; a range that is not ours is refused by the kernel.
    let result = unsafe { libc::madvise(range.start().as_ptr().cast(), range.len(), advice) };
    if result == 0 {
        return Ok(());
    }
    let code = std::io::Error::last_os_error().raw_os_error();
    Err(Errno::from_raw_os_error(code.unwrap_or(libc::EIO)))
}

/// How many bytes of `range` are present (or swapped out), and how many of
/// those in huge pages.
///
/// # Errors
/// ENOTTY before Linux 6.7.
pub(crate) fn present(range: HvaRange) -> Result<Present, Errno> {
    let mut found = Present::default();
    scan(range, |pages, categories| {
        found.bytes += pages.len() as u64;
        found.huge += if is_huge(categories) { pages.len() as u64 } else { 0 };
        true
    })?;
    Ok(found)
}

/// The same with the kernel's page of zeros told apart, which takes no memory
/// however often it is mapped. Where it splits a huge page the kernel maps it
/// instead of pages that hold nothing but zeros (`try_to_map_unused_to_zeropage`
/// in mm/migrate.c, since Linux 6.12).
///
/// # Errors
/// As [`present`].
pub(crate) fn resident(range: HvaRange) -> Result<Resident, Errno> {
    let mut found = Resident::default();
    scan(range, |pages, categories| {
        let bytes = pages.len() as u64;
        if categories & PAGE_IS_PFNZERO != 0 {
            found.zeros += bytes;
        } else {
            found.bytes += bytes;
            found.huge += if is_huge(categories) { bytes } else { 0 };
        }
        true
    })?;
    Ok(found)
}

/// Answer of [`resident`], in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Pages that take memory, or swap space.
    pub(crate) bytes: u64,
    /// Of these, in huge pages.
    pub(crate) huge: u64,
    /// The page of zeros.
    pub(crate) zeros: u64,
}

fn is_huge(categories: u64) -> bool {
    categories & PAGE_IS_HUGE != 0
}

/// Addresses of the pages of `range` that there are: the first of a huge one,
/// each of the others.
///
/// # Errors
/// As [`present`].
pub(crate) fn pages_of(range: HvaRange) -> Result<Vec<usize>, Errno> {
    let mut found = Vec::new();
    scan(range, |pages, categories| {
        found.extend(calls::pages(pages, is_huge(categories)));
        true
    })?;
    Ok(found)
}

/// How many bytes from the start of `from` on have no page while the same
/// bytes of `to` have one: those that were moved there.
///
/// # Errors
/// As [`present`].
pub(crate) fn moved_ahead(from: HvaRange, to: Hva) -> Result<usize, Errno> {
    let mut gone = from.len();
    scan(from, |pages, _| {
        gone = pages.start().0 - from.start().0;
        false
    })?;
    let mut arrived = to;
    if gone > 0 {
        scan(HvaRange::new(to, gone), |pages, _| {
            let follows = pages.start() == arrived;
            arrived = if follows { pages.end() } else { arrived };
            follows
        })?;
    }
    Ok(arrived.0 - to.0)
}

/// Calls `each` with the parts of `range` that have pages, in order, and the
/// categories of those, until it says false.
fn scan(range: HvaRange, mut each: impl FnMut(HvaRange, u64) -> bool) -> Result<(), Errno> {
    const REGIONS: usize = 64;
    static PAGEMAP: OnceLock<Option<File>> = OnceLock::new();
    let pagemap = PAGEMAP.get_or_init(|| File::open("/proc/self/pagemap").ok());
    let pagemap = pagemap.as_ref().ok_or(Errno::NOENT)?;
    let mut start = range.start().0 as u64;
    let end = range.end().0 as u64;
    while start < end {
        // `struct page_region`: start, end, categories.
        let mut regions = [[0u64; 3]; REGIONS];
        let mut request = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: 0,
            start,
            end,
            walk_end: 0,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: 0,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO | PAGE_IS_HUGE,
        };
        // SAFETY: opcode and structure belong together, as asserted above.
        let call = unsafe { Updater::<PAGEMAP_SCAN, _>::new(&mut request) };
        // SAFETY: the kernel writes into `request` and, at the most `vec_len`
        // entries, into `regions`; both live until after the call.
        unsafe { rustix::ioctl::ioctl(pagemap, call) }?;
        for [start, end, categories] in regions.into_iter().filter(|[start, end, _]| start < end) {
            let pages = HvaRange::new(Hva(start as usize), (end - start) as usize);
            if !each(pages, categories) {
                return Ok(());
            }
        }
        if request.walk_end <= start {
            break;
        }
        start = request.walk_end;
    }
    Ok(())
}

/// Answer of [`present`], in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Present {
    /// Pages that are there.
    pub(crate) bytes: u64,
    /// Of these, in huge pages.
    pub(crate) huge: u64,
}

/// Whether any page of `range`, private memory, exists, also on kernels
/// without `PAGEMAP_SCAN`.
pub(crate) fn any_present(range: HvaRange) -> bool {
    match present(range) {
        Ok(present) => present.bytes > 0,
        Err(_) => any_in_core(range),
    }
}

/// Whether any page of `range` is in memory; of a file also those that this
/// process has not mapped.
pub(crate) fn any_in_core(range: HvaRange) -> bool {
    let mut pages = vec![0u8; range.len().div_ceil(PAGE_SIZE as usize)];
    // SAFETY: the vector has a byte for each page, and only it is written.
    let result =
        unsafe { libc::mincore(range.start().as_ptr().cast(), range.len(), pages.as_mut_ptr()) };
    // In doubt there is something to move.
    result != 0 || pages.iter().any(|page| page & 1 != 0)
}

/// One bit for each slot of an area, set once it has memory of its own.
#[derive(Debug)]
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(count: u32) -> Self {
        Self(zeroed::atomics((count as usize).div_ceil(64)))
    }

    fn get(&self, index: u32) -> bool {
        let word = self.0.get(index as usize / 64);
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (index % 64) & 1 == 1)
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.load(Ordering::Acquire).count_ones())).sum()
    }

    fn set(&self, index: u32) {
        if let Some(word) = self.0.get(index as usize / 64) {
            word.fetch_or(1 << (index % 64), Ordering::AcqRel);
        }
    }
}

/// A row of slots of one granule each, outside of the guest's range: the
/// frames of a pool, or the places where home pages wait while their granule
/// is away.
#[derive(Debug)]
pub(crate) struct Slots {
    region: Region,
    bytes: usize,
    backed: Bits,
}

impl Slots {
    /// `count` slots of private anonymous memory, none of which takes memory
    /// yet.
    pub(crate) fn anonymous(count: u32, size: GranuleSize, huge: bool) -> Result<Self, Errno> {
        let slots = Self::map(count, size, Source::Anonymous)?;
        // EINVAL: this host has no transparent huge pages; small ones serve.
        let _ = advise_huge(slots.range(), huge);
        Ok(slots)
    }

    /// `count` slots of the file `source`.
    pub(crate) fn map(count: u32, size: GranuleSize, source: Source<'_>) -> Result<Self, Errno> {
        let bytes = size.bytes() as usize;
        let total = bytes.checked_mul(count as usize).filter(|total| *total > 0);
        let region = Region::map(total.ok_or(Errno::NOMEM)?, source)?;
        region.advise(0, rustix::mm::Advice::LinuxDontFork)?;
        Ok(Self { region, bytes, backed: Bits::new(count) })
    }

    /// All of them.
    pub(crate) fn range(&self) -> HvaRange {
        HvaRange::new(Hva(self.region.start().as_ptr().expose_provenance()), self.region.size())
    }

    /// Where slot `index` begins. Callers stay inside of the row.
    pub(crate) fn at(&self, index: u32) -> Hva {
        debug_assert!((index as usize) < self.region.size() / self.bytes, "slot {index}");
        self.range().start().offset(index as usize * self.bytes)
    }

    /// Slot `index`.
    pub(crate) fn slot(&self, index: u32) -> HvaRange {
        HvaRange::new(self.at(index), self.bytes)
    }

    /// Whether the slot had memory of its own before.
    pub(crate) fn is_backed(&self, index: u32) -> bool {
        self.backed.get(index)
    }

    /// How many had.
    pub(crate) fn count_backed(&self) -> u64 {
        self.backed.count()
    }

    /// Runs of slots that never had, as pairs of first and count.
    pub(crate) fn unbacked(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let count = self.len();
        let mut next = 0;
        std::iter::from_fn(move || {
            let first = (next..count).find(|index| !self.is_backed(*index))?;
            next = (first..count).find(|index| self.is_backed(*index)).unwrap_or(count);
            Some((first, next - first))
        })
    }

    /// How many slots there are.
    pub(crate) fn len(&self) -> u32 {
        // It was made of so many.
        (self.region.size() / self.bytes) as u32
    }

    /// Notes that it has.
    pub(crate) fn set_backed(&self, index: u32) {
        self.backed.set(index);
    }

    /// Notes that none has any more.
    pub(crate) fn set_unbacked(&self) {
        self.backed.0.iter().for_each(|word| word.store(0, Ordering::Release));
    }

    /// Gives the slot memory, if it never had any.
    pub(crate) fn back(&self, index: u32) -> Result<(), Errno> {
        if !self.is_backed(index) {
            populate(self.slot(index))?;
            self.set_backed(index);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_take_memory_when_they_are_backed() {
        let slots = Slots::anonymous(8, GranuleSize::M2, true).unwrap();
        assert_eq!(present(slots.range()).unwrap(), Present::default());
        assert!(!any_present(slots.range()));
        slots.back(3).unwrap();
        assert!(slots.is_backed(3) && !slots.is_backed(2));
        assert_eq!((slots.count_backed(), slots.len()), (1, 8));
        assert_eq!(slots.unbacked().collect::<Vec<_>>(), [(0, 3), (4, 4)]);
        assert_eq!(present(slots.range()).unwrap().bytes, slots.slot(3).len() as u64);
        assert!(any_present(slots.slot(3)) && !any_present(slots.slot(4)));
    }
    #[test]
    fn what_moved_ahead_is_what_is_missing_here_and_there_over_there() {
        let slots = Slots::anonymous(2, GranuleSize::K64, false).unwrap();
        let (from, to) = (slots.slot(0), slots.slot(1));
        let page = |slot: HvaRange, index: usize, count: usize| {
            HvaRange::new(slot.start().offset(index * 4096), count * 4096)
        };
        // Nothing anywhere.
        assert_eq!(moved_ahead(from, to.start()), Ok(0));
        populate(page(to, 0, 3)).unwrap();
        populate(page(to, 5, 4)).unwrap();
        assert_eq!(moved_ahead(from, to.start()), Ok(3 * 4096));
        populate(page(from, 2, 1)).unwrap();
        assert_eq!(moved_ahead(from, to.start()), Ok(2 * 4096));
        populate(page(from, 0, 1)).unwrap();
        assert_eq!(moved_ahead(from, to.start()), Ok(0));
    }
}
