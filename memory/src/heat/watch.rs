//! What to watch next: every granule in turn, in an order without pattern,
//! those that are not due yet passed over; before them granules that were just
//! seen to be used for the first time.
//!
//! A granule that is watched and not touched costs the guest little, one that is
//! touched a fault. So the two are counted apart.

use std::collections::VecDeque;

use super::entry::{Entry, Tick};

/// Entries that are passed over in a tick, at the most.
const LOOKS: u32 = 1 << 14;
/// Granules that are remembered to be watched again.
const AGAIN: usize = 4096;

/// Where the round is.
#[derive(Clone, Debug)]
pub(super) struct Round {
    granules: u32,
    /// Steps of the round so far.
    at: u32,
    /// One less than the power of two that the round has steps.
    mask: u32,
    again: VecDeque<u32>,
}

/// Odd, so that a multiplication modulo a power of two meets every number.
const STRIDE: u32 = 0x9e37_79b1;

impl Round {
    pub(super) fn new(granules: u32) -> Self {
        let mask = granules.max(1).checked_next_power_of_two().map_or(u32::MAX, |n| n - 1);
        Self { granules, at: 0, mask, again: VecDeque::new() }
    }

    /// Has `granule` watched soon.
    pub(super) fn again(&mut self, granule: u32) {
        if self.again.len() < AGAIN {
            self.again.push_back(granule);
        }
    }

    /// Up to `watched` granules for which `may` says so; up to `touched` of
    /// them used when last seen.
    pub(super) fn next(
        &mut self,
        entries: &[Entry],
        now: Tick,
        watched: u32,
        touched: u32,
        may: &mut dyn FnMut(u32) -> bool,
    ) -> Vec<u32> {
        let mut chosen: Vec<u32> = Vec::new();
        let (mut left, mut touches) = (watched, touched);
        // Half of the touches at the most are for those that come again.
        for _ in 0..self.again.len() {
            if left == 0 || touches <= touched / 2 {
                break;
            }
            let Some(granule) = self.again.pop_front() else { break };
            if may(granule) && !chosen.contains(&granule) {
                chosen.push(granule);
                left -= 1;
                touches -= 1;
            }
        }
        let mut passed_over = None;
        for _ in 0..LOOKS.min(self.mask.saturating_add(1)) {
            if left == 0 {
                break;
            }
            let index = self.at.wrapping_mul(STRIDE) & self.mask;
            let Some(entry) = entries.get(index as usize).filter(|_| index < self.granules) else {
                self.at = self.at.wrapping_add(1);
                continue;
            };
            let at = self.at;
            self.at = at.wrapping_add(1);
            if !entry.is_due(now) || chosen.contains(&index) {
                continue;
            }
            if entry.is_used() && touches == 0 {
                passed_over = passed_over.or(Some(at));
                continue;
            }
            if may(index) {
                touches -= u32::from(entry.is_used());
                left -= 1;
                chosen.push(index);
            }
        }
        // They keep their turn.
        self.at = passed_over.unwrap_or(self.at);
        chosen
    }
}
