//! The end of things: a thread that guest memory depends on dies, or the
//! process is killed in the middle of a batch.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::Backing;
use neap_memory::addr::HUGE_PAGE_SIZE;
use neap_memory::granule::{GranuleSize, Kind};
use neap_memory::migrate::Target;
use neap_vmm::bare::{Access, Writer};
use neap_vmm::failure::VM_FAILED;
use neap_vmm::tiers::die;
use vm_memory::{Bytes, GuestAddress};

use crate::child::Copy;
use crate::hooks::Panic;
use crate::hugetlb::{self, HugePages};
use crate::rig::{LIMIT, POOL, Plan, Rig, ram_for};
use crate::{Ran, trial};

/// What a copy says before it dies, and if somebody reads what was not there.
const DYING: &str = "dying";
const WRONG: &str = "a wrong word";
const ROUND: &str = "round";

/// Anything but the end takes less.
const LIFE: Duration = Duration::from_secs(30);

const DEATHS: [&str; 3] = ["fault-thread", "fault-thread-at-work", "copy-thread"];

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (backing, granule) in [
        (Backing::Anon, GranuleSize::K4),
        (Backing::Anon, GranuleSize::M2),
        (Backing::Memfd, GranuleSize::K4),
        (Backing::Memfd, GranuleSize::M2),
        (Backing::Hugetlb, GranuleSize::M2),
    ] {
        for death in DEATHS {
            trials.push(trial(format!("ends::{death}_{backing}_{granule}"), move || {
                dies(death, backing, granule)
            }));
        }
        trials.push(trial(format!("ends::killed_{backing}_{granule}"), move || {
            killed(backing, granule)
        }));
    }
    trials
}

/// The process ends within a second, and until then nobody reads a zero page.
fn dies(death: &str, backing: Backing, granule: GranuleSize) -> Ran {
    let _pages = HugePages::behind(backing, 2 * size(granule))?;
    let folder = tempfile::tempdir().unwrap();
    let mut copy = Copy::start(death, backing, granule, folder.path());
    let mut dying = None;
    while let Some((at, line)) = copy.line() {
        assert_ne!(line, WRONG, "somebody read a page that was not there");
        if line == DYING {
            dying = Some(at);
        }
    }
    let ended = Instant::now();
    let status = copy.wait();
    let took = ended - dying.expect("it ended before its time");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert_eq!(status.code(), Some(i32::from(VM_FAILED)), "{status}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "files are left");
    Ok(())
}

/// Nothing is left of a process that is killed while granules move.
fn killed(backing: Backing, granule: GranuleSize) -> Ran {
    let _pages = HugePages::behind(backing, 2 * size(granule))?;
    let free = || if backing == Backing::Hugetlb { hugetlb::count("free_hugepages") } else { 0 };
    let before = (free(), names("/dev/shm"));
    let folder = tempfile::tempdir().unwrap();
    for rounds in [1, 3, 7] {
        let mut copy = Copy::start("killed", backing, granule, folder.path());
        for _ in 0..rounds {
            let line = copy.line().expect("it ended by itself").1;
            assert_eq!(line, ROUND);
        }
        if backing == Backing::Hugetlb {
            assert!(free() + 2 * size(granule) / HUGE_PAGE_SIZE <= before.0 + 1);
        }
        copy.kill();
        copy.wait();
        // The last of its threads may free memory after it can be waited for.
        let since = Instant::now();
        while (free(), names("/dev/shm")) != before {
            assert!(since.elapsed() < Duration::from_secs(5), "{} of {} free", free(), before.0);
            thread::yield_now();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "files are left");
    }
    Ok(())
}

fn names(folder: &str) -> Vec<std::ffi::OsString> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
    names.sort();
    names
}

fn size(granule: GranuleSize) -> u64 {
    4 * ram_for(granule)
}

/// A line that is out at once, whatever becomes of the process.
fn say(line: &str) {
    let _ = io::stdout().write_all(format!("{line}\n").as_bytes());
}

/// What the copy does.
pub(crate) fn play(name: &str, backing: Backing, granule: GranuleSize) -> ExitCode {
    // Nobody is left to wait if this process does not come to its end.
    thread::spawn(|| {
        thread::sleep(LIFE);
        std::process::exit(98);
    });
    let plan = Plan { fatal: die, ..Plan::new(backing, granule, size(granule)) };
    match name {
        "killed" => move_for_ever(&plan),
        "fault-thread" => read_and_die(&plan.kind(Kind::Private), |rig| {
            // While some have come home and others are still away.
            while rig.tiers.status().counts.come_home < 3 {
                thread::yield_now();
            }
            say(DYING);
            rig.tiers.kill_fault_thread();
        }),
        "fault-thread-at-work" => {
            read_and_die(&plan.kind(Kind::Private).hooks(panic_in("fault")), |_| {});
        }
        "copy-thread" => read_and_die(&plan.hooks(panic_in("copy")), |rig| {
            loop {
                rig.migrate(rig.ram, Target::Home);
                rig.migrate(rig.ram, POOL);
            }
        }),
        _ => return ExitCode::from(99),
    }
    ExitCode::from(97)
}

fn panic_in(thread: &'static str) -> Arc<Panic> {
    // Past the copies with which a fault-free start brings everything out.
    Arc::new(Panic { thread, after: AtomicU32::new(40), tell: || say(DYING) })
}

fn move_for_ever(plan: &Plan) {
    let mut rig = plan.build(2);
    rig.hammer(rig.ram);
    loop {
        rig.migrate(rig.ram, POOL);
        rig.migrate(rig.ram, Target::Home);
        say(ROUND);
    }
}

/// Everything is away and has been written to. vCPUs and threads of the host
/// read it, which brings it home; then `end`.
fn read_and_die(plan: &Plan, end: impl FnOnce(&Rig)) {
    let mut rig = plan.build(2);
    let writer = Writer { passes: Some(1), ..Writer::over(rig.ram) };
    rig.guest.load_writer(0, &writer).unwrap();
    rig.guest.start().unwrap();
    rig.guest.wait_done(LIMIT).unwrap();
    rig.bring(rig.ram, POOL);
    let reader = Writer { access: Access::Check, after: 1, passes: None, ..writer.clone() };
    for cpu in 0..2 {
        rig.guest.load_writer(cpu, &reader).unwrap();
    }
    rig.guest.start().unwrap();
    let told = AtomicBool::new(false);
    let tell = || {
        if !told.swap(true, Relaxed) {
            say(WRONG);
        }
    };
    let words: Vec<_> = writer.words().map(|gpa| (gpa, writer.value(1, gpa))).collect();
    thread::scope(|scope| {
        // One from either end, so that they meet in the middle.
        for backwards in [false, true] {
            let (rig, words, tell) = (&rig, &words, &tell);
            scope.spawn(move || {
                loop {
                    for index in 0..words.len() {
                        let index = if backwards { words.len() - 1 - index } else { index };
                        let (gpa, expected) = words[index];
                        let found: u64 = rig.memory.view().read_obj(GuestAddress(gpa.0)).unwrap();
                        if found != expected {
                            tell();
                        }
                    }
                }
            });
        }
        let (rig, tell) = (&rig, &tell);
        scope.spawn(move || {
            loop {
                if rig.errors() > 0 {
                    tell();
                }
                thread::yield_now();
            }
        });
        end(rig);
    });
}
