//! How many VMAs a move may add: mappings that continue one another are one.

use super::core::{Core, Job};
use crate::granule::Granule;
use crate::table::{Place, View};

/// Where the granule beside one is mapped.
enum Side {
    /// There.
    At(Place),
    /// It is moving.
    Unknown,
    /// In a mapping of its own in any case.
    Apart,
}

impl Core {
    /// VMAs that the way of `job` may add. A mapping that goes on where its
    /// neighbour's ends is one with it, so that a granule that comes home to
    /// neighbours at home takes none, and gives some back.
    pub(super) fn vmas(&self, job: &Job, last: Option<(Granule, Place)>) -> u64 {
        let most = self.engine.vmas_per_run();
        if most == 0 || !job.from_mapped {
            return 0;
        }
        if !job.to_mapped {
            return most;
        }
        let granule = job.claimed.granule.0;
        let before = match (granule.checked_sub(1), last) {
            (None, _) => Side::Apart,
            (Some(before), Some((last, place))) if last.0 == before => Side::At(place),
            (Some(before), _) => self.side(Granule(before), job),
        };
        let after = self.side(Granule(granule.saturating_add(1)), job);
        // Borders that come minus borders that go.
        let more = |side: &Side, continues_at: &dyn Fn(Place, Place) -> bool| match side {
            Side::At(place) => {
                i64::from(continues_at(*place, job.from)) - i64::from(continues_at(*place, job.to))
            }
            Side::Unknown => 1,
            Side::Apart => 0,
        };
        let more = more(&before, &continues) + more(&after, &|place, own| continues(own, place));
        u64::try_from(more).unwrap_or(0).min(most)
    }

    /// Where a neighbour of `job`'s granule is mapped.
    fn side(&self, neighbour: Granule, job: &Job) -> Side {
        let same = match (self.space.part(neighbour), self.space.part(job.claimed.granule)) {
            (Some(a), Some(b)) => a.first == b.first,
            _ => false,
        };
        if !same {
            return Side::Apart;
        }
        match self.table.get(neighbour) {
            View { moving: true, .. } => Side::Unknown,
            View { place: Place::Device { .. }, mapped: false, .. } => Side::At(Place::Home),
            view => Side::At(self.space.actual(neighbour, view.place)),
        }
    }
}

/// Whether one mapping serves a granule at `place` and the next at `next`.
fn continues(place: Place, next: Place) -> bool {
    match (place, next) {
        (Place::Home, Place::Home) => true,
        (Place::Device { pool: a, frame: f }, Place::Device { pool: b, frame: g }) => {
            a == b && f.0.checked_add(1) == Some(g.0)
        }
        _ => false,
    }
}
