//! The bare guest on a real `/dev/kvm`: its programs do what they say, see
//! every word that is not what it should be, and can be stopped anywhere.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use neap_memory::addr::{MIB, PAGE_SIZE};
use neap_memory::guest::RangeSpec;
use neap_memory::hva::{Hva, HvaRange};
use neap_memory::uffd::abi::Door;
use neap_memory::uffd::{Features, Modes, Userfaultfd};
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory};
use neap_vmm::bare::{Access, BareError, Guest, Toucher, Writer};
use vm_memory::{Bytes, GuestAddress};

const LIMIT: Duration = Duration::from_secs(20);

/// Two slots side by side, away from address 0, and a guest over them; `None`
/// without KVM.
fn guest(cpus: usize, backing: Backing) -> Option<(Arc<GuestMemory>, Guest, GpaRange)> {
    let base = 64 * MIB;
    let slot = |index: u64| RangeSpec {
        range: GpaRange::new(Gpa(base + index * 4 * MIB), 4 * MIB).unwrap(),
        backing,
        prefault: true,
    };
    let memory = Arc::new(GuestMemory::new(&[slot(0), slot(1)]).unwrap());
    let guest = match Guest::new(Arc::clone(&memory), cpus) {
        Err(BareError::Open(error)) => {
            eprintln!("skipped: {error}");
            return None;
        }
        other => other.unwrap(),
    };
    Some((memory, guest, GpaRange::new(Gpa(base), 8 * MIB).unwrap()))
}

fn word(memory: &GuestMemory, gpa: Gpa) -> u64 {
    memory.view().read_obj(GuestAddress(gpa.0)).unwrap()
}

#[test]
fn after_so_many_passes_every_word_has_its_value() {
    for (backing, cpus) in [(Backing::Anon, 1), (Backing::Memfd, 2)] {
        let Some((memory, mut guest, range)) = guest(cpus, backing) else { return };
        let writers: Vec<_> = (0..cpus)
            .map(|cpu| Writer {
                passes: Some(7),
                words: 3,
                timed: cpu == 1,
                ..Writer::over(range).interleaved(cpu, cpus)
            })
            .collect();
        for (cpu, writer) in writers.iter().enumerate() {
            guest.load_writer(cpu, writer).unwrap();
        }
        guest.start().unwrap();
        guest.wait_done(LIMIT).unwrap();
        for (cpu, writer) in writers.iter().enumerate() {
            let counters = guest.counters(cpu);
            assert_eq!((counters.passes, counters.errors), (7, 0), "{:x?}", guest.wrong_words(cpu));
            assert_eq!(counters.touches, 7 * writer.words().count() as u64);
            assert!(writer.words().all(|gpa| word(&memory, gpa) == writer.value(7, gpa)));
            assert_eq!(guest.pass_times(cpu).len(), 7);
            let timed: u64 = guest.histogram(cpu).iter().sum();
            assert_eq!(timed, if writer.timed { counters.touches } else { 0 });
            assert_eq!(counters.longest > Duration::ZERO, writer.timed);
        }
        // It goes on where it was.
        guest.extend_writer(0, 9).unwrap();
        guest.start().unwrap();
        guest.wait_done(LIMIT).unwrap();
        assert_eq!((guest.counters(0).passes, guest.counters(0).errors), (9, 0));
        let first = writers[0].words().next().unwrap();
        assert_eq!(word(&memory, first), writers[0].value(9, first));
    }
}

#[test]
fn a_word_that_changed_behind_its_back_is_seen() {
    let Some((memory, mut guest, range)) = guest(1, Backing::Anon) else { return };
    let writer = Writer { passes: Some(2), ..Writer::over(range) };
    guest.load_writer(0, &writer).unwrap();
    guest.start().unwrap();
    guest.wait_done(LIMIT).unwrap();
    let page = Gpa(range.base().0 + 5 * MIB);
    let old = writer.value(1, page);
    memory.view().write_obj(old, GuestAddress(page.0)).unwrap();
    guest.extend_writer(0, 4).unwrap();
    guest.start().unwrap();
    guest.wait_done(LIMIT).unwrap();
    assert_eq!(guest.counters(0).errors, 1);
    let wrong = guest.wrong_words(0)[0];
    assert_eq!((Gpa(wrong.gpa), wrong.pass), (page, 2));
    assert_eq!((wrong.found, wrong.expected), (old, writer.value(2, page)));
}

#[test]
fn a_reader_knows_what_a_writer_left_and_writes_nothing() {
    let Some((memory, mut guest, range)) = guest(2, Backing::Anon) else { return };
    let writer = Writer { passes: Some(3), ..Writer::over(range) };
    guest.load_writer(0, &writer).unwrap();
    guest.start().unwrap();
    guest.wait_done(LIMIT).unwrap();
    let reader = Writer { access: Access::Check, after: 3, passes: Some(5), ..writer.clone() };
    guest.load_writer(1, &reader).unwrap();
    guest.start().unwrap();
    guest.wait_done(LIMIT).unwrap();
    let counters = guest.counters(1);
    assert_eq!((counters.passes, counters.errors), (5, 0), "{:x?}", guest.wrong_words(1));
    assert!(writer.words().all(|gpa| word(&memory, gpa) == writer.value(3, gpa)));
    let wrong = Writer { after: 2, ..reader };
    guest.load_writer(1, &wrong).unwrap();
    guest.start().unwrap();
    guest.wait_done(LIMIT).unwrap();
    assert_eq!(guest.counters(1).errors, 5 * 2048);
}

#[test]
fn a_guest_that_never_exits_is_stopped_and_goes_on_a_thousand_times() {
    let Some((_, mut guest, range)) = guest(2, Backing::Anon) else { return };
    for cpu in 0..2 {
        guest.load_writer(cpu, &Writer::over(range).own_words(cpu)).unwrap();
    }
    for _ in 0..1000 {
        guest.start().unwrap();
        guest.stop(LIMIT).unwrap();
    }
    guest.start().unwrap();
    guest.wait_passes(3, LIMIT).unwrap();
    guest.stop(LIMIT).unwrap();
    for cpu in 0..2 {
        assert!(guest.counters(cpu).passes >= 3);
        assert_eq!(guest.counters(cpu).errors, 0, "{:x?}", guest.wrong_words(cpu));
    }
}

#[test]
fn touches_are_timed_one_by_one() {
    let Some((memory, mut guest, range)) = guest(1, Backing::Anon) else { return };
    let words: Vec<_> = (0..512).map(|n| Gpa(range.base().0 + (n * 7 % 512) * 4096)).collect();
    let gap = Duration::from_micros(5);
    for writes in [true, false] {
        guest.load_toucher(0, &Toucher { words: words.clone(), writes, gap }).unwrap();
        let start = std::time::Instant::now();
        guest.start().unwrap();
        guest.wait_done(LIMIT).unwrap();
        assert!(start.elapsed() >= gap * 512);
        let mut times = guest.touch_times(0);
        assert_eq!(times.len(), 512);
        times.sort();
        assert!(times[256] < Duration::from_micros(5), "{:?}", times[256]);
        assert!(times.iter().sum::<Duration>() < start.elapsed());
    }
    assert_eq!(word(&memory, words[0]), 512);
    assert_eq!(word(&memory, words[511]), 1);
}

#[test]
fn what_is_not_guest_memory_is_refused() {
    let Some((_, mut guest, range)) = guest(1, Backing::Anon) else { return };
    let longer = GpaRange::new(range.base(), range.size() + PAGE_SIZE).unwrap();
    assert!(matches!(guest.load_writer(0, &Writer::over(longer)), Err(BareError::Refused(_))));
    assert!(matches!(guest.load_writer(1, &Writer::over(range)), Err(BareError::Refused(_))));
    let list = vec![Gpa(range.end().0)];
    let toucher = Toucher { words: list, writes: true, gap: Duration::ZERO };
    assert!(matches!(guest.load_toucher(0, &toucher), Err(BareError::Refused(_))));
}

/// Nobody fills the page that it waits for; a signal gets it out all the same.
#[test]
fn a_guest_that_waits_for_a_page_is_stopped() {
    let range = GpaRange::new(Gpa(64 * MIB), 4 * MIB).unwrap();
    let spec = RangeSpec { range, backing: Backing::Anon, prefault: false };
    let memory = Arc::new(GuestMemory::new(&[spec]).unwrap());
    let mut guest = match Guest::new(Arc::clone(&memory), 1) {
        Err(BareError::Open(error)) => return eprintln!("skipped: {error}"),
        other => other.unwrap(),
    };
    let doors = [Door::SystemCall, Door::Device];
    let uffd = Userfaultfd::open(Features::NONE, &doors).unwrap();
    let hva = HvaRange::new(Hva(memory.slots()[0].hva as usize), 4 * MIB as usize);
    uffd.register(hva, Modes::Missing).unwrap();
    guest.load_writer(0, &Writer::over(range)).unwrap();
    guest.start().unwrap();
    let mut events = Vec::new();
    let deadline = std::time::Instant::now() + LIMIT;
    while events.is_empty() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
        uffd.read(&mut events).unwrap();
    }
    assert_eq!(events[0].address, hva.start());
    guest.stop(LIMIT).unwrap();
    assert_eq!(guest.counters(0).touches, 0);
    drop((guest, uffd));
}
