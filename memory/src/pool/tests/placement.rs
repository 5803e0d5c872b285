//! Where frames are handed out.

use super::*;

#[test]
fn successive_frames_are_neighbours() {
    let mut pool = pool(1000);
    for n in 0..500 {
        assert_eq!(pool.allocate(Granule(n)), Some(Frame(n)));
    }
    assert_eq!(pool.allocate_run(Granule(500), 500), Some((Frame(500), 500)));
}

#[test]
fn a_freed_frame_rests_until_the_search_has_come_round() {
    let mut pool = pool(10);
    let first = pool.allocate(Granule(0)).unwrap();
    pool.put(first).unwrap();
    for n in 1..10 {
        assert_eq!(pool.allocate(Granule(n)), Some(Frame(n)));
    }
    assert_eq!(pool.allocate(Granule(0)), Some(first));
    assert_eq!(pool.allocate(Granule(0)), None);
}

#[test]
fn a_run_passes_over_holes_that_are_too_small() {
    let mut pool = pool(640);
    assert!(pool.allocate_window(Frame(0), 640, Granule(0)));
    for frame in [3..5, 10..40, 70..72].into_iter().flatten() {
        pool.put(Frame(frame)).unwrap();
    }
    assert_eq!(pool.allocate_run(Granule(0), 16), Some((Frame(10), 16)));
    // What is left has no 16 in a row: the longest hole is taken.
    assert_eq!(pool.allocate_run(Granule(0), 16), Some((Frame(26), 14)));
    assert_eq!(pool.allocate_run(Granule(0), 16).map(|(_, count)| count), Some(2));
}

#[test]
fn a_run_finds_the_one_whole_block_behind_any_number_of_holes() {
    let frames = 64 * 1000;
    let mut pool = pool(frames);
    assert!(pool.allocate_window(Frame(0), frames, Granule(0)));
    // A hole of one frame in each block, and far away a long run that begins
    // before the block which gives it away.
    for block in 0..1000 {
        pool.put(Frame(block * 64 + 5)).unwrap();
    }
    let first = 900 * 64 - 20;
    for frame in first..first + 100 {
        if pool.refcount(Frame(frame)) > 0 {
            pool.put(Frame(frame)).unwrap();
        }
    }
    assert_eq!(pool.allocate_run(Granule(0), 100), Some((Frame(first), 100)));
}

#[test]
fn a_run_asks_for_at_least_one_frame_and_ends_with_the_last_granule() {
    let mut pool = pool(100);
    assert_eq!(pool.allocate_run(Granule(5), 0), Some((Frame(0), 1)));
    assert_eq!(pool.allocate_run(Granule(u32::MAX - 1), 50), Some((Frame(1), 2)));
    assert_eq!(pool.owner(Frame(2)), Some(Granule(u32::MAX)));
}

/// A pool that is kept four fifths full while ranges of a guest, and in one of
/// five cases lone granules, come and go.
struct Churn {
    pool: Pool,
    frames_of: Vec<Option<Frame>>,
    random: u64,
}

impl Churn {
    const GRANULES: u32 = 16 * 1024;

    /// A number below `limit`, by xorshift: the same in every run.
    fn below(&mut self, limit: u32) -> u32 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        ((self.random >> 20) % u64::from(limit)) as u32
    }

    /// A range of 1 to 64 granules, aligned to its size.
    fn range(&mut self) -> std::ops::Range<u32> {
        let count = 1 << self.below(7);
        let first = self.below(Self::GRANULES / count) * count;
        first..first + count
    }

    fn evacuate(&mut self) {
        for granule in self.range() {
            if let Some(frame) = self.frames_of[granule as usize].take() {
                self.pool.put(frame).unwrap();
            }
        }
    }

    fn fill(&mut self) {
        let mut range = self.range();
        if self.below(5) == 0 {
            range.end = range.start + 1;
        }
        while self.pool.stats().used + range.len() as u32 > self.pool.frames() / 5 * 4 {
            self.evacuate();
        }
        while !range.is_empty() {
            let rest = &self.frames_of[range.start as usize..range.end as usize];
            let absent = rest.iter().take_while(|frame| frame.is_none()).count() as u32;
            if absent == 0 {
                range.start += 1;
                continue;
            }
            let (frame, count) = self.pool.allocate_run(Granule(range.start), absent).unwrap();
            for n in 0..count {
                self.frames_of[(range.start + n) as usize] = Some(Frame(frame.0 + n));
            }
            range.start += count;
        }
    }
}

/// What placement is for: after any amount of coming and going, neighbours in
/// the guest are mostly neighbours in the pool, and few mappings serve many
/// granules. First-fit ends near 1.5 here, next-fit without a look at further
/// holes near 3.5.
#[test]
fn runs_stay_long_in_a_pool_that_is_nearly_full() {
    let mut churn = Churn {
        pool: pool(Churn::GRANULES / 2),
        frames_of: vec![None; Churn::GRANULES as usize],
        random: 88_172_645_463_325_252,
    };
    for _ in 0..20_000 {
        churn.fill();
    }
    let runs = churn.pool.used_runs().count();
    let length = f64::from(churn.pool.stats().used) / runs as f64;
    assert!(length > 5.0, "{length} granules to a run");
}
