//! `steady.device_vs_home`: the guest's passes over granules that are in
//! device frames beside its passes over granules that never moved.

use neap_memory::GpaRange;
use neap_memory::granule::Kind;

use super::host::{Places, check_memory};
use super::ours::{Ours, Setup};
use super::rates::{Task, check_words};
use super::{BenchError, PASS, Side, Variant, Way, figure, micros, parts, samples, window};
use crate::bare::Writer;
use crate::bench::Figure;
use crate::bench::rows::Row;

const NAME: &str = "steady.device_vs_home";

/// Names of the figures.
pub fn names() -> Vec<String> {
    vec![NAME.to_owned()]
}

/// Passes of a turn over each half.
const PASSES: u64 = 8;

/// The figure.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn measure(task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    let variant = Variant::Thp2m;
    check_memory(task.host, 2 * task.window)?;
    let places = Places::take()?;
    let setup = Setup { variant, size: task.window, kind: Kind::Public, cpus: 1 };
    let mut ours = Ours::untouched(setup, &places)?;
    let half = task.window / 2;
    let count = task.window / variant.granule().bytes();
    ours.send(&(count / 2..count).collect::<Vec<_>>(), Way::Out)?;
    let whole = window(task.window)?;
    let at = |offset: u64| {
        whole.base().checked_add(offset).and_then(|base| GpaRange::new(base, half)).unwrap_or(whole)
    };
    let (mut device, mut home) = (Vec::new(), Vec::new());
    // One turn more than asked for: the first warms up.
    for turn in 0..=task.turns {
        task.interrupts.check()?;
        for (range, times) in [(at(half), &mut device), (at(0), &mut home)] {
            let writer = Writer { passes: Some(PASSES), ..Writer::over(range) };
            ours.guest().load_writer(0, &writer)?;
            ours.guest().start()?;
            ours.guest().wait_done(PASS)?;
            check_words(&mut ours)?;
            if turn > 0 {
                times.push(micros(parts::median(ours.guest().pass_times(0))));
            }
        }
    }
    ours.check()?;
    let (device, home) = (samples(device)?, samples(home)?);
    let found = figure(Figure::ratio(NAME, &device, &home))?.at_most(1.02);
    Ok(vec![Row {
        quantity: "a pass over device-resident granules".into(),
        unit: "us",
        ours: device,
        theirs: Some(("never moved", home)),
        figure: found,
    }])
}
