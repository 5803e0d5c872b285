//! Where heat comes from.
//!
//! What sees *reads* is what counts: a policy that sees writes only would
//! demote what is read all the time.
//!
//! * [`Touches`], with the `move` engine: a watched granule is taken from the
//!   guest with `UFFDIO_MOVE` into the slot that its page has anyway, without a
//!   copy; the first touch, read or write, faults, and the fault thread moves
//!   it back. It sees reads, and when in the tick the touch came.
//!   With the `remap` engine the page stays in its file, and it is the entries
//!   of the guest's mapping that are dropped: the first touch is a minor fault
//!   ([`crate::engine`], glance).
//! * [`Writes`], with `node`, sees writes only, and demotes nothing. It is for
//!   small pages: the first write to a huge page that is write-protected takes
//!   its mapping apart for good (`wp_huge_pmd` in mm/memory.c), and huge pages
//!   are to stay huge.
//! * With /dev/dax there is none.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Turn;
use super::meter::Meter;
use super::still::Still;
use super::writes::Writes;
use crate::granule::Granule;
use crate::heat::{Price, Seen, Touch};
use crate::table::Place;
use crate::tiers::core::{Core, Touched, lock};

/// Something that sees whether granules are touched.
pub(super) trait Source: Send {
    /// Whether a granule can be watched now.
    fn may(&mut self, granule: Granule) -> bool;

    /// Watches `granules` from now on. Says how many.
    fn watch(&mut self, granules: &[Granule]) -> u64;

    /// Ends the watch, and adds what was seen.
    fn harvest(&mut self, turn: &Turn<'_>, seen: &mut Vec<Seen>);

    /// What a look costs the guest.
    fn price(&self) -> Price;

    /// Whether it sees reads. What one that does not finds unused may be read
    /// all the time, and is not demoted.
    fn sees_reads(&self) -> bool {
        true
    }
}

/// The best source that there is for these tiers.
///
/// # Errors
/// None, and what would do.
pub(super) fn choose(core: &Arc<Core>, period: Duration) -> Result<Box<dyn Source>, String> {
    if core.engine.sets_aside() {
        return Ok(Box::new(Touches::new(Arc::clone(core), period)));
    }
    if !core.engine.is_watched() {
        if takes_apart(core) {
            return Err(format!("{TAKES_APART}: use engine=move"));
        }
        let writes = Writes::new(Arc::clone(core));
        return writes.map(|writes| -> Box<dyn Source> { Box::new(writes) }).map_err(|error| {
            format!("writes are not seen with engine=node: {error}: use engine=move")
        });
    }
    Err("reads of this memory are not seen: use anonymous memory (backing=anon or node:N) with \
         engine=move; or backing=memfd or hugetlb, without /dev/dax, on a kernel that tells of \
         minor faults (Linux 5.14); or another policy"
        .to_owned())
}

/// Why [`takes_apart`] speaks against looking.
pub(in crate::tiers) const TAKES_APART: &str =
    "with engine=node looks would take the guest's huge pages apart";

/// Whether the only source that there is would take huge pages apart.
pub(in crate::tiers) fn takes_apart(core: &Core) -> bool {
    const FILE: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
    let never = || fs::read_to_string(FILE).is_ok_and(|text| text.contains("[never]"));
    !core.engine.is_watched() && core.engine.wants_huge_pages() && !never()
}

/// Granules that were never moved and that are taken under control in a tick,
/// which makes all of their memory present.
pub(super) const ADOPTED: u32 = 16;

/// Touches of granules that are set aside.
struct Touches {
    core: Arc<Core>,
    period: Duration,
    watched: Vec<Watched>,
    /// How many may still be adopted in this tick.
    adopt: u32,
    still: Still,
    meter: Meter,
}

struct Watched {
    granule: Granule,
    place: Place,
    since: Instant,
}

impl Touches {
    fn new(core: Arc<Core>, period: Duration) -> Self {
        let (still, meter) = (Still::by(core.park.clone()), Meter::default());
        Self { core, period, watched: Vec::new(), adopt: ADOPTED, still, meter }
    }

    /// Touches a tick, if the first one came so late.
    fn count(&self, after: Duration) -> u32 {
        let nanos = after.as_nanos().max(1);
        u32::try_from(self.period.as_nanos() / nanos).unwrap_or(u32::MAX).max(1)
    }
}

impl Source for Touches {
    fn may(&mut self, granule: Granule) -> bool {
        let view = self.core.table.get(granule);
        if view.moving || view.pins > 0 || self.core.damaged.contains(granule) {
            return false;
        }
        self.core.can_be_watched(granule, &view, &mut self.adopt)
    }

    fn watch(&mut self, granules: &[Granule]) -> u64 {
        self.adopt = ADOPTED;
        let first = self.watched.len();
        let mut hold = self.still.hold(granules.len());
        for granule in granules {
            let place = self.core.table.get(*granule).place;
            let since = Instant::now();
            if self.core.set_aside(*granule) {
                self.watched.push(Watched { granule: *granule, place, since });
            }
            hold.look();
        }
        let until = Instant::now();
        let (took, held) = hold.end();
        let now = &mut self.watched[first..];
        let watched = now.len() as u32;
        if held {
            // Nobody could touch them before.
            now.iter_mut().for_each(|watched| watched.since = until);
        }
        self.meter.aside(took, watched, held);
        // Last: this thread may have the processor that the other waits for.
        self.meter.ask(&self.core);
        watched.into()
    }

    fn harvest(&mut self, turn: &Turn<'_>, seen: &mut Vec<Seen>) {
        let mut later = Vec::new();
        let watched = std::mem::take(&mut self.watched);
        let untouched = |watched: &Watched| {
            let view = self.core.table.get(watched.granule);
            let aside = self.core.is_aside(watched.granule, &view) && view.place == watched.place;
            aside.then_some(view)
        };
        let mut idle = 0;
        let left = watched.iter().filter(|watched| untouched(watched).is_some()).count();
        let mut hold = self.still.hold(left);
        for watched in &watched {
            let Some(view) = untouched(watched) else { continue };
            // False: the fault thread has it in hand.
            if turn.may(watched.granule) && self.core.bring_back(watched.granule, view) {
                idle += 1;
                seen.push(Seen { granule: watched.granule, touch: None });
            } else {
                later.push(watched.granule);
            }
            hold.look();
        }
        let (took, held) = hold.end();
        self.meter.back(took, idle, held);
        for Touched { granule, at, write, served } in std::mem::take(&mut *lock(&self.core.touched))
        {
            if let Some(watched) = watched.iter().find(|watched| watched.granule == granule) {
                self.meter.served(served);
                let count = self.count(at.saturating_duration_since(watched.since));
                seen.push(Seen { granule, touch: Some(Touch { count, write }) });
            }
        }
        // A request is at work on these. If nobody touches them until it is
        // over, they are brought back then.
        self.watched = watched;
        self.watched.retain(|watched| later.contains(&watched.granule));
    }

    fn price(&self) -> Price {
        self.meter.price(self.core.faults_to_map())
    }
}
