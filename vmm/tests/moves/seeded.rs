//! The checker proves itself: with a step of a move left out, the guest must
//! find wrong words, or its silence elsewhere would prove nothing.

use std::sync::Arc;
use std::time::Instant;

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::engine::hooks::Point;
use neap_memory::granule::{Granule, GranuleSize};
use neap_memory::migrate::Target;

use crate::hooks::Omit;
use crate::hugetlb::HugePages;
use crate::rig::{LIMIT, POOL, Plan, WAYS, ram_for};
use crate::{Ran, trial};

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in WAYS {
        trials.push(trial(format!("seeded::{backing}_{granule}_without_one_copy"), move || {
            without_one_copy(backing, granule)
        }));
        trials.push(trial(format!("seeded::{backing}_{granule}_without_freezing"), move || {
            without_freezing(backing, granule)
        }));
    }
    trials
}

/// One granule arrives in a frame that nobody ever wrote to.
fn without_one_copy(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let hooks = Arc::new(Omit::once(Point::Copy, Granule(3)));
    let mut rig = Plan::new(backing, granule, ram).hooks(hooks).build(1);
    rig.hammer(rig.ram);
    rig.bring(rig.ram, POOL);
    rig.guest.wait_passes(2, LIMIT).unwrap();
    // Both words of each of its pages, once, but for one that the guest had
    // checked before and wrote after.
    let words = 2 * granule.bytes() / 4096;
    assert!((words - 1..=words).contains(&rig.errors()), "{} of {words}", rig.errors());
    let wrong = &rig.guest.wrong_words(0)[0];
    assert_eq!(wrong.gpa / granule.bytes(), 3, "{wrong:x?}");
    assert_eq!(wrong.found, 0, "{wrong:x?}");
    Ok(())
}

/// The guest writes between the copy and the switch, and that is lost.
fn without_freezing(backing: Backing, granule: GranuleSize) -> Ran {
    let ram = ram_for(granule);
    let _pages = HugePages::behind(backing, 2 * ram)?;
    let hooks = Arc::new(Omit::always(Point::Freeze));
    let mut rig = Plan::new(backing, granule, ram).hooks(hooks).build(1);
    rig.hammer(rig.ram);
    let since = Instant::now();
    while rig.errors() == 0 {
        assert!(since.elapsed() < LIMIT, "no word was lost");
        rig.bring(rig.ram, POOL);
        rig.bring(rig.ram, Target::Home);
    }
    Ok(())
}
