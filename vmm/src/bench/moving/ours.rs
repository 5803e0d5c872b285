//! Neap's side: tiers over the memory of a bare guest.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use neap_memory::engine::hooks::{Hooks, Inject, Point};
use neap_memory::granule::{Granule, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::migrate::{MigrateRequest, Outcome, Report, Select, Target};
use neap_memory::policy::PolicyName;
use neap_memory::tiers::{RegionConfig, Tiers, TiersConfig};
use neap_memory::{Gpa, GpaRange, GuestMemory};

use super::host::{HUGE_ENOUGH, Places, SmallPages};
use super::{BASE, BenchError, Side, Spent, Variant, Way, system, window};
use crate::bare::Guest;
use crate::failure::{VM_FAILED, tell};

/// How the tiers are set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Granule and memory.
    pub variant: Variant,
    /// Bytes of guest memory, and of the pool.
    pub size: u64,
    /// What the pool's frames are to vCPUs.
    pub kind: Kind,
    /// vCPUs.
    pub cpus: usize,
}

/// A guest with tiers.
pub struct Ours {
    // In the order in which they are to go.
    guest: Guest,
    tiers: Tiers,
    memory: Arc<GuestMemory>,
    clock: Arc<CopyClock>,
    variant: Variant,
    granule: u64,
    _small: Option<SmallPages>,
}

impl fmt::Debug for Ours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ours").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl Ours {
    /// A guest whose memory is all present. Every granule has been in the pool
    /// once, so that all frames are present too, and is home again.
    ///
    /// # Errors
    /// This machine has too little memory or no userfaultfd.
    pub fn new(setup: Setup, places: &Places) -> Result<Self, BenchError> {
        let mut ours = Self::untouched(setup, places)?;
        let all: Vec<u64> = (0..setup.size / ours.granule).collect();
        ours.send(&all, Way::Out)?;
        ours.send(&all, Way::Back)?;
        Ok(ours)
    }

    /// A guest whose memory is all present, and of which nothing ever moved.
    ///
    /// # Errors
    /// As [`Ours::new`].
    pub fn untouched(setup: Setup, places: &Places) -> Result<Self, BenchError> {
        let Setup { variant, size, kind, cpus } = setup;
        let small = variant.small_pages().then(SmallPages::only).transpose()?;
        let range = window(size)?;
        let spec = RangeSpec { range, backing: variant.backing(), prefault: true };
        let memory = Arc::new(GuestMemory::new(&[spec])?);
        let clock = Arc::new(CopyClock::new());
        let mut config = TiersConfig::new(variant.granule(), fatal);
        config.policy = match kind {
            Kind::Private => PolicyName::OnFault,
            Kind::Public | Kind::Generic => PolicyName::Static,
        };
        config.ram = variant.backing();
        config.regions =
            vec![RegionConfig { window: None, pool: size, kind, backing: variant.backing() }];
        config.hooks = Arc::<CopyClock>::clone(&clock);
        let tiers = Tiers::new(&memory, config)?;
        let guest = Guest::new(Arc::clone(&memory), cpus)?;
        places.pin(&guest)?;
        let granule = variant.granule().bytes();
        Ok(Self { guest, tiers, memory, clock, variant, granule, _small: small })
    }

    /// The tiers.
    pub fn tiers(&self) -> &Tiers {
        &self.tiers
    }

    /// Whether the kernel agrees where every granule is, and whether those of
    /// 2 MiB are still in huge pages after all their moves.
    ///
    /// # Errors
    /// What is not as it should be.
    pub fn check(&self) -> Result<(), BenchError> {
        let found = self.tiers.verify().map_err(system("the kernel's view of guest memory"))?;
        if let Some((range, what)) = found.mismatches.first() {
            return Err(BenchError::Unexpected(format!("{range}: {what}")));
        }
        let enough = HUGE_ENOUGH * (found.checked * self.granule) as f64;
        if self.variant == Variant::Thp2m && (found.huge as f64) < enough {
            return Err(BenchError::Unable(format!(
                "only {} of {} granules are in huge pages",
                found.huge / self.granule,
                found.checked
            )));
        }
        Ok(())
    }

    /// Moves `granules`; some may not.
    ///
    /// # Errors
    /// The request is refused.
    pub fn request(&mut self, granules: &[u64], way: Way) -> Result<(Report, Spent), BenchError> {
        let to = match way {
            Way::Out => Target::Pool(PoolId(0)),
            Way::Back => Target::Home,
        };
        let ranges = ranges(granules, self.granule);
        let request =
            MigrateRequest { ranges, to, select: Select::ALL, from_pool: None, limit: None };
        self.clock.take();
        let since = Instant::now();
        let report = self
            .tiers
            .migrate(&request, &mut |_| ControlFlow::Continue(()))
            .map_err(|error| BenchError::Unexpected(error.to_string()))?;
        let elapsed = since.elapsed();
        Ok((report, Spent { elapsed, copying: self.clock.take() }))
    }
}

impl Side for Ours {
    fn send(&mut self, granules: &[u64], way: Way) -> Result<Spent, BenchError> {
        let (report, spent) = self.request(granules, way)?;
        if report.moved.granules != granules.len() as u64 {
            let mut counts = Outcome::NAMES.iter().zip(report.counts).filter(|(_, n)| *n > 0);
            let counts: Vec<_> =
                counts.by_ref().map(|((name, _), n)| format!("{n} {name}")).collect();
            return Err(BenchError::Unexpected(format!(
                "of {} granules to move: {}",
                granules.len(),
                counts.join(", ")
            )));
        }
        Ok(spent)
    }

    fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// Granules, in order, as ranges.
fn ranges(granules: &[u64], size: u64) -> Vec<GpaRange> {
    let mut ranges: Vec<GpaRange> = Vec::new();
    for granule in granules {
        let base = Gpa(BASE.0 + granule * size);
        let joined = match ranges.last() {
            Some(last) if last.end() == base => GpaRange::new(last.base(), last.size() + size),
            _ => None,
        };
        match (joined, ranges.last_mut()) {
            (Some(joined), Some(last)) => *last = joined,
            _ => ranges.extend(GpaRange::new(base, size)),
        }
    }
    ranges
}

/// The machine is only a bench, but its memory is not whole any more.
fn fatal(message: &str) -> ! {
    tell(message);
    std::process::exit(VM_FAILED.into())
}

/// Adds up the time between the beginning of a group's copies and their end.
/// One copy thread and no faults at a time, or the spans mix.
#[derive(Debug)]
struct CopyClock {
    base: Instant,
    /// Nanoseconds from `base` to the first copy of the group at work, plus 1.
    since: AtomicU64,
    total: AtomicU64,
}

impl CopyClock {
    fn new() -> Self {
        Self { base: Instant::now(), since: AtomicU64::new(0), total: AtomicU64::new(0) }
    }

    fn take(&self) -> Duration {
        Duration::from_nanos(self.total.swap(0, Ordering::AcqRel))
    }
}

impl Hooks for CopyClock {
    fn at(&self, point: Point, _: Granule) -> Inject {
        match point {
            Point::Copy if self.since.load(Ordering::Relaxed) == 0 => {
                let now = self.base.elapsed().as_nanos() as u64 + 1;
                self.since.store(now, Ordering::Relaxed);
            }
            Point::Arrive => {
                let since = self.since.swap(0, Ordering::Relaxed);
                if since > 0 {
                    let now = self.base.elapsed().as_nanos() as u64 + 1;
                    self.total.fetch_add(now - since, Ordering::AcqRel);
                }
            }
            Point::Copy | Point::Populate | Point::Freeze => {}
        }
        Inject::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn granules_side_by_side_are_one_range() {
        let found = ranges(&[0, 1, 2, 5, 7, 8], 4096);
        let found: Vec<_> =
            found.iter().map(|r| ((r.base().0 - BASE.0) / 4096, r.size() / 4096)).collect();
        assert_eq!(found, [(0, 3), (5, 1), (7, 2)]);
    }

    #[test]
    fn copies_count_from_the_first_of_a_group_to_its_arrival() {
        let clock = CopyClock::new();
        clock.at(Point::Arrive, Granule(0));
        assert_eq!(clock.take(), Duration::ZERO);
        clock.at(Point::Copy, Granule(0));
        clock.at(Point::Copy, Granule(1));
        let since = Instant::now();
        while since.elapsed() < Duration::from_micros(50) {}
        clock.at(Point::Arrive, Granule(0));
        clock.at(Point::Arrive, Granule(1));
        let copying = clock.take();
        assert!(copying >= Duration::from_micros(50), "{copying:?}");
    }
}
