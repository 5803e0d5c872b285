use super::file::{Recorded, TraceError};
use super::generate::{Generated, Load, Shape};
use super::*;
use crate::granule::GranuleSize;
use crate::heat::Settings;

const M2: u64 = GranuleSize::M2.bytes();
const SMALL: Shape =
    Shape { granules: 256, windows: 300, touches: 5000, scan: 10, scan_touches: 8 };
const ZIPF: Load = Load::Zipf { exponent: 1.0, phase: 0, scan_every: 0 };
const LOADS: [Load; 5] = [
    Load::Uniform,
    ZIPF,
    Load::Zipf { exponent: 1.0, phase: 100, scan_every: 0 },
    Load::Zipf { exponent: 1.0, phase: 0, scan_every: 50 },
    Load::ReadOnly { hot: 40 },
];

fn all(trace: &mut dyn Trace) -> Vec<Vec<Access>> {
    let (mut windows, mut window) = (Vec::new(), Vec::new());
    trace.restart();
    while trace.next(&mut window) {
        windows.push(window.clone());
    }
    windows
}

#[test]
fn a_seed_makes_the_same_trace_each_time_and_another_seed_another() {
    let small = Shape { windows: 60, ..SMALL };
    for load in LOADS {
        let mut trace = Generated::new(load, small, 7);
        let first = all(&mut trace);
        assert_eq!(first.len(), 60);
        assert_eq!(all(&mut trace), first);
        assert_ne!(all(&mut Generated::new(load, small, 8)), first);
        assert!(first.iter().flatten().all(|access| access.granule < 256));
        let own = |window: &Vec<Access>| window.iter().filter(|access| !access.scan).count();
        assert!(first.iter().all(|window| own(window) == 5000));
    }
}

#[test]
fn a_scan_touches_every_granule_in_order() {
    let mut trace = Generated::new(LOADS[3], Shape { windows: 50, ..SMALL }, 7);
    let scanned: Vec<u32> =
        all(&mut trace).concat().iter().filter(|a| a.scan).map(|a| a.granule).collect();
    let expected: Vec<u32> = (0..256).flat_map(|granule| [granule; 8]).collect();
    assert_eq!(scanned, expected);
}

#[test]
fn nobody_hits_more_than_the_optimum_where_the_load_is_even() {
    let room = 64;
    for load in [Load::Uniform, ZIPF, Load::ReadOnly { hot: 40 }] {
        let mut trace = Generated::new(load, SMALL, 3);
        let mut best = optimum::Optimum::new(&mut trace, 0, room);
        let best = replay(&mut trace, &mut best);
        let settings = Settings::new(GranuleSize::M2, 2 * M2);
        let mut sides: [Box<dyn Side>; 3] = [
            Box::new(heat::Heat::new(256, room, settings).unwrap()),
            Box::new(lru::Lru::new(256, room, M2, 2 * M2)),
            Box::new(tpp::Tpp::new(256, room, M2, 2 * M2)),
        ];
        for side in &mut sides {
            let replayed = replay(&mut trace, &mut **side);
            assert!(replayed.hit_ratio(0..300) <= best.hit_ratio(0..300));
            assert!(replayed.moved() <= 2 * 300 + 2);
            assert!((0..256).filter(|granule| side.is_fast(*granule)).count() <= 64);
        }
    }
}

#[test]
fn the_optimum_of_a_phase_is_its_own_hottest() {
    let mut trace = Generated::new(LOADS[2], SMALL, 3);
    let mut phases = optimum::Optimum::new(&mut trace, 100, 32);
    let mut whole = optimum::Optimum::new(&mut trace, 0, 32);
    let (phases, whole) = (replay(&mut trace, &mut phases), replay(&mut trace, &mut whole));
    assert!(phases.hit_ratio(0..300) > whole.hit_ratio(0..300));
    assert_eq!(phases.moved(), 0);
}

#[test]
fn a_read_only_hot_set_is_found() {
    let mut trace = Generated::new(Load::ReadOnly { hot: 40 }, SMALL, 3);
    let mut side = heat::Heat::new(256, 40, Settings::new(GranuleSize::M2, 2 * M2)).unwrap();
    let replayed = replay(&mut trace, &mut side);
    // Ten in eleven touches are of the set.
    assert!(replayed.hit_ratio(200..300) > 0.85, "{}", replayed.hit_ratio(200..300));
    assert!(replayed.moved() <= 80, "{}", replayed.moved());
}

#[test]
fn a_trace_comes_out_of_a_file_as_it_went_in() {
    let mut trace = Generated::new(LOADS[3], Shape { windows: 50, ..SMALL }, 7);
    let mut bytes = Vec::new();
    file::write(&mut trace, 5000, &mut bytes).unwrap();
    let mut read = Recorded::read(&mut bytes.as_slice()).unwrap();
    assert_eq!(read.granules(), 256);
    assert_eq!(all(&mut read).concat(), all(&mut trace).concat());
    assert_eq!(read.windows(), all(&mut read).len());
}

#[test]
fn files_that_are_no_traces_are_refused() {
    let mut trace = Generated::new(ZIPF, Shape { windows: 1, touches: 10, ..SMALL }, 7);
    let mut good = Vec::new();
    file::write(&mut trace, 5, &mut good).unwrap();
    let with = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        Recorded::read(&mut bad.as_slice()).unwrap_err()
    };
    assert!(matches!(with(0, b"X"), TraceError::Magic));
    for at in [8, 12] {
        assert!(matches!(with(at, &[0; 4]), TraceError::Number { value: 0, .. }));
    }
    assert!(matches!(with(8, &[0xff; 4]), TraceError::Number { .. }));
    assert!(matches!(with(16, &[0xff; 8]), TraceError::Number { .. }));
    assert!(matches!(with(16, &[11]), TraceError::Length(11)));
    assert!(matches!(with(16, &[9]), TraceError::Length(9)));
    let lost = with(28, &[0, 1, 0, 0]);
    assert!(matches!(lost, TraceError::Granule { index: 1, granule: 256, granules: 256 }));
    for end in 0..good.len() {
        assert!(Recorded::read(&mut &good[..end]).is_err(), "{end}");
    }
}

proptest::proptest! {
    /// No bytes make the reader panic, and what it reads is within bounds.
    #[test]
    fn any_bytes_are_a_trace_or_an_error(
        head in proptest::bool::ANY,
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64),
    ) {
        let mut file = if head { b"NEAPTRC1".to_vec() } else { Vec::new() };
        file.extend(bytes);
        if let Ok(mut trace) = Recorded::read(&mut file.as_slice()) {
            let granules = trace.granules();
            proptest::prop_assert!(all(&mut trace).concat().iter().all(|a| a.granule < granules));
        }
    }
}
