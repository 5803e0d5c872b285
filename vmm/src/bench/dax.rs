//! `neap bench dax`: how long vCPUs are parked while granules leave a
//! /dev/dax, beside the copy of them, and what the rest of it is spent on.
//!
//! A bare guest writes to every page of its memory all the while; each turn
//! moves half of it to the device, which parks nobody, and home again.
//!
//! Where there is no device a file of huge pages can stand in for one: it is left
//! in the same way, with vCPUs parked, and mapped over by the same calls.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use neap_memory::addr::MIB;
use neap_memory::dax::DaxPath;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::migrate::{MigrateRequest, Select, Target};
use neap_memory::park::Stalls;
use neap_memory::tiers::{RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, GuestMemory};

use super::moving::host::{HugePages, Interrupts};
use super::moving::{PASS, STOP, figure, samples, system, window};
use super::rows::{Row, Rows};
use super::{BenchError, Figure};
use crate::bare::{Guest, Writer};
use crate::doctor::Host;
use crate::kvm::gate::{Gate, Holder, Wanted};

/// Bytes that come home in a turn.
const BATCH: u64 = 64 * MIB;
/// Guest memory.
const WINDOW: u64 = 2 * BATCH;
/// Targets: beside the copy, for each vCPU, and of the longest.
const BESIDE_US: f64 = 500.0;
const LONGEST_MS: f64 = 10.0;
const VCPUS: [usize; 2] = [1, 2];
/// For a granule whose vCPUs were not to be had.
const TRIES: u32 = 50;

fn fatal(message: &str) -> ! {
    eprintln!("neap: {message}");
    std::process::exit(i32::from(crate::failure::VM_FAILED))
}

/// A guest of memory that is half in the device.
struct Moving {
    // In the order in which they are to go.
    guest: Guest,
    tiers: Tiers,
    _memory: Arc<GuestMemory>,
}

impl Moving {
    fn new(device: Option<DaxPath>, vcpus: usize) -> Result<Self, BenchError> {
        let range = window(WINDOW)?;
        let spec = RangeSpec { range, backing: Backing::Hugetlb, prefault: true };
        let memory = Arc::new(GuestMemory::new(&[spec])?);
        let gate = Arc::new(Gate::new(0, Wanted::Run));
        let backing = device.map_or(Backing::Hugetlb, Backing::Dax);
        let region = RegionConfig { window: None, pool: BATCH, kind: Kind::Public, backing };
        let config = TiersConfig {
            ram: Backing::Hugetlb,
            regions: vec![region],
            unwatched_pools: device.is_none(),
            park: Some(Arc::new(Holder(Arc::clone(&gate)))),
            ..TiersConfig::new(GranuleSize::M2, fatal)
        };
        let tiers = Tiers::new(&memory, config)?;
        let mut guest = Guest::at_gate(Arc::clone(&memory), vcpus, gate)?;
        for cpu in 0..vcpus {
            guest.load_writer(cpu, &Writer::over(range).interleaved(cpu, vcpus))?;
        }
        guest.start()?;
        Ok(Self { guest, tiers, _memory: memory })
    }

    fn stalls(&self) -> Stalls {
        self.tiers.status().stalls.unwrap_or_default()
    }

    fn send(&self, to: Target) -> Result<(), BenchError> {
        let request = MigrateRequest {
            ranges: vec![window(BATCH)?],
            to,
            select: Select::ALL,
            from_pool: None,
            limit: None,
        };
        let mut moved = 0;
        for _ in 0..TRIES {
            let report = self.tiers.migrate(&request, &mut |_| ControlFlow::Continue(()));
            moved += report.map_err(|error| BenchError::Unexpected(error.to_string()))?.moved.bytes;
            if moved == BATCH {
                return Ok(());
            }
        }
        Err(BenchError::Unexpected(format!("{moved} bytes moved of {BATCH}")))
    }

    /// There and back; what leaving the device took.
    fn turn(&self) -> Result<Stalls, BenchError> {
        self.send(Target::Pool(PoolId(0)))?;
        self.guest.wait_passes(1, PASS)?;
        let before = self.stalls();
        self.send(Target::Home)?;
        let after = self.stalls();
        Ok(Stalls {
            batches: after.batches - before.batches,
            nanos: after.nanos - before.nanos,
            parking_nanos: after.parking_nanos - before.parking_nanos,
            copying_nanos: after.copying_nanos - before.copying_nanos,
            mapping_nanos: after.mapping_nanos - before.mapping_nanos,
            ..after
        })
    }

    fn check(&mut self) -> Result<(), BenchError> {
        self.guest.stop(STOP)?;
        let wrong: u64 = (0..self.guest.cpus()).map(|cpu| self.guest.counters(cpu).errors).sum();
        let found = self.tiers.verify().map_err(system("the kernel's view of guest memory"))?;
        match found.mismatches.first() {
            _ if wrong > 0 => Err(BenchError::Unexpected(format!("{wrong} words were wrong"))),
            Some((range, what)) => Err(BenchError::Unexpected(format!("{range}: {what}"))),
            None => Ok(()),
        }
    }
}

/// Measures `turns` turns with each number of vCPUs; without a `device`, of a
/// file that stands in for one.
///
/// # Errors
/// [`BenchError::Unable`] if this machine has no such device.
pub fn measure(
    device: Option<&str>,
    turns: usize,
    tell: &mut dyn FnMut(&str),
) -> Result<Rows, BenchError> {
    if turns == 0 {
        return Err(BenchError::NoRuns(turns));
    }
    let path = |text: &str| {
        let unable = || BenchError::Unable(format!("--device {text} is no path of a device"));
        DaxPath::new(text).ok_or_else(unable)
    };
    let path = device.map(path).transpose()?;
    let name = device.unwrap_or("a file");
    let interrupts = Interrupts::watch()?;
    let pages = if device.is_none() { WINDOW + BATCH } else { WINDOW };
    let _pages = HugePages::free(&Host::this_machine(), pages)?;
    let mut rows = Rows::default();
    for vcpus in VCPUS {
        tell(&format!("leaving {name} under {vcpus} vCPUs"));
        let mut moving = Moving::new(path, vcpus)?;
        // Frames and aliases are mapped when they are first used.
        moving.turn()?;
        let mut found = Vec::new();
        for _ in 0..turns {
            interrupts.check()?;
            found.push(moving.turn()?);
        }
        let stalls = moving.stalls();
        moving.check()?;
        let subject = if path.is_some() { "dax" } else { "dax.file" };
        rows.rows.extend(rows_of(subject, vcpus, &found, &stalls)?);
    }
    Ok(rows)
}

fn rows_of(
    subject: &str,
    vcpus: usize,
    found: &[Stalls],
    all: &Stalls,
) -> Result<Vec<Row>, BenchError> {
    let each = |nanos: fn(&Stalls) -> u64| {
        samples(found.iter().map(|turn| nanos(turn) as f64 / 1e3 / turn.batches as f64).collect())
    };
    let stall = each(|turn| turn.nanos)?;
    let copy = each(|turn| turn.copying_nanos)?;
    let name = |what: &str| format!("{subject}.{what}.{vcpus}vcpu");
    let beside = Figure::difference(&name("stall_beside_copy_us"), "us", &stall, &copy);
    let mut rows = vec![Row {
        quantity: format!("stall of a batch, {vcpus} vCPU"),
        unit: "us",
        ours: stall,
        theirs: Some(("copy", copy)),
        figure: figure(beside)?.at_most(BESIDE_US * vcpus as f64),
    }];
    let mut part = |what: &str, short: &str, nanos| -> Result<(), BenchError> {
        let ours = each(nanos)?;
        let figure = Figure::median(&name(short), "us", &ours);
        let quantity = format!("of that, {what}, {vcpus} vCPU");
        rows.push(Row { quantity, unit: "us", ours, theirs: None, figure });
        Ok(())
    };
    part("until vCPUs had parked", "parking_us", |turn| turn.parking_nanos)?;
    part("mapping over", "mapping_us", |turn| turn.mapping_nanos)?;
    // Each batch beside its own copy, where the row above is of medians.
    let most = samples(vec![all.longest_beside_copy_nanos as f64 / 1e3])?;
    rows.push(Row {
        quantity: format!("most beside its copy, for each of {vcpus} vCPU"),
        unit: "us",
        figure: Figure::median(&name("most_beside_copy_us"), "us", &most).at_most(BESIDE_US),
        ours: most,
        theirs: None,
    });
    let longest = Duration::from_nanos(all.longest_nanos).as_secs_f64() * 1e3;
    let longest = samples(vec![longest])?;
    rows.push(Row {
        quantity: format!(
            "longest stall of {} batches ({} given up), {vcpus} vCPU",
            all.batches, all.given_up
        ),
        unit: "ms",
        figure: Figure::median(&name("longest_stall_ms"), "ms", &longest).at_most(LONGEST_MS),
        ours: longest,
        theirs: None,
    });
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused() {
        let refused = |device: &str, turns| measure(Some(device), turns, &mut |_| {}).unwrap_err();
        assert!(matches!(refused("/dev/dax0.0", 0), BenchError::NoRuns(0)));
        assert!(matches!(refused(&"x".repeat(99), 1), BenchError::Unable(_)));
    }

    #[test]
    fn a_batch_is_beside_its_copy() {
        let turn = Stalls {
            batches: 4,
            nanos: 8_000_000,
            copying_nanos: 6_000_000,
            longest_nanos: 3_000_000,
            longest_beside_copy_nanos: 400_000,
            ..Stalls::default()
        };
        let rows = rows_of("dax", 2, &[turn, turn], &turn).unwrap();
        let values: Vec<_> =
            rows.iter().map(|row| (row.figure.name.as_str(), row.figure.value)).collect();
        assert_eq!(values[0], ("dax.stall_beside_copy_us.2vcpu", 500.0));
        assert_eq!(values[3], ("dax.most_beside_copy_us.2vcpu", 400.0));
        assert_eq!(values[4], ("dax.longest_stall_ms.2vcpu", 3.0));
        assert_eq!(rows[0].figure.target, Some(1000.0));
    }
}
