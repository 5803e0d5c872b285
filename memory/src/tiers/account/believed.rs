//! What Neap knows it gave memory.

use crate::engine::rows::{Holder, Row};
use crate::granule::{Granule, PoolId};
use crate::table::{Place, View};
use crate::tiers::Tiers;

/// Index of a tier in lists: home, then each pool.
pub(super) fn index(pool: Option<PoolId>) -> usize {
    pool.map_or(0, |pool| 1 + usize::from(pool.0))
}

/// The row of home pages that a granule's is in.
pub(super) fn home_row<'r, 'a>(rows: &'r [Row<'a>], granule: Granule) -> Option<&'r Row<'a>> {
    let first = |row: &&Row<'_>| match row.holder {
        Holder::Home(first) if first <= granule.0 => Some(first),
        _ => None,
    };
    rows.iter().filter(|row| first(row).is_some()).max_by_key(first)
}

/// Row and slot of a place.
fn slot<'r, 'a>(rows: &'r [Row<'a>], granule: Granule, place: Place) -> Option<(&'r Row<'a>, u32)> {
    match place {
        Place::Device { pool, frame } => {
            let row = rows.iter().find(|row| row.holder == Holder::Pool(pool))?;
            Some((row, frame.0))
        }
        Place::Home | Place::Untouched => {
            let row = home_row(rows, granule)?;
            let Holder::Home(first) = row.holder else { return None };
            Some((row, granule.0 - first))
        }
    }
}

impl Tiers {
    /// Bytes of each tier.
    pub(super) fn believe(&self, rows: &[Row<'_>]) -> Vec<u64> {
        let core = &self.core;
        let files = rows.iter().any(|row| row.file.is_some());
        let mut granules = vec![0u64; 1 + core.pools.len()];
        for row in rows {
            let pool = match row.holder {
                Holder::Home(_) => None,
                Holder::Pool(pool) => Some(pool),
            };
            granules[index(pool)] += row.slots.count_backed();
        }
        for part in core.space.parts() {
            let end = Granule(part.first + part.count);
            for (run, view) in core.table.runs(Granule(part.first), end) {
                if view.place == Place::Untouched {
                    continue;
                }
                for number in run.clone() {
                    let granule = Granule(number);
                    let place = along(view, number - run.start);
                    let pool = match place {
                        Place::Device { pool, .. } => Some(pool),
                        _ => None,
                    };
                    let backed = |place| {
                        slot(rows, granule, place)
                            .is_some_and(|(row, slot)| row.slots.is_backed(slot))
                    };
                    if !files {
                        // Adopted, and it never left: its page was in no slot.
                        granules[index(pool)] += u64::from(!backed(place));
                    } else if pool.is_some() && !view.mapped && backed(Place::Home) {
                        // Its home page was punched out.
                        granules[0] = granules[0].saturating_sub(1);
                    }
                }
            }
        }
        let bytes = core.space.size().bytes();
        granules.into_iter().map(|count| count * bytes).collect()
    }
}

/// The place of a granule further along a run.
fn along(view: View, distance: u32) -> Place {
    match view.place {
        Place::Device { pool, frame } => {
            Place::Device { pool, frame: crate::granule::Frame(frame.0 + distance) }
        }
        place => place,
    }
}
