//! The floor program on a real `/dev/kvm`, and the start bench with the floor
//! on both sides.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use neap_vmm::bench::child::Child;
use neap_vmm::bench::start::{self, Side, Sides};
use neap_vmm::payload;

fn floor() -> Side {
    Side::floor(env!("CARGO_BIN_EXE_neap-floor").into())
}

/// The bare payload needs no more than a KVM that opens.
fn kvm_missing() -> bool {
    let missing = kvm_ioctls::Kvm::new().is_err();
    if missing {
        eprintln!("skipped: no usable /dev/kvm here");
    }
    missing
}

#[test]
fn the_floor_greets_and_powers_off() {
    if kvm_missing() {
        return;
    }
    let ended = Child::spawn(&floor().hello, Duration::from_secs(20)).unwrap().finish().unwrap();
    assert_eq!(ended.output, [payload::GREETING]);
}

#[test]
fn the_floor_compared_with_itself_gives_ratios_near_one() {
    if kvm_missing() {
        return;
    }
    let sides = Sides { ours: floor(), floor: floor() };
    let start = start::measure(&sides, 5).unwrap();
    let names: Vec<_> = start.figures.iter().map(|figure| figure.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "start.first_instruction_vs_floor",
            "start.process_vs_floor",
            "start.cpu_ms_over_floor",
            "start.rss_mib",
        ]
    );
    for figure in &start.figures[..2] {
        // Wide, for a machine that is busy with other tests.
        assert!((0.2..5.0).contains(&figure.value), "{figure:?}");
    }
    assert!((0.5..50.0).contains(&start.figures[3].value), "{:?}", start.figures[3]);
    assert!(start.floor.first_ms.min() < start.floor.whole_ms.max());
    println!("{}", start.table());
}

#[test]
fn an_unknown_argument_is_refused() {
    let mut subject = floor().hello;
    subject.arguments = vec!["nonsense".into()];
    let error = Child::spawn(&subject, Duration::from_secs(20)).unwrap().finish().unwrap_err();
    assert!(error.to_string().contains("'nonsense'"), "{error}");
}
