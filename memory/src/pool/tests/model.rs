//! The pool against a map of the frames in use and a set of retired ones.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;

/// What a test does. Frames are taken modulo a little more than the pool's
/// size, so that some do not exist.
#[derive(Clone, Copy, Debug)]
enum Step {
    Allocate(u32),
    Run(u32, u32),
    Window(u32, u32, u32),
    Get(u32),
    Put(u32),
    /// Puts a few frames in a row as often as they have users.
    Clear(u32, u32),
    Retire(u32),
    SetOwner(u32, u32),
}

fn step() -> impl Strategy<Value = Step> {
    let frame = any::<u32>();
    let owner = prop_oneof![9 => 0u32..1000, 1 => u32::MAX - 3..=u32::MAX];
    prop_oneof![
        4 => owner.clone().prop_map(Step::Allocate),
        4 => (owner.clone(), 0u32..100).prop_map(|(owner, want)| Step::Run(owner, want)),
        1 => (frame, 0u32..80, owner.clone()).prop_map(|(f, n, o)| Step::Window(f, n, o)),
        2 => frame.prop_map(Step::Get),
        3 => frame.prop_map(Step::Put),
        3 => (frame, 1u32..90).prop_map(|(f, n)| Step::Clear(f, n)),
        1 => frame.prop_map(Step::Retire),
        1 => (frame, owner).prop_map(|(f, o)| Step::SetOwner(f, o)),
    ]
}

/// A user of the pool that keeps books of its own.
struct World {
    pool: Pool,
    frames: u32,
    /// Owner and users of each frame in use.
    used: BTreeMap<u32, (u32, u32)>,
    retired: BTreeSet<u32>,
    allocations: u64,
    /// Frames that have lost their last user, in order; and what the hook saw.
    freed: Vec<Frame>,
    hooked: Arc<Mutex<Vec<Frame>>>,
}

impl World {
    fn new(frames: u32) -> Self {
        let mut pool = pool(frames);
        let hooked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&hooked);
        pool.on_page_free(Box::new(move |frame| log.lock().unwrap().push(frame)));
        let (used, retired) = Default::default();
        Self { pool, frames, used, retired, allocations: 0, freed: Vec::new(), hooked }
    }

    fn is_free(&self, frame: u32) -> bool {
        frame < self.frames && !self.used.contains_key(&frame) && !self.retired.contains(&frame)
    }

    fn any_free(&self) -> bool {
        (0..self.frames).any(|frame| self.is_free(frame))
    }

    fn hand_out(&mut self, first: u32, count: u32, owner: u32) {
        for n in 0..count {
            assert!(self.is_free(first + n), "frame {} was handed out twice", first + n);
            self.used.insert(first + n, (owner + n, 1));
        }
        self.allocations += u64::from(count);
    }

    /// Checks that a request about one frame is refused when it has to be.
    fn expect(&self, frame: u32) -> Result<(), PoolError> {
        if frame >= self.frames {
            Err(PoolError::OutOfRange { frame: Frame(frame), frames: self.frames })
        } else if !self.used.contains_key(&frame) {
            Err(PoolError::NotInUse(Frame(frame)))
        } else {
            Ok(())
        }
    }

    fn put(&mut self, frame: u32) {
        let expected = self.expect(frame).map(|()| match self.used[&frame] {
            (_, 1) => {
                self.used.remove(&frame);
                self.freed.push(Frame(frame));
                Put::Freed
            }
            (owner, users) => {
                self.used.insert(frame, (owner, users - 1));
                Put::StillUsed
            }
        });
        assert_eq!(self.pool.put(Frame(frame)), expected);
    }

    fn take(&mut self, step: Step) {
        let within = self.frames + 3;
        match step {
            Step::Allocate(owner) => match self.pool.allocate(Granule(owner)) {
                Some(frame) => self.hand_out(frame.0, 1, owner),
                None => assert!(!self.any_free()),
            },
            Step::Run(owner, want) => match self.pool.allocate_run(Granule(owner), want) {
                Some((first, count)) => {
                    let most = want.max(1).min((u32::MAX - owner).saturating_add(1));
                    assert!((1..=most).contains(&count));
                    // A run that is shorter than asked for ends where it must.
                    assert!(count == most || !self.is_free(first.0 + count));
                    self.hand_out(first.0, count, owner);
                }
                None => assert!(!self.any_free()),
            },
            Step::Window(frame, count, owner) => {
                let frame = frame % within;
                let free = (frame..frame + count).all(|frame| self.is_free(frame))
                    && frame + count <= self.frames
                    && owner.checked_add(count).is_some();
                let done = self.pool.allocate_window(Frame(frame), count, Granule(owner));
                assert_eq!(done, free);
                if done {
                    self.hand_out(frame, count, owner);
                }
            }
            Step::Get(frame) => {
                let frame = frame % within;
                assert_eq!(self.pool.get(Frame(frame)), self.expect(frame));
                if let Some((_, users)) = self.used.get_mut(&frame) {
                    *users += 1;
                }
            }
            Step::Put(frame) => self.put(frame % within),
            Step::Clear(frame, count) => {
                let frame = frame % within;
                for frame in frame..frame + count {
                    while self.used.contains_key(&frame) {
                        self.put(frame);
                    }
                }
            }
            Step::Retire(frame) => {
                let frame = frame % within;
                let done = self.pool.retire(Frame(frame));
                assert_eq!(done.is_ok(), frame < self.frames);
                if done.is_ok() {
                    self.retired.insert(frame);
                }
            }
            Step::SetOwner(frame, owner) => {
                let frame = frame % within;
                let done = self.pool.set_owner(Frame(frame), Granule(owner));
                assert_eq!(done, self.expect(frame));
                if let Some((old, _)) = self.used.get_mut(&frame) {
                    *old = owner;
                }
            }
        }
    }

    fn check(&self) {
        let stats = self.pool.stats();
        let out_of_service = self.retired.iter().filter(|f| !self.used.contains_key(f)).count();
        assert_eq!(stats.used as usize, self.used.len());
        assert_eq!(stats.retired as usize, out_of_service);
        assert_eq!(stats.free + stats.used + stats.retired, self.frames);
        assert_eq!(stats.allocations, self.allocations);
        assert_eq!(stats.frees as usize, self.freed.len());
        assert_eq!(*self.hooked.lock().unwrap(), self.freed);
        for frame in 0..self.frames {
            let (owner, users) = match self.used.get(&frame) {
                Some((owner, users)) => (Some(Granule(*owner)), *users),
                None => (None, 0),
            };
            assert_eq!(self.pool.owner(Frame(frame)), owner);
            assert_eq!(self.pool.refcount(Frame(frame)), users);
            assert_eq!(self.pool.is_retired(Frame(frame)), self.retired.contains(&frame));
        }
        self.check_runs();
    }

    fn check_runs(&self) {
        let mut seen = BTreeMap::new();
        let mut last: Option<FrameRun> = None;
        for run in self.pool.used_runs() {
            for n in 0..run.count {
                let frame = run.first.0 + n;
                seen.insert(frame, (run.owner.0 + n, run.refcount));
                assert_eq!(run.retired, self.retired.contains(&frame));
            }
            // Two runs in a row differ in something, or one would do.
            if let Some(last) = last
                && let Some(owner) = last.owner.0.checked_add(last.count)
            {
                let first = Frame(last.first.0 + last.count);
                let next = FrameRun { first, owner: Granule(owner), count: run.count, ..last };
                assert_ne!(run, next);
            }
            last = Some(run);
        }
        assert_eq!(seen, self.used);
    }
}

proptest! {
    #[test]
    fn a_pool_keeps_its_books(
        frames in prop_oneof![0u32..10, 60u32..300, Just(128)],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut world = World::new(frames);
        for step in steps {
            world.take(step);
            world.check();
        }
    }

}

proptest! {
    // Long sequences with slow checks: fewer of them.
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// A pool of more than one summary level, with the checks at the end.
    #[test]
    fn a_large_pool_keeps_its_books(
        frames in 4090u32..8300,
        first in any::<u32>(),
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(frames);
        // Most of it taken, so that searches go far.
        let taken = frames - 1 - first % 200;
        world.take(Step::Window(0, 0, 0));
        assert!(world.pool.allocate_window(Frame(0), taken, Granule(0)));
        world.hand_out(0, taken, 0);
        for step in steps {
            world.take(step);
        }
        world.check();
    }
}
