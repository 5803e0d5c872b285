//! What the kind of a region means: `private` granules come home on a touch,
//! `generic` ones never move.

use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::migrate::{Outcome, Target};
use vm_memory::{Bytes, GuestAddress};

use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, carry_out, ram_for, range, request};
use crate::{Ran, trial};

const MOVES: u32 = 20;

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        for cpus in [1, 2] {
            let name = format!("kinds::private_{backing}_{granule}_{cpus}_vcpus");
            trials.push(trial(name, move || comes_home(backing, granule, cpus)));
        }
        trials.push(trial(format!("kinds::generic_{backing}_{granule}"), move || {
            stays(backing, granule)
        }));
        trials.push(trial(format!("kinds::private_pinned_{backing}_{granule}"), move || {
            pinned_and_touched(backing, granule)
        }));
    }
    trials
}

fn comes_home(backing: Backing, granule: GranuleSize, cpus: usize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let mut rig = Plan::new(backing, granule, ram).kind(Kind::Private).build(cpus);
    rig.hammer(rig.ram);
    let since = Instant::now();
    let mut left = vec![0; rig.granules(rig.ram) as usize];
    while left.iter().any(|count| *count < MOVES) {
        assert!(since.elapsed() < LIMIT, "{left:?}, {:?}", rig.tiers.status());
        // All are at home, so each that is not skipped moves out now, and has
        // come home by the next round.
        let report = rig.migrate(rig.ram, POOL);
        assert_eq!((report.skipped_more, report.count(Outcome::Untouched)), (0, 0), "{report:?}");
        for (index, count) in left.iter_mut().enumerate() {
            let granule = range(index as u64 * rig.granule, rig.granule);
            let skipped = report.skipped.iter().any(|run| run.range.contains(&granule));
            *count += u32::from(!skipped);
        }
        wait_home(&rig);
        assert_eq!(rig.tiers.verify().unwrap().mismatches, []);
    }
    rig.check();
    rig.check_home();
    let counts = rig.tiers.status().counts;
    assert_eq!((counts.to_device, counts.to_home), (counts.come_home, counts.come_home));
    assert!(counts.come_home >= u64::from(MOVES) * rig.granules(rig.ram), "{counts:?}");
    Ok(())
}

/// Waits until the guest has touched everything that is away.
fn wait_home(rig: &Rig) {
    let deadline = Instant::now() + LIMIT;
    while !rig.all_at(rig.ram, Target::Home) {
        assert!(Instant::now() < deadline, "{:?}", rig.tiers.residency());
        thread::yield_now();
    }
}

fn stays(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = 4 << 20;
    let _pages = HugePages::behind(backing, 4 * ram)?;
    // A window too, whose granules are born in frames of the region.
    let mut rig =
        Plan { window: ram, ..Plan::new(backing, granule, ram).kind(Kind::Generic) }.build(1);
    let window = rig.window.unwrap();
    rig.hammer(window);
    let (all, before) = (rig.granules(rig.ram), rig.tiers.residency());
    for (range, to) in [(rig.ram, POOL), (window, Target::Home)] {
        let report = rig.migrate(range, to);
        assert_eq!(report.count(Outcome::WrongKind), all, "{report:?}");
        assert_eq!(report.skipped.len(), 1, "{report:?}");
    }
    assert_eq!(rig.tiers.residency(), before);
    rig.check();
    Ok(())
}

/// A device that holds granules of a `private` region and accesses them, as
/// one does that has pinned the memory of a request: it must not wait for
/// itself.
fn pinned_and_touched(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = 4 << 20;
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let (memory, tiers) = Plan::new(backing, granule, ram).kind(Kind::Private).tiers().unwrap();
    let part = range(0, 2 * granule.bytes());
    let word = |page: u64| GuestAddress(page * 4096);
    let pages = part.size() / 4096;
    for page in 0..pages {
        memory.view().write_obj(page + 1, word(page)).unwrap();
    }
    thread::scope(|scope| {
        let device = scope.spawn(|| {
            for _ in 0..10 {
                let report = carry_out(&tiers, &request(part, POOL)).unwrap();
                assert_eq!(report.moved.granules, 2);
                let pin = tiers.pin(part, LIMIT).unwrap();
                for page in 0..pages {
                    let value: u64 = memory.view().read_obj(word(page)).unwrap();
                    assert_eq!(value, page + 1);
                    memory.view().write_obj(value, word(page)).unwrap();
                }
                drop(pin);
            }
        });
        let since = Instant::now();
        while !device.is_finished() {
            if since.elapsed() > Duration::from_secs(10) {
                // Nothing would ever end the thread, so the whole run ends.
                eprintln!("a device waits for itself: {:?}", tiers.residency());
                std::process::exit(101);
            }
            thread::yield_now();
        }
    });
    assert_eq!(tiers.status().pools[0].stats.used, 0);
    Ok(())
}
