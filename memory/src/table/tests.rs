//! The granule table against a list of states, and in time. How threads meet
//! on it is in tests/loom.rs.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const AWAY: Place = Place::Device { pool: PoolId(2), frame: Frame(40) };

fn soon() -> Instant {
    Instant::now() + Duration::from_millis(20)
}

fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn a_moving_granule_keeps_its_origin_until_the_end() {
    let table = GranuleTable::new(1);
    table.set(Granule(0), AWAY, true);
    let claimed = table.claim(Granule(0)).unwrap();
    assert_eq!((claimed.from, claimed.was_mapped), (AWAY, true));
    assert_eq!(table.get(Granule(0)), View { place: AWAY, pins: 0, moving: true, mapped: true });
    table.finish(claimed, Place::Home, false);
    let home = View { place: Place::Home, pins: 0, moving: false, mapped: false };
    assert_eq!(table.get(Granule(0)), home);
}

#[test]
fn a_wait_for_a_move_ends_at_its_deadline() {
    let table = GranuleTable::new(3);
    let claimed = table.claim(Granule(1)).unwrap();
    let started = Instant::now();
    assert_eq!(table.pin(Granule(1), soon()), Err(PinError::TimedOut));
    assert_eq!(table.wait_settled(Granule(1), soon()), Err(PinError::TimedOut));
    assert!(started.elapsed() >= Duration::from_millis(40));
    assert_eq!(table.try_pin(Granule(1)), Err(TryPinError::Moving));
    assert!(table.claim_first(Granule(1)).is_none());
    // The range's first granule was pinned before; now nothing is.
    assert_eq!(table.pin_range(Granule(0), 3, soon()), Err(PinError::TimedOut));
    assert_eq!([0, 1, 2].map(|n| table.get(Granule(n)).pins), [0, 0, 0]);
    table.abort(claimed);
    table.pin_range(Granule(0), 3, soon()).unwrap();
    assert_eq!([0, 1, 2].map(|n| table.get(Granule(n)).pins), [1, 1, 1]);
    table.unpin_range(Granule(0), 3);
    assert!(table.claim(Granule(1)).is_ok());
}

#[test]
fn pins_stop_at_their_limit() {
    let table = GranuleTable::new(1);
    for _ in 0..u16::MAX {
        table.try_pin(Granule(0)).unwrap();
    }
    assert_eq!(table.try_pin(Granule(0)), Err(TryPinError::TooMany));
    assert_eq!(table.pin(Granule(0), far()), Err(PinError::TooMany));
    assert_eq!(table.get(Granule(0)).pins, u16::MAX);
    assert_eq!(table.get(Granule(0)).place, Place::Untouched);
}

#[test]
fn a_pinned_granule_can_get_its_first_page_but_not_move() {
    let table = GranuleTable::new(1);
    table.try_pin(Granule(0)).unwrap();
    assert_eq!(table.claim(Granule(0)).unwrap_err(), ClaimError::Pinned);
    let claimed = table.claim_first(Granule(0)).unwrap();
    // Pins that come now wait for the page; the one that is there stays.
    assert_eq!(table.try_pin(Granule(0)), Err(TryPinError::Moving));
    table.finish(claimed, Place::Home, true);
    assert!(table.claim_first(Granule(0)).is_none());
    let home = View { place: Place::Home, pins: 1, moving: false, mapped: true };
    assert_eq!(table.get(Granule(0)), home);
}

#[test]
fn a_pin_can_go_while_the_first_page_comes() {
    for aborts in [false, true] {
        let table = GranuleTable::new(1);
        table.try_pin(Granule(0)).unwrap();
        let claimed = table.claim_first(Granule(0)).unwrap();
        table.unpin(Granule(0));
        let place = if aborts { Place::Untouched } else { Place::Home };
        match aborts {
            true => table.abort(claimed),
            false => table.finish(claimed, place, false),
        }
        assert_eq!(table.get(Granule(0)), View { place, pins: 0, moving: false, mapped: false });
    }
}

/// Real threads, in real time: writers under pins and movers, on two granules.
#[test]
fn nothing_is_lost_between_pins_and_moves() {
    const ROUNDS: u32 = 5_000;
    let table = Arc::new(GranuleTable::new(2));
    // Contents at home and away, written without ordering of their own.
    let contents: Arc<[[std::sync::atomic::AtomicU32; 2]; 2]> = Arc::default();
    let place_of = |place: Place| usize::from(place.is_device());

    let writers = (0..2).map(|_| {
        let (table, contents) = (Arc::clone(&table), Arc::clone(&contents));
        thread::spawn(move || {
            for round in 0..ROUNDS {
                let n = round % 2;
                table.pin(Granule(n), far()).unwrap();
                let slot = &contents[n as usize][place_of(table.get(Granule(n)).place)];
                slot.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                table.unpin(Granule(n));
            }
        })
    });
    let mover = {
        let (table, contents) = (Arc::clone(&table), Arc::clone(&contents));
        thread::spawn(move || {
            let mut moves = 0;
            let until = far();
            while moves < ROUNDS && Instant::now() < until {
                let n = moves % 2;
                let Ok(claimed) = table.claim(Granule(n)) else {
                    thread::yield_now();
                    continue;
                };
                let from = place_of(claimed.from);
                let value =
                    contents[n as usize][from].swap(0, std::sync::atomic::Ordering::Relaxed);
                contents[n as usize][1 - from].store(value, std::sync::atomic::Ordering::Relaxed);
                let to = if from == 0 { AWAY } else { Place::Home };
                table.finish(claimed, to, true);
                moves += 1;
            }
            moves
        })
    };
    for writer in writers.collect::<Vec<_>>() {
        writer.join().unwrap();
    }
    assert_eq!(mover.join().unwrap(), ROUNDS);
    for n in 0..2 {
        let place = place_of(table.get(Granule(n)).place);
        let value = contents[n as usize][place].load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(value, ROUNDS);
    }
}

#[test]
fn a_window_is_one_run() {
    let table = GranuleTable::new(100);
    table.set_window(Granule(10), 50, PoolId(1), Frame(7));
    let runs: Vec<_> = table.runs(Granule(0), Granule(u32::MAX)).collect();
    assert_eq!(runs.len(), 3);
    assert_eq!(runs[1].0, 10..60);
    assert_eq!(runs[1].1.place, Place::Device { pool: PoolId(1), frame: Frame(7) });
    assert_eq!(runs[2].0, 60..100);
    assert_eq!(table.runs(Granule(60), Granule(20)).count(), 0);
}

/// What a test does to a granule of a small table.
#[derive(Clone, Copy, Debug)]
enum Step {
    Claim,
    Finish(Place, bool),
    Abort,
    Pin,
    Unpin,
    ClaimFirst,
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        Just(Place::Home),
        (0u8..2, 0u32..12)
            .prop_map(|(pool, frame)| Place::Device { pool: PoolId(pool), frame: Frame(frame) }),
        (any::<u8>(), any::<u32>())
            .prop_map(|(pool, frame)| Place::Device { pool: PoolId(pool), frame: Frame(frame) }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Claim),
        (place(), any::<bool>()).prop_map(|(place, mapped)| Step::Finish(place, mapped)),
        Just(Step::Abort),
        Just(Step::Pin),
        Just(Step::Unpin),
        Just(Step::ClaimFirst),
    ]
}

proptest! {
    #[test]
    fn a_table_is_a_list_of_states(
        granules in 1u32..12,
        steps in prop::collection::vec((any::<u32>(), step()), 1..200),
    ) {
        let untouched = View { place: Place::Untouched, pins: 0, moving: false, mapped: false };
        let table = GranuleTable::new(granules);
        let mut model = vec![untouched; granules as usize];
        let mut claims: Vec<Option<Claimed>> = (0..granules).map(|_| None).collect();
        for (n, step) in steps {
            let n = n % granules;
            let granule = Granule(n);
            let state = &mut model[n as usize];
            let claim = &mut claims[n as usize];
            match step {
                Step::Claim => match table.claim(granule) {
                    Ok(claimed) => {
                        prop_assert!(!state.moving && state.pins == 0);
                        prop_assert_eq!(claimed.from, state.place);
                        prop_assert_eq!(claimed.was_mapped, state.mapped);
                        state.moving = true;
                        *claim = Some(claimed);
                    }
                    Err(ClaimError::Moving) => prop_assert!(state.moving),
                    Err(ClaimError::Pinned) => prop_assert!(!state.moving && state.pins > 0),
                },
                Step::Finish(place, mapped) => if let Some(claimed) = claim.take() {
                    table.finish(claimed, place, mapped);
                    *state = View { place, mapped, moving: false, ..*state };
                },
                Step::Abort => if let Some(claimed) = claim.take() {
                    table.abort(claimed);
                    state.moving = false;
                },
                Step::Pin => {
                    let pinned = table.pin(granule, Instant::now());
                    let expected = if state.moving { Err(PinError::TimedOut) } else { Ok(()) };
                    prop_assert_eq!(pinned, expected);
                    state.pins += u16::from(pinned.is_ok());
                }
                Step::Unpin => if state.pins > 0 {
                    table.unpin(granule);
                    state.pins -= 1;
                },
                Step::ClaimFirst => {
                    let claimed = table.claim_first(granule);
                    let expected = state.place == Place::Untouched && !state.moving;
                    prop_assert_eq!(claimed.is_some(), expected);
                    if claimed.is_some() {
                        state.moving = true;
                        *claim = claimed;
                    }
                }
            }
            prop_assert_eq!(table.get(granule), *state);
            let settled = table.wait_settled(granule, Instant::now());
            let expected = if state.moving { Err(PinError::TimedOut) } else { Ok(*state) };
            prop_assert_eq!(settled, expected);
        }
        check_runs(&table, &model)?;
    }
}

/// The runs of a table cover it, tell each granule's state, and none could be
/// joined to the one before.
fn check_runs(table: &GranuleTable, model: &[View]) -> Result<(), TestCaseError> {
    let at = |view: View, distance: u32| match view.place {
        Place::Device { pool, frame } => {
            let frame = Frame(frame.0.wrapping_add(distance));
            View { place: Place::Device { pool, frame }, ..view }
        }
        _ => view,
    };
    let mut next = 0;
    let mut last: Option<(Range<u32>, View)> = None;
    for (range, view) in table.runs(Granule(0), Granule(table.granules())) {
        prop_assert_eq!(range.start, next);
        prop_assert!(!range.is_empty());
        next = range.end;
        for n in range.clone() {
            prop_assert_eq!(at(view, n - range.start), model[n as usize]);
        }
        if let Some((last, before)) = last {
            let wraps = matches!(before.place, Place::Device { frame, .. }
                if frame.0.checked_add(last.len() as u32).is_none());
            prop_assert!(wraps || at(before, last.len() as u32) != view);
        }
        last = Some((range, view));
    }
    prop_assert_eq!(next as usize, model.len());
    Ok(())
}
