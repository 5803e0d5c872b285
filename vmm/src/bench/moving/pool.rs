//! `pool.*`: what a device region of 1 TiB costs before anything is in it, and
//! what a granule costs beside its contents.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use neap_memory::addr::{HUGE_PAGE_SIZE, KIB, MIB, TIB};
use neap_memory::granule::{Granule, GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::pool::Pool;
use neap_memory::table::{GranuleTable, Place};
use neap_memory::tiers::{RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, GuestMemory};

use super::host::check_memory;
use super::rates::Task;
use super::{BenchError, samples, window};
use crate::bench::Figure;
use crate::bench::rows::Row;
use crate::failure::{VM_FAILED, tell};

const BYTES: &str = "pool.bytes_per_granule";
const CREATE: &str = "pool.create_ms.1t";
const RSS: &str = "pool.rss_mib.1t";

/// Names of the figures.
pub fn names() -> Vec<String> {
    [BYTES, CREATE, RSS].map(str::to_owned).into()
}

/// Granules whose metadata is weighed: so many that each of its arrays is a
/// mapping of its own, which comes and goes whole (mallopt(3), the largest
/// `M_MMAP_THRESHOLD`), and that what else is allocated does not matter.
const WEIGHED: u32 = 1 << 25;

/// All of them.
///
/// # Errors
/// [`BenchError::Unable`] if this machine cannot.
pub fn measure(task: Task<'_>) -> Result<Vec<Row>, BenchError> {
    let (mut bytes, mut create, mut rss) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..task.turns {
        task.interrupts.check()?;
        let (ms, mib) = region()?;
        create.push(ms);
        rss.push(mib);
    }
    check_memory(task.host, 2 * 16 * u64::from(WEIGHED))?;
    for _ in 0..task.turns.min(3) {
        task.interrupts.check()?;
        bytes.push(metadata()?);
    }
    let row = |quantity: &str, unit, values: Vec<f64>, name, target| {
        let ours = samples(values)?;
        let figure = Figure::median(name, unit, &ours).at_most(target);
        let quantity = quantity.into();
        Ok::<_, BenchError>(Row { quantity, unit, ours, theirs: None, figure })
    };
    Ok(vec![
        row("metadata of a granule in a frame", "B", bytes, BYTES, 16.0)?,
        row("a region of 1 TiB is ready", "ms", create, CREATE, 50.0)?,
        row("its memory", "MiB", rss, RSS, 16.0)?,
    ])
}

/// Milliseconds until tiers with a pool of 1 TiB are there, and how many MiB
/// they take.
fn region() -> Result<(f64, f64), BenchError> {
    let range = window(16 * MIB)?;
    let spec = RangeSpec { range, backing: Backing::Anon, prefault: true };
    let memory = Arc::new(GuestMemory::new(&[spec])?);
    let mut config = TiersConfig::new(GranuleSize::M2, fatal);
    config.regions =
        vec![RegionConfig { window: None, pool: TIB, kind: Kind::Public, backing: Backing::Anon }];
    let before = resident()?;
    let since = Instant::now();
    let tiers = Tiers::new(&memory, config)?;
    let elapsed = since.elapsed();
    let after = resident()?;
    drop(tiers);
    Ok((elapsed.as_secs_f64() * 1e3, after.saturating_sub(before) as f64 / MIB as f64))
}

/// Bytes that a granule in a frame takes in the pool and in the table.
fn metadata() -> Result<f64, BenchError> {
    let lost = || BenchError::Unexpected("a pool or table that is not as large as asked".into());
    let before = resident()?;
    let mut pool = Pool::new(PoolId(0), WEIGHED, Kind::Public);
    let table = GranuleTable::new(WEIGHED);
    for granule in (0..WEIGHED).map(Granule) {
        let frame = pool.allocate(granule).ok_or_else(lost)?;
        let claimed = table.claim(granule).map_err(|_| lost())?;
        table.finish(claimed, Place::Device { pool: PoolId(0), frame }, true);
    }
    let after = resident()?;
    drop((pool, table));
    Ok(after.saturating_sub(before) as f64 / f64::from(WEIGHED))
}

/// Bytes of this process that are in memory (proc(5), `smaps_rollup`; the
/// counters of `statm` lag behind).
fn resident() -> Result<u64, BenchError> {
    let text = fs::read_to_string("/proc/self/smaps_rollup")
        .map_err(|source| BenchError::System { what: "/proc/self/smaps_rollup", source })?;
    let rss = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let kib: Option<u64> = rss.and_then(|rss| rss.split_whitespace().next()?.parse().ok());
    let kib = kib.ok_or_else(|| BenchError::Unexpected(format!("smaps_rollup says {text}")))?;
    Ok(kib * KIB)
}

pub(super) fn fatal(message: &str) -> ! {
    tell(message);
    std::process::exit(VM_FAILED.into())
}

// A region's granules are those of the default size.
const _: () = assert!(GranuleSize::M2.bytes() == HUGE_PAGE_SIZE);
