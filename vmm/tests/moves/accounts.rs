//! What Neap believes each tier has is what the kernel says, byte for byte:
//! after moves to and fro, after a region went and came back; and a page that
//! somebody takes behind its back is a difference.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::account::hugepages::HugePages as Pool;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::migrate::Target;
use neap_memory::tiers::{Accounts, PlugMemory, TierAccount};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mm::{Advice, madvise};

use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, Rig, WAYS, ram_for};
use crate::{Ran, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        for kind in [Kind::Public, Kind::Private] {
            let name = format!("accounts::to_and_fro_{backing}_{granule}_{kind}");
            trials.push(trial(name, move || to_and_fro(backing, granule, kind)));
        }
        trials.push(trial(format!("accounts::of_a_window_{backing}_{granule}"), move || {
            window(backing, granule)
        }));
        trials
            .push(trial(format!("accounts::a_page_that_is_gone_{backing}_{granule}"), move || {
                gone(backing, granule)
            }));
    }
    for backing in [Backing::Anon, Backing::Memfd] {
        trials
            .push(trial(format!("accounts::while_pages_move_{backing}"), move || moving(backing)));
    }
    trials
}

/// The books with everything at rest.
fn accounts(rig: &Rig) -> Accounts {
    let deadline = Instant::now() + LIMIT;
    loop {
        let accounts = rig.tiers.account(&|| true).unwrap();
        if accounts.settled {
            return accounts;
        }
        assert!(Instant::now() < deadline, "{accounts:?}");
    }
}

/// The same; nothing may differ.
#[track_caller]
fn checked(rig: &Rig) -> (TierAccount, TierAccount) {
    let accounts = accounts(rig);
    assert_eq!(accounts.differences, [""; 0], "{accounts:?}");
    assert_eq!(accounts.tiers[1].pool, Some(PoolId(0)));
    for tier in &accounts.tiers {
        assert!(tier.found + tier.untouched <= tier.limit, "{tier:?}");
    }
    // Pages of zeros may have been taken back; where a guest writes there are
    // none. They count as there.
    let [home, region] = [0, 1].map(|index| {
        let tier = accounts.tiers[index];
        TierAccount { found: tier.found + tier.zeros, ..tier }
    });
    (home, region)
}

fn to_and_fro(backing: Backing, granule: GranuleSize, kind: Kind) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let before = Pool::read();
    let rig = Plan::new(backing, granule, ram).kind(kind).build(1);
    let (home, region) = checked(&rig);
    // It was touched before anybody moved it.
    assert_eq!((home.untouched, home.found, region.found), (ram, 0, 0));
    assert_eq!(rig.bring(rig.ram, POOL), rig.granules(rig.ram));
    // A file's home page is given up while nobody can reach its granule.
    let punched = kind == Kind::Private && !backing.is_anonymous();
    for round in 0..3 {
        let (home, region) = checked(&rig);
        assert_eq!((home.untouched, region.untouched), (0, 0));
        assert_eq!(region.found, ram, "round {round}");
        assert_eq!(home.found, if punched { 0 } else { ram }, "round {round}");
        assert_eq!(rig.bring(rig.ram, Target::Home), rig.granules(rig.ram));
        let (home, region) = checked(&rig);
        assert_eq!((home.found, region.found), (ram, ram), "round {round}");
        if backing == Backing::Hugetlb {
            let pool = Pool::read();
            let pages = 2 * ram / (2 << 20);
            assert_eq!(pool.free - pool.reserved, before.free - before.reserved - pages);
        }
        assert_eq!(rig.bring(rig.ram, POOL), rig.granules(rig.ram));
    }
    let away = rig.tiers.unplug(0, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(away.left, []);
    let (home, region) = checked(&rig);
    // Huge pages stay where they are.
    let kept = if backing == Backing::Hugetlb { ram } else { 0 };
    assert_eq!((home.found, region.found), (ram, kept));
    rig.tiers.plug(0, PlugMemory::default()).unwrap();
    let half = neap_memory::GpaRange::new(rig.ram.base(), ram / 2).unwrap();
    assert_eq!(rig.bring(half, POOL), rig.granules(half));
    let (_, region) = checked(&rig);
    assert_eq!(region.found, kept.max(ram / 2));
    Ok(())
}

fn window(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let size = ram / 2;
    let _pages = HugePages::behind(backing, 2 * ram + 2 * size)?;
    let plan = Plan { window: size, prefault: false, ..Plan::new(backing, granule, ram) };
    let mut rig = plan.build(1);
    let window = rig.window.unwrap();
    let used = neap_memory::GpaRange::new(window.base(), size / 2).unwrap();
    rig.hammer(used);
    rig.guest.stop(LIMIT).unwrap();
    let (_, region) = checked(&rig);
    assert_eq!((region.found, region.untouched), (0, size / 2));
    // What nobody touched has nothing to move.
    rig.bring(used, Target::Home);
    let (home, region) = checked(&rig);
    assert!(home.found >= size / 2, "{home:?}");
    // Private memory is taken under control in pieces of 2 MiB.
    assert!((size / 2..=size).contains(&region.found) && region.untouched == 0, "{region:?}");
    rig.bring(used, POOL);
    // Other frames may be nearer than those that it had.
    let (_, region) = checked(&rig);
    assert!((size / 2..=size).contains(&region.found) && region.untouched == 0, "{region:?}");
    Ok(())
}

/// Takes the first page of RAM away, as nobody but the engines may.
fn take_away(rig: &Rig, backing: Backing) -> u64 {
    let page = if backing == Backing::Hugetlb { 2 << 20 } else { 4096 };
    match rig.memory.file(0) {
        Some(file) => {
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, punch, 0, page).unwrap();
        }
        None => {
            let hva = std::ptr::with_exposed_provenance_mut(rig.memory.slots()[0].hva as usize);
            // SAFETY: the page is guest memory, and no guest runs; what is in it
            // is to be lost.
            #[allow(unsafe_code)]
            unsafe { madvise(hva, page as usize, Advice::LinuxDontNeed) }.unwrap();
        }
    }
    page
}

fn gone(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let rig = Plan::new(backing, granule, ram).build(1);
    rig.bring(rig.ram, POOL);
    rig.bring(rig.ram, Target::Home);
    checked(&rig);
    let page = take_away(&rig, backing);
    let accounts = accounts(&rig);
    let said = format!("home should have {ram} bytes and has {}", ram - page);
    assert!(accounts.differences.contains(&said), "{:?}", accounts.differences);
    Ok(())
}

fn moving(backing: Backing) -> Ran {
    let granule = GranuleSize::K64;
    let mut rig = Plan::new(backing, granule, ram_for(granule)).build(1);
    rig.hammer(rig.ram);
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                rig.migrate(rig.ram, POOL);
                rig.migrate(rig.ram, Target::Home);
            }
        });
        // Whatever it finds at rest is right; the rest is not judged.
        for _ in 0..20 {
            let accounts = rig.tiers.account(&|| true).unwrap();
            assert!(accounts.settled || accounts.differences.is_empty());
            assert_eq!(accounts.differences, [""; 0], "{accounts:?}");
        }
        over.store(true, Ordering::Relaxed);
    });
    checked(&rig);
    rig.check();
    Ok(())
}
