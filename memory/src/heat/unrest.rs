//! Whether the load as a whole has changed: then the margin that keeps granules
//! in the fast tier is narrower, because what was learnt no longer holds.

/// All observations.
const ALL: i32 = 1 << 16;
/// Share of surprises of an even load, whose observations scatter: that of
/// zipf loads is 3 to 6 in a hundred.
const CALM: i32 = ALL * 7 / 100;
/// Share from which on the load has changed.
const ALARM: i32 = ALL * 10 / 100;
/// Observations that the share is of, about.
const MEMORY: i32 = 256;
/// Ticks in which an alarm fades, about.
const FADES: i32 = 128;

/// The share of late observations that were surprises.
#[derive(Clone, Debug, Default)]
pub(super) struct Unrest {
    share: i32,
    /// Most of it lately.
    alarm: i32,
}

impl Unrest {
    pub(super) fn observe(&mut self, surprise: bool) {
        self.share += (if surprise { ALL } else { 0 } - self.share) / MEMORY;
    }

    pub(super) fn tick(&mut self) {
        self.alarm = (self.alarm - self.alarm / FADES).max(self.share);
    }

    /// `margin`, or down to a third of it.
    pub(super) fn narrowed(&self, margin: u16) -> u32 {
        let over = (self.alarm - CALM).clamp(0, ALARM - CALM);
        let margin = i32::from(margin);
        // At the most as large, so neither negative nor too large.
        (margin - margin * over / (ALARM - CALM) * 2 / 3) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn surprises_narrow_the_margin_for_a_while() {
        let mut unrest = Unrest::default();
        let pass = |unrest: &mut Unrest, every: u32| {
            for tick in 0..200 {
                (0..20).for_each(|n| unrest.observe((tick * 20 + n) % every == 0));
                unrest.tick();
            }
            unrest.narrowed(600)
        };
        assert_eq!(pass(&mut unrest, 25), 600);
        assert_eq!(pass(&mut unrest, 4), 200);
        assert!(pass(&mut unrest, 25) > 200);
        assert_eq!(pass(&mut unrest, 25), 600);
    }
}
