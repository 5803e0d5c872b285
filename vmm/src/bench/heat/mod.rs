//! `heat.*`: what the heat policy makes of traces, beside the optimum in
//! hindsight, plain LRU and a rule like TPP's, which see every touch and have
//! the same budget; see [`neap_memory::heat::sim`] for what each is.
//!
//! A run is a seed. The machine of the traces has [`SHAPE`] granules of 2 MiB;
//! its *hot set* is the smallest set of granules that gets 80 % of the touches,
//! and the fast tier has room for just that. In a window [`PER_WINDOW`]
//! granules may move. Hit ratios are taken from the moment on by which the hot
//! set could have been moved three times.

mod compare;
mod figures;
mod sampling;

pub use compare::{Compared, Line, recorded, table, write_traces};
pub use figures::{Heat, measure, names};

use neap_memory::granule::GranuleSize;
use neap_memory::heat::Settings;
use neap_memory::heat::sim::generate::{Generated, Load, Shape};

use super::BenchError;

/// Size of the traces.
pub const SHAPE: Shape =
    Shape { granules: 2048, windows: 1000, touches: 50_000, scan: 20, scan_touches: 64 };
/// Granules that may move in a window.
pub const PER_WINDOW: u64 = 4;
/// Share of the touches that the hot set gets.
pub const HOT: f64 = 0.8;
/// Windows of a phase, and from scan to scan.
const PHASE: u32 = 500;
const SCAN_EVERY: u32 = 200;
const ZIPF: Load = Load::Zipf { exponent: 1.0, phase: 0, scan_every: 0 };

/// A kind of trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Every granule alike.
    Uniform,
    /// Zipf with exponent 1.
    Zipf,
    /// The same, ranks dealt out anew half-way.
    Phase,
    /// The same as zipf, with scans.
    Scan,
    /// A hot set that is only read.
    ReadOnly,
}

impl Kind {
    /// All of them with their names.
    pub const NAMES: [(&'static str, Self); 5] = [
        ("uniform", Self::Uniform),
        ("zipf", Self::Zipf),
        ("phase", Self::Phase),
        ("scan", Self::Scan),
        ("read-only", Self::ReadOnly),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }

    /// The trace of that seed; `hot` granules are the hot set of the read-only
    /// one.
    pub fn trace(self, seed: u64, hot: u32) -> Generated {
        let load = match self {
            Self::Uniform => Load::Uniform,
            Self::Zipf => ZIPF,
            Self::Phase => Load::Zipf { exponent: 1.0, phase: PHASE, scan_every: 0 },
            Self::Scan => Load::Zipf { exponent: 1.0, phase: 0, scan_every: SCAN_EVERY },
            Self::ReadOnly => Load::ReadOnly { hot },
        };
        Generated::new(load, SHAPE, seed)
    }

    /// Windows of a phase; 0: there is one.
    fn phase(self) -> u32 {
        if self == Self::Phase { PHASE } else { 0 }
    }
}

/// The policy's settings, as it runs.
fn settings(budget: u64) -> Settings {
    Settings::new(GranuleSize::M2, budget)
}

fn refused(error: impl std::fmt::Display) -> BenchError {
    BenchError::Unable(error.to_string())
}
