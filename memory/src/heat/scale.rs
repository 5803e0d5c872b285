//! From which heat on a granule belongs in the fast tier: counted over all of
//! memory, in one round after the other.

/// A quarter of a doubling.
const STEP: u16 = 64;
/// Heat is at the most 32 doublings and a bit.
const STEPS: usize = 33 * 4 + 1;

/// Granules by heat.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    steps: [u32; STEPS],
    /// Granules of the round, and of them those in the fast tier.
    granules: u32,
    fast: u32,
    hot: u16,
}

impl Default for Scale {
    fn default() -> Self {
        Self { steps: [0; STEPS], granules: 0, fast: 0, hot: 0 }
    }
}

impl Scale {
    /// The least heat of what belongs in the fast tier, by the last round.
    pub(super) fn hot(&self) -> u16 {
        self.hot
    }

    /// A granule of the round, with its heat if it is known.
    pub(super) fn add(&mut self, heat: Option<u16>, fast: bool) {
        self.granules += 1;
        self.fast += u32::from(fast);
        if let Some(heat) = heat
            && let Some(count) = self.steps.get_mut(usize::from(heat / STEP))
        {
            *count += 1;
        }
    }

    /// The round is over. Granules are watched in an order that has nothing to
    /// do with their heat, so that those of which nothing is known are taken
    /// to be like the others.
    pub(super) fn finish(&mut self, room: u32) {
        let known: u64 = self.steps.iter().map(|count| u64::from(*count)).sum();
        let places = u64::from(self.fast) + u64::from(room);
        // As many of those known as their share of the places.
        let share = places * known / u64::from(self.granules).max(1);
        let mut above = 0;
        let mut hot = 0;
        for (step, count) in self.steps.iter().enumerate().rev() {
            above += u64::from(*count);
            if above > share {
                // Less than STEPS.
                hot = (step as u16 + 1) * STEP;
                break;
            }
        }
        *self = Self { hot, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_share_of_what_is_known_is_hot() {
        let mut scale = Scale::default();
        for granule in 0..1000u16 {
            // Every tenth is known, every tenth of them is hot.
            let heat = if granule % 100 == 0 { 2000 } else { 100 };
            scale.add((granule % 10 == 0).then_some(heat), false);
        }
        scale.finish(100);
        assert!((128..=2000).contains(&scale.hot()), "{}", scale.hot());
    }

    #[test]
    fn all_is_hot_where_there_is_room_for_all() {
        let mut scale = Scale::default();
        (0..100).for_each(|heat| scale.add(Some(heat), true));
        scale.finish(0);
        assert_eq!(scale.hot(), 0);
    }
}
