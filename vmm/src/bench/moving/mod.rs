//! What it costs to move memory under a running guest, beside what it is
//! compared with. Sides that do the same work:
//!
//! * [`ours`]: the tiers of `neap_memory`;
//! * [`floor_move`], [`floor_remap`]: a program of bare ioctls, one granule at
//!   a time, with no pool and no states;
//! * [`copying`]: the copy alone, on memory of the same kind.
//!
//! They are measured in turn, batch by batch, in the same run. The guest is
//! [`crate::bare::Guest`]; its vCPUs have processors of their own and
//! everything else the last one ([`host::Places`]), so that a ratio does not
//! depend on where the scheduler puts threads.

pub mod api;
pub mod copying;
pub mod fault;
pub mod floor_move;
pub mod floor_remap;
pub mod guest_time;
pub mod host;
pub mod ours;
pub mod overhead;
pub mod parts;
pub mod pool;
pub mod rates;
pub mod steady;
pub mod subject;

use std::io;
use std::time::Duration;

use neap_memory::addr::{GIB, MIB};
use neap_memory::granule::GranuleSize;
use neap_memory::guest::GuestMemoryError;
use neap_memory::tiers::TiersError;
use neap_memory::{Backing, Gpa, GpaRange};
use rustix::io::Errno;

use super::{BenchError, Figure, Samples};
use crate::bare::{BareError, Guest};

/// Size of granule and kind of memory that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// 2 MiB, transparent huge pages.
    Thp2m,
    /// 2 MiB, hugetlb pages.
    Hugetlb2m,
    /// 2 MiB, in 512 small pages.
    Small2m,
    /// 64 KiB, small pages.
    K64,
    /// 4 KiB.
    K4,
}

impl Variant {
    /// All of them with the last part of the names of their figures.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("2m_thp", Self::Thp2m),
        ("2m_hugetlb", Self::Hugetlb2m),
        ("2m_4k", Self::Small2m),
        ("64k", Self::K64),
        ("4k", Self::K4),
    ];

    /// Last part of the names of its figures.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, variant)| *variant == self).map_or("", |(name, _)| name)
    }

    /// Size of its granules.
    pub fn granule(self) -> GranuleSize {
        match self {
            Self::Thp2m | Self::Hugetlb2m | Self::Small2m => GranuleSize::M2,
            Self::K64 => GranuleSize::K64,
            Self::K4 => GranuleSize::K4,
        }
    }

    /// Host memory behind it.
    pub fn backing(self) -> Backing {
        match self {
            Self::Hugetlb2m => Backing::Hugetlb,
            _ => Backing::Anon,
        }
    }

    /// Whether memory must come in small pages.
    fn small_pages(self) -> bool {
        !matches!(self, Self::Thp2m | Self::Hugetlb2m)
    }
}

/// Which way granules go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Into device frames.
    Out,
    /// Home.
    Back,
}

/// What some work took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// From beginning to end.
    pub elapsed: Duration,
    /// Of that, copying.
    pub copying: Duration,
}

impl std::ops::AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.elapsed += other.elapsed;
        self.copying += other.copying;
    }
}

/// Somebody who moves granules of a guest's memory. Guest memory begins at
/// [`BASE`]; granules are counted from there.
pub trait Side {
    /// Moves `granules`, all of which are where they can go `way`.
    ///
    /// # Errors
    /// One of them did not move.
    fn send(&mut self, granules: &[u64], way: Way) -> Result<Spent, BenchError>;

    /// The guest that runs in the memory.
    fn guest(&mut self) -> &mut Guest;
}

/// Where guest memory begins.
pub const BASE: Gpa = Gpa(GIB);
/// What is moved at a time, in bytes.
pub const BATCH: u64 = 32 * MIB;
/// What a vCPU may take to leave the guest.
pub(crate) const STOP: Duration = Duration::from_secs(5);
/// What a guest may take for a pass, in the worst case.
pub(crate) const PASS: Duration = Duration::from_secs(120);

/// The guest-physical range of a window of `size` bytes.
pub(crate) fn window(size: u64) -> Result<GpaRange, BenchError> {
    GpaRange::new(BASE, size).ok_or_else(|| BenchError::Unexpected("an empty window".into()))
}

/// Batches that go round a window for ever: out from its lower half while the
/// same batch of the upper half comes home, then the other way round. So every
/// byte is touched again only after the whole window was.
#[derive(Clone, Debug)]
pub struct Rounds {
    granules: u64,
    per_batch: u64,
    next: u64,
    lower_goes: Way,
}

impl Rounds {
    /// Rounds of a window of `size` bytes, a multiple of two batches, whose
    /// upper half is out.
    pub fn new(size: u64, granule: GranuleSize) -> Self {
        Self {
            granules: size / granule.bytes(),
            per_batch: BATCH / granule.bytes(),
            next: 0,
            lower_goes: Way::Out,
        }
    }

    /// The upper half, which is to be out before the first turn.
    pub fn upper(&self) -> Vec<u64> {
        (self.granules / 2..self.granules).collect()
    }

    /// All granules.
    pub fn all(&self) -> Vec<u64> {
        (0..self.granules).collect()
    }

    /// The next batch to go out and the next to come back.
    pub fn turn(&mut self) -> (Vec<u64>, Vec<u64>) {
        let half = self.granules / 2;
        let lower: Vec<u64> = (self.next..self.next + self.per_batch).collect();
        let upper: Vec<u64> = lower.iter().map(|granule| granule + half).collect();
        let turn = match self.lower_goes {
            Way::Out => (lower, upper),
            Way::Back => (upper, lower),
        };
        self.next += self.per_batch;
        if self.next + self.per_batch > half {
            self.next = 0;
            self.lower_goes = match self.lower_goes {
                Way::Out => Way::Back,
                Way::Back => Way::Out,
            };
        }
        turn
    }
}

/// Gigabytes (10^9) a second.
pub(crate) fn rate(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / 1e9 / time.as_secs_f64()
}

pub(crate) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

pub(crate) fn samples(values: Vec<f64>) -> Result<Samples, BenchError> {
    Samples::new(values).ok_or(BenchError::NoRuns(0))
}

pub(crate) fn figure(figure: Option<Figure>) -> Result<Figure, BenchError> {
    figure.ok_or_else(|| BenchError::Unexpected("a time of 0 was measured".into()))
}

pub(crate) fn system(what: &'static str) -> impl Fn(Errno) -> BenchError {
    move |errno| BenchError::System { what, source: io::Error::from(errno) }
}

impl From<BareError> for BenchError {
    fn from(error: BareError) -> Self {
        match error {
            BareError::Open(_) => Self::Unable(error.to_string()),
            other => Self::Guest(other),
        }
    }
}

impl From<GuestMemoryError> for BenchError {
    /// Whatever it is, this machine has too little memory of that kind.
    fn from(error: GuestMemoryError) -> Self {
        Self::Unable(error.to_string())
    }
}

impl From<neap_memory::backing::BackingError> for BenchError {
    fn from(error: neap_memory::backing::BackingError) -> Self {
        Self::Unable(error.to_string())
    }
}

impl From<TiersError> for BenchError {
    fn from(error: TiersError) -> Self {
        match error {
            TiersError::Open(_) | TiersError::Missing(_) | TiersError::Backing(_) => {
                Self::Unable(error.to_string())
            }
            other => Self::Unexpected(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_send_out_only_what_is_home_and_the_reverse() {
        let mut rounds = Rounds::new(8 * BATCH, GranuleSize::M2);
        let mut out: std::collections::BTreeSet<u64> = rounds.upper().into_iter().collect();
        assert_eq!(rounds.all().len(), 128);
        for turn in 0..20 {
            let (go, come) = rounds.turn();
            assert_eq!((go.len(), come.len()), (16, 16));
            assert!(go.iter().all(|granule| out.insert(*granule)), "turn {turn}");
            assert!(come.iter().all(|granule| out.remove(granule)), "turn {turn}");
        }
    }

    #[test]
    fn names_are_those_of_the_design() {
        let names = Variant::NAMES.map(|(_, variant)| variant.name());
        assert_eq!(names, ["2m_thp", "2m_hugetlb", "2m_4k", "64k", "4k"]);
    }
}
