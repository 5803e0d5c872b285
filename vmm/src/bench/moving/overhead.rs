//! `migrate.overhead_*` and `migrate.scattered_4k_vs_floor`: what a move costs
//! beside its copy, and what moves of small pages here and there cost in all,
//! next to the floor program.
//!
//! The time beside the copy is the time of a batch less the time from the
//! first copy of each group to the end of its last one. Both sides count it by
//! reading the clock there.

use neap_memory::granule::Kind;

use super::floor_move::FloorMove;
use super::floor_remap::FloorRemap;
use super::host::{Places, check_memory, room_for};
use super::ours::{Ours, Setup};
use super::rates::Task;
use super::{BATCH, BenchError, Rounds, Side, Spent, Variant, Way, figure, micros, samples};
use crate::bench::Figure;
use crate::bench::rows::Row;

/// Names of the figures of one variant.
pub fn names(variant: Variant) -> Vec<String> {
    [vs_floor(variant), per_granule(variant)].into()
}

fn vs_floor(variant: Variant) -> String {
    format!("migrate.overhead_vs_floor.{}", variant.name())
}

fn per_granule(variant: Variant) -> String {
    format!("migrate.overhead_us_per_granule.{}", variant.name())
}

/// Name of the figure for scattered granules.
pub const SCATTERED: &str = "migrate.scattered_4k_vs_floor";

/// The floor program for a kind of memory.
///
/// # Errors
/// This machine cannot.
pub fn floor(variant: Variant, size: u64, places: &Places) -> Result<Box<dyn Side>, BenchError> {
    Ok(match variant.backing() {
        neap_memory::Backing::Anon => Box::new(FloorMove::new(variant, size, places)?),
        backing => Box::new(FloorRemap::new(variant, backing, size, places)?),
    })
}

/// Both sides with the upper half of their window moved out, after every
/// granule has been there and back once.
fn sides(
    variant: Variant,
    task: Task<'_>,
    places: &Places,
) -> Result<(Ours, Box<dyn Side>, Rounds), BenchError> {
    let setup = Setup { variant, size: task.window, kind: Kind::Public, cpus: 1 };
    let mut ours = Ours::new(setup, places)?;
    let mut floor = floor(variant, task.window, places)?;
    let rounds = Rounds::new(task.window, variant.granule());
    for side in [&mut ours as &mut dyn Side, &mut *floor] {
        side.send(&rounds.all(), Way::Out)?;
        side.send(&rounds.all(), Way::Back)?;
        side.send(&rounds.upper(), Way::Out)?;
    }
    Ok((ours, floor, rounds))
}

/// Work beside the copy, guest idle.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn measure(variant: Variant, task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    let _huge = room_for(task.host, variant, 4 * task.window)?;
    let places = Places::take()?;
    let (mut ours, mut floor, mut rounds) = sides(variant, task, &places)?;
    let granules = 2 * BATCH / variant.granule().bytes();
    let beside =
        |spent: Spent| micros(spent.elapsed.saturating_sub(spent.copying)) / granules as f64;
    let (mut our_work, mut floor_work) = (Vec::new(), Vec::new());
    for _ in 0..task.turns {
        task.interrupts.check()?;
        let (out, back) = rounds.turn();
        let (mut ours_spent, mut floor_spent) = (Spent::default(), Spent::default());
        for (batch, way) in [(&out, Way::Out), (&back, Way::Back)] {
            ours_spent += ours.send(batch, way)?;
            floor_spent += floor.send(batch, way)?;
        }
        our_work.push(beside(ours_spent));
        floor_work.push(beside(floor_spent));
    }
    ours.check()?;
    let (our_work, floor_work) = (samples(our_work)?, samples(floor_work)?);
    let ratio = figure(Figure::ratio(&vs_floor(variant), &our_work, &floor_work))?.at_most(0.5);
    let absolute = Figure::median(&per_granule(variant), "us", &our_work).at_most(10.0);
    let row = |figure, quantity: &str| Row {
        quantity: format!("{} granules, {quantity}", variant.name()),
        unit: "us",
        ours: our_work.clone(),
        theirs: Some(("floor", floor_work.clone())),
        figure,
    };
    Ok(vec![row(ratio, "work beside the copy"), row(absolute, "work beside the copy (stretch)")])
}

/// Every third 4 KiB granule of a batch, so that none has a neighbour.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn scattered(task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    const APART: usize = 3;
    let variant = Variant::K4;
    check_memory(task.host, 4 * task.window)?;
    let places = Places::take()?;
    let (mut ours, mut floor, mut rounds) = sides(variant, task, &places)?;
    let (mut our_rates, mut floor_rates) = (Vec::new(), Vec::new());
    for _ in 0..task.turns {
        task.interrupts.check()?;
        let (out, back) = rounds.turn();
        let (mut ours_spent, mut floor_spent, mut count) =
            (Spent::default(), Spent::default(), 0usize);
        for (batch, way) in [(&out, Way::Out), (&back, Way::Back)] {
            // In three goes, so that all of the batch is where it should be.
            for first in 0..APART {
                let some: Vec<u64> = batch.iter().copied().skip(first).step_by(APART).collect();
                ours_spent += ours.send(&some, way)?;
                floor_spent += floor.send(&some, way)?;
                count += some.len();
            }
        }
        let rate = |spent: Spent| count as f64 / 1e3 / spent.elapsed.as_secs_f64();
        our_rates.push(rate(ours_spent));
        floor_rates.push(rate(floor_spent));
    }
    ours.check()?;
    let (our_rates, floor_rates) = (samples(our_rates)?, samples(floor_rates)?);
    let found = figure(Figure::ratio(SCATTERED, &our_rates, &floor_rates))?.at_least(1.2);
    Ok(vec![Row {
        quantity: "4k granules without neighbours".into(),
        unit: "k/s",
        ours: our_rates,
        theirs: Some(("floor", floor_rates)),
        figure: found,
    }])
}
