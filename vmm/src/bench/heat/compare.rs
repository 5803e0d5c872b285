//! One trace under all sides.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter};
use std::ops::Range;
use std::path::Path;

use neap_memory::granule::GranuleSize;
use neap_memory::heat::sim::file::{self, Recorded};
use neap_memory::heat::sim::heat::Heat;
use neap_memory::heat::sim::lru::Lru;
use neap_memory::heat::sim::optimum::Optimum;
use neap_memory::heat::sim::sampled::Sampled;
use neap_memory::heat::sim::tpp::Tpp;
use neap_memory::heat::sim::{Replayed, Side, Trace, hot_set, replay};

use super::figures::hot_and_deadline;
use super::{HOT, Kind, SHAPE, refused, settings};
use crate::bench::BenchError;

const GRANULE: u64 = GranuleSize::M2.bytes();

/// What one side made of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Which side.
    pub side: &'static str,
    /// Window by window.
    pub replayed: Replayed,
}

/// A trace under all sides.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// Granules of the hot set, and of the fast tier.
    pub hot: u32,
    /// Windows from which hit ratios are taken.
    pub judged: Range<usize>,
    /// The heat policy, the optimum in hindsight, LRU, and TPP's rule.
    pub lines: [Line; 4],
}

impl Compared {
    /// Replays `trace`, in phases of `phase` windows (0: one), with room for
    /// `room` granules and `per_window` granules that may move in a window.
    ///
    /// # Errors
    /// Settings that let nothing move.
    pub fn new(
        trace: &mut dyn Trace,
        phase: u32,
        room: u32,
        per_window: u64,
        judged: Range<usize>,
    ) -> Result<Self, BenchError> {
        let (granules, budget) = (trace.granules(), per_window * GRANULE);
        let mut optimum = Optimum::new(trace, phase, room);
        let mut heat = Heat::new(granules, room, settings(budget)).map_err(refused)?;
        let mut lru = Lru::new(granules, room, GRANULE, budget);
        let mut tpp = Tpp::new(granules, room, GRANULE, budget);
        let sides: [(&str, &mut dyn Side); 4] =
            [("heat", &mut heat), ("optimum", &mut optimum), ("lru", &mut lru), ("tpp", &mut tpp)];
        let lines = sides.map(|(side, state)| Line { side, replayed: replay(trace, state) });
        Ok(Self { hot: room, judged, lines })
    }

    /// Hit ratios of the heat policy and of the optimum.
    pub fn hit_ratios(&self) -> (f64, f64) {
        let [heat, optimum, ..] = &self.lines;
        let ratio = |line: &Line| line.replayed.hit_ratio(self.judged.clone());
        (ratio(heat), ratio(optimum))
    }

    /// GiB that the heat policy moved.
    pub fn moved_gib(&self) -> f64 {
        gib(self.lines[0].replayed.moved())
    }
}

/// Granules in GiB.
pub(super) fn gib(granules: u64) -> f64 {
    (granules * GRANULE) as f64 / (1u64 << 30) as f64
}

/// Hit ratios, moves and the ratio to the optimum of every side, a line each.
pub fn table(name: &str, compared: &Compared) -> String {
    let mut text = format!(
        "{name}: hot set of {:.2} GiB, hit ratio from window {} on\n",
        gib(compared.hot.into()),
        compared.judged.start
    );
    let (_, best) = compared.hit_ratios();
    for Line { side, replayed } in &compared.lines {
        let hit = replayed.hit_ratio(compared.judged.clone());
        let vs = if best > 0.0 { hit / best } else { 0.0 };
        text += &format!(
            "  {side:<8} hit ratio {hit:.3}  of the optimum {vs:.3}  whole trace {:.3}  moved {:>6.2} \
             GiB, {:.2} hot sets\n",
            replayed.hit_ratio(0..replayed.windows.len()),
            gib(replayed.moved()),
            replayed.moved() as f64 / f64::from(compared.hot.max(1)),
        );
    }
    text
}

/// The trace in a file of either kind, under all sides. The fast tier has room for its hot
/// set, and a hundredth of that may move in a window.
///
/// # Errors
/// No trace.
pub fn recorded(path: &Path) -> Result<Compared, BenchError> {
    let failed = |error: &dyn std::fmt::Display| {
        BenchError::Unable(format!("--trace {}: {error}", path.display()))
    };
    let file = File::open(path).map_err(|error| failed(&error))?;
    let mut file = BufReader::new(file);
    let (mut trace, windows): (Box<dyn Trace>, usize) =
        if Sampled::begins(file.fill_buf().map_err(|error| failed(&error))?) {
            let trace = Sampled::read(&mut file).map_err(|error| failed(&error))?;
            let windows = trace.windows();
            (Box::new(trace), windows)
        } else {
            let trace = Recorded::read(&mut file).map_err(|error| failed(&error))?;
            let windows = trace.windows();
            (Box::new(trace), windows)
        };
    let trace = &mut *trace;
    let hot = hot_set(trace, HOT).max(1);
    let per_window = u64::from(hot).div_ceil(100);
    let moved = (3 * u64::from(hot) / per_window) as usize;
    Compared::new(trace, 0, hot, per_window, moved.min(windows / 2)..windows)
}

/// Writes the traces of seed 1 into `folder`, a file each.
///
/// # Errors
/// A file cannot be written.
pub fn write_traces(folder: &Path) -> Result<(), BenchError> {
    let (hot, _) = hot_and_deadline(1);
    for (name, kind) in Kind::NAMES {
        let path = folder.join(format!("{name}.trace"));
        let failed = |error: &dyn std::fmt::Display| {
            BenchError::Unable(format!("--write-traces {}: {error}", path.display()))
        };
        let file = File::create(&path).map_err(|error| failed(&error))?;
        file::write(&mut kind.trace(1, hot), SHAPE.touches, &mut BufWriter::new(file))
            .map_err(|error| failed(&error))?;
    }
    Ok(())
}
