//! What a look costs the guest here and now, from what can be seen of it.
//!
//! vCPUs are held while granules are taken aside, and once more while they are given
//! back ([`super::still`]), or else interrupted for each. A touch of it costs more: the
//! vCPU leaves the guest, the fault thread wakes up, gives the granule back
//! and wakes the vCPU, which enters the guest again. How long a wake-up takes
//! is asked of the fault thread each tick ([`Echo`]); that is also where it
//! shows that processors are short. The way out of the guest and in again is
//! seen by nobody: it is taken to cost as much as all the rest of a touch. On
//! the build machine, whose KVM is slow at that, it does (perf sched: 30 us
//! from one end of the wait to the other, 19 us for the way).
//!
//! What was taken from the guest is mapped in anew as it is touched again, with
//! a fault for each page of the hypervisor's: one for a granule that is a huge
//! page, 512 for one of small pages, which is by far the most of what a look
//! costs there. How many it takes is asked of the hypervisor
//! ([`crate::mapped`]), what each takes is not seen ([`FAULT`]).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::heat::Price;
use crate::tiers::core::{Core, lock};

/// How long the fault thread takes to answer.
#[derive(Debug, Default)]
pub(crate) struct Echo {
    asked: Mutex<Option<Instant>>,
    /// Nanoseconds of the last answer; 0: there is none.
    took: AtomicU64,
}

impl Echo {
    /// The fault thread has woken up.
    pub(crate) fn answer(&self) {
        if let Some(asked) = lock(&self.asked).take() {
            let nanos = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.took.store(nanos.max(1), Relaxed);
        }
    }

    fn ask(&self) {
        *lock(&self.asked) = Some(Instant::now());
    }

    fn take(&self) -> Option<Duration> {
        Some(self.took.swap(0, Relaxed)).filter(|nanos| *nanos > 0).map(Duration::from_nanos)
    }
}

/// A fault of the guest's that the hypervisor alone resolves, until the guest
/// goes on: on the build machine, with looks at small pages, what the guest lost
/// beyond the rest of their price (`neap bench heat --only sampling`).
const FAULT: Duration = Duration::from_micros(2);

/// An average of the last measurements.
#[derive(Clone, Copy, Debug, Default)]
struct Average(Option<Duration>);

impl Average {
    /// The share of a new measurement is one of so many.
    const MEMORY: u32 = 8;

    /// A measurement counts as so many averages at the most: one that took
    /// longer is of a thread that was stopped meanwhile, or the next ones are
    /// as long and raise the average.
    const MOST: u32 = 16;

    fn add(&mut self, measured: Duration) {
        const LEAST: Duration = Duration::from_micros(1);
        let before = self.or(Price::BUILD_MACHINE.idle / 2).max(LEAST);
        let measured = measured.min(before * Self::MOST);
        self.0 = Some(match self.0 {
            None => measured,
            Some(average) => (average * (Self::MEMORY - 1) + measured) / Self::MEMORY,
        });
    }

    fn or(self, otherwise: Duration) -> Duration {
        self.0.unwrap_or(otherwise)
    }
}

/// Averages of all that is measured.
#[derive(Debug, Default)]
pub(super) struct Meter {
    aside: Average,
    back: Average,
    served: Average,
    woken: Average,
}

impl Meter {
    /// Asks the fault thread, and takes the answer to what was asked before.
    pub(super) fn ask(&mut self, core: &Core) {
        core.echo.take().into_iter().for_each(|took| self.woken.add(took));
        core.echo.ask();
        core.wake_fault_thread();
    }

    /// So many granules were taken aside, while vCPUs were `held` or not.
    pub(super) fn aside(&mut self, took: Duration, granules: u32, held: bool) {
        if let Some(each) = self.all(took, held).checked_div(granules) {
            self.aside.add(each);
        }
    }

    /// So many granules that nobody touched were given back.
    pub(super) fn back(&mut self, took: Duration, granules: u32, held: bool) {
        if let Some(each) = self.all(took, held).checked_div(granules) {
            self.back.add(each);
        }
    }

    /// What it cost the guest that this thread was at it for so long. Who was held
    /// wakes up afterwards, and finds its TLB empty, which is taken to be as much
    /// again; who was not was interrupted for each granule, which is taken to be
    /// twice as much as is seen.
    fn all(&self, took: Duration, held: bool) -> Duration {
        match held {
            true => took + 2 * self.woken.or(Price::BUILD_MACHINE.idle / 2),
            false => took * 3,
        }
    }

    /// The fault thread gave a granule back.
    pub(super) fn served(&mut self, took: Duration) {
        self.served.add(took);
    }

    /// The price of a look at a granule that takes so many faults to be mapped
    /// again.
    pub(super) fn price(&self, faults: u32) -> Price {
        let start = Price::BUILD_MACHINE;
        let aside = self.aside.or(start.idle / 2);
        let touch = self.served.or(start.idle / 2) + 2 * self.woken.or(start.idle / 2);
        let again = FAULT.saturating_mul(faults);
        let (idle, touched) = (aside + self.back.or(start.idle / 2), aside + 2 * touch + again);
        // Half as much for what nobody sees.
        let all = |seen: Duration| seen * 3 / 2;
        Price { idle: all(idle), touched: all(touched), again: all(again) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_touch_costs_two_wake_ups_and_as_much_again_for_the_way() {
        let us = Duration::from_micros;
        let mut meter = Meter::default();
        meter.aside(us(40), 12, false);
        meter.back(us(12), 6, false);
        meter.served(us(9));
        meter.woken.add(us(7));
        assert_eq!(meter.price(0), Price { idle: us(24), touched: us(84), again: us(0) });
        meter.aside(us(40), 0, true);
        meter.woken.add(us(7 + 80));
        assert_eq!(meter.price(0), Price { idle: us(24), touched: us(84 + 60), again: us(0) });
    }

    #[test]
    fn who_is_held_wakes_up_once() {
        let us = Duration::from_micros;
        let mut meter = Meter::default();
        meter.woken.add(us(10));
        assert_eq!(meter.all(us(100), true), us(120));
        assert_eq!(meter.all(us(100), false), us(300));
    }

    #[test]
    fn what_was_touched_before_is_mapped_in_anew() {
        let meter = Meter::default();
        let (large, small) = (meter.price(1), meter.price(512));
        assert_eq!(small.idle, large.idle);
        assert_eq!(small.again, 512 * large.again);
        assert!(large.again >= FAULT);
        assert_eq!(small.touched - large.touched, small.again - large.again);
    }

    #[test]
    fn a_stall_does_not_make_looks_dear_and_a_slow_machine_does() {
        let us = Duration::from_micros;
        let mut meter = Meter::default();
        meter.aside(Duration::from_secs(20), 1, false);
        meter.back(us(12), 1, true);
        meter.back(Duration::from_secs(20), 1, false);
        assert!(meter.price(0).idle < us(400), "{:?}", meter.price(0));
        for _ in 0..50 {
            meter.served(us(5000));
        }
        assert!(meter.price(0).touched > us(9000), "{:?}", meter.price(0));
    }

    #[test]
    fn an_echo_is_heard_once() {
        let echo = Echo::default();
        echo.answer();
        assert_eq!(echo.take(), None);
        echo.ask();
        echo.answer();
        assert!(echo.take().is_some());
        assert_eq!(echo.take(), None);
    }
}
