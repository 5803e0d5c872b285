//! Traces from a seed.

use super::random::Random;
use super::{Access, Trace};

/// What a trace is like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Every granule alike.
    Uniform,
    /// The granule of rank k in proportion to 1 / k^exponent; ranks lie
    /// scattered in memory.
    Zipf {
        /// Exponent, above 0.
        exponent: f64,
        /// After so many windows ranks are dealt out anew, again and again;
        /// 0: never.
        phase: u32,
        /// Every how many windows a scan touches memory from end to end: in a
        /// row, granules in order, each once it is its turn, for
        /// [`Shape::scan`] windows; 0: never.
        scan_every: u32,
    },
    /// A set of so many granules is read, nothing is written there; the rest
    /// is written a tenth as often altogether.
    ReadOnly {
        /// Granules of the set.
        hot: u32,
    },
}

/// How large a trace is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Granules.
    pub granules: u32,
    /// Windows.
    pub windows: u32,
    /// Touches of the load proper in a window.
    pub touches: u32,
    /// Windows that a scan takes.
    pub scan: u32,
    /// Touches of a granule by a scan, in a row.
    pub scan_touches: u32,
}

/// A generated trace.
#[derive(Clone, Debug)]
pub struct Generated {
    load: Load,
    shape: Shape,
    seed: u64,
    random: Random,
    window: u32,
    /// Share of the touches that ranks up to each one get.
    cumulative: Vec<f64>,
    /// Least rank of each of many equal steps of that share.
    guide: Vec<u32>,
    /// Which granule has each rank.
    ranks: Vec<u32>,
}

impl Generated {
    /// The trace of that load, shape and seed.
    pub fn new(load: Load, shape: Shape, seed: u64) -> Self {
        let weight = |rank: u32| match load {
            Load::Uniform => 1.0,
            Load::Zipf { exponent, .. } => (f64::from(rank) + 1.0).powf(-exponent),
            Load::ReadOnly { hot } if rank < hot => 1.0 / f64::from(hot),
            Load::ReadOnly { hot } => 0.1 / f64::from(shape.granules.saturating_sub(hot).max(1)),
        };
        let mut sum = 0.0;
        let mut cumulative: Vec<f64> = (0..shape.granules)
            .map(|rank| {
                sum += weight(rank);
                sum
            })
            .collect();
        cumulative.iter_mut().for_each(|part| *part /= sum);
        let steps = 4 * shape.granules;
        let least = |step: u32| {
            let at = f64::from(step) / f64::from(steps);
            // Less than the granules there are.
            cumulative.partition_point(|part| *part <= at) as u32
        };
        let guide = (0..steps).map(least).collect();
        let mut trace = Self {
            load,
            shape,
            seed,
            random: Random::new(seed),
            window: 0,
            cumulative,
            guide,
            ranks: Vec::new(),
        };
        trace.restart();
        trace
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn one(&mut self) -> Access {
        let at = self.random.unit();
        let mut rank = self.guide.get((at * self.guide.len() as f64) as usize).map_or(0, |r| *r);
        while self.cumulative.get(rank as usize).is_some_and(|part| *part <= at) {
            rank += 1;
        }
        let rank = (rank as usize).min(self.ranks.len().saturating_sub(1));
        let granule = self.ranks.get(rank).copied().unwrap_or(0);
        let write = match self.load {
            Load::ReadOnly { hot } => rank >= hot as usize,
            Load::Uniform | Load::Zipf { .. } => self.random.next().is_multiple_of(4),
        };
        Access { granule, write, scan: false }
    }

    /// Granules that a scan touches in the current window.
    fn scanned(&self) -> std::ops::Range<u32> {
        let Load::Zipf { scan_every: every @ 1.., .. } = self.load else { return 0..0 };
        let (at, length) = (self.window % every, self.shape.scan.max(1));
        // The last windows of each period.
        let Some(step) = (at + length).checked_sub(every) else { return 0..0 };
        let bound = |step: u32| {
            // Not more than the granules there are.
            (u64::from(self.shape.granules) * u64::from(step) / u64::from(length)) as u32
        };
        bound(step)..bound(step + 1)
    }
}

impl Trace for Generated {
    fn granules(&self) -> u32 {
        self.shape.granules
    }

    fn restart(&mut self) {
        self.random = Random::new(self.seed);
        self.window = 0;
        self.ranks = self.random.shuffled(self.shape.granules);
    }

    fn next(&mut self, window: &mut Vec<Access>) -> bool {
        window.clear();
        if self.window == self.shape.windows || self.shape.granules == 0 {
            return false;
        }
        if let Load::Zipf { phase: phase @ 1.., .. } = self.load
            && self.window > 0
            && self.window.is_multiple_of(phase)
        {
            self.ranks = self.random.shuffled(self.shape.granules);
        }
        let scanned = self.scanned();
        let share = self.shape.touches / (scanned.len() as u32 + 1);
        // Scanned granules come evenly spread over the window.
        for granule in scanned {
            for _ in 0..share {
                let access = self.one();
                window.push(access);
            }
            let scan = Access { granule, write: false, scan: true };
            window.extend((0..self.shape.scan_touches).map(|_| scan));
        }
        let own = window.iter().filter(|access| !access.scan).count();
        for _ in own..self.shape.touches as usize {
            let access = self.one();
            window.push(access);
        }
        self.window += 1;
        true
    }
}
