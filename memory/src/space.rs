//! Guest memory as a row of granules: which guest-physical address and which
//! host address each one has, and where it was born. Pure.
//!
//! Invariant: granules are numbered in order of guest-physical address,
//! without gaps between the parts.

use crate::granule::{Frame, Granule, GranuleSize, PoolId};
use crate::hva::{Hva, HvaRange};
use crate::table::Place;
use crate::{Gpa, GpaRange};

/// What a part of guest memory is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// RAM; its granules are born at home.
    Ram,
    /// The SPM window of a device region; its granules are born in the first
    /// frames of that region's pool.
    Window(PoolId),
}

/// One memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Where the guest sees it.
    pub range: GpaRange,
    /// Where this process sees it.
    pub hva: Hva,
    /// What it is.
    pub origin: Origin,
    /// Its first granule.
    pub first: u32,
    /// Granules.
    pub count: u32,
}

/// All of guest memory.
#[derive(Clone, Debug)]
pub struct Space {
    size: GranuleSize,
    parts: Vec<Part>,
    granules: u32,
}

impl Space {
    /// Numbers the granules of `parts`, given in order of address. `None` if
    /// one is not whole granules or there are more than 2^32 - 1.
    pub fn new(
        size: GranuleSize,
        parts: impl IntoIterator<Item = (GpaRange, Hva, Origin)>,
    ) -> Option<Self> {
        let bytes = size.bytes();
        let mut granules = 0u32;
        let mut numbered = Vec::new();
        for (range, hva, origin) in parts {
            if !range.base().is_aligned(bytes) || !range.size().is_multiple_of(bytes) {
                return None;
            }
            let count = u32::try_from(range.size() / bytes).ok()?;
            numbered.push(Part { range, hva, origin, first: granules, count });
            granules = granules.checked_add(count)?;
        }
        Some(Self { size, parts: numbered, granules })
    }

    /// Size of a granule.
    pub fn size(&self) -> GranuleSize {
        self.size
    }

    /// Bytes of a granule.
    pub fn bytes(&self) -> usize {
        self.size.bytes() as usize
    }

    /// Granules.
    pub fn granules(&self) -> u32 {
        self.granules
    }

    /// Memory slots in order of address.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The part that `granule` lies in.
    pub fn part(&self, granule: Granule) -> Option<&Part> {
        let index = self.parts.partition_point(|part| part.first <= granule.0);
        let part = self.parts.get(index.checked_sub(1)?)?;
        (granule.0 - part.first < part.count).then_some(part)
    }

    /// Where this process sees a granule.
    pub fn hva(&self, granule: Granule) -> Option<Hva> {
        let part = self.part(granule)?;
        Some(part.hva.offset((granule.0 - part.first) as usize * self.bytes()))
    }

    /// The granule at a host address.
    pub fn at_hva(&self, address: Hva) -> Option<Granule> {
        self.parts.iter().find_map(|part| {
            let offset = address.0.checked_sub(part.hva.0)? / self.bytes();
            let index = u32::try_from(offset).ok().filter(|index| *index < part.count)?;
            Some(Granule(part.first + index))
        })
    }

    /// The guest-physical range of `count` granules from `first`, cut off at
    /// the end of the part.
    pub fn gpa(&self, first: Granule, count: u32) -> Option<GpaRange> {
        let part = self.part(first)?;
        let index = first.0 - part.first;
        let base = part.range.base().0 + u64::from(index) * self.size.bytes();
        let count = count.min(part.count - index);
        GpaRange::new(Gpa(base), u64::from(count) * self.size.bytes())
    }

    /// The same in this process.
    pub fn hva_range(&self, first: Granule, count: u32) -> Option<HvaRange> {
        let part = self.part(first)?;
        let count = count.min(part.count - (first.0 - part.first));
        Some(HvaRange::new(self.hva(first)?, count as usize * self.bytes()))
    }

    /// The granules of a guest-physical range, as pairs of first and count,
    /// one for each part that it touches. `None` if some of it is not guest
    /// memory or it is not whole granules.
    pub fn granules_of(&self, range: GpaRange) -> Option<Vec<(Granule, u32)>> {
        let bytes = self.size.bytes();
        if !range.base().is_aligned(bytes) || !range.size().is_multiple_of(bytes) {
            return None;
        }
        let mut found = Vec::new();
        let mut at = range.base();
        while at < range.end() {
            let part =
                self.parts.iter().find(|part| part.range.base() <= at && at < part.range.end())?;
            let end = part.range.end().min(range.end());
            let index = (at.0 - part.range.base().0) / bytes;
            let count = (end.0 - at.0) / bytes;
            // Both are less than the part's count, which is 32 bits.
            found.push((Granule(part.first + index as u32), count as u32));
            at = end;
        }
        Some(found)
    }

    /// Where a granule is as long as nobody moved it.
    pub fn birthplace(&self, granule: Granule) -> Place {
        match self.part(granule) {
            Some(Part { origin: Origin::Window(pool), first, .. }) => {
                Place::Device { pool: *pool, frame: Frame(granule.0 - first) }
            }
            _ => Place::Home,
        }
    }

    /// `place`, or the birthplace of a granule that nobody touched.
    pub fn actual(&self, granule: Granule, place: Place) -> Place {
        match place {
            Place::Untouched => self.birthplace(granule),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::MIB;

    fn space() -> Space {
        let range = |base, size| GpaRange::new(Gpa(base), size).unwrap();
        let parts = [
            (range(0, 8 * MIB), Hva(0x10_0000_0000), Origin::Ram),
            (range(64 * MIB, 4 * MIB), Hva(0x20_0000_0000), Origin::Window(PoolId(0))),
        ];
        Space::new(GranuleSize::M2, parts).unwrap()
    }

    #[test]
    fn granules_have_one_address_in_each_world() {
        let space = space();
        assert_eq!(space.granules(), 6);
        for granule in (0..6).map(Granule) {
            let hva = space.hva(granule).unwrap();
            assert_eq!(space.at_hva(hva), Some(granule));
            assert_eq!(space.at_hva(hva.offset(2 * MIB as usize - 1)), Some(granule));
            let gpa = space.gpa(granule, 1).unwrap();
            assert_eq!(space.granules_of(gpa), Some(vec![(granule, 1)]));
        }
        assert_eq!(space.hva(Granule(6)), None);
        assert_eq!(space.at_hva(Hva(0x10_0080_0000)), None);
        assert_eq!(space.at_hva(Hva(0)), None);
    }

    #[test]
    fn ranges_outside_of_memory_or_inside_of_granules_are_none() {
        let space = space();
        let granules = |base, size| space.granules_of(GpaRange::new(Gpa(base), size).unwrap());
        assert_eq!(granules(0, 8 * MIB), Some(vec![(Granule(0), 4)]));
        assert_eq!(granules(6 * MIB, 4 * MIB), None);
        assert_eq!(granules(MIB, 2 * MIB), None);
        assert_eq!(granules(0, MIB), None);
        assert_eq!(granules(64 * MIB, 4 * MIB), Some(vec![(Granule(4), 2)]));
        assert_eq!(granules(u64::MAX - 2 * MIB + 1, 2 * MIB - 1), None);
    }

    #[test]
    fn a_window_is_born_in_the_first_frames_of_its_region() {
        let space = space();
        assert_eq!(space.birthplace(Granule(3)), Place::Home);
        let place = Place::Device { pool: PoolId(0), frame: Frame(1) };
        assert_eq!(space.birthplace(Granule(5)), place);
        assert_eq!(space.actual(Granule(5), Place::Home), Place::Home);
    }
}
