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
