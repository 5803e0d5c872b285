//! The figures.

use neap_memory::heat::sim::generate::{Generated, Shape};
use neap_memory::heat::sim::{hot_set, replay};

use super::compare::{Compared, gib};
use super::{HOT, Kind, PER_WINDOW, PHASE, SHAPE, ZIPF, refused, sampling, settings};
use crate::bench::moving::host::Interrupts;
use crate::bench::moving::{figure, samples};
use crate::bench::rows::{Row, Rows};
use crate::bench::{BenchError, Figure, Samples};

const ZIPF_HITS: &str = "heat.hit_ratio_vs_optimum.zipf";
const PHASE_HITS: &str = "heat.hit_ratio_vs_optimum.phase";
const MOVES: &str = "heat.moves_vs_hot_set.zipf";
const SCAN_LOSS: &str = "heat.scan_loss";
/// Those of traces, which are measured together.
const OF_TRACES: [&str; 4] = [ZIPF_HITS, PHASE_HITS, MOVES, SCAN_LOSS];

/// Turns of the sampling figure for each run.
const TURNS: usize = 51;
/// Windows after the deadline of a phase that its hit ratio is taken over.
const AFTER: usize = 25;

/// Names of the figures.
pub fn names() -> Vec<String> {
    OF_TRACES.into_iter().chain([sampling::NAME]).map(str::to_owned).collect()
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    /// Figures.
    pub rows: Rows,
    /// Every kind of trace with the first seed.
    pub compared: Vec<(&'static str, Compared)>,
}

/// Granules of the hot set of that seed, and windows in which it can be moved
/// three times.
pub(super) fn hot_and_deadline(seed: u64) -> (u32, usize) {
    let mut short = Generated::new(ZIPF, Shape { windows: 40, ..SHAPE }, seed);
    let hot = hot_set(&mut short, HOT);
    (hot, (3 * u64::from(hot) / PER_WINDOW) as usize)
}

fn judged(kind: Kind, deadline: usize) -> std::ops::Range<usize> {
    match kind {
        Kind::Phase => {
            let from = PHASE as usize + deadline;
            from..from + AFTER
        }
        _ => deadline..SHAPE.windows as usize,
    }
}

fn compare(kind: Kind, seed: u64) -> Result<Compared, BenchError> {
    let (hot, deadline) = hot_and_deadline(seed);
    let mut trace = kind.trace(seed, hot);
    Compared::new(&mut trace, kind.phase(), hot, PER_WINDOW, judged(kind, deadline))
}

/// Measures with seeds 1 to `runs`; with `only` no more than the figures with
/// that in their names and what is measured along with them.
///
/// # Errors
/// No runs, no such figure, or somebody asked for an end.
pub fn measure(
    runs: usize,
    only: Option<&str>,
    tell: &mut dyn FnMut(&str),
) -> Result<Heat, BenchError> {
    if runs == 0 {
        return Err(BenchError::NoRuns(runs));
    }
    let wanted =
        |names: &[&str]| only.is_none_or(|only| names.iter().any(|name| name.contains(only)));
    let parts = [wanted(&OF_TRACES), wanted(&[sampling::NAME])];
    if let (Some(only), [false, false]) = (only, parts) {
        return Err(BenchError::Unable(format!("--only {only}: no figure has that in its name")));
    }
    let interrupts = Interrupts::watch()?;
    let mut found = if parts[0] { traces(runs, &interrupts, tell)? } else { Heat::default() };
    if parts[1] {
        tell(sampling::NAME);
        let cost = sampling::measure(TURNS * runs, &interrupts);
        found.rows.take(&[sampling::NAME.to_owned()], cost)?;
    }
    Ok(found)
}

/// The figures of traces.
fn traces(
    runs: usize,
    interrupts: &Interrupts,
    tell: &mut dyn FnMut(&str),
) -> Result<Heat, BenchError> {
    let (mut zipf, mut phase, mut scan) = (Sides::default(), Sides::default(), Sides::default());
    let (mut moved, mut hot_sets, mut compared) = (Vec::new(), Vec::new(), Vec::new());
    for seed in 1..=runs as u64 {
        tell(&format!("traces of seed {seed} of {runs}"));
        let even = compare(Kind::Zipf, seed)?;
        interrupts.check()?;
        let changing = compare(Kind::Phase, seed)?;
        interrupts.check()?;
        zipf.add(even.hit_ratios());
        phase.add(changing.hit_ratios());
        moved.push(even.moved_gib());
        hot_sets.push(gib(even.hot.into()));
        let (hot, deadline) = hot_and_deadline(seed);
        let mut trace = Kind::Scan.trace(seed, hot);
        let budget = settings(PER_WINDOW * neap_memory::addr::HUGE_PAGE_SIZE);
        let mut heat = neap_memory::heat::sim::heat::Heat::new(SHAPE.granules, hot, budget)
            .map_err(refused)?;
        let scanned = replay(&mut trace, &mut heat);
        scan.add((scanned.hit_ratio(judged(Kind::Scan, deadline)), even.hit_ratios().0));
        interrupts.check()?;
        if seed == 1 {
            compared = vec![(Kind::Zipf.name(), even), (Kind::Phase.name(), changing)];
            for kind in [Kind::Scan, Kind::Uniform, Kind::ReadOnly] {
                compared.push((kind.name(), compare(kind, seed)?));
                interrupts.check()?;
            }
        }
    }
    let moved = samples(moved)?;
    let hot_sets = samples(hot_sets)?;
    let ratio = |name, ours: &Samples, theirs: &Samples| figure(Figure::ratio(name, ours, theirs));
    let hits = |name, quantity: &str, sides: Sides, least| {
        let (ours, theirs) = sides.samples()?;
        let figure = ratio(name, &ours, &theirs)?.at_least(least);
        let theirs = Some(("optimum", theirs));
        Ok::<_, BenchError>(Row { quantity: quantity.into(), unit: "", ours, theirs, figure })
    };
    let (with, without) = scan.samples()?;
    let loss = with.pair(&without, |with, without| 1.0 - with / without);
    let loss = loss.ok_or(BenchError::NoRuns(0))?;
    let rows = vec![
        hits(ZIPF_HITS, "hit ratio, zipf", zipf, 0.9)?,
        hits(PHASE_HITS, "hit ratio after a change of phase", phase, 0.85)?,
        Row {
            quantity: "moved, zipf".into(),
            unit: "GiB",
            figure: ratio(MOVES, &moved, &hot_sets)?.at_most(2.0),
            ours: moved,
            theirs: Some(("hot set", hot_sets)),
        },
        Row {
            quantity: "hit ratio, zipf with scans".into(),
            unit: "",
            ours: with,
            theirs: Some(("without scans", without)),
            figure: Figure::median(SCAN_LOSS, "ratio", &loss).at_most(0.05),
        },
    ];
    Ok(Heat { rows: Rows { rows, left_out: Vec::new() }, compared })
}

/// Values of the policy, and of what it is compared with.
#[derive(Default)]
struct Sides {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

impl Sides {
    fn add(&mut self, (ours, theirs): (f64, f64)) {
        self.ours.push(ours);
        self.theirs.push(theirs);
    }

    fn samples(self) -> Result<(Samples, Samples), BenchError> {
        Ok((samples(self.ours)?, samples(self.theirs)?))
    }
}
