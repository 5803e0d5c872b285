//! How long faults take, as a histogram of fixed buckets: what is added costs
//! two atomic additions, and nobody who reads it holds anybody up.
//!
//! It measures the faults that the fault thread serves itself (first touches,
//! granules that come home, faults that were over when they were read), from
//! the moment in which the event was read to the moment in which whoever waits
//! was woken, tries that failed included. The kernel's way into the fault and
//! out of it is not in it; nor are faults on granules in motion, which whoever
//! moves them answers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the buckets, in microseconds; one more is above them.
pub const BOUNDS_US: [u64; 13] =
    [10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000];

const BUCKETS: usize = BOUNDS_US.len() + 1;

/// A histogram that is being added to.
#[derive(Debug, Default)]
pub(crate) struct Latency {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// A histogram as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyCounts {
    /// Faults in each bucket of [`BOUNDS_US`], and above the last.
    pub buckets: [u64; BUCKETS],
    /// Time of all of them.
    pub total: Duration,
}

impl Latency {
    pub(crate) fn add(&self, took: Duration) {
        let bucket = BOUNDS_US.partition_point(|bound| Duration::from_micros(*bound) < took);
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn read(&self) -> LatencyCounts {
        let mut buckets = [0; BUCKETS];
        buckets.iter_mut().zip(&self.buckets).for_each(|(to, from)| *to = from.load(Relaxed));
        LatencyCounts { buckets, total: Duration::from_nanos(self.nanos.load(Relaxed)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_in_the_first_bucket_that_holds_it() {
        let latency = Latency::default();
        for us in [0, 10, 11, 100_000, 100_001, 5_000_000] {
            latency.add(Duration::from_micros(us));
        }
        let counts = latency.read();
        let mut expected = [0; BUCKETS];
        (expected[0], expected[1], expected[12], expected[13]) = (2, 1, 1, 2);
        assert_eq!(counts.buckets, expected);
        assert_eq!(counts.total, Duration::from_micros(5_200_022));
    }
}
