use std::sync::Arc;

use crate::addr::{Gpa, GpaRange, MIB};
use crate::backing::Backing;
use crate::engine::EngineName;
use crate::granule::{Granule, GranuleSize, Kind};
use crate::guest::{GuestMemory, RangeSpec};
use crate::policy::PolicyName;
use crate::table::Place;
use crate::tiers::core::lock;
use crate::tiers::{PolicyRefused, RegionConfig, Tiers, TiersConfig};

fn fatal(message: &str) -> ! {
    eprintln!("fatal: {message}");
    std::process::abort()
}

/// Tiers over 4 MiB that are all there, at rest.
fn tiers(backing: Backing, granule: GranuleSize, huge_pages: bool) -> Tiers {
    let range = GpaRange::new(Gpa(0), 4 * MIB).unwrap();
    let memory = GuestMemory::new(&[RangeSpec { range, backing, prefault: true }]).unwrap();
    let region = RegionConfig { window: None, pool: 4 * MIB, kind: Kind::Public, backing };
    let config = TiersConfig {
        ram: backing,
        regions: vec![region],
        engine: (backing == Backing::Node(0)).then_some(EngineName::Node),
        huge_pages,
        ..TiersConfig::new(granule, fatal)
    };
    Tiers::new(&Arc::new(memory), config).unwrap()
}

#[test]
fn looks_take_no_mappings_for_good() {
    let tiers = tiers(Backing::Memfd, GranuleSize::K4, true);
    let core = &tiers.core;
    let granule = Granule(5);
    assert!(core.is_managed(granule));
    let (limit, taken) = lock(&core.budget).numbers();
    // More than enough for two mappings of each look to reach the limit twice.
    for look in 0..(limit - taken) * 5 / 4 {
        assert!(core.set_aside(granule), "look {look}");
        let view = core.table.get(granule);
        assert!(view.place == Place::Home && core.bring_back(granule, view), "look {look}");
    }
}

#[test]
fn nobody_looks_at_huge_pages_that_would_not_stay_huge() {
    let state = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap();
    let name = PolicyName::Heat;
    for huge in [false, true] {
        let tiers = tiers(Backing::Node(0), GranuleSize::M2, huge);
        let apart = huge && !state.contains("[never]");
        let refused = Err(PolicyRefused::TakesApart(name));
        assert_eq!(tiers.set_policy(name) == refused, apart);
        assert_eq!(tiers.policies().contains(&name), !apart);
    }
}
