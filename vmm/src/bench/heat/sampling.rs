//! `heat.sampling_cost`: what it costs a guest that its memory is watched.
//!
//! One guest goes through its memory all the time, a word a page, so that it
//! touches every granule that is watched; that is the most that sampling can
//! cost. Its rate of touches is taken in phases, with and without sampling in
//! turn. Nothing moves. How often it is looked is decided by the price that the
//! sampler measures itself (`--heat-cost`, 1 % if nobody says otherwise), which
//! is printed beside what the guest really lost.
//!
//! Time in which the vCPU's thread, or the fault thread that it waits for, could
//! run and did not get a processor is left out (`schedstat` in proc(5)): it is
//! other programs'. All else counts that it waits for. What cannot be left out is
//! that other programs take caches and bandwidth: on a busy machine the figure is
//! no better than its range. Phases are short and follow one another, so that
//! both of a turn have the same of it.

use std::fs;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use neap_memory::addr::GIB;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::mapped::Mapped;
use neap_memory::migrate::{MigrateRequest, Select, Target};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::{HeatConfig, RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory};

use crate::bare::{Guest, Writer};
use crate::bench::moving::host::{Interrupts, Places, check_memory};
use crate::bench::moving::{PASS, STOP, samples, window};
use crate::bench::rows::Row;
use crate::bench::{BenchError, Figure};
use crate::doctor::Host;
use crate::failure::{VM_FAILED, tell};
use crate::kvm::gate::{Gate, Holder, Wanted};

/// Name of the figure.
pub(super) const NAME: &str = "heat.sampling_cost";

/// Memory of the guest: so much that as many used granules are due in each tick
/// as may be watched.
const SIZE: u64 = 3 * GIB;
/// Pieces of it that are as large as the pool.
const PIECES: u64 = 8;
/// How long the guest is looked at each time.
const PHASE: Duration = Duration::from_millis(200);

/// The figure, in `turns` turns.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub(super) fn measure(turns: usize, interrupts: &Interrupts) -> Result<Vec<Row>, BenchError> {
    check_memory(&Host::this_machine(), SIZE + SIZE / 8)?;
    let places = Places::take()?;
    let range = window(SIZE)?;
    let spec = RangeSpec { range, backing: Backing::Anon, prefault: true };
    let memory = Arc::new(GuestMemory::new(&[spec])?);
    let pool = RegionConfig {
        window: None,
        pool: SIZE / PIECES,
        kind: Kind::Public,
        backing: Backing::Anon,
    };
    let gate = Arc::new(Gate::new(0, Wanted::Run));
    let heat = HeatConfig { moves: false, ..HeatConfig::default() };
    let config = TiersConfig {
        policy: PolicyName::Heat,
        regions: vec![pool],
        heat,
        park: Some(Arc::new(Holder(Arc::clone(&gate)))),
        ..TiersConfig::new(GranuleSize::M2, fatal)
    };
    let tiers = Tiers::new(&memory, config)?;
    take_under_control(&tiers, range)?;
    // Dropped before the tiers.
    let mut guest = Guest::at_gate(Arc::clone(&memory), 1, gate)?;
    places.pin(&guest)?;
    let pages = guest.mapped_pages().map(Arc::new);
    if let Some(pages) = &pages {
        tiers.mapped_by(Arc::clone(pages) as _);
    }
    guest.load_writer(0, &Writer::over(range))?;
    guest.start()?;
    guest.wait_passes(1, PASS)?;

    spend_savings(&tiers, &heat, interrupts)?;

    let threads = [Thread::named("bare0")?, Thread::named("fault")?];
    let (mut looks, mut faults, mut estimates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // One turn more than asked for: the first warms up.
    for turn in 0..=turns {
        interrupts.check()?;
        // Which comes first changes, so that a drift of the machine does not
        // count.
        for hold in [turn % 2 == 0, turn % 2 != 0] {
            tiers.hold_heat(hold);
            // The order is followed at once, but for a tick that it meets.
            thread::sleep(heat.period / 4);
            let before = tiers.status().counts.heat;
            let rate = rate(&guest, &threads)?;
            let after = tiers.status().counts.heat;
            let touched = after.touched - before.touched;
            // With sampling there may be none for a while, too: what looks cost
            // beyond their share is saved up for afterwards.
            if hold && touched > 0 {
                return Err(BenchError::Unexpected(format!("{touched} touches were sampled")));
            }
            if turn > 0 {
                if hold {
                    without.push(rate);
                } else {
                    with.push(rate);
                    let ticks = PHASE.div_duration_f64(heat.period);
                    looks.push((after.watched - before.watched) as f64 / ticks);
                    faults.push(touched as f64 / ticks);
                    estimates.push(100.0 * (after.cost - before.cost).div_duration_f64(PHASE));
                }
            }
        }
    }
    let pages = pages.and_then(|pages| pages.pages()).unwrap_or_default();
    guest.stop(STOP)?;
    let errors = guest.counters(0).errors;
    if errors > 0 {
        return Err(BenchError::Unexpected(format!("the guest found {errors} wrong words")));
    }
    drop(guest);
    drop(tiers);
    let (looks, faults, estimate) = (mean(&looks), mean(&faults), mean(&estimates));
    if faults == 0.0 {
        return Err(BenchError::Unexpected("no touch was sampled".to_owned()));
    }
    let losses = with.iter().zip(&without).map(|(with, without)| 1.0 - with / without);
    let (cost, error) = of_most(losses.collect());
    let cost = samples(vec![cost])?;
    let (with, without) = (samples(with)?, samples(without)?);
    Ok(vec![Row {
        quantity: format!(
            "guest's touches at {looks:.1} looks and {faults:.1} faults a tick, by its own price {estimate:.1} %, mapped \
             by {} large and {} small pages; good to {error:.3}",
            pages.large, pages.small,
        ),
        unit: "M/s",
        figure: Figure::median(NAME, "ratio", &cost).at_most(0.01),
        ours: with,
        theirs: Some(("without", without)),
    }])
}

/// Waits until what was saved for the first looks is spent, and looks cost what
/// they may in the long run.
fn spend_savings(
    tiers: &Tiers,
    heat: &HeatConfig,
    interrupts: &Interrupts,
) -> Result<(), BenchError> {
    const LONGEST: Duration = Duration::from_secs(60);
    const STEP: Duration = Duration::from_secs(1);
    let share = STEP * heat.cost / 10_000;
    let since = Instant::now();
    let mut before = tiers.status().counts.heat.cost;
    let mut calm = 0;
    while calm < 4 && since.elapsed() < LONGEST {
        thread::sleep(STEP);
        interrupts.check()?;
        let cost = tiers.status().counts.heat.cost;
        // Where looks are cheap they may never take all that they might.
        calm = if cost - before <= share + share / 8 { calm + 1 } else { 0 };
        before = cost;
    }
    Ok(())
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean of `values` but for the tenth at each end, which is what others did to
/// this machine, and its standard error (that of a trimmed mean, by the winsorised
/// spread). Not a median: a phase without a look is as much a part of what sampling
/// costs as one with two. What costs in fewer phases than a tenth is not seen.
fn of_most(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let aside = values.len() / 10;
    let most = &values[aside..values.len() - aside];
    let middle = mean(most);
    let (Some(&least), Some(&largest)) = (most.first(), most.last()) else {
        return (middle, 0.0);
    };
    let held: Vec<f64> = values.iter().map(|value| value.clamp(least, largest)).collect();
    let center = mean(&held);
    let spread = mean(&held.iter().map(|value| (value - center).powi(2)).collect::<Vec<_>>());
    (middle, (spread / held.len() as f64).sqrt() / 0.8)
}

/// Takes all of memory under control, so that what is measured is the watching
/// alone: piece by piece it moves to the pool and home again.
fn take_under_control(tiers: &Tiers, range: GpaRange) -> Result<(), BenchError> {
    let piece = SIZE / PIECES;
    for number in 0..PIECES {
        let part = GpaRange::new(Gpa(range.base().0 + number * piece), piece);
        let part = part.ok_or_else(|| BenchError::Unexpected("an empty piece".into()))?;
        for to in [Target::Pool(PoolId(0)), Target::Home] {
            let select = Select { untouched: true, ..Select::ALL };
            let request =
                MigrateRequest { ranges: vec![part], to, select, from_pool: None, limit: None };
            let moved = tiers.migrate(&request, &mut |_| ControlFlow::Continue(()));
            moved.map_err(|error| BenchError::Unexpected(error.to_string()))?;
        }
    }
    if tiers.residency().iter().any(|run| run.untouched) {
        return Err(BenchError::Unexpected("memory was not taken under control".into()));
    }
    Ok(())
}

/// Millions of touches a second.
fn rate(guest: &Guest, threads: &[Thread]) -> Result<f64, BenchError> {
    let delays = || threads.iter().map(Thread::delayed).sum::<Result<Duration, _>>();
    let (before, delayed, since) = (guest.counters(0).touches, delays()?, Instant::now());
    thread::sleep(PHASE);
    let (after, later, elapsed) = (guest.counters(0).touches, delays()?, since.elapsed());
    let own = elapsed.saturating_sub(later.saturating_sub(delayed));
    Ok((after - before) as f64 / own.as_secs_f64() / 1e6)
}

/// A thread of this process.
struct Thread(PathBuf);

impl Thread {
    fn named(name: &str) -> Result<Self, BenchError> {
        let failed = |source| BenchError::System { what: "/proc/self/task", source };
        for task in fs::read_dir("/proc/self/task").map_err(failed)? {
            let path = task.map_err(failed)?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim() == name) {
                return Ok(Self(path.join("schedstat")));
            }
        }
        Err(BenchError::Unexpected(format!("there is no thread {name}")))
    }

    /// Time that it waited for a processor.
    fn delayed(&self) -> Result<Duration, BenchError> {
        let text = fs::read_to_string(&self.0)
            .map_err(|source| BenchError::System { what: "schedstat", source })?;
        let nanos = text.split_whitespace().nth(1).and_then(|word| word.parse().ok());
        let unable = || BenchError::Unable("this kernel has no schedstat".into());
        nanos.map(Duration::from_nanos).ok_or_else(unable)
    }
}

fn fatal(message: &str) -> ! {
    tell(message);
    std::process::exit(VM_FAILED.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_did_does_not_count_and_what_is_seldom_does() {
        let values = |seldom| (0..100).map(move |n| if n % 5 == 0 { seldom } else { 0.0 });
        let (cost, error) = of_most(values(0.05).collect());
        assert!((0.005..0.01).contains(&cost) && error < 0.003, "{cost} {error}");
        let disturbed = values(0.0).chain([0.9, -0.9, 0.8]);
        assert_eq!(of_most(disturbed.collect()), (0.0, 0.0));
        assert_eq!(of_most(vec![0.5]), (0.5, 0.0));
    }
}
