//! Interference with the engines.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Condvar, Mutex};
use std::thread;
use std::time::Duration;

use neap_memory::engine::hooks::{Hooks, Inject, Point};
use neap_memory::granule::Granule;
use rustix::io::Errno;

use crate::rig::LIMIT;

/// The seeded bug "this step is left out", so many times.
#[derive(Debug)]
pub(crate) struct Omit {
    point: Point,
    granule: Option<Granule>,
    left: AtomicU32,
}

impl Omit {
    /// For one granule, once.
    pub(crate) fn once(point: Point, granule: Granule) -> Self {
        Self { point, granule: Some(granule), left: AtomicU32::new(1) }
    }

    /// For every granule, always.
    pub(crate) fn always(point: Point) -> Self {
        Self { point, granule: None, left: AtomicU32::new(u32::MAX) }
    }
}

impl Hooks for Omit {
    fn at(&self, point: Point, granule: Granule) -> Inject {
        if point != self.point || self.granule.is_some_and(|only| only != granule) {
            return Inject::Nothing;
        }
        let less = |left: u32| left.checked_sub(1);
        match self.left.fetch_update(Relaxed, Relaxed, less) {
            Ok(_) => Inject::Omit,
            Err(_) => Inject::Nothing,
        }
    }
}

/// Every point of a move.
pub(crate) const POINTS: [Point; 4] = [Point::Populate, Point::Freeze, Point::Copy, Point::Arrive];

/// Everything that is injected: the kernel's refusals, and steps that stop
/// half-way.
pub(crate) const INJECTIONS: [Inject; 4] = [
    Inject::Fail(Errno::NOMEM),
    Inject::Fail(Errno::AGAIN),
    Inject::Fail(Errno::BUSY),
    Inject::Short(Errno::BUSY),
];

/// Injects each of [`INJECTIONS`] at each of [`POINTS`] by chance. An engine
/// may ask twice for one point of one move and is told the same.
#[derive(Debug)]
pub(crate) struct Chance {
    seed: u64,
    /// One point in so many.
    one_in: u64,
    on: AtomicBool,
    /// Moves that each granule has begun.
    moves: Vec<AtomicU32>,
    /// For each point and granule, the last move that was counted there.
    counted: [Vec<AtomicU32>; 4],
    /// How often each happened at each point.
    happened: [[AtomicU64; 4]; 4],
}

impl Chance {
    pub(crate) fn new(seed: u64, one_in: u64, granules: u64) -> Self {
        let zeros = || (0..granules).map(|_| AtomicU32::new(0)).collect::<Vec<_>>();
        Self {
            seed,
            one_in,
            on: AtomicBool::new(true),
            moves: zeros(),
            counted: [zeros(), zeros(), zeros(), zeros()],
            happened: Default::default(),
        }
    }

    pub(crate) fn set(&self, on: bool) {
        self.on.store(on, Relaxed);
    }

    /// How often each happened at each point.
    pub(crate) fn happened(&self) -> [[u64; 4]; 4] {
        std::array::from_fn(|point| {
            std::array::from_fn(|kind| self.happened[point][kind].load(Relaxed))
        })
    }
}

/// A number without structure (splitmix64).
pub(crate) fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Hooks for Chance {
    fn at(&self, point: Point, granule: Granule) -> Inject {
        let index = granule.0 as usize;
        if point == Point::Populate {
            self.moves[index].fetch_add(1, Relaxed);
        }
        if !self.on.load(Relaxed) {
            return Inject::Nothing;
        }
        let place = POINTS.iter().position(|other| *other == point).unwrap();
        let number = self.moves[index].load(Relaxed);
        let key = u64::from(granule.0) << 34 | u64::from(number) << 2 | place as u64;
        let chance = mix(self.seed ^ mix(key));
        if !chance.is_multiple_of(self.one_in) {
            return Inject::Nothing;
        }
        let kind = (chance / self.one_in % 4) as usize;
        if self.counted[place][index].swap(number, Relaxed) != number {
            self.happened[place][kind].fetch_add(1, Relaxed);
        }
        INJECTIONS[kind]
    }
}

/// Stops one granule at its copy until it is let go.
#[derive(Debug)]
pub(crate) struct Gate {
    granule: Granule,
    /// Whether it is shut, and whether somebody stands before it.
    state: Mutex<(bool, bool)>,
    changed: Condvar,
}

impl Gate {
    /// Shut for `granule`.
    pub(crate) fn shut(granule: Granule) -> Self {
        Self { granule, state: Mutex::new((true, false)), changed: Condvar::new() }
    }

    /// Waits until the granule stands before it.
    pub(crate) fn wait_reached(&self) {
        let waits = |state: &mut (bool, bool)| !state.1;
        let state = self.state.lock().unwrap();
        let (_state, timeout) = self.changed.wait_timeout_while(state, LIMIT, waits).unwrap();
        assert!(!timeout.timed_out(), "nobody came to the gate");
    }

    /// Opens it, for good.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }
}

impl Hooks for Gate {
    fn at(&self, point: Point, granule: Granule) -> Inject {
        if point == Point::Copy && granule == self.granule {
            let mut state = self.state.lock().unwrap();
            state.1 = true;
            self.changed.notify_all();
            let shut = |state: &mut (bool, bool)| state.0;
            let _open = self.changed.wait_timeout_while(state, LIMIT, shut).unwrap();
        }
        Inject::Nothing
    }
}

/// A bug: a thread whose name begins like that panics at its n-th copy.
#[derive(Debug)]
pub(crate) struct Panic {
    pub(crate) thread: &'static str,
    pub(crate) after: AtomicU32,
    /// Called first.
    pub(crate) tell: fn(),
}

impl Hooks for Panic {
    fn at(&self, point: Point, _: Granule) -> Inject {
        let me = thread::current();
        if point == Point::Copy
            && me.name().is_some_and(|name| name.starts_with(self.thread))
            && self.after.fetch_sub(1, Relaxed) == 1
        {
            (self.tell)();
            panic!("a seeded bug");
        }
        Inject::Nothing
    }
}

/// Each copy takes this much longer, so that there is time for something in
/// the middle of a request.
#[derive(Debug)]
pub(crate) struct Slow(pub(crate) Duration);

impl Hooks for Slow {
    fn at(&self, point: Point, _: Granule) -> Inject {
        if point == Point::Copy {
            thread::sleep(self.0);
        }
        Inject::Nothing
    }
}
