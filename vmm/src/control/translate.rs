//! The tiers of a guest's memory in the words of the control socket.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use neap_memory::GpaRange;
use neap_memory::migrate::{self, MigrateRequest, Outcome, Report, RequestError, Select, Target};
use neap_memory::policy::PolicyName;
use neap_memory::table::Place;
use neap_memory::tiers::{LATENCY_BOUNDS_US, LatencyCounts, PlugMemory, Residence, Tiers};
use neap_memory::uffd::abi::Door;
use neap_memory::{Gpa, granule::PoolId};

use super::Memory;
use super::accounts;
use super::api::{self, Error, ErrorKind, Hex};

impl Memory for Tiers {
    fn migrate(
        &self,
        request: &MigrateRequest,
        progress: &mut dyn FnMut(&migrate::Progress) -> ControlFlow<()>,
    ) -> Result<Report, RequestError> {
        Self::migrate(self, request, progress)
    }

    fn check(&self, request: &MigrateRequest) -> Result<(), RequestError> {
        Self::check(self, request)
    }

    fn residency(&self, from: Gpa, most: usize) -> Vec<api::Run> {
        self.residency_from(from, most).into_iter().map(run).collect()
    }

    fn verify(&self, wanted: &dyn Fn() -> bool) -> io::Result<api::Verified> {
        let verified = self.verify_while(wanted)?;
        let mismatch = |(range, found): (GpaRange, String)| api::Mismatch {
            base: Hex(range.base().0),
            size: range.size(),
            found,
        };
        Ok(api::Verified {
            checked: verified.checked,
            passed_over: verified.passed_over,
            huge_bytes: verified.huge,
            mismatches: verified.mismatches.into_iter().map(mismatch).collect(),
        })
    }

    fn status(&self) -> api::Tiers {
        let status = Self::status(self);
        let counts = status.counts;
        let regions = status.pools.iter().map(|pool| api::Region {
            region: pool.id.0,
            kind: pool.kind.to_string(),
            backing: pool.backing.to_string(),
            window: pool.window.map(range),
            frames: pool.stats.frames.into(),
            free: pool.stats.free.into(),
            used: pool.stats.used.into(),
            retired: pool.stats.retired.into(),
            gone: pool.gone,
        });
        let faults = [
            ("first-touch", counts.first_touches),
            ("come-home", counts.come_home),
            ("waited", counts.waited),
            ("stale", counts.stale),
            ("retried", counts.retried),
        ];
        let heat = counts.heat;
        let heat = (status.policy == PolicyName::Heat).then_some(api::Heat {
            watched: heat.watched,
            touched: heat.touched,
            promoted: heat.promoted,
            demoted: heat.demoted,
            bytes: heat.bytes,
            trace_failed: heat.trace_failed,
            cost_us: u64::try_from(heat.cost.as_micros()).unwrap_or(u64::MAX),
        });
        let (vma_budget, vmas) = status.vmas;
        api::Tiers {
            granule_bytes: status.granule.bytes(),
            engine: status.engine.to_string(),
            userfaultfd: door(status.door).to_owned(),
            policy: status.policy.to_string(),
            copy_threads: status.copy_threads,
            ram_backing: status.ram.to_string(),
            regions: regions.collect(),
            moves: api::Moves {
                to_device: counts.to_device,
                to_home: counts.to_home,
                between: counts.between,
                bytes: counts.bytes,
            },
            outcomes: outcomes(&counts.outcomes),
            faults: faults.into_iter().map(|(name, count)| (name.to_owned(), count)).collect(),
            heat,
            fault_latency: fault_latency(&counts.latency),
            memory_failures: counts.lost,
            vmas,
            vma_budget,
            stalls: status.stalls.map(|stalls| api::Stalls {
                batches: stalls.batches,
                granules: stalls.granules,
                total_us: stalls.nanos / 1000,
                copying_us: stalls.copying_nanos / 1000,
                longest_us: stalls.longest_nanos / 1000,
                longest_beside_copy_us: stalls.longest_beside_copy_nanos / 1000,
                given_up: stalls.given_up,
            }),
            accounts: None,
        }
    }

    fn account(&self, wanted: &dyn Fn() -> bool) -> io::Result<api::Accounts> {
        Ok(accounts::accounts(Self::account(self, wanted)?))
    }

    fn on_failure(&self, tell: Box<dyn Fn(api::MemoryFailed) + Send + Sync>) {
        Self::on_failure(self, Box::new(move |failure| tell(accounts::failed(failure))));
    }

    fn pin(&self, range: GpaRange, patience: Duration) -> Result<Box<dyn Send>, String> {
        match Self::pin(self, range, patience) {
            Ok(pin) => Ok(Box::new(pin)),
            Err(error) => Err(error.to_string()),
        }
    }

    fn unplug(
        &self,
        region: u8,
        progress: &mut dyn FnMut(&migrate::Progress) -> ControlFlow<()>,
    ) -> Result<api::Unplugged, String> {
        let unplugged = Self::unplug(self, region, progress).map_err(|error| error.to_string())?;
        Ok(api::Unplugged {
            gone: unplugged.left.is_empty(),
            moved: amount(unplugged.moved),
            released: unplugged.released,
            left: unplugged.left.into_iter().map(skipped).collect(),
        })
    }

    fn plug(&self, asked: &api::Plug) -> Result<api::Plugged, String> {
        let memory = PlugMemory { pool: asked.pool, backing: asked.backing.map(|word| word.0) };
        let frames = Self::plug(self, asked.region, memory).map_err(|error| error.to_string())?;
        Ok(api::Plugged { frames })
    }

    fn fail_page(&self, gpa: Gpa) -> Result<(), String> {
        Self::fail_page(self, gpa).map_err(|error| error.to_string())
    }

    fn policy(&self) -> (PolicyName, Vec<PolicyName>) {
        (Self::policy(self), self.policies())
    }

    fn set_policy(&self, name: PolicyName) -> Result<PolicyName, String> {
        Self::set_policy(self, name).map_err(|error| error.to_string())
    }

    fn stop(&self) {
        Self::stop(self);
    }
}

fn fault_latency(latency: &LatencyCounts) -> api::FaultLatency {
    api::FaultLatency {
        bounds_us: LATENCY_BOUNDS_US.to_vec(),
        counts: latency.buckets.to_vec(),
        total_ns: u64::try_from(latency.total.as_nanos()).unwrap_or(u64::MAX),
    }
}

fn door(door: Door) -> &'static str {
    match door {
        Door::SystemCall => "userfaultfd(2)",
        Door::Device => "/dev/userfaultfd",
    }
}

fn range(range: GpaRange) -> api::Range {
    api::Range { base: Hex(range.base().0), size: range.size() }
}

fn run(residence: Residence) -> api::Run {
    let (place, region, frame) = match residence.place {
        Place::Device { pool, frame } => (api::Place::Device, Some(pool.0), Some(frame.0)),
        Place::Home | Place::Untouched => (api::Place::Home, None, None),
    };
    api::Run {
        base: Hex(residence.range.base().0),
        size: residence.range.size(),
        place,
        region,
        frame,
        kind: residence.kind.map(|kind| kind.to_string()),
        untouched: residence.untouched,
        mapped: residence.mapped,
        refcount: residence.refcount,
        pins: residence.pins.into(),
        moving: residence.moving,
    }
}

/// Those outcomes that there are.
fn outcomes(counts: &[u64; Outcome::NAMES.len()]) -> BTreeMap<String, u64> {
    let named = Outcome::NAMES.iter().zip(counts).filter(|(_, count)| **count > 0);
    named.map(|((name, _), count)| ((*name).to_owned(), *count)).collect()
}

fn amount(moved: migrate::Moved) -> api::Amount {
    api::Amount { granules: moved.granules, bytes: moved.bytes }
}

fn skipped(skipped: migrate::Skipped) -> api::Skipped {
    api::Skipped {
        base: Hex(skipped.range.base().0),
        size: skipped.range.size(),
        outcome: skipped.outcome.to_string(),
    }
}

/// How far a migration is, for a client.
pub(super) fn progress(progress: &migrate::Progress) -> api::Progress {
    api::Progress { done: progress.done, total: progress.total, moved: amount(progress.moved) }
}

/// What came of a migration, for a client.
pub(super) fn migrated(report: Report) -> api::Migrated {
    let skipped = report.skipped.into_iter().map(skipped);
    api::Migrated {
        moved: amount(report.moved),
        outcomes: outcomes(&report.counts),
        skipped: skipped.collect(),
        skipped_more: report.skipped_more,
        elapsed_us: u64::try_from(report.elapsed.as_micros()).unwrap_or(u64::MAX),
    }
}

/// Why a migration was refused, for a client.
pub(super) fn refusal(error: &RequestError) -> Error {
    let kind = match error {
        RequestError::Over => ErrorKind::Over,
        RequestError::Unsupported(_) => ErrorKind::Unsupported,
        _ => ErrorKind::Refused,
    };
    Error::new(kind, error)
}

/// A range that a client names.
///
/// # Errors
/// It is empty or wraps.
pub(super) fn gpa_range(range: &api::Range) -> Result<GpaRange, Error> {
    GpaRange::new(Gpa(range.base.0), range.size).ok_or_else(|| {
        let why = if range.size == 0 { "is empty" } else { "passes the end of the address space" };
        let message = format!("{}+{:#x} {why}: give another size", range.base, range.size);
        Error::new(ErrorKind::Refused, message)
    })
}

/// What a client asks to be moved.
///
/// # Errors
/// A range that is none, or nothing selected.
pub(super) fn migrate_request(asked: &api::Migrate) -> Result<MigrateRequest, Error> {
    let select = match &asked.select {
        None => Select::ALL,
        Some(flags) if flags.is_empty() => {
            let message = "\"select\" is empty: name system, device-private or device-public";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        Some(flags) => Select {
            system: flags.contains(&api::SelectFlag::System),
            device_private: flags.contains(&api::SelectFlag::DevicePrivate),
            device_public: flags.contains(&api::SelectFlag::DevicePublic),
            untouched: false,
        },
    };
    Ok(MigrateRequest {
        ranges: asked.ranges.iter().map(gpa_range).collect::<Result<_, _>>()?,
        to: match asked.to {
            api::To::Home => Target::Home,
            api::To::Pool(pool) => Target::Pool(PoolId(pool)),
        },
        select,
        from_pool: asked.from_pool.map(PoolId),
        limit: asked.limit,
    })
}

/// Everything in frames of a region, to come home.
pub(super) fn evacuation(region: u8) -> MigrateRequest {
    MigrateRequest {
        ranges: Vec::new(),
        to: Target::Home,
        select: Select { system: false, ..Select::ALL },
        from_pool: Some(PoolId(region)),
        limit: None,
    }
}
