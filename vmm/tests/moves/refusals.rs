//! What cannot be: hosts without what an engine needs, configurations and
//! requests that make no sense. Each is refused in words, and nothing moves.

use libtest_mimic::Trial;
use neap_memory::addr::MIB;
use neap_memory::granule::{GranuleSize, PoolId};
use neap_memory::migrate::{MigrateRequest, RequestError, Target};
use neap_memory::tiers::{Tiers, TiersConfig, TiersError};
use neap_memory::uffd::Features;
use neap_memory::uffd::abi::Door;
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory};

use crate::hugetlb::{self, HugePages};
use crate::rig::{POOL, Plan, carry_out, range, request};
use crate::{Ran, Unfit, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("refusals::a_kernel_without_a_feature", missing_features),
        trial("refusals::the_device_alone_opens_userfaultfd", device_door),
        trial("refusals::memory_that_does_not_go_together", bad_configurations),
        trial("refusals::huge_pages_that_are_not_there", missing_huge_pages),
        trial("refusals::requests_that_make_no_sense", bad_requests),
        trial("refusals::a_machine_without_regions", without_regions),
    ]
}

const RAM: u64 = 4 * MIB;

/// Why there are no tiers with a configuration that `change` has spoilt.
fn refused(plan: &Plan, change: impl FnOnce(&mut TiersConfig)) -> TiersError {
    let memory = plan.memory();
    let mut config = plan.config();
    change(&mut config);
    Tiers::new(&memory, config).unwrap_err()
}

fn says(error: &impl ToString, words: &[&str]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
    assert!(!text.contains('\n'), "{text:?} is more than a line");
}

fn without(feature: Features) -> Features {
    Features(Features::ALL.0 & !feature.0)
}

fn missing_features() -> Ran {
    let plan = Plan::new(Backing::Anon, GranuleSize::M2, RAM);
    let error = refused(&plan, |config| config.features = without(Features::MOVE));
    assert!(matches!(error, TiersError::Missing(_)), "{error:?}");
    says(&error, &["UFFDIO_MOVE", "6.8", "backing=memfd"]);
    let plan = Plan::new(Backing::Memfd, GranuleSize::M2, RAM);
    let error = refused(&plan, |config| {
        config.features = without(Features::WRITE_PROTECT_FILES);
    });
    assert!(matches!(error, TiersError::Missing(_)), "{error:?}");
    says(&error, &["UFFD_FEATURE_WP_HUGETLBFS_SHMEM", "5.19"]);
    // What would do does: files in memory need no UFFDIO_MOVE.
    let mut config = plan.config();
    config.features = without(Features::MOVE);
    let memory = plan.memory();
    let tiers = Tiers::new(&memory, config).unwrap();
    assert_eq!(carry_out(&tiers, &request(range(0, RAM), POOL)).unwrap().moved.granules, 2);
    Ok(())
}

fn device_door() -> Ran {
    if !std::path::Path::new("/dev/userfaultfd").exists() {
        return Err(Unfit("there is no /dev/userfaultfd".into()));
    }
    for backing in [Backing::Anon, Backing::Memfd] {
        let plan = Plan::new(backing, GranuleSize::K64, RAM);
        let mut config = plan.config();
        config.doors = vec![Door::Device];
        let memory = plan.memory();
        let tiers = Tiers::new(&memory, config).unwrap();
        assert_eq!(tiers.status().door, Door::Device);
        let report = carry_out(&tiers, &request(range(0, RAM), POOL)).unwrap();
        assert_eq!(report.moved.granules, 64, "{report:?}");
    }
    let plan = Plan::new(Backing::Anon, GranuleSize::M2, RAM);
    let error = refused(&plan, |config| config.doors.clear());
    says(&error, &["vm.unprivileged_userfaultfd", "/dev/userfaultfd"]);
    Ok(())
}

fn bad_configurations() -> Ran {
    let anon = Plan::new(Backing::Anon, GranuleSize::M2, RAM);
    let error = refused(&anon, |config| config.regions[0].backing = Backing::Memfd);
    assert!(matches!(error, TiersError::Mixed { index: 0, .. }), "{error:?}");
    says(&error, &["backing=memfd", "backing=anon", "anon for both"]);
    let memfd = Plan::new(Backing::Memfd, GranuleSize::M2, RAM);
    let error = refused(&memfd, |config| config.regions[0].backing = Backing::Anon);
    says(&error, &["backing=anon", "backing=memfd"]);
    // Before any huge page is asked for.
    for granule in [GranuleSize::K4, GranuleSize::K64] {
        let plan = Plan::new(Backing::Memfd, granule, RAM);
        let error = refused(&plan, |config| config.regions[0].backing = Backing::Hugetlb);
        assert!(matches!(error, TiersError::Granule { .. }), "{error:?}");
        says(&error, &[&granule.to_string(), "hugetlb", "2M"]);
    }
    for pool in [0, MIB, 3 * MIB] {
        let error = refused(&anon, |config| config.regions[0].pool = pool);
        assert!(matches!(error, TiersError::Pool { .. }), "{pool}: {error:?}");
        says(&error, &[&pool.to_string(), "2M"]);
    }
    let odd = Plan::new(Backing::Anon, GranuleSize::M2, 3 * MIB);
    let error = refused(&odd, |config| config.regions[0].pool = 2 * MIB);
    assert!(matches!(error, TiersError::Space(_)), "{error:?}");
    Ok(())
}

fn missing_huge_pages() -> Ran {
    // RAM in small pages, so that only the region's huge ones are missing.
    let _pages = HugePages::reserve(2 * MIB)?;
    let free = hugetlb::count("free_hugepages") - hugetlb::count("resv_hugepages");
    let total = hugetlb::count("nr_hugepages");
    let plan = Plan::new(Backing::Memfd, GranuleSize::M2, RAM);
    let error = refused(&plan, |config| {
        config.regions[0].backing = Backing::Hugetlb;
        config.regions[0].pool = (free + 3) * 2 * MIB;
    });
    let sysctl = format!("sysctl vm.nr_hugepages={}", total + 3);
    says(&error, &[&format!("{} huge pages", free + 3), &format!("{free} are free"), &sysctl]);
    Ok(())
}

/// Asserts that a request is refused and that nothing has moved.
fn denied(tiers: &Tiers, request: &MigrateRequest) -> RequestError {
    let before = (tiers.residency(), tiers.status().counts);
    let error = carry_out(tiers, request).unwrap_err();
    assert_eq!((tiers.residency(), tiers.status().counts), before, "{error}");
    says(&error, &[]);
    error
}

fn bad_requests() -> Ran {
    for backing in [Backing::Anon, Backing::Memfd] {
        let plan = Plan { window: 2 * MIB, ..Plan::new(backing, GranuleSize::M2, RAM) };
        let (_memory, tiers): (std::sync::Arc<GuestMemory>, Tiers) = plan.tiers().unwrap();
        let ask = |ranges: &[GpaRange], to| MigrateRequest {
            ranges: ranges.to_vec(),
            ..request(range(0, RAM), to)
        };
        for outside in [
            range(RAM, 2 * MIB),
            range(RAM - 2 * MIB, 4 * MIB),
            // The last granule but one that has an address.
            range(u64::MAX - 4 * MIB + 1, 2 * MIB),
        ] {
            let error = denied(&tiers, &ask(&[outside], POOL));
            assert!(matches!(error, RequestError::Outside(..)), "{error:?}");
            // It says what there is.
            says(&error, &["0x0-0x3fffff", "0x100000000-0x1001fffff"]);
        }
        for crooked in [range(MIB, 2 * MIB), range(0, MIB), range(4096, 4096), range(1, 1)] {
            let error = denied(&tiers, &ask(&[crooked], POOL));
            assert!(matches!(error, RequestError::Misaligned { .. }), "{error:?}");
            says(&error, &["2M"]);
        }
        let overlapping = [range(0, 4 * MIB), range(2 * MIB, 2 * MIB)];
        let error = denied(&tiers, &ask(&overlapping, POOL));
        assert!(matches!(error, RequestError::Overlaps(..)), "{error:?}");
        let twice = [range(0, 2 * MIB), range(0, 2 * MIB)];
        assert!(matches!(denied(&tiers, &ask(&twice, POOL)), RequestError::Overlaps(..)));
        let error = denied(&tiers, &ask(&[range(0, RAM)], Target::Pool(PoolId(7))));
        assert!(matches!(error, RequestError::NoPool(7, _)), "{error:?}");
        let from = MigrateRequest { from_pool: Some(PoolId(1)), ..request(range(0, RAM), POOL) };
        assert!(matches!(denied(&tiers, &from), RequestError::NoPool(1, _)));
    }
    // A range that wraps cannot even be made.
    assert_eq!(GpaRange::new(Gpa(u64::MAX - MIB), 2 * MIB), None);
    assert_eq!(GpaRange::new(Gpa(2 * MIB), u64::MAX), None);
    assert_eq!(GpaRange::new(Gpa(0), 0), None);
    Ok(())
}

fn without_regions() -> Ran {
    let plan = Plan { regions: Vec::new(), ..Plan::new(Backing::Anon, GranuleSize::M2, RAM) };
    let (_memory, tiers) = plan.tiers().unwrap();
    let error = denied(&tiers, &request(range(0, RAM), POOL));
    assert!(matches!(error, RequestError::NoPool(0, _)), "{error:?}");
    says(&error, &["none"]);
    let report = carry_out(&tiers, &request(range(0, RAM), Target::Home)).unwrap();
    assert_eq!(report.moved.granules, 0);
    Ok(())
}
