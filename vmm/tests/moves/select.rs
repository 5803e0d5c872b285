//! What a request may collect: each combination of flags moves its own
//! granules and no others; `from_pool` and `limit`.

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::addr::MIB;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::migrate::{MigrateRequest, Outcome, Select, Target};
use neap_memory::table::Place;
use neap_memory::tiers::Tiers;

use crate::rig::{Plan, carry_out, range, request};
use crate::{Ran, trial};

const SIZE: u64 = 64 * 1024;
const RAM: u64 = 2 * MIB;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("select::every_combination_of_flags", flags),
        trial("select::from_one_of_two_pools", || {
            from_pool(Backing::Anon)?;
            from_pool(Backing::Memfd)
        }),
        trial("select::a_limit_takes_the_first_by_address", limit),
    ]
}

/// Four granules in each: home, a public pool, a private one. The third pool
/// is where they are asked to go.
fn three_places(backing: Backing) -> (std::sync::Arc<neap_memory::GuestMemory>, Tiers) {
    let plan = Plan {
        regions: vec![(RAM, Kind::Public), (RAM, Kind::Private), (RAM, Kind::Public)],
        ..Plan::new(backing, GranuleSize::K64, RAM)
    };
    let (memory, tiers) = plan.tiers().unwrap();
    for pool in [0, 1] {
        let part = range((u64::from(pool) + 1) * 4 * SIZE, 4 * SIZE);
        let report = carry_out(&tiers, &request(part, Target::Pool(PoolId(pool)))).unwrap();
        assert_eq!(report.moved.granules, 4);
    }
    (memory, tiers)
}

/// The pool of each of the first twelve granules.
fn pools(tiers: &Tiers) -> Vec<Option<u8>> {
    let runs = tiers.residency();
    let pool = |place: Place| match place {
        Place::Device { pool, .. } => Some(pool.0),
        Place::Home | Place::Untouched => None,
    };
    let each = runs
        .iter()
        .flat_map(|run| std::iter::repeat_n(pool(run.place), (run.range.size() / SIZE) as usize));
    each.take(12).collect()
}

fn flags() -> Ran {
    for bits in 0..8 {
        let flag = |bit: u32| bits >> bit & 1 == 1;
        let select = Select {
            system: flag(0),
            device_public: flag(1),
            device_private: flag(2),
            untouched: false,
        };
        let (_memory, tiers) = three_places(Backing::Anon);
        let report = carry_out(
            &tiers,
            &MigrateRequest { select, ..request(range(0, 12 * SIZE), Target::Pool(PoolId(2))) },
        )
        .unwrap();
        let there = |selected: bool, before: Option<u8>| if selected { Some(2) } else { before };
        let expected = [
            [there(select.system, None); 4],
            [there(select.device_public, Some(0)); 4],
            [there(select.device_private, Some(1)); 4],
        ];
        assert_eq!(pools(&tiers), expected.concat(), "{select:?}");
        let selected = 4 * u64::from((bits as u32).count_ones());
        assert_eq!(report.moved.granules, selected, "{select:?}");
        assert_eq!(report.count(Outcome::WrongKind), 12 - selected, "{select:?}");
        assert_eq!(tiers.verify().unwrap().mismatches, []);
        let used: Vec<_> = tiers.status().pools.iter().map(|pool| pool.stats.used).collect();
        let count = |pool| pools(&tiers).iter().filter(|at| **at == Some(pool)).count() as u32;
        assert_eq!(used, [count(0), count(1), count(2)]);
    }
    Ok(())
}

fn from_pool(backing: Backing) -> Ran {
    let plan = Plan {
        regions: vec![(RAM, Kind::Public), (RAM, Kind::Public)],
        ..Plan::new(backing, GranuleSize::K64, RAM)
    };
    let (_memory, tiers) = plan.tiers().unwrap();
    for pool in [0, 1] {
        let part = range((u64::from(pool) + 1) * 4 * SIZE, 4 * SIZE);
        carry_out(&tiers, &request(part, Target::Pool(PoolId(pool)))).unwrap();
    }
    let home =
        MigrateRequest { from_pool: Some(PoolId(1)), ..request(range(0, 12 * SIZE), Target::Home) };
    let report = carry_out(&tiers, &home).unwrap();
    assert_eq!(report.moved.granules, 4, "{report:?}");
    assert_eq!(report.count(Outcome::WrongKind), 4, "{report:?}");
    assert_eq!(pools(&tiers), [[None; 4], [Some(0); 4], [None; 4]].concat());
    // From one pool to the other, with those at home left out.
    let between = MigrateRequest {
        to: Target::Pool(PoolId(1)),
        from_pool: Some(PoolId(0)),
        select: Select { system: false, ..Select::ALL },
        ..home
    };
    let report = carry_out(&tiers, &between).unwrap();
    assert_eq!(report.moved.granules, 4, "{report:?}");
    assert_eq!(pools(&tiers), [[None; 4], [Some(1); 4], [None; 4]].concat());
    assert_eq!(tiers.status().counts.between, 4);
    assert_eq!(tiers.verify().unwrap().mismatches, []);
    Ok(())
}

fn limit() -> Ran {
    let (_memory, tiers) = Plan::new(Backing::Anon, GranuleSize::K64, RAM).tiers().unwrap();
    for expected in [3usize, 6, 9] {
        let limited =
            MigrateRequest { limit: Some(3), ..request(range(0, RAM), Target::Pool(PoolId(0))) };
        let report = carry_out(&tiers, &limited).unwrap();
        assert_eq!(report.moved.granules, 3, "{report:?}");
        let pools = pools(&tiers);
        assert_eq!(pools[..expected], vec![Some(0); expected]);
        assert_eq!(pools[expected..], vec![None; 12 - expected]);
    }
    let none = MigrateRequest { limit: Some(0), ..request(range(0, RAM), Target::Home) };
    assert_eq!(carry_out(&tiers, &none).unwrap().moved.granules, 0);
    Ok(())
}
