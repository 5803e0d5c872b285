//! Size costs nothing: creation, memory, and the time of one request.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::*;
use crate::addr::{GIB, TIB};
use crate::granule::GranuleSize;
use crate::table::GranuleTable;

fn frames_of(bytes: u64) -> u32 {
    u32::try_from(bytes / GranuleSize::M2.bytes()).unwrap()
}

/// The limit for a region that is ready; without optimisation the code
/// is about ten times slower.
const READY: Duration = Duration::from_millis(if cfg!(debug_assertions) { 1000 } else { 50 });

/// The shortest of a few: what the work takes when nobody disturbs it.
fn shortest(tries: u32, mut run: impl FnMut() -> Duration) -> Duration {
    (0..tries).map(|_| run()).min().unwrap()
}

#[test]
fn a_tebibyte_with_its_window_is_ready_at_once() {
    let frames = frames_of(TIB);
    let took = shortest(5, || {
        let start = Instant::now();
        let mut pool = pool(frames);
        let table = GranuleTable::new(frames);
        assert!(pool.allocate_window(Frame(0), frames, Granule(0)));
        table.set_window(Granule(0), frames, pool.id(), Frame(0));
        let took = start.elapsed();
        assert_eq!(pool.free(), 0);
        assert_eq!(table.runs(Granule(0), Granule(frames)).count(), 1);
        took
    });
    assert!(took < READY, "{took:?}");
}

/// The largest pool there is any use for, over which nothing is written.
#[test]
fn a_tebibyte_of_base_pages_is_only_address_space() {
    let frames = u32::try_from(TIB / GranuleSize::K4.bytes()).unwrap();
    let took = shortest(5, || {
        let start = Instant::now();
        let mut pool = pool(frames);
        let table = GranuleTable::new(frames);
        let frame = pool.allocate(Granule(0)).unwrap();
        assert!(pool.allocate_at(Frame(frames - 1), Granule(1)));
        pool.put(frame).unwrap();
        black_box(&table);
        start.elapsed()
    });
    // To write it would take 3.7 GB and more than a second.
    assert!(took < READY, "{took:?}");
}

#[test]
fn metadata_takes_at_most_16_bytes_a_granule() {
    for frames in [512, frames_of(TIB)] {
        let bytes = pool(frames).metadata_bytes() as f64 / f64::from(frames);
        assert!(bytes + GranuleTable::BYTES_PER_GRANULE as f64 <= 16.0, "{bytes}");
    }
}

/// Puts and allocates in a pool with one free frame, now here, now there: the
/// search has the whole pool to go through if it goes through anything.
fn time_of_a_full_pool(frames: u32) -> Duration {
    let mut pool = pool(frames);
    assert!(pool.allocate_window(Frame(0), frames, Granule(0)));
    let mut frame = 0;
    shortest(5, || {
        let start = Instant::now();
        for _ in 0..20_000 {
            frame = (frame + 7919) % frames;
            pool.put(Frame(frame)).unwrap();
            assert_eq!(pool.allocate(Granule(frame)), Some(Frame(frame)));
        }
        start.elapsed()
    })
}

/// The same in a pool that is half free, in holes of one frame; and for runs.
fn time_of_a_pool_in_holes(frames: u32) -> Duration {
    let mut pool = pool(frames);
    assert!(pool.allocate_window(Frame(0), frames, Granule(0)));
    for frame in (0..frames).step_by(2) {
        pool.put(Frame(frame)).unwrap();
    }
    shortest(5, || {
        let start = Instant::now();
        for _ in 0..10_000 {
            let (frame, count) = pool.allocate_run(Granule(0), 16).unwrap();
            assert_eq!(count, 1);
            pool.put(frame).unwrap();
        }
        start.elapsed()
    })
}

#[test]
fn a_request_takes_as_long_in_a_tebibyte_as_in_a_gibibyte() {
    for time in [time_of_a_full_pool, time_of_a_pool_in_holes] {
        let (small, large) = (time(frames_of(GIB)), time(frames_of(TIB)));
        // A scan would be a thousand times slower; a cache miss is not a scan.
        assert!(large < small * 10, "{large:?} at 1 TiB, {small:?} at 1 GiB");
    }
}
