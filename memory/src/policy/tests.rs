use proptest::prelude::*;

use super::*;
use crate::granule::Frame;

const POOL: PoolId = PoolId(3);
const DEVICE: Place = Place::Device { pool: POOL, frame: Frame(7) };

fn decide(name: PolicyName, event: Event, facts: Facts) -> Decision {
    make(name).decide(event, &facts)
}

/// A granule of RAM beside a public region with room.
fn at(place: Place) -> Facts {
    Facts { kind: Kind::Public, place, window: false, fast: Some(POOL) }
}

#[test]
fn names_read_as_they_print_and_name_the_policy_made() {
    for name in PolicyName::ALL {
        assert_eq!(name.to_string().parse(), Ok(name));
        assert_eq!(make(name).name(), name);
    }
    let error = "lru".parse::<PolicyName>().unwrap_err().to_string();
    assert_eq!(error, r#""lru" is no policy; static, first-touch, on-fault and heat are"#);
}

#[test]
fn the_first_touch_row() {
    let ram = at(Place::Untouched);
    let first = |name, facts| decide(name, Event::FirstTouch, facts);
    assert_eq!(first(PolicyName::Static, ram), Decision::Stay);
    assert_eq!(first(PolicyName::Static, Facts { window: true, ..ram }), Decision::ToPool(POOL));
    assert_eq!(first(PolicyName::FirstTouch, ram), Decision::ToPool(POOL));
    assert_eq!(first(PolicyName::FirstTouch, Facts { fast: None, ..ram }), Decision::Stay);
    assert_eq!(first(PolicyName::OnFault, ram), Decision::Stay);
    assert_eq!(first(PolicyName::Heat, ram), Decision::Stay);
}

#[test]
fn a_first_touch_does_not_fill_private_frames() {
    let facts = Facts { kind: Kind::Private, ..at(Place::Untouched) };
    assert_eq!(decide(PolicyName::FirstTouch, Event::FirstTouch, facts), Decision::Stay);
}

#[test]
fn the_rows_of_vcpu_touches_are_the_same_under_every_policy() {
    for name in PolicyName::ALL {
        let touch = |facts| decide(name, Event::VcpuTouch, facts);
        assert_eq!(touch(at(DEVICE)), Decision::Stay);
        let private = Facts { kind: Kind::Private, ..at(DEVICE) };
        assert_eq!(touch(private), Decision::ToHome);
        assert_eq!(touch(Facts { fast: None, ..private }), Decision::ToHome);
        assert_eq!(touch(Facts { window: true, ..private }), Decision::Stay);
        assert_eq!(touch(Facts { place: Place::Home, ..private }), Decision::Stay);
    }
}

#[test]
fn the_accelerator_row() {
    for place in [Place::Home, Place::Untouched] {
        for kind in [Kind::Public, Kind::Private] {
            let touch = |name| decide(name, Event::AcceleratorTouch, Facts { kind, ..at(place) });
            assert_eq!(touch(PolicyName::Static), Decision::Stay);
            assert_eq!(touch(PolicyName::FirstTouch), Decision::Stay);
            assert_eq!(touch(PolicyName::Heat), Decision::Stay);
            assert_eq!(touch(PolicyName::OnFault), Decision::ToPool(POOL));
        }
    }
    assert_eq!(decide(PolicyName::OnFault, Event::AcceleratorTouch, at(DEVICE)), Decision::Stay);
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let place = prop_oneof![Just(Place::Untouched), Just(Place::Home), Just(DEVICE)];
    let kind = prop::sample::select(Kind::ALL.to_vec());
    let fast = prop::option::of(any::<u8>().prop_map(PoolId));
    (kind, place, any::<bool>(), fast).prop_map(|(kind, place, window, fast)| Facts {
        kind,
        place,
        window,
        fast,
    })
}

proptest! {
    /// Whatever the policy: generic memory stays, nothing goes to a pool that
    /// has no room or from one device frame to another, and nothing that is
    /// at home comes home.
    #[test]
    fn decisions_can_be_carried_out(
        name in prop::sample::select(PolicyName::ALL.to_vec()),
        event in prop::sample::select(vec![
            Event::FirstTouch, Event::VcpuTouch, Event::AcceleratorTouch,
        ]),
        facts in any_facts(),
    ) {
        match decide(name, event, facts) {
            Decision::Stay => {}
            Decision::ToHome => {
                prop_assert!(facts.place.is_device());
                prop_assert_eq!(facts.kind, Kind::Private);
            }
            Decision::ToPool(pool) => {
                prop_assert_ne!(facts.kind, Kind::Generic);
                prop_assert!(!facts.place.is_device());
                prop_assert_eq!(facts.fast, Some(pool));
            }
        }
    }
}
