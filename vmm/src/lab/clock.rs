//! How fast this machine's time stamp counter runs, which is also how fast an
//! emulated processor's does: QEMU answers RDTSC with the host's count.
//!
//! The lab's kernel would measure it against an emulated timer, and on a busy
//! machine be wrong by any factor: its clock then runs away, and with it every
//! deadline in the lab.

use std::thread;
use std::time::{Duration, Instant};

use super::process::ticks;

/// How long it is measured. Reading both clocks takes a microsecond at worst,
/// so this is good to a ten-thousandth.
const SPAN: Duration = Duration::from_millis(10);
/// Readings of both clocks, of which the quickest counts: in others this
/// process may have lost its processor.
const TRIES: usize = 16;
/// What a machine can have.
const PLAUSIBLE: std::ops::RangeInclusive<u64> = 200_000..=10_000_000;

/// Kilohertz of the time stamp counter; none if it cannot be told.
pub(super) fn tsc_khz() -> Option<u64> {
    let (ticks, at) = reading();
    thread::sleep(SPAN);
    let (later, then) = reading();
    let nanoseconds = u64::try_from(then.duration_since(at).as_nanos()).ok()?;
    let khz = later.checked_sub(ticks)?.checked_mul(1_000_000)?.checked_div(nanoseconds)?;
    PLAUSIBLE.contains(&khz).then_some(khz)
}

/// Both clocks at nearly one moment.
fn reading() -> (u64, Instant) {
    let mut best = (0, Instant::now());
    let mut quickest = u64::MAX;
    for _ in 0..TRIES {
        let before = ticks();
        let at = Instant::now();
        let took = ticks().saturating_sub(before);
        if took < quickest {
            quickest = took;
            best = (before + took / 2, at);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (Some(one), Some(two)) = (tsc_khz(), tsc_khz()) else { panic!("no counter") };
        assert!(one.abs_diff(two) * 200 < one, "{one} and {two} kHz");
    }
}
