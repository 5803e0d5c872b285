//! What a migration is asked to do, and what came of it, granule by granule.
//! Pure.

use std::fmt;
use std::time::Duration;

use crate::GpaRange;
use crate::granule::PoolId;

/// Which granules a migration may collect, as `MIGRATE_VMA_SELECT_*` in
/// include/linux/migrate.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Select {
    /// Those at home, in host RAM.
    pub system: bool,
    /// Those in frames of a `private` region.
    pub device_private: bool,
    /// Those in frames of a `public` region.
    pub device_public: bool,
    /// Also those that nobody has touched, which get memory by that.
    pub untouched: bool,
}

impl Select {
    /// Everything that has something to move.
    pub const ALL: Self =
        Self { system: true, device_private: true, device_public: true, untouched: false };
}

/// Where granules are to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Host RAM.
    Home,
    /// Frames of this pool.
    Pool(PoolId),
}

/// A migration that somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateRequest {
    /// Guest-physical memory; empty: all of it.
    pub ranges: Vec<GpaRange>,
    /// Where to.
    pub to: Target,
    /// What may be collected.
    pub select: Select,
    /// Only granules in frames of this pool, beside those at home that
    /// `select` allows; every pool's if `None`.
    pub from_pool: Option<PoolId>,
    /// At the most so many granules are moved; the first ones by address.
    pub limit: Option<u64>,
}

/// What came of one granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// It is where it was asked to be now.
    Moved,
    /// It was there already.
    AlreadyThere,
    /// A pin holds it where it is.
    Pinned,
    /// Its place is not among those that were selected, or its region is
    /// `generic`, which never moves.
    WrongKind,
    /// No frame is free where it was to go.
    NoFrame,
    /// It would take memory that it never had, and a cgroup of this process is
    /// near its limit; at the limit the kernel would end a process.
    NoMemory,
    /// Its mapping would take one VMA more than the process may have
    /// (`vm.max_map_count`).
    VmaBudget,
    /// Somebody else moves it, or the kernel holds its pages (EBUSY, EAGAIN).
    Busy,
    /// Its contents could not be copied.
    CopyFailed,
    /// Host memory behind it has failed and part of it is lost: it stays where
    /// it is.
    Poisoned,
    /// The frame that it was to go to has failed, and is retired.
    BadFrame,
    /// Nobody has touched it and there is nothing to move.
    Untouched,
    /// Whoever asked went away, or the machine ended, before its turn.
    Cancelled,
}

impl Outcome {
    /// Every outcome with its name in messages and JSON.
    pub const NAMES: [(&'static str, Self); 13] = [
        ("moved", Self::Moved),
        ("already-there", Self::AlreadyThere),
        ("pinned", Self::Pinned),
        ("wrong-kind", Self::WrongKind),
        ("no-frame", Self::NoFrame),
        ("no-memory", Self::NoMemory),
        ("vma-budget", Self::VmaBudget),
        ("busy", Self::Busy),
        ("copy-failed", Self::CopyFailed),
        ("poisoned", Self::Poisoned),
        ("bad-frame", Self::BadFrame),
        ("untouched", Self::Untouched),
        ("cancelled", Self::Cancelled),
    ];

    /// Name in messages and JSON.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, outcome)| *outcome == self).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Granules side by side that did not move, for the same reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Where.
    pub range: GpaRange,
    /// Why.
    pub outcome: Outcome,
}

/// How many granules moved, and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Granules.
    pub granules: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What came of a migration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What moved.
    pub moved: Moved,
    /// Granules by outcome, in the order of [`Outcome::NAMES`].
    pub counts: [u64; Outcome::NAMES.len()],
    /// What did not move and was not there already, as runs; at the most
    /// [`Report::SKIPPED_MAX`] of them.
    pub skipped: Vec<Skipped>,
    /// Runs that did not fit in `skipped`.
    pub skipped_more: u64,
    /// From the first granule to the last.
    pub elapsed: Duration,
}

impl Report {
    /// Most runs that a report lists, so that a request over a terabyte of
    /// small granules has an answer of bounded size.
    pub const SKIPPED_MAX: usize = 1024;

    /// Granules that ended in `outcome`.
    pub fn count(&self, outcome: Outcome) -> u64 {
        Outcome::NAMES
            .iter()
            .zip(self.counts)
            .find_map(|((_, named), count)| (*named == outcome).then_some(count))
            .unwrap_or(0)
    }

    /// Adds the outcome of the granule at `range`.
    pub fn add(&mut self, range: GpaRange, outcome: Outcome) {
        for ((_, named), count) in Outcome::NAMES.iter().zip(&mut self.counts) {
            *count += u64::from(*named == outcome);
        }
        match outcome {
            Outcome::Moved => {
                self.moved.granules += 1;
                self.moved.bytes += range.size();
            }
            Outcome::AlreadyThere | Outcome::Untouched => {}
            _ => self.add_skipped(Skipped { range, outcome }),
        }
    }

    fn add_skipped(&mut self, skipped: Skipped) {
        if let Some(last) = self.skipped.last_mut()
            && last.outcome == skipped.outcome
            && last.range.end() == skipped.range.base()
            && let Some(joined) =
                GpaRange::new(last.range.base(), last.range.size() + skipped.range.size())
        {
            last.range = joined;
        } else if self.skipped.len() < Self::SKIPPED_MAX {
            self.skipped.push(skipped);
        } else {
            self.skipped_more += 1;
        }
    }
}

/// How far a migration is; given after each batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Granules that have an outcome.
    pub done: u64,
    /// Granules of the request.
    pub total: u64,
    /// What has moved.
    pub moved: Moved,
}

/// Why a request is refused as a whole; nothing has moved then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Memory that the guest does not have.
    #[error("{0} is not guest memory: {1}")]
    Outside(GpaRange, String),
    /// Not whole granules.
    #[error("{range} is not whole granules: give multiples of {granule}")]
    Misaligned {
        /// The range.
        range: GpaRange,
        /// Size of a granule, as the command line has it.
        granule: String,
    },
    /// Two ranges of one request, or of two requests at a time, overlap.
    #[error("{0} overlaps {1}, which is being moved already: wait for it")]
    Overlaps(GpaRange, GpaRange),
    /// No such pool.
    #[error("there is no device region {0}: {1}")]
    NoPool(u8, String),
    /// The host or the configuration cannot move memory.
    #[error("{0}")]
    Unsupported(String),
    /// The machine is over.
    #[error("the machine is over")]
    Over,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Gpa;

    fn granule(index: u64) -> GpaRange {
        GpaRange::new(Gpa(index * 4096), 4096).unwrap()
    }

    #[test]
    fn granules_side_by_side_with_one_reason_are_one_run() {
        let mut report = Report::default();
        for index in 0..3 {
            report.add(granule(index), Outcome::Pinned);
        }
        report.add(granule(3), Outcome::Moved);
        report.add(granule(4), Outcome::Pinned);
        assert_eq!(report.skipped.len(), 2);
        assert_eq!(report.skipped[0].range.size(), 3 * 4096);
        assert_eq!(report.count(Outcome::Pinned), 4);
        assert_eq!(report.moved, Moved { granules: 1, bytes: 4096 });
    }

    #[test]
    fn a_report_has_a_bounded_size() {
        let mut report = Report::default();
        for index in 0..2 * Report::SKIPPED_MAX as u64 + 10 {
            report.add(granule(2 * index), Outcome::Busy);
        }
        assert_eq!(report.skipped.len(), Report::SKIPPED_MAX);
        assert_eq!(report.skipped_more, Report::SKIPPED_MAX as u64 + 10);
    }
}
