//! Replays touches of memory and counts what is hit in the fast tier and what
//! moves for it, under the heat policy and beside it under others.
//!
//! A *trace* is windows of touches, a window is a tick. [`generate`] makes
//! traces from a seed, [`file`] keeps them; [`sampled`] has what the policy saw
//! of a guest. Every side has the same room, the
//! same budget of bytes a tick, and an empty fast tier at the beginning:
//!
//! * [`heat`]: the policy as it runs, with what it really gets to see: the time
//!   until the first touch of the few granules that it watches;
//! * [`lru`]: what was touched last is in the fast tier. It sees every touch;
//! * [`tpp`]: promotes at the second touch in a window, and demotes the least
//!   recently touched down to a watermark, after Maruf et al., "TPP:
//!   Transparent Page Placement for CXL-Enabled Tiered-Memory" (ASPLOS 2023).
//!   It sees every touch, too: the kernel's sees hint faults;
//! * [`optimum`]: in hindsight. For each phase of the trace the granules with
//!   most touches in it, as many as there is room for, all of them there from
//!   its first touch on. Moves cost it nothing and have no budget, so nobody
//!   who keeps still in a phase can hit more.

pub mod file;
pub mod generate;
pub mod heat;
pub mod lru;
pub mod optimum;
mod order;
mod random;
pub mod sampled;
#[cfg(test)]
mod tests;
pub mod tpp;

use std::ops::Range;

/// A touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Which granule.
    pub granule: u32,
    /// Whether it is a write.
    pub write: bool,
    /// Whether it is of a scan that passes by, and not of the load proper.
    pub scan: bool,
}

/// Touches in windows, the same each time.
pub trait Trace {
    /// Granules that there are; touches are of those.
    fn granules(&self) -> u32;

    /// Goes back to the first window.
    fn restart(&mut self);

    /// Puts the touches of the next window into `window`; false at the end.
    fn next(&mut self, window: &mut Vec<Access>) -> bool;
}

/// Somebody who decides what is in the fast tier.
pub trait Side {
    /// Whether a granule is in the fast tier.
    fn is_fast(&self, granule: u32) -> bool;

    /// A granule is touched, as number `at` of `len` touches of the window.
    fn touch(&mut self, access: Access, at: u32, len: u32);

    /// A window is over.
    fn tick(&mut self);

    /// Granules that have moved, either way.
    fn moved(&self) -> u64;
}

/// What was counted in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Touches of the load proper.
    pub touches: u64,
    /// Those that met the fast tier.
    pub hits: u64,
    /// Granules moved since the beginning.
    pub moved: u64,
}

/// What came of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Window by window.
    pub windows: Vec<Tally>,
}

impl Replayed {
    /// Share of the touches in these windows that met the fast tier; 0 if there
    /// are none.
    pub fn hit_ratio(&self, windows: Range<usize>) -> f64 {
        let windows = self.windows.get(windows).unwrap_or_default();
        let sum = |of: fn(&Tally) -> u64| windows.iter().map(of).sum::<u64>() as f64;
        match sum(|tally| tally.touches) {
            0.0 => 0.0,
            touches => sum(|tally| tally.hits) / touches,
        }
    }

    /// Granules that moved.
    pub fn moved(&self) -> u64 {
        self.windows.last().map_or(0, |tally| tally.moved)
    }
}

/// Replays a trace from its beginning.
pub fn replay(trace: &mut dyn Trace, side: &mut dyn Side) -> Replayed {
    let (mut replayed, mut window) = (Replayed::default(), Vec::new());
    trace.restart();
    while trace.next(&mut window) {
        let mut tally = Tally::default();
        let len = u32::try_from(window.len()).unwrap_or(u32::MAX);
        for (at, access) in (0..len).zip(&window) {
            if !access.scan {
                tally.touches += 1;
                tally.hits += u64::from(side.is_fast(access.granule));
            }
            side.touch(*access, at, len);
        }
        side.tick();
        tally.moved = side.moved();
        replayed.windows.push(tally);
    }
    replayed
}

/// The smallest number of granules that get the share `part` of all touches of
/// the load proper: the hot set.
pub fn hot_set(trace: &mut dyn Trace, part: f64) -> u32 {
    let mut counts = vec![0u64; trace.granules() as usize];
    let mut window = Vec::new();
    trace.restart();
    while trace.next(&mut window) {
        for access in window.iter().filter(|access| !access.scan) {
            if let Some(count) = counts.get_mut(access.granule as usize) {
                *count += 1;
            }
        }
    }
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let wanted = counts.iter().sum::<u64>() as f64 * part;
    let mut sum = 0;
    let enough = counts.iter().position(|count| {
        sum += count;
        sum as f64 >= wanted
    });
    // There are at the most 2^32 - 1 granules.
    enough.map_or(0, |index| index as u32 + 1)
}
