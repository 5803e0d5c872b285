//! How long granules are watched in a tick: so long that a look is touched now and
//! then.
//!
//! A touch costs the guest several times what a look at an idle granule costs. If
//! all memory is used in each tick, a look for a tick is always touched, and costs
//! most and says least: only when the touch came. Watched for a shorter time most
//! granules are idle, those that are not are likely the hot ones, and the same
//! share of the guest's time buys three times the looks. Where most memory is idle
//! all tick long, the tick is not too long.

use std::time::Duration;

/// Looks without a touch for each with one: what the simulator does best with, of
/// memory a fifth of which belongs in the fast tier (8 to 14 were tried).
const IDLE: i32 = 10;
/// What an idle look makes the span longer by, in 256ths of a doubling.
const STEP: i32 = 1;
/// Shortest span, a 256th of a tick.
const SHORTEST: i32 = -8 * 256;

/// The span, as the logarithm of its share of a tick.
#[derive(Clone, Debug, Default)]
pub(super) struct Span(i32);

impl Span {
    /// A look was over.
    pub(super) fn observe(&mut self, touched: bool) {
        let step = if touched { -STEP * IDLE } else { STEP };
        self.0 = (self.0 + step).clamp(SHORTEST, 0);
    }

    /// The span in a tick that is so long.
    pub(super) fn of(&self, tick: Duration) -> Duration {
        tick.mul_f64((f64::from(self.0) / 256.0).exp2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// The span after many looks at granules that are all touched every so often.
    fn span(every: Duration) -> Duration {
        let mut span = Span::default();
        for look in 0..20_000u32 {
            // Phases spread evenly over the time between two touches.
            let phase = every.mul_f64(f64::from(look.wrapping_mul(2_654_435_769)) / 2f64.powi(32));
            span.observe(phase < span.of(TICK));
        }
        span.of(TICK)
    }

    #[test]
    fn one_look_of_eleven_is_touched() {
        let eleventh = span(Duration::from_millis(88)).as_micros();
        assert!((7_000..=9_000).contains(&eleventh), "{eleventh} us");
    }

    #[test]
    fn what_is_hardly_used_is_watched_all_tick_long_and_nothing_for_no_time() {
        assert_eq!(span(Duration::from_secs(3600)), TICK);
        let shortest = span(Duration::from_nanos(1));
        assert!(shortest >= TICK / 256 && shortest < TICK / 200, "{shortest:?}");
    }
}
