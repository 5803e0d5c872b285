//! How many granules are moved while vCPUs are parked, and when: so many that
//! none is parked for longer than [`LIMIT`], as far as the last batches tell, and
//! one batch at a time, with as much time between two as the first took.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::park::Stalls;

/// Longest time for which a vCPU is to be parked.
pub(crate) const LIMIT: Duration = Duration::from_millis(10);
/// What batches are made for: some take longer than the ones before.
const AIM: Duration = Duration::from_millis(3);
/// Most granules in a batch.
const MOST: u64 = 64;

/// What the batches so far took.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    state: Mutex<State>,
    /// Until when vCPUs run undisturbed; held by whoever parks them.
    rest: Mutex<Option<Instant>>,
}

/// The right to park vCPUs, which one thread has at a time.
pub(crate) struct Turn<'a>(MutexGuard<'a, Option<Instant>>);

impl Turn<'_> {
    /// vCPUs go on, after `stall`: the next turn is not before they ran for as
    /// long.
    pub(crate) fn over(mut self, stall: Duration) {
        *self.0 = Instant::now().checked_add(stall.min(LIMIT));
    }
}

#[derive(Debug, Default)]
struct State {
    stalls: Stalls,
    /// Nanoseconds that a granule takes, and a batch beside its granules: each
    /// the longest of late.
    granule: u64,
    beside: u64,
}

/// One batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batch {
    /// Granules that were copied.
    pub(crate) granules: u64,
    /// From the first vCPU that was asked to park.
    pub(crate) stall: Duration,
    /// Of that, until all had parked.
    pub(crate) parking: Duration,
    /// Of that, copying.
    pub(crate) copying: Duration,
    /// Of that, mapping over.
    pub(crate) mapping: Duration,
    /// vCPUs.
    pub(crate) vcpus: usize,
}

impl Pace {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for others' holds to end and for the vCPUs to have had their rest.
    /// Each hold is bounded, and its holder waits for nobody who waits here: what
    /// is claimed for a hold is mapped and unwatched until it begins.
    pub(crate) fn turn(&self) -> Turn<'_> {
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let left = rest.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            thread::sleep(left);
        }
        Turn(rest)
    }

    /// Granules for the next batch, at least one.
    pub(crate) fn next(&self) -> usize {
        let state = self.state();
        let left = nanos(AIM).saturating_sub(state.beside);
        // The first batch is to find out.
        let fit = left.checked_div(state.granule).unwrap_or(1);
        fit.clamp(1, MOST) as usize
    }

    /// Notes what a batch took.
    pub(crate) fn note(&self, batch: Batch) {
        let mut state = self.state();
        let (stall, copying) = (nanos(batch.stall), nanos(batch.copying));
        let beside = stall.saturating_sub(copying);
        let late = |old: u64, new: u64| new.max(old - old / 8);
        state.granule = late(state.granule, copying / batch.granules.max(1));
        state.beside = late(state.beside, beside);
        let stalls = &mut state.stalls;
        stalls.batches += 1;
        stalls.granules += batch.granules;
        stalls.nanos += stall;
        stalls.parking_nanos += nanos(batch.parking);
        stalls.copying_nanos += copying;
        stalls.mapping_nanos += nanos(batch.mapping);
        stalls.longest_nanos = stalls.longest_nanos.max(stall);
        let each = beside / batch.vcpus.max(1) as u64;
        stalls.longest_beside_copy_nanos = stalls.longest_beside_copy_nanos.max(each);
    }

    /// Notes that a vCPU did not park in time, for which the others were `held`.
    pub(crate) fn given_up(&self, held: Duration) {
        let held = nanos(held);
        let stalls = &mut self.state().stalls;
        stalls.given_up += 1;
        stalls.nanos += held;
        stalls.longest_nanos = stalls.longest_nanos.max(held);
    }

    /// All of them.
    pub(crate) fn stalls(&self) -> Stalls {
        self.state().stalls
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_to_what_fits_and_shrink_at_once() {
        let pace = Pace::default();
        assert_eq!(pace.next(), 1);
        let batch = |granules, millis| {
            let copying = Duration::from_micros(900 * millis);
            let (parking, mapping) = (Duration::ZERO, Duration::ZERO);
            let stall = Duration::from_millis(millis);
            Batch { granules, stall, parking, copying, mapping, vcpus: 1 }
        };
        pace.note(batch(1, 1));
        assert_eq!(pace.next(), 3);
        pace.note(batch(1, 20));
        assert_eq!(pace.next(), 1);
        for _ in 0..100 {
            pace.note(batch(1, 1));
        }
        assert_eq!(pace.next(), 3);
        let stalls = pace.stalls();
        assert_eq!((stalls.batches, stalls.longest_nanos), (102, 20_000_000));
        // A hold that came to nothing has held vCPUs up all the same.
        pace.given_up(Duration::from_millis(30));
        let stalls = pace.stalls();
        assert_eq!((stalls.batches, stalls.given_up), (102, 1));
        assert_eq!(stalls.longest_nanos, 30_000_000);
    }

    #[test]
    fn holds_of_several_threads_have_rests_between_them() {
        const HELD: Duration = Duration::from_millis(3);
        let pace = Pace::default();
        let spans = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let turn = pace.turn();
                        let since = Instant::now();
                        thread::sleep(HELD);
                        spans.lock().unwrap().push((since, Instant::now()));
                        turn.over(HELD);
                    }
                });
            }
        });
        let mut spans = spans.into_inner().unwrap();
        spans.sort_unstable();
        assert_eq!(spans.len(), 20);
        for pair in spans.windows(2) {
            assert!(pair[1].0 >= pair[0].1 + HELD, "{pair:?}");
        }
    }
}
