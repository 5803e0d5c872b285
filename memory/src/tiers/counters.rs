//! Counts of what the tiers did, for `status`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use std::time::Duration;

use super::latency::{Latency, LatencyCounts};
use crate::migrate::Outcome;
use crate::table::Place;

const OUTCOMES: usize = Outcome::NAMES.len();

/// Counters, changed by whoever moves.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    to_device: AtomicU64,
    to_home: AtomicU64,
    between: AtomicU64,
    bytes: AtomicU64,
    outcomes: [AtomicU64; OUTCOMES],
    pub(crate) first_touches: AtomicU64,
    pub(crate) come_home: AtomicU64,
    pub(crate) waited: AtomicU64,
    pub(crate) stale: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) latency: Latency,
    pub(crate) lost: AtomicU64,
    pub(crate) heat: HeatCounters,
}

/// Counters of the heat thread.
#[derive(Debug, Default)]
pub(crate) struct HeatCounters {
    pub(crate) watched: AtomicU64,
    pub(crate) touched: AtomicU64,
    pub(crate) promoted: AtomicU64,
    pub(crate) demoted: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) cost: AtomicU64,
    pub(crate) trace_failed: AtomicBool,
}

/// What policy `heat` did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeatCounts {
    /// Granules that were watched for a tick, each time that they were.
    pub watched: u64,
    /// Of these, touched meanwhile. Each touch costs the guest a fault.
    pub touched: u64,
    /// Granules that it moved to a device region.
    pub promoted: u64,
    /// Granules that it moved home.
    pub demoted: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// What watching is taken to have cost the guest: its own price, measured
    /// all the time, for each look.
    pub cost: Duration,
    /// Whether the trace of it could not be written any more, and ends early.
    pub trace_failed: bool,
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Granules that went from host RAM to a device region.
    pub to_device: u64,
    /// Granules that came home.
    pub to_home: u64,
    /// Granules that went from one region to another.
    pub between: u64,
    /// Bytes of all of these.
    pub bytes: u64,
    /// Granules by outcome, in the order of [`Outcome::NAMES`]: those that
    /// were in motion, not those that a request passed over.
    pub outcomes: [u64; OUTCOMES],
    /// First touches that the policy placed.
    pub first_touches: u64,
    /// Granules that came home because a vCPU or the host touched them.
    pub come_home: u64,
    /// Faults on granules in motion.
    pub waited: u64,
    /// Faults that were over when they were read.
    pub stale: u64,
    /// Faults that could not be served at once.
    pub retried: u64,
    /// How long faults took.
    pub latency: LatencyCounts,
    /// Pieces of host memory that have failed under guest memory.
    pub lost: u64,
    /// What policy `heat` did of all this.
    pub heat: HeatCounts,
}

impl Counters {
    pub(crate) fn settled(&self, from: Place, to: Place, outcome: Outcome, bytes: u64) {
        for ((_, named), count) in Outcome::NAMES.iter().zip(&self.outcomes) {
            if *named == outcome {
                count.fetch_add(1, Relaxed);
            }
        }
        if outcome == Outcome::Moved {
            self.bytes.fetch_add(bytes, Relaxed);
            let way = match (from.is_device(), to.is_device()) {
                (_, false) => &self.to_home,
                (false, true) => &self.to_device,
                (true, true) => &self.between,
            };
            way.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn read(&self) -> Counts {
        let mut outcomes = [0; OUTCOMES];
        outcomes.iter_mut().zip(&self.outcomes).for_each(|(to, from)| *to = from.load(Relaxed));
        Counts {
            to_device: self.to_device.load(Relaxed),
            to_home: self.to_home.load(Relaxed),
            between: self.between.load(Relaxed),
            bytes: self.bytes.load(Relaxed),
            outcomes,
            first_touches: self.first_touches.load(Relaxed),
            come_home: self.come_home.load(Relaxed),
            waited: self.waited.load(Relaxed),
            stale: self.stale.load(Relaxed),
            retried: self.retried.load(Relaxed),
            latency: self.latency.read(),
            lost: self.lost.load(Relaxed),
            heat: HeatCounts {
                watched: self.heat.watched.load(Relaxed),
                touched: self.heat.touched.load(Relaxed),
                promoted: self.heat.promoted.load(Relaxed),
                demoted: self.heat.demoted.load(Relaxed),
                bytes: self.heat.bytes.load(Relaxed),
                cost: Duration::from_nanos(self.heat.cost.load(Relaxed)),
                trace_failed: self.heat.trace_failed.load(Relaxed),
            },
        }
    }
}
