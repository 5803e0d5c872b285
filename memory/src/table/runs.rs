//! The table as a list of runs: neighbours in the same state count as one.

use std::ops::Range;

use super::{GranuleTable, Place, View};
use crate::granule::{Frame, Granule};

/// Iterator of [`GranuleTable::runs`].
#[derive(Clone)]
pub(super) struct Runs<'a> {
    pub(super) table: &'a GranuleTable,
    pub(super) next: u32,
    pub(super) end: u32,
}

impl Iterator for Runs<'_> {
    type Item = (Range<u32>, View);

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.end {
            return None;
        }
        let start = self.next;
        let first = self.table.get(Granule(start));
        self.next += 1;
        while self.next < self.end
            && Some(self.table.get(Granule(self.next))) == continued(first, self.next - start)
        {
            self.next += 1;
        }
        Some((start..self.next, first))
    }
}

/// What the granule `distance` after one in state `first` has to look like to
/// belong to its run.
fn continued(first: View, distance: u32) -> Option<View> {
    let place = match first.place {
        Place::Device { pool, frame } => {
            Place::Device { pool, frame: Frame(frame.0.checked_add(distance)?) }
        }
        place => place,
    };
    Some(View { place, ..first })
}
