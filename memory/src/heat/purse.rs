//! What looking may cost the guest: a share of its time, paid into a purse tick
//! by tick, from which every look is paid for at its measured price.

use std::time::Duration;

/// Ticks whose share the purse holds: what was not used in a quiet time may be
/// used when the load changes, and a full purse is there for the first looks.
const SAVED: u32 = 100;

/// Looks that the average is of.
const MEMORY: u32 = 128;

/// What a look costs the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// A granule that is watched and not touched.
    pub idle: Duration,
    /// One that is touched.
    pub touched: Duration,
    /// Of that, until it is mapped again as it was. One that was touched the
    /// last time costs it, too, if it is touched later than in this look.
    pub again: Duration,
}

impl Price {
    /// Measured on the build machine (2 processors, a KVM without nested
    /// paging), of huge pages; where nothing was measured yet.
    pub const BUILD_MACHINE: Self = Self {
        idle: Duration::from_micros(20),
        touched: Duration::from_micros(190),
        again: Duration::from_micros(3),
    };

    /// What a look at a granule costs that was touched or was not, and that was
    /// `used` when it was looked at before.
    pub fn of(&self, touched: bool, used: bool) -> Duration {
        match touched {
            true => self.touched,
            // It was mapped when it was taken, and will be again.
            false if used => self.idle + self.again,
            false => self.idle,
        }
    }

    /// Never nothing, so that a division by it is one.
    fn at_least(self) -> Self {
        const LEAST: Duration = Duration::from_micros(1);
        Self { idle: self.idle.max(LEAST), touched: self.touched.max(LEAST), ..self }
    }
}

/// Granules that may be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looks {
    /// In all.
    pub watched: u32,
    /// Of which are expected to be touched.
    pub touched: u32,
}

/// The guest's time that may still be used.
#[derive(Clone, Debug)]
pub struct Purse {
    per_tick: Duration,
    left: Duration,
    /// What a look costs, on the average of the last hundred or so.
    mean: Option<Duration>,
    /// For which sort there is saved, where there is not enough for both.
    saves_for_used: bool,
    /// What looks cost more than there was; one of both is nothing.
    debt: Duration,
    /// Most that is saved, and most that is owed.
    cap: Duration,
}

impl Purse {
    /// A full purse, that gets `per_tick` each tick.
    pub fn new(per_tick: Duration) -> Self {
        let cap = per_tick * SAVED;
        Self { per_tick, left: cap, mean: None, saves_for_used: true, debt: Duration::ZERO, cap }
    }

    /// A tick passes: looks that may be had now, no more than `most`.
    pub fn tick(&mut self, price: Price, most: Looks) -> Looks {
        let price = price.at_least();
        // Who knows nothing takes them all to be touched.
        let mean = self.mean.unwrap_or(price.touched).max(price.idle);
        let one_used = price.touched / 3 * 4;
        // A look of each sort can be saved for, whatever it costs or has cost: only
        // looks show that they cost less by now.
        self.cap = (self.per_tick * SAVED).max((one_used + mean) * 2);
        let paid = self.debt.min(self.per_tick);
        self.debt -= paid;
        self.left = (self.left + (self.per_tick - paid)).min(self.cap);
        let count = |time: Duration, price: Duration| {
            u32::try_from(time.as_nanos() / price.as_nanos()).unwrap_or(u32::MAX)
        };
        if self.left < one_used + mean {
            // Each sort is saved for in turn, or the cheaper would have it all.
            let price = if self.saves_for_used { price.touched } else { mean };
            let watched = u32::from(self.left >= price);
            let touched = if self.saves_for_used { watched } else { 0 };
            self.saves_for_used ^= watched > 0;
            return Looks {
                watched: watched.min(most.watched),
                touched: touched.min(most.touched),
            };
        }
        // Three quarters at the most are for those that were used, which cost more;
        // all else is for the others, at what a look costs on the average.
        let touched = count(self.left / 4 * 3, price.touched).min(most.touched);
        let others = count(self.left - one_used, mean);
        Looks { watched: others.max(touched).min(most.watched), touched }
    }

    /// What `looks` looks have cost, which may be more than was expected. What a debt is
    /// larger than the savings could be is forgotten.
    pub fn spend(&mut self, cost: Duration, looks: u32) {
        if let Some(each) = cost.checked_div(looks) {
            let weight = looks.min(MEMORY);
            let before = self.mean.unwrap_or(each);
            self.mean = Some((before * (MEMORY - weight) + each * weight) / MEMORY);
        }
        let paid = self.left.min(cost);
        self.left -= paid;
        self.debt = (self.debt + (cost - paid)).min(self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Looks = Looks { watched: 64, touched: 24 };

    #[test]
    fn looks_cost_no_more_than_the_share_in_the_long_run() {
        let price = Price::BUILD_MACHINE;
        let per_tick = Duration::from_millis(1);
        let mut purse = Purse::new(per_tick);
        let mut spent = Duration::ZERO;
        let mut last = MOST;
        for _ in 0..1000 {
            last = purse.tick(price, MOST);
            let idle = last.watched - last.touched;
            let cost = price.touched * last.touched + price.idle * idle;
            spent += cost;
            purse.spend(cost, last.watched);
        }
        assert!(spent <= per_tick * (1000 + SAVED), "{spent:?}");
        assert!(spent >= per_tick * 990, "{spent:?}");
        assert!(last.touched >= 3 && last.touched < MOST.touched, "{last:?}");
    }

    #[test]
    fn looks_that_cost_more_than_expected_are_paid_for_as_well() {
        let price = Price::BUILD_MACHINE;
        let per_tick = Duration::from_millis(1);
        let mut purse = Purse::new(per_tick);
        let mut spent = Duration::ZERO;
        for _ in 0..1000 {
            // All turn out to be touched, and the price has risen.
            let looks = purse.tick(price, MOST).watched;
            let cost = price.touched * looks * 2;
            spent += cost;
            purse.spend(cost, looks);
        }
        assert!(spent <= per_tick * (1000 + SAVED) + price.touched * 2 * MOST.watched, "{spent:?}");
        assert!(spent >= per_tick * 990, "{spent:?}");
    }

    #[test]
    fn a_look_can_be_saved_for_whatever_it_costs() {
        let us = Duration::from_micros;
        // The ends of what can be asked for, and a price after a stall.
        for per_tick in [us(1), us(100), us(1_000_000)] {
            for price in [us(76), us(7600), Duration::from_secs(1)] {
                let price = Price { idle: price / 8, touched: price, again: us(0) };
                let mut purse = Purse::new(per_tick);
                let (mut spent, mut ticks, mut bought) = (Duration::ZERO, 0, [0, 0]);
                while ticks < 3_000_000 && bought.contains(&0) {
                    ticks += 1;
                    let looks = purse.tick(price, MOST);
                    let idle = looks.watched - looks.touched;
                    bought = [bought[0] + looks.touched, bought[1] + idle];
                    let cost = price.touched * looks.touched + price.idle * idle;
                    spent += cost;
                    purse.spend(cost, looks.watched);
                }
                assert!(!bought.contains(&0), "{per_tick:?} {price:?} {bought:?}");
                assert!(spent <= per_tick * (ticks + SAVED), "{per_tick:?} {price:?} {spent:?}");
            }
        }
    }

    #[test]
    fn what_was_dear_is_looked_at_again() {
        let us = Duration::from_micros;
        let prices = |price| Price { idle: price, touched: price / 4, again: us(0) };
        for (before, after) in [(us(100_000), us(100)), (us(20_000), us(20))] {
            let mut purse = Purse::new(us(2));
            purse.spend(before * 64, 64);
            let bought = (0..1_000_000).find(|_| purse.tick(prices(after), MOST).watched > 0);
            assert!(bought.is_some(), "{before:?} {after:?}");
            // Idle looks that cost more than touched ones.
            purse.spend(before, 1);
            let mut looks = (0..1_000_000).map(|_| purse.tick(prices(before), MOST));
            assert!(looks.any(|looks| looks.watched > looks.touched), "{before:?}");
        }
    }

    #[test]
    fn a_full_purse_pays_for_the_first_looks_and_nothing_pays_for_none() {
        let mut purse = Purse::new(Duration::from_millis(1));
        assert_eq!(purse.tick(Price::BUILD_MACHINE, MOST), MOST);
        let free = Price { idle: Duration::ZERO, touched: Duration::ZERO, again: Duration::ZERO };
        assert_eq!(purse.tick(free, MOST), MOST);
        let mut none = Purse::new(Duration::ZERO);
        assert_eq!(none.tick(Price::BUILD_MACHINE, MOST), Looks { watched: 0, touched: 0 });
    }
}
