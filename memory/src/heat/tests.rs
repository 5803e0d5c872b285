use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::granule::{Granule, GranuleSize};

const SIZE: u64 = GranuleSize::M2.bytes();

/// A fast tier that does what the policy says.
struct Tier {
    policy: HeatPolicy,
    fast: BTreeSet<u32>,
    room: u32,
    moved: u64,
}

impl Tier {
    fn new(granules: u32, room: u32, settings: Settings) -> Self {
        let policy = HeatPolicy::new(granules, settings).unwrap();
        Self { policy, fast: BTreeSet::new(), room, moved: 0 }
    }

    /// A tick in which granules are touched as `touches` says; returns moves.
    fn tick(&mut self, touches: &dyn Fn(u32) -> u32) -> usize {
        let watched = self.policy.watch(self.policy.settings().most(), &mut |_| true);
        let seen = watched.into_iter().map(|granule| Seen {
            granule,
            touch: Some(touches(granule.0))
                .filter(|count| *count > 0)
                .map(|count| Touch { count, write: false }),
        });
        let seen: Vec<Seen> = seen.collect();
        self.policy.observe(&seen);
        self.plan()
    }

    fn plan(&mut self) -> usize {
        let fast = &self.fast;
        let place = |granule: Granule| {
            if fast.contains(&granule.0) { Where::Fast } else { Where::Slow }
        };
        let free = self.room - fast.len() as u32;
        let moves = self.policy.plan(&place, free);
        for granule in &moves.demote {
            assert!(self.fast.remove(&granule.0));
        }
        for granule in &moves.promote {
            assert!(self.fast.insert(granule.0));
        }
        assert!(self.fast.len() as u32 <= self.room);
        self.moved += moves.len() as u64;
        moves.len()
    }
}

fn settings(budget: u64) -> Settings {
    Settings { rest: 10, ..Settings::new(GranuleSize::M2, budget * SIZE) }
}

#[test]
fn settings_that_let_nothing_happen_are_refused() {
    let refused = |settings| HeatPolicy::new(8, settings).unwrap_err();
    let good = settings(1);
    assert_eq!(refused(Settings { budget: 0, ..good }), SettingsError::Budget);
    assert_eq!(refused(Settings { watched: 0, ..good }), SettingsError::Watched);
    assert_eq!(refused(Settings { seen: 9, ..good }), SettingsError::Seen(9));
    let rest = Settings::REST_MAX + 1;
    assert_eq!(refused(Settings { rest, ..good }), SettingsError::Rest(rest));
    let text = SettingsError::Budget.to_string();
    assert!(text.contains("budget of 0 bytes") && text.contains("give more"), "{text}");
}

#[test]
fn a_granule_takes_8_bytes() {
    assert_eq!(HeatPolicy::BYTES_PER_GRANULE, 8);
}

#[test]
fn the_hot_set_moves_in_once_and_then_nothing_moves() {
    let mut tier = Tier::new(256, 32, settings(2));
    let touches = |granule: u32| if granule % 8 == 3 { 1000 } else { granule % 2 };
    let ticks: usize = (0..500).map(|_| tier.tick(&touches)).sum();
    assert_eq!(tier.fast, (0..256).filter(|granule| granule % 8 == 3).collect());
    assert_eq!(ticks, 32);
}

#[test]
fn a_budget_of_less_than_a_granule_a_tick_moves_now_and_then() {
    let settings = Settings { budget: SIZE / 3, ..settings(1) };
    let mut tier = Tier::new(64, 8, settings);
    for _ in 0..300 {
        tier.tick(&|granule| if granule < 8 { 100 } else { 0 });
    }
    assert_eq!(tier.fast, (0..8).collect());
}

#[test]
fn one_touch_is_not_heat() {
    let mut tier = Tier::new(256, 64, settings(4));
    for granule in 0..256 {
        // A scan: each granule is touched often, in one tick.
        let seen =
            Seen { granule: Granule(granule), touch: Some(Touch { count: 512, write: false }) };
        tier.policy.observe(&[seen]);
        assert_eq!(tier.plan(), 0);
    }
}

#[test]
fn two_sets_that_are_hot_in_turn_do_not_change_places() {
    for period in [1, 2, 3, 5, 7, 10, 20, 30, 50] {
        let mut tier = Tier::new(128, 16, Settings::new(GranuleSize::M2, 4 * SIZE));
        for tick in 0..2000u32 {
            let odd = (tick / period) % 2;
            tier.tick(&|granule| if granule < 32 && granule % 2 == odd { 500 } else { 0 });
        }
        assert!(tier.moved <= 32 * 5, "period {period}: {} moves", tier.moved);
    }
}

#[test]
fn what_is_pinned_is_in_no_plan() {
    let mut policy = HeatPolicy::new(64, settings(64)).unwrap();
    for _ in 0..20 {
        let seen: Vec<Seen> = (0..64)
            .map(|granule| Seen {
                granule: Granule(granule),
                touch: Some(Touch { count: 9, write: true }),
            })
            .collect();
        policy.observe(&seen);
        assert_eq!(policy.plan(&|_| Where::Fixed, 64), Moves::default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is seen: never more moves than the budget allows, never more
    /// granules than there is room for, and nothing moves twice within its rest.
    #[test]
    fn plans_keep_to_budget_room_and_rest(
        seed in any::<u64>(), room in 0u32..40, budget in 1u64..6, granules in 1u32..200,
    ) {
        let settings = Settings { seen: 1, margin: 0, ..settings(budget) };
        let mut tier = Tier::new(granules, room, settings);
        let mut last = vec![None; granules as usize];
        for tick in 0..120u64 {
            let noise = |granule: u32| {
                let mixed = (seed ^ tick << 32 ^ u64::from(granule))
                    .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                (mixed >> 40) as u32 >> (mixed & 31)
            };
            let before = tier.fast.clone();
            tier.tick(&noise);
            for granule in before.symmetric_difference(&tier.fast) {
                let last = &mut last[*granule as usize];
                prop_assert!(last.is_none_or(|at| tick >= at + 10));
                *last = Some(tick);
            }
            prop_assert!(tier.moved <= (tick + 1) * budget);
        }
    }

    /// A load that does not change comes to rest.
    #[test]
    fn an_even_load_comes_to_rest(seed in any::<u64>(), room in 1u32..64, granules in 64u32..256) {
        let mut tier = Tier::new(granules, room, settings(3));
        let even = |granule: u32| {
            let mixed = (seed ^ u64::from(granule)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed >> 48) as u32 >> (mixed & 15)
        };
        let run = |tier: &mut Tier, ticks| (0..ticks).map(|_| tier.tick(&even)).sum::<usize>();
        // Until every granule is known as well as can be: 15 looks, 128 ticks apart.
        run(&mut tier, 2000);
        prop_assert_eq!(run(&mut tier, 600), 0);
    }

    /// What is not there does no harm.
    #[test]
    fn observations_of_nothing_are_passed_over(granule in any::<u32>(), count in any::<u32>()) {
        let mut policy = HeatPolicy::new(4, settings(1)).unwrap();
        let seen = Seen { granule: Granule(granule), touch: Some(Touch { count, write: true }) };
        policy.observe(&[seen]);
        policy.plan(&|_| Where::Slow, 4);
        policy.watch(settings(1).most(), &mut |_| false);
    }
}
