//! `neap bench node`: how fast memory moves between two NUMA nodes of the
//! host, by the `move` engine and by the `node` engine, each beside a program
//! that calls move_pages(2) and does nothing else. All three take turns.
//!
//! No guest runs: what a guest loses meanwhile is `bench migrate`'s.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neap_memory::addr::{HUGE_PAGE_SIZE, MIB, PAGE_SIZE};
use neap_memory::engine::EngineName;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::hva::{Hva, HvaRange};
use neap_memory::migrate::{MigrateRequest, Select, Target};
use neap_memory::numa::{calls, nodes};
use neap_memory::region::Region;
use neap_memory::tiers::{RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory, backing};
use rustix::mm::Advice;
use vm_memory::{Bytes, GuestAddress};

use super::moving::host::Interrupts;
use super::moving::{figure, rate, samples, system};
use super::rows::{Row, Rows};
use super::{BenchError, Figure};

/// Bytes that move each way in a turn.
const BATCH: u64 = 64 * MIB;
/// Guest memory: scattered granules are every other one.
const WINDOW: u64 = 2 * BATCH;

/// What is moved.
#[derive(Clone, Copy)]
struct Case {
    folio: &'static str,
    huge: bool,
    layout: &'static str,
    /// Granules from one to the next.
    step: u64,
}

const CASES: [Case; 4] = [
    Case { folio: "2m", huge: true, layout: "contiguous", step: 1 },
    Case { folio: "2m", huge: true, layout: "scattered", step: 2 },
    Case { folio: "4k", huge: false, layout: "contiguous", step: 1 },
    Case { folio: "4k", huge: false, layout: "scattered", step: 2 },
];

/// The two nodes.
#[derive(Clone, Copy)]
struct Ends {
    home: u32,
    away: u32,
}

impl Ends {
    fn find() -> Result<Self, BenchError> {
        let (near, all) = (nodes::with_cpus(), nodes::with_memory());
        let home = all.iter().find(|node| near.contains(node));
        // A node of memory alone, or else any other.
        let away = all
            .iter()
            .find(|node| !near.contains(node))
            .or_else(|| all.iter().find(|node| Some(*node) != home));
        match (home, away) {
            (Some(&home), Some(&away)) => Ok(Self { home, away }),
            _ => Err(BenchError::Unable(
                "this machine has one NUMA node: neap lab --host-tiers -- bench node".to_owned(),
            )),
        }
    }
}

fn fatal(message: &str) -> ! {
    eprintln!("neap: {message}");
    std::process::exit(i32::from(crate::failure::VM_FAILED))
}

/// Tiers that one engine moves.
struct Ours {
    tiers: Tiers,
    _memory: Arc<GuestMemory>,
    out: MigrateRequest,
    back: MigrateRequest,
}

impl Ours {
    fn new(engine: EngineName, case: Case, ends: Ends) -> Result<Self, BenchError> {
        let unable = |error: &dyn std::fmt::Display| BenchError::Unable(error.to_string());
        let range = whole_range(0, WINDOW)?;
        let spec = RangeSpec { range, backing: Backing::Node(ends.home), prefault: false };
        let memory = Arc::new(GuestMemory::new(&[spec]).map_err(|error| unable(&error))?);
        let away = Backing::Node(ends.away);
        let config = TiersConfig {
            ram: Backing::Node(ends.home),
            engine: Some(engine),
            huge_pages: case.huge,
            regions: vec![RegionConfig {
                window: None,
                pool: BATCH,
                kind: Kind::Public,
                backing: away,
            }],
            ..TiersConfig::new(GranuleSize::M2, fatal)
        };
        let tiers = Tiers::new(&memory, config).map_err(|error| unable(&error))?;
        for page in (0..WINDOW).step_by(PAGE_SIZE as usize) {
            memory
                .view()
                .write_obj(page, GuestAddress(page))
                .map_err(|error| BenchError::Unexpected(error.to_string()))?;
        }
        let ranges = (0..BATCH / HUGE_PAGE_SIZE)
            .map(|index| whole_range(index * case.step * HUGE_PAGE_SIZE, HUGE_PAGE_SIZE))
            .collect::<Result<Vec<_>, _>>()?;
        let request = |to| MigrateRequest {
            ranges: ranges.clone(),
            to,
            select: Select::ALL,
            from_pool: None,
            limit: None,
        };
        let (out, back) = (request(Target::Pool(PoolId(0))), request(Target::Home));
        let ours = Self { tiers, _memory: memory, out, back };
        // Frames take memory when they are first used.
        ours.turn()?;
        Ok(ours)
    }

    fn send(&self, request: &MigrateRequest) -> Result<Duration, BenchError> {
        let since = Instant::now();
        let report = self.tiers.migrate(request, &mut |_| ControlFlow::Continue(()));
        let spent = since.elapsed();
        let report = report.map_err(|error| BenchError::Unexpected(error.to_string()))?;
        if report.moved.bytes != BATCH {
            return Err(BenchError::Unexpected(format!("not all moved: {report:?}")));
        }
        Ok(spent)
    }

    /// There and back.
    fn turn(&self) -> Result<Duration, BenchError> {
        Ok(self.send(&self.out)? + self.send(&self.back)?)
    }

    fn check(&self, case: Case) -> Result<(), BenchError> {
        let found = self.tiers.verify().map_err(system("the kernel's view of guest memory"))?;
        if let Some((range, what)) = found.mismatches.first() {
            return Err(BenchError::Unexpected(format!("{range}: {what}")));
        }
        let expected = if case.huge { found.checked * HUGE_PAGE_SIZE } else { 0 };
        if found.huge != expected {
            return Err(BenchError::Unexpected(format!(
                "{} bytes are in huge pages, of {}, where {expected} should be",
                found.huge,
                found.checked * HUGE_PAGE_SIZE
            )));
        }
        Ok(())
    }
}

fn whole_range(base: u64, size: u64) -> Result<GpaRange, BenchError> {
    GpaRange::new(Gpa(base), size)
        .ok_or_else(|| BenchError::Unexpected("an empty range".to_owned()))
}

/// Memory that move_pages(2) moves, and nothing else.
struct Bare {
    _region: Region,
    pages: Vec<usize>,
    ends: Ends,
}

impl Bare {
    fn new(case: Case, ends: Ends) -> Result<Self, BenchError> {
        let unable = |error: backing::BackingError| BenchError::Unable(error.to_string());
        let mapped = backing::map(WINDOW, Backing::Node(ends.home), 0, false).map_err(unable)?;
        let region = mapped.region;
        let advice = if case.huge { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        region.advise(0, advice).map_err(system("madvise"))?;
        region.advise(0, Advice::LinuxPopulateWrite).map_err(system("memory to move"))?;
        let start = Hva(region.start().as_ptr().expose_provenance());
        let pages = (0..BATCH / HUGE_PAGE_SIZE)
            .map(|index| start.offset((index * case.step * HUGE_PAGE_SIZE) as usize))
            .flat_map(|at| calls::pages(HvaRange::new(at, HUGE_PAGE_SIZE as usize), case.huge))
            .collect();
        let bare = Self { _region: region, pages, ends };
        bare.turn()?;
        Ok(bare)
    }

    fn send(&self, node: u32) -> Result<Duration, BenchError> {
        let nodes = vec![node.cast_signed(); self.pages.len()];
        let since = Instant::now();
        let (status, _) =
            calls::move_pages(&self.pages, &nodes).map_err(system("move_pages(2)"))?;
        let spent = since.elapsed();
        match status.iter().find(|status| **status != node.cast_signed()) {
            None => Ok(spent),
            Some(status) => {
                Err(BenchError::Unexpected(format!("move_pages(2) left a page: {status}")))
            }
        }
    }

    fn turn(&self) -> Result<Duration, BenchError> {
        Ok(self.send(self.ends.away)? + self.send(self.ends.home)?)
    }
}

/// Measures both engines in `turns` turns.
///
/// # Errors
/// [`BenchError::Unable`] if this machine has one node.
pub fn measure(turns: usize, tell: &mut dyn FnMut(&str)) -> Result<Rows, BenchError> {
    if turns == 0 {
        return Err(BenchError::NoRuns(turns));
    }
    let interrupts = Interrupts::watch()?;
    let ends = Ends::find()?;
    let mut rows = Rows::default();
    for case in CASES {
        tell(&format!(
            "node {} to {} and back, {} folios, {}",
            ends.home, ends.away, case.folio, case.layout
        ));
        let engines = [EngineName::Move, EngineName::Node];
        let names =
            engines.map(|engine| format!("node.{engine}_vs_bare.{}.{}", case.layout, case.folio));
        rows.take(&names, one(case, ends, engines, &names, turns, &interrupts))?;
    }
    Ok(rows)
}

fn one(
    case: Case,
    ends: Ends,
    engines: [EngineName; 2],
    names: &[String; 2],
    turns: usize,
    interrupts: &Interrupts,
) -> Result<Vec<Row>, BenchError> {
    let [first, second] = engines;
    let sides = [Ours::new(first, case, ends)?, Ours::new(second, case, ends)?];
    let bare = Bare::new(case, ends)?;
    let (mut ours, mut theirs) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..turns {
        interrupts.check()?;
        for (side, rates) in sides.iter().zip(&mut ours) {
            rates.push(rate(2 * BATCH, side.turn()?));
        }
        theirs.push(rate(2 * BATCH, bare.turn()?));
    }
    let theirs = samples(theirs)?;
    let mut rows = Vec::new();
    for (((side, rates), engine), name) in sides.iter().zip(ours).zip(engines).zip(names) {
        side.check(case)?;
        let rates = samples(rates)?;
        rows.push(Row {
            quantity: format!("engine={engine}, {} folios, {}", case.folio, case.layout),
            unit: "GB/s",
            figure: figure(Figure::ratio(name, &rates, &theirs))?,
            ours: rates,
            theirs: Some(("move_pages", theirs.clone())),
        });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_turns_are_refused() {
        assert!(matches!(measure(0, &mut |_| {}), Err(BenchError::NoRuns(0))));
    }
}
