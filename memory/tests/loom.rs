//! The granule state word under every order of events: pins, claims and waits
//! of several threads that meet on one granule.
//!
//! Loom runs each model once for every order in which the threads' steps can
//! interleave, and for every stale value that a relaxed read may return. Its
//! condition variables never time out, so a lost wake-up ends as a deadlock,
//! which loom reports.
//!
//! `cargo test -p neap-memory --features loom --test loom --release`
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering::Relaxed};
use loom::thread;
use neap_memory::granule::{Frame, Granule, PoolId};
use neap_memory::table::{ClaimError, Claimed, GranuleTable, PinError, Place, TryPinError};

const G: Granule = Granule(0);
const AWAY: Place = Place::Device { pool: PoolId(1), frame: Frame(9) };

/// One granule at home, and the contents of its two places. The contents are
/// read and written without ordering of their own, so that only the state word
/// can order them.
struct World {
    table: GranuleTable,
    home: AtomicU32,
    away: AtomicU32,
}

impl World {
    fn new(granules: u32) -> Arc<Self> {
        let table = GranuleTable::new(granules);
        for n in 0..granules {
            table.set(Granule(n), Place::Home, true);
        }
        Arc::new(Self { table, home: AtomicU32::new(0), away: AtomicU32::new(0) })
    }

    /// Copies the granule to the device, spoils the place it left, and ends
    /// the move.
    fn carry_out(&self, claimed: Claimed) {
        let contents = self.home.load(Relaxed);
        self.away.store(contents, Relaxed);
        self.home.store(u32::MAX, Relaxed);
        self.table.finish(claimed, AWAY, true);
    }

    /// The contents as a thread with a pin finds them.
    fn place(&self) -> &AtomicU32 {
        match self.table.get(G).place {
            Place::Home => &self.home,
            _ => &self.away,
        }
    }

    /// A write through a pin, as a device model does one.
    fn add_one_pinned(&self) {
        self.table.pin(G, far()).unwrap();
        let place = self.place();
        place.store(place.load(Relaxed) + 1, Relaxed);
        assert!(!self.table.get(G).moving, "a pinned granule moves");
        self.table.unpin(G);
    }
}

/// A deadline that no model reaches.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// Runs a model under every order with at most `preemptions` forced switches
/// of threads (waits and ends are not counted); `None` for every order.
fn model(preemptions: Option<usize>, check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions;
    builder.check(check);
}

/// A write through a pin is never lost to a move: the claim is refused, or the
/// pin waits and writes to the new place, or the move copies the write.
#[test]
fn a_pin_and_a_claim_race() {
    model(None, || {
        let world = World::new(1);
        let mover = {
            let world = Arc::clone(&world);
            thread::spawn(move || match world.table.claim(G) {
                Ok(claimed) => world.carry_out(claimed),
                Err(error) => assert_eq!(error, ClaimError::Pinned),
            })
        };
        world.add_one_pinned();
        mover.join().unwrap();
        let view = world.table.get(G);
        assert_eq!((view.pins, view.moving), (0, false));
        assert_eq!(world.place().load(Relaxed), 1);
    });
}

/// Waiters that come at any moment of a move's end are all woken.
#[test]
fn the_end_of_a_move_wakes_every_waiting_pin() {
    model(Some(3), || {
        let world = World::new(1);
        let claimed = world.table.claim(G).unwrap();
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let world = Arc::clone(&world);
                thread::spawn(move || world.table.pin(G, far()).unwrap())
            })
            .collect();
        world.carry_out(claimed);
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!(world.table.get(G).pins, 2);
        assert_eq!(world.table.claim(G).unwrap_err(), ClaimError::Pinned);
    });
}

/// The same for an abort, and the waiter finds everything as it was.
#[test]
fn an_abort_wakes_the_waiting_and_changes_nothing() {
    model(None, || {
        let world = World::new(1);
        let before = world.table.get(G);
        let claimed = world.table.claim(G).unwrap();
        let waiter = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.table.wait_settled(G, far()).unwrap())
        };
        world.table.abort(claimed);
        assert_eq!(waiter.join().unwrap(), before);
        assert_eq!(world.table.get(G), before);
    });
}

/// A waiter that slept through one move and finds the next one waits again and
/// is woken again: the mark of the first does not count for the second.
#[test]
fn a_granule_that_moves_twice_wakes_twice() {
    model(Some(3), || {
        let world = World::new(1);
        let claimed = world.table.claim(G).unwrap();
        let waiter = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.table.pin(G, far()).unwrap())
        };
        world.table.finish(claimed, AWAY, true);
        match world.table.claim(G) {
            Ok(back) => world.table.finish(back, Place::Home, true),
            Err(error) => assert_eq!(error, ClaimError::Pinned),
        }
        waiter.join().unwrap();
        let view = world.table.get(G);
        assert_eq!((view.pins, view.moving), (1, false));
    });
}

/// Waiters for two granules share one lot; each is woken by its own.
#[test]
fn waiters_for_different_granules_do_not_take_each_others_wake_up() {
    model(Some(2), || {
        let world = World::new(2);
        let claims = [0, 1].map(|n| world.table.claim(Granule(n)).unwrap());
        let waiters = [0, 1].map(|n| {
            let world = Arc::clone(&world);
            thread::spawn(move || world.table.pin(Granule(n), far()).unwrap())
        });
        for claimed in claims {
            world.table.finish(claimed, AWAY, true);
        }
        for waiter in waiters {
            waiter.join().unwrap();
        }
        assert_eq!([0, 1].map(|n| world.table.get(Granule(n)).pins), [1, 1]);
    });
}

/// Two movers never move one granule at once, and the second starts from what
/// the first left.
#[test]
fn two_claims_race() {
    model(None, || {
        let world = World::new(1);
        let mover = |world: Arc<World>| match world.table.claim(G) {
            Ok(claimed) => {
                let contents = world.home.load(Relaxed);
                world.home.store(contents + 1, Relaxed);
                let from = claimed.from;
                world.table.finish(claimed, AWAY, true);
                Some(from)
            }
            Err(error) => {
                assert_eq!(error, ClaimError::Moving);
                None
            }
        };
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || mover(world))
        };
        let mine = mover(Arc::clone(&world));
        let theirs = other.join().unwrap();
        let moves = [mine, theirs].iter().flatten().count();
        assert!(moves >= 1);
        assert_eq!(world.home.load(Relaxed) as usize, moves);
        // Of two moves one began where the other ended.
        if moves == 2 {
            assert_ne!(mine, theirs);
        }
    });
}

/// After a pin has come and gone, a claim by another thread sees the write
/// that was made under it.
#[test]
fn a_claim_after_an_unpin_sees_what_was_written() {
    model(None, || {
        let world = World::new(1);
        world.table.pin(G, far()).unwrap();
        let mover = {
            let world = Arc::clone(&world);
            thread::spawn(move || match world.table.claim(G) {
                Ok(claimed) => world.carry_out(claimed),
                Err(error) => assert_eq!(error, ClaimError::Pinned),
            })
        };
        world.home.store(7, Relaxed);
        world.table.unpin(G);
        mover.join().unwrap();
        assert_eq!(world.place().load(Relaxed), 7);
    });
}

/// Two pinners and a mover: pins add up, and come down to none.
#[test]
fn pins_of_two_threads_and_a_move() {
    model(Some(2), || {
        let world = World::new(1);
        let pinner = {
            let world = Arc::clone(&world);
            thread::spawn(move || match world.table.try_pin(G) {
                Ok(()) => world.table.unpin(G),
                Err(error) => assert_eq!(error, TryPinError::Moving),
            })
        };
        let mover = {
            let world = Arc::clone(&world);
            thread::spawn(move || match world.table.claim(G) {
                Ok(claimed) => world.carry_out(claimed),
                Err(error) => assert_eq!(error, ClaimError::Pinned),
            })
        };
        world.add_one_pinned();
        pinner.join().unwrap();
        mover.join().unwrap();
        assert_eq!(world.table.get(G).pins, 0);
        assert_eq!(world.place().load(Relaxed), 1);
    });
}

/// A range of which one granule moves is pinned when that has settled; the
/// mover, which skips what is pinned, never waits for the pinner.
#[test]
fn a_range_and_a_mover_do_not_wait_for_each_other() {
    model(Some(2), || {
        let world = World::new(2);
        let mover = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                // Downwards, against the order of pinning.
                let claims = [1, 0].map(|n| world.table.claim(Granule(n)));
                for claimed in claims.into_iter().flatten() {
                    world.table.finish(claimed, AWAY, true);
                }
            })
        };
        world.table.pin_range(G, 2, far()).unwrap();
        mover.join().unwrap();
        assert_eq!([0, 1].map(|n| world.table.get(Granule(n)).pins), [1, 1]);
    });
}

/// A granule that is pinned before it has a page gets one, once, and keeps its
/// pin, whoever else pins, unpins or claims.
#[test]
fn a_pinned_granule_gets_its_first_page() {
    model(Some(2), || {
        let table = Arc::new(GranuleTable::new(1));
        table.try_pin(G).unwrap();
        let server = {
            let table = Arc::clone(&table);
            thread::spawn(move || match table.claim_first(G) {
                Some(claimed) => {
                    assert_eq!(claimed.from, Place::Untouched);
                    table.finish(claimed, Place::Home, true);
                    true
                }
                None => false,
            })
        };
        let mover = {
            let table = Arc::clone(&table);
            thread::spawn(move || match table.claim(G) {
                Ok(claimed) => {
                    let from = claimed.from;
                    table.finish(claimed, AWAY, true);
                    Some(from)
                }
                Err(_) => None,
            })
        };
        table.pin(G, far()).unwrap();
        assert_eq!(table.get(G).pins, 2);
        table.unpin(G);
        assert_eq!(table.get(G).pins, 1);
        table.unpin(G);
        let served = server.join().unwrap();
        let moved = mover.join().unwrap();
        let view = table.get(G);
        assert_eq!((view.pins, view.moving), (0, false));
        match (served, moved) {
            (true, None) => assert_eq!(view.place, Place::Home),
            (true, from) => assert_eq!((from, view.place), (Some(Place::Home), AWAY)),
            (false, from) => assert_eq!((from, view.place), (Some(Place::Untouched), AWAY)),
        }
    });
}

/// A deadline that has passed is told, with the granule as it was.
#[test]
fn a_passed_deadline_leaves_no_pin() {
    model(None, || {
        let world = World::new(1);
        let claimed = world.table.claim(G).unwrap();
        let late = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.table.pin(G, Instant::now()))
        };
        world.carry_out(claimed);
        match late.join().unwrap() {
            Ok(()) => assert_eq!(world.table.get(G).pins, 1),
            Err(error) => {
                assert_eq!(error, PinError::TimedOut);
                assert_eq!(world.table.get(G).pins, 0);
            }
        }
    });
}
