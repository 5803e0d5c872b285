//! What memory the engine has, and what a step would add.

use std::os::fd::AsFd;

use rustix::fs::{SeekFrom, seek};

use super::RemapEngine;
use super::files::{Area, FileKind, Spot};
use crate::engine::Step;
use crate::engine::rows::{Holder, Row};
use crate::granule::PoolId;
use crate::table::Place;

impl RemapEngine {
    pub(super) fn all_rows(&self) -> Vec<Row<'_>> {
        fn row(area: &Area, holder: Holder) -> Row<'_> {
            Row { holder, slots: &area.alias, file: Some(area.file.as_fd()) }
        }
        let homes = self.homes.iter().map(|home| row(home, Holder::Home(home.first)));
        let pools = (0..).zip(&self.pools).map(|(id, pool)| row(pool, Holder::Pool(PoolId(id))));
        homes.chain(pools).collect()
    }

    /// Bytes that a step takes anew, at the most.
    pub(super) fn bytes_taken_by(&self, step: &Step) -> u64 {
        let bytes = self.space.size().bytes();
        let new = |place: Place, has: &dyn Fn(Spot<'_>) -> bool| {
            let spot = self.spot(step.granule, place);
            // A device is all there, and huge pages are charged elsewhere.
            let charged = spot.area.kind == FileKind::Small && !has(spot);
            if charged { bytes } else { 0 }
        };
        if !step.from_mapped {
            // Its home page was punched out.
            return new(step.to, &|_| false);
        }
        let backed = |spot: Spot<'_>| spot.area.alias.is_backed(spot.index);
        // Holes that nobody touched yet are filled when they are copied.
        let whole = |spot: Spot<'_>| {
            let start = spot.offset(self.space.bytes());
            let hole = seek(spot.file(), SeekFrom::Hole(start));
            backed(spot) || hole.is_ok_and(|hole| hole >= start + bytes)
        };
        new(step.from, &whole) + new(step.to, &backed)
    }
}
