//! `migrate.{idle,busy}_vs_memcpy.*`: how fast granules move, beside a bare
//! copy in batches of the same size, taken in turn. While the guest is busy it
//! writes to every page of the window all the time, also during the copies.

use neap_memory::granule::Kind;

use super::copying::Copying;
use super::host::{Interrupts, Places, room_for};
use super::ours::{Ours, Setup};
use super::{PASS, Rounds, STOP, Side, Spent, Variant, figure, rate, samples, window};
use crate::bare::Writer;
use crate::bench::rows::Row;
use crate::bench::{BenchError, Figure};
use crate::doctor::Host;

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Task<'a> {
    /// Bytes of guest memory, frames, and each side of the copy.
    pub window: u64,
    /// Turns of a batch each way.
    pub turns: usize,
    /// The machine.
    pub host: &'a Host,
    /// Whether to go on.
    pub interrupts: &'a Interrupts,
}

/// Least ratio where there is a target.
fn target(variant: Variant) -> Option<f64> {
    match variant {
        Variant::Thp2m | Variant::Hugetlb2m => Some(0.9),
        Variant::Small2m => Some(0.6),
        Variant::K64 | Variant::K4 => None,
    }
}

/// Names of the figures of one variant.
pub fn names(variant: Variant) -> Vec<String> {
    ["idle", "busy"].map(|load| name(load, variant)).into()
}

fn name(load: &str, variant: Variant) -> String {
    format!("migrate.{load}_vs_memcpy.{}", variant.name())
}

/// Rates with the guest idle and busy.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn measure(variant: Variant, task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    let _huge = room_for(task.host, variant, 4 * task.window)?;
    let places = Places::take()?;
    let setup = Setup { variant, size: task.window, kind: Kind::Public, cpus: 1 };
    let mut ours = Ours::new(setup, &places)?;
    let mut copying = Copying::new(variant, task.window)?;
    let mut rounds = Rounds::new(task.window, variant.granule());
    ours.send(&rounds.upper(), super::Way::Out)?;
    let mut both = |load: &str, ours: &mut Ours| -> Result<Row, BenchError> {
        let (mut moves, mut copies) = (Vec::new(), Vec::new());
        for _ in 0..task.turns {
            task.interrupts.check()?;
            let (out, back) = rounds.turn();
            let (mut moved, mut copied) = (Spent::default(), Spent::default());
            for (batch, way) in [(&out, super::Way::Out), (&back, super::Way::Back)] {
                moved += ours.send(batch, way)?;
                copied += copying.send(batch, way);
            }
            moves.push(rate(2 * super::BATCH, moved.elapsed));
            copies.push(rate(2 * super::BATCH, copied.elapsed));
        }
        let (moves, copies) = (samples(moves)?, samples(copies)?);
        let found = figure(Figure::ratio(&name(load, variant), &moves, &copies))?;
        Ok(Row {
            quantity: format!("{} granules, guest {load}", variant.name()),
            unit: "GB/s",
            ours: moves,
            theirs: Some(("memcpy", copies)),
            figure: match target(variant) {
                Some(target) => found.at_least(target),
                None => found,
            },
        })
    };
    let idle = both("idle", &mut ours)?;
    let writer = Writer::over(window(task.window)?);
    ours.guest().load_writer(0, &writer)?;
    ours.guest().start()?;
    ours.guest().wait_passes(1, PASS)?;
    let busy = both("busy", &mut ours)?;
    ours.guest().stop(STOP)?;
    check_words(&mut ours)?;
    ours.check()?;
    Ok(vec![idle, busy])
}

/// A bench of moves that lose something is worth nothing.
pub(super) fn check_words(side: &mut dyn Side) -> Result<(), BenchError> {
    for cpu in 0..side.guest().cpus() {
        let errors = side.guest().counters(cpu).errors;
        if errors > 0 {
            let words = side.guest().wrong_words(cpu);
            return Err(BenchError::Unexpected(format!(
                "the guest found {errors} wrong words, the first ones {words:x?}"
            )));
        }
    }
    Ok(())
}
