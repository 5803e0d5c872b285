//! Granules of a group that somebody waits for: they are copied next and given
//! back at once, so that a touch waits for the copy that is going on and its
//! own, however large the group.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Step;
use crate::granule::Granule;

/// Granules remembered at a time. A later one may push another out, which then
/// comes when its group is done.
const SLOTS: usize = 8;

/// Who is waited for: granule numbers plus one, 0 for none.
#[derive(Debug, Default)]
pub(crate) struct Hurry([AtomicU64; SLOTS]);

impl Hurry {
    /// Somebody waits for `granule`, which moves.
    pub(crate) fn ask(&self, granule: Granule) {
        let slot = &self.0[granule.0 as usize % SLOTS];
        slot.store(u64::from(granule.0) + 1, Ordering::Release);
    }

    /// Whether somebody waits for it; not remembered any longer then.
    pub(crate) fn take(&self, granule: Granule) -> bool {
        let wanted = u64::from(granule.0) + 1;
        let slot = &self.0[granule.0 as usize % SLOTS];
        slot.load(Ordering::Acquire) == wanted
            && slot.compare_exchange(wanted, 0, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Where a mover hears of those who wait.
pub(crate) struct Waiters<'a> {
    /// What is remembered of them.
    pub(crate) hurry: &'a Hurry,
    /// Has faults that nobody has read yet remembered too. The fault thread
    /// would do that, when it gets a processor: the mover may be on the one
    /// that it waits for.
    pub(crate) listen: &'a dyn Fn(),
}

impl Waiters<'_> {
    /// The order in which `steps` are gone through.
    pub(crate) fn order<'a>(&'a self, steps: &'a [Step]) -> Order<'a> {
        Order { waiters: self, steps, first: 0, elsewhere: [0; SLOTS] }
    }
}

/// Steps, the hurried ones before the others.
pub(crate) struct Order<'a> {
    waiters: &'a Waiters<'a>,
    steps: &'a [Step],
    /// All before it are done.
    first: usize,
    /// What was found to be of another group, slot by slot.
    elsewhere: [u64; SLOTS],
}

impl Order<'_> {
    /// The step to go on with: one that somebody waits for, which is `open`, or
    /// is `ready` and has only to be given; or else the first open one.
    pub(crate) fn next(&mut self, open: &[bool], ready: &[bool]) -> Option<usize> {
        // A single one is what everybody waits for anyway.
        if self.steps.len() > 1 {
            (self.waiters.listen)();
        }
        for (slot, elsewhere) in self.waiters.hurry.0.iter().zip(&mut self.elsewhere) {
            let number = slot.load(Ordering::Acquire);
            if number == 0 || number == *elsewhere {
                continue;
            }
            let asked = |step: &Step| u64::from(step.granule.0) + 1 == number;
            match self.steps.iter().position(asked) {
                Some(index) if open[index] || ready[index] => return Some(index),
                _ => *elsewhere = number,
            }
        }
        while self.first < open.len() && !open[self.first] {
            self.first += 1;
        }
        (self.first < open.len()).then_some(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Place;

    #[test]
    fn who_is_waited_for_comes_first_and_once() {
        let step = |granule| Step {
            granule: Granule(granule),
            from: Place::Home,
            from_mapped: true,
            to: Place::Home,
            to_mapped: true,
        };
        let steps = [step(10), step(11), step(12)];
        let hurry = Hurry::default();
        let waiters = Waiters { hurry: &hurry, listen: &|| {} };
        let mut order = waiters.order(&steps);
        let none = [false; 3];
        assert_eq!(order.next(&[true; 3], &none), Some(0));
        hurry.ask(Granule(12));
        hurry.ask(Granule(99));
        assert_eq!(order.next(&[false, true, true], &none), Some(2));
        assert!(hurry.take(Granule(12)) && !hurry.take(Granule(12)));
        assert_eq!(order.next(&[false, true, false], &[true, false, true]), Some(1));
        // Who is waited for and was passed over before is found again.
        hurry.ask(Granule(12));
        assert_eq!(waiters.order(&steps).next(&[false, true, true], &none), Some(2));
        assert_eq!(waiters.order(&steps).next(&none, &[false, false, true]), Some(2));
        assert_eq!(order.next(&none, &none), None);
    }
}
