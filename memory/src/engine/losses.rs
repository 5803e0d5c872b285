//! What an engine has lost to host memory that failed while it was copied:
//! the pages of a slot that are void, and the places that nobody is to use
//! again.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::granule::Granule;
use crate::hva::Hva;
use crate::table::Place;

/// Losses of one engine. Nothing was lost, nearly always: then each question
/// is one load.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    any: AtomicBool,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    /// By the slot's first byte: bytes of the slot that are void, in order.
    holes: BTreeMap<usize, Vec<Range<usize>>>,
    /// Not yet told.
    places: Vec<(Granule, Place)>,
}

impl Losses {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Host memory of `place` failed, where `granule` is or was to go.
    pub(crate) fn place(&self, granule: Granule, place: Place) {
        self.books().places.push((granule, place));
        self.any.store(true, Ordering::Release);
    }

    /// `bytes` of `slot` are void.
    pub(crate) fn hole(&self, slot: Hva, bytes: Range<usize>) {
        let mut books = self.books();
        let holes = books.holes.entry(slot.0).or_default();
        if !holes.contains(&bytes) {
            holes.push(bytes);
            holes.sort_by_key(|hole| hole.start);
        }
        self.any.store(true, Ordering::Release);
    }

    /// Whether a slot has void bytes.
    pub(crate) fn has_holes(&self, slot: Hva) -> bool {
        self.any.load(Ordering::Acquire) && self.books().holes.contains_key(&slot.0)
    }

    /// A copy of `from` is in `to`, and is void where `from` is.
    pub(crate) fn copied(&self, from: Hva, to: Hva) {
        if self.has_holes(from) {
            let mut books = self.books();
            if let Some(holes) = books.holes.get(&from.0).cloned() {
                books.holes.insert(to.0, holes);
            }
        }
    }

    /// Forgets the void bytes of a slot, and says which they were.
    pub(crate) fn take_holes(&self, slot: Hva) -> Vec<Range<usize>> {
        self.books().holes.remove(&slot.0).unwrap_or_default()
    }

    /// The places that failed under one of `granules`, which the caller has
    /// claimed, since this was asked last.
    pub(crate) fn take_places(
        &self,
        granules: &mut dyn Iterator<Item = Granule>,
    ) -> Vec<(Granule, Place)> {
        if !self.any.load(Ordering::Acquire) {
            return Vec::new();
        }
        let granules: Vec<Granule> = granules.collect();
        let mut books = self.books();
        books.places.extract_if(.., |(granule, _)| granules.contains(granule)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_void_where_its_source_is() {
        let losses = Losses::default();
        let (from, to) = (Hva(0x1000_0000), Hva(0x2000_0000));
        assert!(!losses.has_holes(from));
        losses.hole(from, 0x3000..0x4000);
        losses.hole(from, 0x1000..0x2000);
        losses.hole(from, 0x1000..0x2000);
        losses.copied(from, to);
        assert_eq!(losses.take_holes(to), [0x1000..0x2000, 0x3000..0x4000]);
        assert!(losses.has_holes(from) && !losses.has_holes(to));
    }

    #[test]
    fn a_place_is_told_once() {
        let losses = Losses::default();
        let take = |granule| losses.take_places(&mut [Granule(granule)].into_iter());
        assert_eq!(take(3), []);
        losses.place(Granule(3), Place::Home);
        // Somebody else's.
        assert_eq!(take(4), []);
        assert_eq!(take(3), [(Granule(3), Place::Home)]);
        assert_eq!(take(3), []);
    }
}
