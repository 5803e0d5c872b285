//! What a guest writes is seen without an event for each write, and what it
//! only reads is not.

use std::sync::Arc;

use libtest_mimic::Trial;
use neap_memory::addr::MIB;
use neap_memory::granule::GranuleSize;
use neap_memory::guest::RangeSpec;
use neap_memory::hva::{Hva, HvaRange};
use neap_memory::uffd::abi::Door;
use neap_memory::uffd::written::{WriteWatch, WrittenError};
use neap_memory::{Backing, GuestMemory};
use neap_vmm::bare::{Access, Guest, Writer};

use crate::rig::{LIMIT, range};
use crate::{Ran, Unfit, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("heat::writes_of_a_guest_are_noted_and_its_reads_are_not", writes_are_noted)]
}

fn writes_are_noted() -> Ran {
    const RAM: u64 = 64 * MIB;
    const GRANULE: u64 = GranuleSize::M2.bytes();
    let (written, read) = (range(RAM / 4, RAM / 8), range(RAM / 2, RAM / 8));
    let spec = RangeSpec { range: range(0, RAM), backing: Backing::Anon, prefault: true };
    let memory = Arc::new(GuestMemory::new(&[spec]).unwrap());
    let start = Hva(memory.slots()[0].hva as usize);
    let granule =
        |number: u64| HvaRange::new(start.offset((number * GRANULE) as usize), GRANULE as usize);
    let granules = RAM / GRANULE;
    let all = HvaRange::new(start, RAM as usize);
    let watch = match WriteWatch::new(&[Door::SystemCall, Door::Device], [all]) {
        Err(error @ WrittenError::Missing) => return Err(Unfit(error.to_string())),
        watch => watch.unwrap(),
    };
    let mut guest = Guest::new(memory, 2).unwrap();
    // What the reader is to find.
    let filler = Writer { passes: Some(1), ..Writer::over(read).own_words(1) };
    guest.load_writer(1, &filler).unwrap();
    guest.start().unwrap();
    guest.wait_done(LIMIT).unwrap();
    guest.load_writer(0, &Writer::over(written)).unwrap();
    let reader = Writer { access: Access::Check, passes: None, after: 1, ..filler };
    guest.load_writer(1, &reader).unwrap();
    guest.start().unwrap();

    let inside = |of: neap_memory::GpaRange, number: u64| {
        (of.base().0..of.base().0 + of.size()).contains(&(number * GRANULE))
    };
    for round in 0..20 {
        for number in 0..granules {
            watch.begin(granule(number)).unwrap();
        }
        guest.wait_passes(2, LIMIT).unwrap();
        for number in 0..granules {
            let seen = watch.is_written(granule(number)).unwrap();
            assert_eq!(seen, inside(written, number), "granule {number}, round {round}");
        }
    }
    assert_eq!((0..2).map(|cpu| guest.counters(cpu).errors).sum::<u64>(), 0);
    guest.stop(LIMIT).unwrap();
    for number in 0..granules {
        watch.begin(granule(number)).unwrap();
        assert!(!watch.is_written(granule(number)).unwrap(), "nobody writes any more");
    }
    Ok(())
}
