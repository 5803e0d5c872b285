//! What is known of one granule, in 8 bytes.

use std::ops::RangeInclusive;

use super::settings::Settings;

/// Ticks are counted in 15 bits and 0 stands for none, so that what is due
/// later than half of that has passed.
const TICKS: u32 = 1 << 15;

/// A tick as entries remember it, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tick(u16);

impl Tick {
    /// The tick of that number.
    pub(super) fn new(number: u64) -> Self {
        // Less than 2^15, so it fits with one more.
        Self((number % u64::from(TICKS)) as u16 + 1)
    }

    /// The one `ticks` later.
    fn after(self, ticks: u16) -> u16 {
        ((u32::from(self.0 - 1) + u32::from(ticks)) % TICKS) as u16 + 1
    }

    /// Whether `due`, which may be 0, has come.
    fn is_past(self, due: u16) -> bool {
        let ahead = (u32::from(due) + TICKS - u32::from(self.0)) % TICKS;
        due == 0 || ahead == 0 || ahead > TICKS / 2
    }
}

/// Observations after which an average is as good as it gets.
const FULL: u8 = 15;
/// The same where the last observations do not fit those before.
const SURPRISED: u8 = 1;
/// An observation that far above or below the average is a change, in 256ths of
/// a doubling. The time until the first touch of a granule that is used evenly
/// is an eighth of its median in one case of twelve, and eight times its median
/// in one of 250.
const MUCH_MORE: i32 = 5 * 256;
const MUCH_LESS: i32 = 3 * 256;
/// Changes between touched and not in the last observations of a granule that
/// may have changed for good.
const FLIPS: u32 = 3;
/// Longest pause between two looks at a granule, as a power of two of ticks:
/// at one that is used, which costs the guest time each time, and at one that
/// is not.
const USED_PAUSE: u8 = 6;
const IDLE_PAUSE: u8 = 6;
/// Used so much more or less than what just belongs in the fast tier, in 256ths
/// of a doubling, that a look at it hardly ever changes where it belongs: the
/// pauses between two looks are so long, at least and at the most.
const FAR: u16 = 2 * 256;
const FAR_PAUSES: RangeInclusive<u8> = 5..=7;

/// What an observation means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Look {
    /// It should be looked at again at once.
    pub(super) again: bool,
    /// It is not what it was, and was or is worth a place in the fast tier.
    pub(super) surprise: bool,
}

/// One granule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Low 14 bits: average of log2(1 + touches a tick), in 256ths, at the most
    /// 32 * 256 + 255. High two: how often it has moved lately.
    heat: u16,
    /// A bit for each of the last eight observations, the newest lowest.
    history: u8,
    /// Low half: observations behind the average; high half: pause.
    counts: u8,
    /// When it is to be watched again; 0: now.
    due: u16,
    /// Until when it stays where it is; 0: it need not.
    rests: u16,
}

const HEAT: u16 = (1 << 14) - 1;
const MOVES: u16 = 3;

const _: () = assert!(size_of::<Entry>() == 8);

impl Entry {
    /// Average heat, in 256ths of a doubling.
    pub(super) fn heat(self) -> u16 {
        self.heat & HEAT
    }

    fn moves(self) -> u16 {
        self.heat >> HEAT.count_ones()
    }

    fn set(&mut self, heat: u16, moves: u16) {
        self.heat = heat & HEAT | moves << HEAT.count_ones();
    }

    /// Observations behind it, up to 15.
    pub(super) fn known(self) -> u8 {
        self.counts & 0xf
    }

    fn pause(self) -> u8 {
        self.counts >> 4
    }

    /// In how many of the last eight observations it was touched.
    pub(super) fn seen(self) -> u8 {
        self.history.count_ones() as u8
    }

    /// Whether it was touched when it was last watched.
    pub(super) fn is_used(self) -> bool {
        self.history & 1 != 0
    }

    /// Whether it is time to watch it again.
    pub(super) fn is_due(self, now: Tick) -> bool {
        now.is_past(self.due)
    }

    /// Whether it may move.
    pub(super) fn is_rested(self, now: Tick) -> bool {
        now.is_past(self.rests)
    }

    /// It has moved: it stays for `ticks`, and four times as long each time that
    /// it moves again before it has come to be known well.
    pub(super) fn rest(&mut self, now: Tick, ticks: u16) {
        let moves = self.moves();
        let ticks = (u32::from(ticks) << (2 * moves)).min(Settings::REST_MAX.into());
        // At the most `REST_MAX`.
        self.rests = now.after(ticks as u16);
        self.set(self.heat(), (moves + 1).min(MOVES));
    }

    /// Forgets times that have passed, before they seem to lie ahead again.
    pub(super) fn tidy(&mut self, now: Tick) {
        if self.due != 0 && now.is_past(self.due) {
            self.due = 0;
        }
        if self.rests != 0 && now.is_past(self.rests) {
            self.rests = 0;
        }
    }

    /// It was watched, and touched about `count` times a tick; `hot` is the
    /// heat from which on a granule is worth its place in the fast tier.
    pub(super) fn observe(&mut self, now: Tick, count: u32, hot: u16) -> Look {
        let touched = count > 0;
        let (heat, new) = (i32::from(self.heat()), i32::from(log2(count)));
        // What comes and goes is worth its average.
        let flips = (self.history ^ self.history >> 1).count_ones();
        let surprise = self.known() >= 2
            && flips <= FLIPS
            && (new - heat > MUCH_MORE || heat - new > MUCH_LESS || heat > 0 && !touched);
        let mut known = self.known();
        if surprise {
            known = known.min(SURPRISED);
        }
        known = (known + 1).min(FULL);
        let step = (new - heat) / i32::from(known);
        // Between the two, so it fits.
        let moves = if known == FULL { 0 } else { self.moves() };
        self.set((heat + step) as u16, moves);
        self.history = self.history << 1 | u8::from(touched);
        let far = touched && hot > 0 && self.heat().abs_diff(hot) > FAR;
        let (least, longest) = match touched {
            true if far => FAR_PAUSES.into_inner(),
            true => (0, USED_PAUSE),
            false => (0, IDLE_PAUSE),
        };
        let worth = new >= i32::from(hot) || heat >= i32::from(hot);
        let unsettled = worth && (surprise || touched && self.seen() < 2);
        let pause = if unsettled { 0 } else { (self.pause() + 1).clamp(least, longest) };
        self.counts = pause << 4 | known;
        self.due = now.after(1 << pause);
        Look { again: unsettled, surprise: worth && surprise }
    }
}

/// log2(1 + count) in 256ths, a straight line between powers of two.
fn log2(count: u32) -> u16 {
    let n = u64::from(count) + 1;
    let whole = n.ilog2();
    let part = (n << 8 >> whole) & 0xff;
    // At the most 32 * 256 + 255.
    (whole * 256) as u16 + part as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_is_a_logarithm() {
        assert_eq!([0, 1, 3, 7].map(log2), [0, 256, 512, 768]);
        assert_eq!(log2(2), 256 + 128);
        assert_eq!(log2(u32::MAX), 32 * 256);
    }

    #[test]
    fn times_pass_also_where_the_count_begins_anew() {
        for start in [0, 5, 32_760, 32_767, 32_768, 100_000] {
            let mut entry = Entry::default();
            entry.rest(Tick::new(start), 20);
            for (later, rested) in [(0, false), (19, false), (20, true), (10_000, true)] {
                assert_eq!(entry.is_rested(Tick::new(start + later)), rested, "{start} {later}");
            }
            entry.tidy(Tick::new(start + 21));
            assert!(entry.is_rested(Tick::new(start + 30_000)));
        }
    }

    #[test]
    fn what_is_no_longer_touched_cools_and_what_is_touched_anew_warms() {
        let mut entry = Entry::default();
        let mut now = 0;
        let mut look = |entry: &mut Entry, count| {
            now += 100;
            entry.observe(Tick::new(now), count, 0);
        };
        for _ in 0..20 {
            look(&mut entry, 1000);
        }
        let hot = entry.heat();
        assert!(hot > 2000 && entry.pause() == USED_PAUSE);
        look(&mut entry, 0);
        assert_eq!(entry.pause(), 0);
        for _ in 0..3 {
            look(&mut entry, 0);
        }
        assert!(entry.heat() < hot / 4, "{} {hot}", entry.heat());
        for _ in 0..4 {
            look(&mut entry, 1000);
        }
        assert!(entry.heat() > hot / 2, "{} {hot}", entry.heat());
    }
}
