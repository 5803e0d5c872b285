//! `fault.*`: from a vCPU's touch of a granule that is in a frame of kind
//! `private` until it goes on, beside the parts of that: a bare userfaultfd
//! round trip ([`super::parts`]) and the copy.
//!
//! The guest times each touch by its own time stamp counter. Between two
//! touches it lets [`GAP`] pass, so that whoever resolves faults waits again.

use std::time::{Duration, Instant};

use neap_memory::Gpa;
use neap_memory::granule::Kind;

use super::copying::Copying;
use super::host::{Places, check_memory};
use super::ours::{Ours, Setup};
use super::parts::Parts;
use super::rates::Task;
use super::{BASE, BenchError, Side, Variant, Way, figure, micros, samples};
use crate::bare::{Guest, Toucher};
use crate::bench::rows::Row;
use crate::bench::{Figure, Samples};

/// Time between two touches.
const GAP: Duration = Duration::from_micros(100);
/// What all touches of a turn may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Names of the figures of one variant.
pub fn names(variant: Variant) -> Vec<String> {
    [median_name(variant), tail_name(variant)].into()
}

fn last(variant: Variant) -> &'static str {
    if variant == Variant::K4 { "4k" } else { "2m" }
}

fn median_name(variant: Variant) -> String {
    format!("fault.median_vs_parts.{}", last(variant))
}

fn tail_name(variant: Variant) -> String {
    format!("fault.p99_over_median.{}", last(variant))
}

/// Touches of a turn.
fn touches(variant: Variant) -> u64 {
    if variant == Variant::K4 { 512 } else { 64 }
}

/// Times of both sides in microseconds: the median of each turn, and what is
/// said of the slowest of ours.
struct Times {
    ours: Samples,
    parts: Samples,
    /// 99th of 100 of all touches, and of each turn over its median.
    tail: f64,
    tails: Samples,
    middle: f64,
}

/// Faults of one vCPU, and for the table those of two.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn measure(variant: Variant, task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    let one = take(variant, 1, task)?;
    let ratio = figure(Figure::ratio(&median_name(variant), &one.ours, &one.parts))?;
    let over = Figure {
        value: one.tail / one.middle,
        ..Figure::median(&tail_name(variant), "ratio", &one.tails)
    };
    let two = take(variant, 2, task)?;
    let name = format!("{}.2_vcpus", median_name(variant));
    let ratio_2 = figure(Figure::ratio(&name, &two.ours, &two.parts))?;
    let row = |times: &Times, figure, what: &str| Row {
        quantity: format!("{} fault, {what}", last(variant)),
        unit: "us",
        ours: times.ours.clone(),
        theirs: Some(("parts", times.parts.clone())),
        figure,
    };
    Ok(vec![
        row(&one, ratio.at_most(1.15), "median"),
        Row {
            quantity: format!("{} fault, 99th of 100 over median", last(variant)),
            unit: "us",
            ours: samples(vec![one.tail])?,
            theirs: None,
            figure: over.at_most(3.0),
        },
        row(&two, ratio_2, "2 vCPUs"),
    ])
}

fn take(variant: Variant, cpus: usize, task: Task<'_>) -> Result<Times, BenchError> {
    let touches = touches(variant);
    let size = (touches * variant.granule().bytes()).max(2 << 20);
    check_memory(task.host, 6 * size)?;
    let places = Places::take()?;
    let setup = Setup { variant, size, kind: Kind::Private, cpus };
    let mut ours = Ours::new(setup, &places)?;
    let mut parts = Parts::new(variant, size, cpus, &places)?;
    let mut copying = Copying::new(variant, size)?;
    let all: Vec<u64> = (0..touches).collect();
    let (mut our_medians, mut parts_medians) = (Vec::new(), Vec::new());
    let (mut tails, mut every) = (Vec::new(), Vec::new());
    // One turn more than asked for: the first warms up.
    for turn in 0..=task.turns {
        task.interrupts.check()?;
        ours.send(&all, Way::Out)?;
        let touched = touch(ours.guest(), &all, variant)?;
        let trips = {
            parts.take(&all)?;
            let times = touch(parts.guest(), &all, variant);
            parts.check()?;
            times?
        };
        copying.send(&all, Way::Out);
        let copies = all.iter().map(|granule| {
            let since = Instant::now();
            copying.one(*granule, Way::Back);
            since.elapsed()
        });
        let parts = trips.iter().zip(copies).map(|(trip, copy)| micros(*trip + copy));
        let (touched, parts): (Vec<f64>, Vec<f64>) =
            (touched.into_iter().map(micros).collect(), parts.collect());
        if turn > 0 {
            every.extend_from_slice(&touched);
            let (touched, parts) = (samples(touched)?, samples(parts)?);
            our_medians.push(touched.median());
            parts_medians.push(parts.median());
            tails.push(touched.quantile(0.99) / touched.median());
        }
    }
    let every = samples(every)?;
    Ok(Times {
        ours: samples(our_medians)?,
        parts: samples(parts_medians)?,
        tail: every.quantile(0.99),
        tails: samples(tails)?,
        middle: every.median(),
    })
}

/// Lets the guest's vCPUs touch a word of each granule, in turn.
pub(super) fn touch(
    guest: &mut Guest,
    granules: &[u64],
    variant: Variant,
) -> Result<Vec<Duration>, BenchError> {
    let cpus = guest.cpus();
    for cpu in 0..cpus {
        let mine = granules.iter().skip(cpu).step_by(cpus);
        let words = mine.map(|granule| Gpa(BASE.0 + granule * variant.granule().bytes()));
        guest.load_toucher(cpu, &Toucher { words: words.collect(), writes: true, gap: GAP })?;
    }
    guest.start()?;
    guest.wait_done(LIMIT)?;
    Ok((0..cpus).flat_map(|cpu| guest.touch_times(cpu)).collect())
}
