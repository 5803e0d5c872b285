//! The heat policy, seeing what it sees under a guest.

use std::time::Duration;

use super::{Access, Side};
use crate::granule::Granule;
use crate::heat::{HeatPolicy, Moves, Price, Purse, Seen, Settings, SettingsError, Touch, Where};

/// The policy with the tiers that it plans for.
#[derive(Clone, Debug)]
pub struct Heat {
    policy: HeatPolicy,
    fast: Vec<bool>,
    free: u32,
    moved: u64,
    /// What is watched, and how it was touched.
    watched: Vec<Seen>,
    /// Place in `watched` plus one of each granule; 0: not watched.
    place: Vec<u32>,
    faults: u64,
    purse: Purse,
    /// How long each is watched.
    span: Duration,
}

/// A window of a trace is a tick.
const WINDOW: Duration = Duration::from_millis(100);
/// The guest's time that looks may take in a tick, 1 %.
const PER_TICK: Duration = Duration::from_millis(1);
const PRICE: Price = Price::BUILD_MACHINE;

impl Heat {
    /// An empty fast tier of `room` of `granules`. Looks cost what they cost on
    /// the build machine, and have the budget that they have under a guest.
    ///
    /// # Errors
    /// Settings that make no sense.
    pub fn new(granules: u32, room: u32, settings: Settings) -> Result<Self, SettingsError> {
        let mut side = Self {
            policy: HeatPolicy::new(granules, settings)?,
            fast: vec![false; granules as usize],
            free: room,
            moved: 0,
            watched: Vec::new(),
            place: vec![0; granules as usize],
            faults: 0,
            purse: Purse::new(PER_TICK),
            span: WINDOW,
        };
        side.watch();
        Ok(side)
    }

    /// Touches of watched granules: what the guest would have waited for.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    fn watch(&mut self) {
        let looks = self.purse.tick(PRICE, self.policy.settings().most());
        self.span = self.policy.watch_for(WINDOW);
        let chosen = self.policy.watch(looks, &mut |_| true);
        self.watched = chosen.into_iter().map(|granule| Seen { granule, touch: None }).collect();
        for (index, seen) in (1u32..).zip(&self.watched) {
            self.place[seen.granule.0 as usize] = index;
        }
    }
}

impl Side for Heat {
    fn is_fast(&self, granule: u32) -> bool {
        self.fast.get(granule as usize).copied().unwrap_or(false)
    }

    fn touch(&mut self, access: Access, at: u32, len: u32) {
        // Touches come evenly in a window: those after the span are not seen.
        if WINDOW.mul_f64(f64::from(at) / f64::from(len.max(1))) >= self.span {
            return;
        }
        let Some(place) = self.place.get_mut(access.granule as usize) else { return };
        let Some(index) = std::mem::take(place).checked_sub(1) else { return };
        if let Some(seen) = self.watched.get_mut(index as usize) {
            let count = len.checked_div(at + 1).unwrap_or(1).max(1);
            seen.touch = Some(Touch { count, write: access.write });
            self.faults += 1;
        }
    }

    fn tick(&mut self) {
        for seen in &self.watched {
            self.place[seen.granule.0 as usize] = 0;
            let used = self.policy.is_used(seen.granule);
            self.purse.spend(PRICE.of(seen.touch.is_some(), used), 1);
        }
        self.policy.observe(&self.watched);
        let fast = &self.fast;
        let place = |granule: Granule| match fast.get(granule.0 as usize) {
            Some(true) => Where::Fast,
            Some(false) => Where::Slow,
            None => Where::Fixed,
        };
        let moves = self.policy.plan(&place, self.free);
        let Moves { demote, promote } = &moves;
        for granule in demote {
            self.fast[granule.0 as usize] = false;
            self.free += 1;
        }
        for granule in promote {
            self.fast[granule.0 as usize] = true;
            self.free = self.free.saturating_sub(1);
        }
        self.moved += moves.len() as u64;
        self.watch();
    }

    fn moved(&self) -> u64 {
        self.moved
    }
}
