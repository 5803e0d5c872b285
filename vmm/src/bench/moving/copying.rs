//! The reference of what a copy costs: the engines' copy function on memory of
//! the same kind and page size, with no guest in it.
#![allow(unsafe_code)]

use std::time::Instant;

use neap_memory::Backing;
use neap_memory::backing::{self, Mapped};

use super::host::{SmallPages, check_huge};
use super::{BenchError, Spent, Variant, Way};

/// Two areas, present in memory, to copy between.
#[derive(Debug)]
pub struct Copying {
    home: Mapped,
    device: Mapped,
    granule: usize,
}

impl Copying {
    /// Areas of `size` bytes each.
    ///
    /// # Errors
    /// Too little memory of that kind.
    pub fn new(variant: Variant, size: u64) -> Result<Self, BenchError> {
        let map = || backing::map(size, variant.backing(), 0, true);
        // Pages that are small now stay small: khugepaged takes minutes for an
        // area, and is asked not to here.
        let _small = variant.small_pages().then(SmallPages::only).transpose()?;
        let (home, device) = (map()?, map()?);
        if variant.small_pages() && variant.backing() == Backing::Anon {
            for area in [&home, &device] {
                // EINVAL: there are no others on this host anyway.
                let _ = area.region.advise(0, rustix::mm::Advice::LinuxNoHugepage);
            }
        }
        if variant == Variant::Thp2m {
            for area in [&home, &device] {
                collapse(area);
                check_huge(area.region.start().as_ptr().addr(), size)?;
            }
        }
        Ok(Self { home, device, granule: variant.granule().bytes() as usize })
    }

    /// Copies `granules`, one after the other.
    pub fn send(&mut self, granules: &[u64], way: Way) -> Spent {
        let since = Instant::now();
        granules.iter().for_each(|granule| self.one(*granule, way));
        let elapsed = since.elapsed();
        Spent { elapsed, copying: elapsed }
    }

    /// Copies one granule. A granule that the areas do not have panics.
    pub fn one(&mut self, granule: u64, way: Way) {
        let (home, device) = (&self.home.region, &self.device.region);
        let (from, to) = match way {
            Way::Out => (home, device),
            Way::Back => (device, home),
        };
        let offset = granule as usize * self.granule;
        assert!(offset + self.granule <= from.size(), "granule {granule} is beyond the area");
        // SAFETY: both ranges lie within mappings that `self` owns, as just
        // checked, readable and writable; the two mappings are apart, and
        // nobody else uses them.
        unsafe {
            let (from, to) = (from.start().add(offset), to.start().add(offset));
            std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), self.granule);
        }
    }
}

/// Makes huge pages of those that the kernel gave in small ones, where it can;
/// whether it could is looked at afterwards.
fn collapse(area: &Mapped) {
    let start = area.region.start().as_ptr().cast();
    // SAFETY: a mapping that the caller owns; its contents stay as they are.
    let _ = unsafe { libc::madvise(start, area.region.size(), libc::MADV_COLLAPSE) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use neap_memory::addr::MIB;

    #[test]
    fn granules_are_copied_both_ways() {
        let mut copying = Copying::new(Variant::K4, 4 * MIB).unwrap();
        let last = copying.home.region.start().as_ptr();
        // SAFETY: the last page of the area, which the test owns.
        let last = unsafe { last.add(4 * MIB as usize - 4096) };
        // SAFETY: as above.
        unsafe { last.write_volatile(7) };
        assert!(copying.send(&[1023], Way::Out).elapsed.as_nanos() > 0);
        // SAFETY: as above.
        unsafe { last.write_volatile(0) };
        copying.one(1023, Way::Back);
        // SAFETY: as above.
        assert_eq!(unsafe { last.read_volatile() }, 7);
    }
}
