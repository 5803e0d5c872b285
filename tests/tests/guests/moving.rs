//! Guests whose memory moves between host RAM and device regions all the
//! while, and who notice nothing.

use std::io::{PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::addr::{GIB, MIB};
use neap_memory::{Gpa, GpaRange};

use neap_tests::{Booted, Churn, Ended, Guest, Moves};
use neap_vmm::images::Job;
use neap_vmm::lab;

use super::profiles::STOOD_STILL;
use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("moving::hmm_passes_all_tests_of_the_kernel", hmm),
        trial("moving::memtester_finds_no_wrong_bit", memtester),
    ]
}

/// Windows for test_hmm.
const WINDOWS: [Gpa; 2] = [Gpa(0x10_0000_0000), Gpa(0x10_1000_0000)];
/// For one guest whose processors it shares with the copies.
const DEADLINE: Duration = Duration::from_secs(300);
/// How long a guest that goes on until enough has moved is left to that; its
/// last round is after it.
const ENOUGH: Duration = Duration::from_secs(200);
/// RAM of the guests.
const RAM: u64 = GIB;

fn range(base: Gpa, size: u64) -> GpaRange {
    GpaRange::new(base, size).unwrap()
}

/// Runs `guest` with an API socket while its memory moves; returns what moved
/// of its RAM and of each window. A guest that goes on until its RAM has moved
/// `enough` since its job began is told so by a line at its console. None: it stood
/// still in the lab.
fn run_moving(guest: Guest, enough: Option<fn(&Moves) -> bool>) -> Option<(Ended, Vec<Moves>)> {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let windows = WINDOWS.map(|window| range(window, 256 * MIB));
    // The first pool holds all of RAM that such a guest touches, the second
    // is full from time to time.
    let guest = guest
        .deadline(DEADLINE)
        .options("--memory 1G --granule 2M")
        .options(&format!("--device-memory size=256M,addr={},pool=1G", WINDOWS[0]))
        .options(&format!("--device-memory size=256M,addr={},pool=64M", WINDOWS[1]))
        .options(&format!("--api-socket {}", socket.display()));
    let (booted, mut keyboard) = with_keyboard(guest);
    let began = Instant::now();
    // Two at once: a round over all of RAM takes long on a busy machine, and
    // the windows are in use for the last tests only.
    let ram = Churn::start(&socket, vec![range(Gpa(0), RAM)], 2);
    let windows = Churn::start(&socket, windows.to_vec(), 2);
    if let Some(enough) = enough {
        booted.running().wait_for("neap-job: begins", DEADLINE);
        let before = ram.so_far()[0];
        let more = || !enough(&ram.so_far()[0].since(&before)) && began.elapsed() < ENOUGH;
        while more() && !booted.running().is_over() {
            thread::sleep(Duration::from_millis(100));
        }
        // Nobody reads it if the guest is over, which the test finds out.
        let _ = keyboard.write_all(b"enough\n");
    }
    // Before the deadline, which is a failure of the test.
    while lab::inside() && !booted.running().is_over() {
        if began.elapsed() > DEADLINE - Duration::from_secs(20) {
            eprintln!("the guest stood still in the lab. It had moved: {:?}", ram.so_far());
            drop(booted);
            ram.finish();
            windows.finish();
            return None;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let ended = booted.wait();
    let mut moves = ram.finish();
    moves.extend(windows.finish());
    eprintln!("moved: {moves:?}");
    let misplaced: usize = moves.iter().map(|moves| moves.misplaced).sum();
    assert_eq!(misplaced, 0, "the kernel says that pages are elsewhere");
    let unaccounted: usize = moves.iter().map(|moves| moves.unaccounted).sum();
    assert_eq!(unaccounted, 0, "the kernel has other books");
    Some((ended.expect_status(0), moves))
}

/// The same, with one more try for a guest that stands still in the lab, which is
/// said: emulation fails guests now and then.
fn run_moving_to_its_end(
    guest: impl Fn() -> Guest,
    enough: Option<fn(&Moves) -> bool>,
) -> (Ended, Vec<Moves>) {
    let again = || {
        eprintln!("once more");
        run_moving(guest(), enough)
    };
    run_moving(guest(), enough).or_else(again).expect("a guest that ends in one of two tries")
}

fn with_keyboard(guest: Guest) -> (Booted, PipeWriter) {
    let (input, keyboard) = std::io::pipe().unwrap();
    (guest.input(OwnedFd::from(input).into()).boot(), keyboard)
}

fn hmm() {
    let guest = || Guest::with_job(Job::hmm(Some(WINDOWS), Vec::new()));
    let (mut ended, mut moves) = run_moving_to_its_end(guest, None);
    if lab::inside() && ended.stdout.contains(STOOD_STILL) {
        eprintln!("the guest stood still in the lab; once more");
        (ended, moves) = run_moving_to_its_end(guest, None);
    }
    let totals = ended.expect_line("# Totals:");
    assert_eq!(totals, "# Totals: pass:58 fail:0 xfail:0 xpass:0 skip:0 error:0");
    assert_eq!(ended.expect_line("neap-guest: exit"), "neap-guest: exit 0");
    // Everything that the guest has touched moves in each round: of RAM some
    // hundred megabytes, of the windows the few that test_hmm uses.
    assert!(moves[0].out >= 100 && moves[0].home >= 100, "{moves:?}");
    assert!(moves[1].home + moves[2].home >= 1, "{moves:?}");
    assert!(moves[1].out + moves[2].out >= 1, "{moves:?}");
    assert!(moves[0].verified >= 10, "{moves:?}");
}

/// Goes on until a line is typed.
fn memtester_job() -> Job {
    // How long a round of it takes, and how much moves meanwhile, is the lab's
    // mood: it goes on until it is told that it is enough.
    let script = "export MEMTESTER_TEST_MASK=0x1803f
        exec </dev/console
        echo neap-job: begins
        while /bin/memtester 32M 1 || exit 1; do
            read -r -t 1 line && break
        done
        echo neap-job: all right\n";
    programs(Path::new("/usr/sbin/memtester"))
        .into_iter()
        .fold(Job::script(script), |job, (path, content)| job.file(&path, content))
}

/// Asserts that the job ended well.
#[track_caller]
fn expect_right(ended: &Ended) {
    assert_eq!(ended.expect_line("neap-job: all right"), "neap-job: all right");
    assert!(ended.stdout.contains("Done."), "no round of memtester ended:\n{}", ended.stdout);
}

fn memtester() {
    let enough: fn(&Moves) -> bool = |ram| ram.out >= 100 && ram.home >= 100 && ram.verified >= 10;
    let guest = || Guest::with_job(memtester_job());
    let (ended, moves) = run_moving_to_its_end(guest, Some(enough));
    expect_right(&ended);
    assert!(enough(&moves[0]), "{moves:?}");
}

/// A program of this machine and the libraries that it needs, with their
/// paths in the guest.
pub(super) fn programs(program: &Path) -> Vec<(String, Vec<u8>)> {
    let ldd = Command::new("ldd").arg(program).output().unwrap();
    assert!(ldd.status.success(), "ldd {}: {ldd:?}", program.display());
    let text = String::from_utf8(ldd.stdout).unwrap();
    let libraries = text
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(|path| (path.to_owned(), PathBuf::from(path)));
    let name = program.file_name().unwrap().to_string_lossy();
    [(format!("/bin/{name}"), program.to_owned())]
        .into_iter()
        .chain(libraries)
        .map(|(path, file)| (path, std::fs::read(file).unwrap()))
        .collect()
}
