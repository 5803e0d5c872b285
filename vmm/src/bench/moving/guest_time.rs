//! What moves cost the guest: `migrate.guest_passes_per_gb_vs_floor.2m_thp`,
//! `migrate.longest_stall_in_copies.2m_thp`, `migrate.guest_lost_vs_copy.2m_thp`.
//!
//! The guest writes to every page of the window all the time. Its counter of
//! touches is read before and after each phase: nothing happens, granules
//! move, or the same number of granules of other memory is copied. So the time
//! that `n` touches take when nothing happens is known, and what they took
//! more in a phase is what the guest lost by it.

use std::thread;
use std::time::{Duration, Instant};

use neap_memory::granule::Kind;

use super::copying::Copying;
use super::fault::touch;
use super::host::{Places, check_memory};
use super::ours::{Ours, Setup};
use super::overhead::floor;
use super::parts::{self, Parts};
use super::rates::{Task, check_words};
use super::{BATCH, BenchError, PASS, Rounds, STOP, Side, Variant, Way, micros, samples, window};
use crate::bare::{Guest, Writer};
use crate::bench::Figure;
use crate::bench::rows::Row;

const PASSES: &str = "migrate.guest_passes_per_gb_vs_floor.2m_thp";
const STALL: &str = "migrate.longest_stall_in_copies.2m_thp";
const LOST: &str = "migrate.guest_lost_vs_copy.2m_thp";

/// Names of the figures.
pub fn names() -> Vec<String> {
    [PASSES, STALL, LOST].map(str::to_owned).into()
}

/// How long the guest is watched while nothing happens.
const STILL: Duration = Duration::from_millis(50);
/// Batches each way in a phase.
const BATCHES: usize = 4;
/// Faults behind the time that one takes.
const FAULTS: u64 = 64;

/// One phase: how long it was, and what the guest did.
#[derive(Clone, Copy)]
struct Phase {
    elapsed: Duration,
    touches: u64,
}

impl Phase {
    fn of<R>(
        side: &mut dyn Side,
        work: impl FnOnce(&mut dyn Side) -> Result<R, BenchError>,
    ) -> Result<(Self, R), BenchError> {
        let touches = |guest: &Guest| guest.counters(0).touches;
        let (before, since) = (touches(side.guest()), Instant::now());
        let result = work(side)?;
        let (after, elapsed) = (touches(side.guest()), since.elapsed());
        Ok((Self { elapsed, touches: after - before }, result))
    }

    /// Microseconds lost, if a touch takes what it took in `still`.
    fn lost(&self, still: &Self) -> f64 {
        let touch = micros(still.elapsed) / still.touches as f64;
        micros(self.elapsed) - self.touches as f64 * touch
    }
}

/// All three figures.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn measure(task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    let variant = Variant::Thp2m;
    check_memory(task.host, 5 * task.window)?;
    let places = Places::take()?;
    let fault = fault_time(&places)?;
    let setup = Setup { variant, size: task.window, kind: Kind::Public, cpus: 1 };
    let mut ours = Ours::new(setup, &places)?;
    let mut floor = floor(variant, task.window, &places)?;
    let mut copying = Copying::new(variant, task.window / 2)?;
    let mut rounds = Rounds::new(task.window, variant.granule());
    for side in [&mut ours as &mut dyn Side, &mut *floor] {
        side.send(&rounds.all(), Way::Out)?;
        side.send(&rounds.all(), Way::Back)?;
        side.send(&rounds.upper(), Way::Out)?;
    }
    let granules = (2 * BATCHES) as f64 * BATCH as f64 / variant.granule().bytes() as f64;
    let gigabytes = (2 * BATCHES) as f64 * BATCH as f64 / 1e9;
    let pages = task.window as f64 / 4096.0;
    let mut found = Found::default();
    for _ in 0..task.turns {
        task.interrupts.check()?;
        let turns: Vec<_> = (0..BATCHES).map(|_| rounds.turn()).collect();
        let moves = |side: &mut dyn Side| -> Result<(), BenchError> {
            for (out, back) in &turns {
                side.send(out, Way::Out)?;
                side.send(back, Way::Back)?;
            }
            Ok(())
        };
        let copy = |copying: &mut Copying| {
            let half = task.window / 2 / variant.granule().bytes();
            let low = |batch: &[u64]| batch.iter().map(|granule| granule % half).collect();
            for (out, back) in &turns {
                let (out, back): (Vec<u64>, Vec<u64>) = (low(out), low(back));
                copying.send(&out, Way::Out);
                copying.send(&back, Way::Back);
            }
        };

        begin(&mut ours, false, task.window)?;
        let (still, ()) = Phase::of(&mut ours, |_| {
            thread::sleep(STILL);
            Ok(())
        })?;
        let (moved, ()) = Phase::of(&mut ours, moves)?;
        let (copied, ()) = Phase::of(&mut ours, |_| {
            copy(&mut copying);
            Ok(())
        })?;
        end(&mut ours)?;
        let lost = moved.lost(&still) / granules;
        let lost_to_copies = copied.lost(&still) / granules;
        let copy_us = micros(copied.elapsed) / granules;
        found.lost.push(lost);
        found.lost_to_copies.push(lost_to_copies);
        found.lost_ratio.push((lost - lost_to_copies) / copy_us);
        found.passes.push(moved.touches as f64 / pages / gigabytes);

        // The floor program exchanges pages and so has no directions, but the
        // same granules move.
        begin(&mut *floor, false, task.window)?;
        let (moved, ()) = Phase::of(&mut *floor, moves)?;
        end(&mut *floor)?;
        found.floor_passes.push(moved.touches as f64 / pages / gigabytes);

        let turns: Vec<_> = (0..BATCHES).map(|_| rounds.turn()).collect();
        for side in [&mut ours as &mut dyn Side, &mut *floor] {
            begin(side, true, task.window)?;
            for (out, back) in &turns {
                side.send(out, Way::Out)?;
                side.send(back, Way::Back)?;
            }
            end(side)?;
        }
        let longest = micros(ours.guest().counters(0).longest);
        found.stall.push(longest);
        found.floor_stall.push(micros(floor.guest().counters(0).longest));
        found.stall_ratio.push(longest / copy_us);
        found.copies.push(copy_us);
    }
    ours.check()?;
    found.rows(fault)
}

#[derive(Default)]
struct Found {
    passes: Vec<f64>,
    floor_passes: Vec<f64>,
    stall: Vec<f64>,
    floor_stall: Vec<f64>,
    stall_ratio: Vec<f64>,
    copies: Vec<f64>,
    lost: Vec<f64>,
    lost_to_copies: Vec<f64>,
    lost_ratio: Vec<f64>,
}

impl Found {
    /// A stall may be as long as two copies and a fault, which is so many
    /// copies too.
    fn rows(self, fault: Duration) -> Result<Vec<Row>, BenchError> {
        let longest = 2.0 + micros(fault) / samples(self.copies)?.median();
        let (passes, floor_passes) = (samples(self.passes)?, samples(self.floor_passes)?);
        let ratio = super::figure(Figure::ratio(PASSES, &passes, &floor_passes))?;
        Ok(vec![
            Row {
                quantity: "guest's passes per GB moved".into(),
                unit: "",
                ours: passes,
                theirs: Some(("floor", floor_passes)),
                figure: ratio.at_least(0.9),
            },
            Row {
                quantity: "longest stall, in copies".into(),
                unit: "us",
                ours: samples(self.stall)?,
                theirs: Some(("floor", samples(self.floor_stall)?)),
                figure: Figure::median(STALL, "ratio", &samples(self.stall_ratio)?)
                    .at_most(longest),
            },
            Row {
                quantity: "guest time lost per granule, in copies".into(),
                unit: "us",
                ours: samples(self.lost)?,
                theirs: Some(("copies alone", samples(self.lost_to_copies)?)),
                figure: Figure::median(LOST, "ratio", &samples(self.lost_ratio)?).at_most(1.1),
            },
        ])
    }
}

/// Lets the guest write to every page, and returns once it has done so.
fn begin(side: &mut dyn Side, timed: bool, size: u64) -> Result<(), BenchError> {
    let writer = Writer { timed, ..Writer::over(window(size)?) };
    side.guest().load_writer(0, &writer)?;
    side.guest().start()?;
    side.guest().wait_passes(1, PASS)?;
    if timed {
        // Stalls count from here: the first pass may have found memory that
        // the machine had not mapped yet.
        side.guest().stop(STOP)?;
        let writer = Writer { after: 0, ..writer };
        side.guest().load_writer(0, &writer)?;
        side.guest().start()?;
    }
    Ok(())
}

fn end(side: &mut dyn Side) -> Result<(), BenchError> {
    side.guest().stop(STOP)?;
    check_words(side)
}

/// A bare userfaultfd round trip of a 2 MiB granule, without a copy.
fn fault_time(places: &Places) -> Result<Duration, BenchError> {
    let variant = Variant::Thp2m;
    let mut parts = Parts::new(variant, FAULTS * variant.granule().bytes(), 1, places)?;
    let all: Vec<u64> = (0..FAULTS).collect();
    let mut times = Vec::new();
    for turn in 0..4 {
        parts.take(&all)?;
        let touched = touch(parts.guest(), &all, variant)?;
        if turn > 0 {
            times.extend(touched);
        }
    }
    parts.check()?;
    Ok(parts::median(times))
}
