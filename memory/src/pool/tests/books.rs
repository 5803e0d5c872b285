//! Refcounts, retirement, the hook, and what wrong requests get.

use std::sync::{Arc, Mutex};

use super::*;

#[test]
fn free_frames_have_no_users_and_the_first_user_makes_one() {
    let mut pool = pool(4);
    assert_eq!(pool.refcount(Frame(0)), 0);
    assert_eq!(pool.owner(Frame(0)), None);
    let frame = pool.allocate(Granule(70)).unwrap();
    assert_eq!(pool.refcount(frame), 1);
    assert_eq!(pool.owner(frame), Some(Granule(70)));
    assert_eq!(pool.put(frame), Ok(Put::Freed));
    assert_eq!(pool.refcount(frame), 0);
    assert_eq!(pool.owner(frame), None);
}

#[test]
fn only_the_last_put_frees_and_calls_page_free() {
    let freed = Arc::new(Mutex::new(Vec::new()));
    let mut pool = pool(2);
    let log = Arc::clone(&freed);
    pool.on_page_free(Box::new(move |frame| log.lock().unwrap().push(frame)));
    let frame = pool.allocate(Granule(0)).unwrap();
    pool.get(frame).unwrap();
    assert_eq!(pool.put(frame), Ok(Put::StillUsed));
    assert!(freed.lock().unwrap().is_empty());
    assert_eq!(pool.put(frame), Ok(Put::Freed));
    assert_eq!(*freed.lock().unwrap(), [frame]);
}

#[test]
fn wrong_frames_are_told_apart() {
    let mut pool = pool(2);
    let outside = PoolError::OutOfRange { frame: Frame(2), frames: 2 };
    assert_eq!(pool.get(Frame(2)), Err(outside));
    assert_eq!(pool.put(Frame(2)), Err(outside));
    assert_eq!(pool.retire(Frame(2)), Err(outside));
    assert_eq!(pool.set_owner(Frame(2), Granule(0)), Err(outside));
    assert_eq!(outside.to_string(), "frame 2 is not one of the pool's 2");
    let unused = PoolError::NotInUse(Frame(1));
    assert_eq!(pool.get(Frame(1)), Err(unused));
    assert_eq!(pool.put(Frame(1)), Err(unused));
    assert_eq!(pool.set_owner(Frame(1), Granule(0)), Err(unused));
    assert_eq!(pool.refcount(Frame(u32::MAX)), 0);
    assert_eq!(pool.owner(Frame(u32::MAX)), None);
}

#[test]
fn a_refcount_stops_at_its_limit_retired_or_not() {
    for retired in [false, true] {
        let mut pool = pool(1);
        let frame = pool.allocate(Granule(0)).unwrap();
        if retired {
            pool.retire(frame).unwrap();
        }
        for _ in 1..MAX_REFCOUNT {
            pool.get(frame).unwrap();
        }
        assert_eq!(pool.get(frame), Err(PoolError::Overflow(frame)));
        assert_eq!(pool.refcount(frame), u32::from(MAX_REFCOUNT));
        assert_eq!(pool.is_retired(frame), retired);
    }
}

#[test]
fn a_retired_frame_is_never_handed_out_again() {
    let mut pool = pool(3);
    let used = pool.allocate(Granule(0)).unwrap();
    pool.retire(used).unwrap();
    pool.retire(Frame(2)).unwrap();
    pool.retire(Frame(2)).unwrap();
    assert_eq!((pool.stats().used, pool.stats().retired, pool.free()), (1, 1, 1));
    assert_eq!(pool.put(used), Ok(Put::Freed));
    assert_eq!((pool.stats().used, pool.stats().retired, pool.free()), (0, 2, 1));
    assert_eq!(pool.allocate_run(Granule(0), 3), Some((Frame(1), 1)));
    assert_eq!(pool.allocate(Granule(0)), None);
    assert!(!pool.allocate_at(used, Granule(0)));
    assert_eq!(pool.stats().refused, 2);
}

#[test]
fn a_window_is_all_or_nothing() {
    let mut pool = pool(200);
    assert!(pool.allocate_at(Frame(150), Granule(9)));
    let before = pool.stats();
    assert!(!pool.allocate_window(Frame(0), 151, Granule(0)));
    assert!(!pool.allocate_window(Frame(150), 51, Granule(0)));
    assert!(!pool.allocate_window(Frame(u32::MAX), 2, Granule(0)));
    assert!(!pool.allocate_window(Frame(0), 2, Granule(u32::MAX)));
    assert_eq!(pool.stats(), PoolStats { refused: before.refused + 4, ..before });
    assert!(pool.allocate_window(Frame(20), 130, Granule(1000)));
    assert_eq!(pool.owner(Frame(149)), Some(Granule(1129)));
    assert_eq!(pool.free(), 200 - 131);
}

#[test]
fn a_pool_without_frames_hands_out_none() {
    let mut pool = pool(0);
    assert_eq!(pool.allocate(Granule(0)), None);
    assert_eq!(pool.allocate_run(Granule(0), 5), None);
    assert!(pool.allocate_window(Frame(0), 0, Granule(0)));
    assert_eq!(pool.used_runs().count(), 0);
}

#[test]
fn used_runs_part_where_owners_users_or_retirement_do() {
    let mut pool = pool(300);
    assert!(pool.allocate_window(Frame(2), 6, Granule(10)));
    assert!(pool.allocate_window(Frame(200), 100, Granule(0)));
    pool.get(Frame(4)).unwrap();
    pool.set_owner(Frame(6), Granule(77)).unwrap();
    pool.retire(Frame(299)).unwrap();
    pool.retire(Frame(100)).unwrap();
    let runs: Vec<_> = pool
        .used_runs()
        .map(|run| (run.first.0, run.count, run.owner.0, run.refcount, run.retired))
        .collect();
    let expected = [
        (2, 2, 10, 1, false),
        (4, 1, 12, 2, false),
        (5, 1, 13, 1, false),
        (6, 1, 77, 1, false),
        (7, 1, 15, 1, false),
        (200, 99, 0, 1, false),
        (299, 1, 99, 1, true),
    ];
    assert_eq!(runs, expected);
}

#[test]
fn a_pool_without_users_can_have_fewer_frames_and_all_of_them_again() {
    let mut pool = Pool::new(PoolId(0), 100, Kind::Public);
    let frame = pool.allocate(Granule(7)).unwrap();
    assert!(!pool.resize(10), "somebody uses a frame");
    pool.put(frame).unwrap();
    pool.retire(Frame(3)).unwrap();
    pool.retire(Frame(50)).unwrap();
    assert!(!pool.resize(0) && !pool.resize(101));
    assert!(pool.resize(10));
    assert_eq!((pool.frames(), pool.most(), pool.free(), pool.stats().retired), (10, 100, 9, 1));
    let frames: Vec<_> = std::iter::from_fn(|| pool.allocate(Granule(0))).collect();
    assert_eq!(frames.len(), 9);
    assert!(frames.iter().all(|frame| frame.0 < 10 && *frame != Frame(3)), "{frames:?}");
    assert!(pool.retire(Frame(10)).is_err());
    for frame in frames {
        assert_eq!(pool.put(frame), Ok(Put::Freed));
    }
    assert!(pool.resize(100));
    assert_eq!((pool.free(), pool.stats().retired, pool.is_retired(Frame(50))), (98, 2, true));
}
