//! The kernel's hmm-tests in a guest whose pages move between tiers of the
//! host all the while.

use std::fs;
use std::time::Duration;

use libtest_mimic::Trial;
use neap_memory::addr::{GIB, MIB};
use neap_memory::{Gpa, GpaRange};
use neap_tests::{Churn, Ended, Guest, Moves};
use neap_vmm::images::Job;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    let node = |engine: &'static str| {
        move || {
            hmm(&[
                "--memory 1G --granule 2M",
                &format!("{},pool=1G,backing=node:1,engine={engine}", window(0)),
                &format!("{},pool=64M,backing=node:1,engine={engine}", window(1)),
            ]);
        }
    };
    let dax = || {
        let _pages = HugePages::have(960);
        let moves = hmm(&[
            "--memory 1G,backing=hugetlb --granule 2M",
            &format!("{},pool=512M,backing=dax:/dev/dax0.0", window(0)),
            &format!("{},pool=64M,backing=hugetlb", window(1)),
        ]);
        // A device is all there: the whole window comes home, and goes back.
        assert!(moves[1].home >= 100 && moves[1].out >= 100, "{moves:?}");
        let stalls = moves[0].stalls.expect("vCPUs are parked to leave a device");
        assert!(stalls.batches >= 10 && stalls.granules >= stalls.batches, "{stalls:?}");
    };
    vec![
        trial("hmm::passes_all_tests_while_pages_move_to_dax_and_back", dax),
        trial("hmm::passes_all_tests_while_pages_move_between_nodes_by_move", node("move")),
        trial("hmm::passes_all_tests_while_pages_move_between_nodes_by_node", node("node")),
    ]
}

/// Windows for test_hmm.
const WINDOWS: [Gpa; 2] = [Gpa(0x10_0000_0000), Gpa(0x10_1000_0000)];
/// For one guest whose processors it shares with the copies.
const DEADLINE: Duration = Duration::from_secs(300);
/// What the harness says of a test that took more than 30 s: the lab stood
/// still.
const STOOD_STILL: &str = "Test terminated by timeout";

/// Exit status of a machine that could not go on.
const MACHINE_FAILED: i32 = 2;

fn window(index: usize) -> String {
    format!("--device-memory size=256M,addr={}", WINDOWS[index])
}

fn run_moving(options: &[&str]) -> (Ended, Vec<Moves>) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let range = |base, size| GpaRange::new(base, size).unwrap();
    let mut ranges = vec![range(Gpa(0), GIB)];
    ranges.extend(WINDOWS.map(|window| range(window, 256 * MIB)));
    let guest = Guest::with_job(Job::hmm(Some(WINDOWS), Vec::new())).deadline(DEADLINE);
    let guest = options.iter().fold(guest, |guest, text| guest.options(text));
    let booted = guest.options(&format!("--api-socket {}", socket.display())).boot();
    let churn = Churn::start(&socket, ranges, 2);
    let ended = booted.wait();
    let moves = churn.finish();
    eprintln!("moved: {moves:?}");
    (ended, moves)
}

fn hmm(options: &[&str]) -> Vec<Moves> {
    let (mut ended, mut moves) = run_moving(options);
    // As in the other tests of guests: a machine that emulation failed says
    // nothing of the tests (ARCHITECTURE.md, known holes).
    if ended.stdout.contains(STOOD_STILL) || ended.status == Some(MACHINE_FAILED) {
        eprintln!("the guest failed in the lab; once more: {}", ended.stderr.trim_end());
        (ended, moves) = run_moving(options);
    }
    let ended = ended.expect_status(0);
    let totals = ended.expect_line("# Totals:");
    assert_eq!(totals, "# Totals: pass:58 fail:0 xfail:0 xpass:0 skip:0 error:0");
    assert_eq!(ended.expect_line("neap-guest: exit"), "neap-guest: exit 0");
    assert_eq!(moves[0].misplaced, 0, "the kernel says that pages are elsewhere");
    assert_eq!(moves[0].unaccounted, 0, "the kernel has other books");
    assert!(moves[0].accounted > 0, "it was never at rest: {moves:?}");
    assert!(moves[0].out >= 100 && moves[0].home >= 100, "{moves:?}");
    assert!(moves[0].verified >= 10, "{moves:?}");
    moves
}

/// Huge pages of the lab, given back when this is dropped.
struct HugePages;

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    fn have(pages: u32) -> Self {
        fs::write(POOL, pages.to_string()).unwrap();
        let there: u32 = fs::read_to_string(POOL).unwrap().trim().parse().unwrap();
        assert!(there >= pages, "{there} huge pages of {pages}");
        Self
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        fs::write(POOL, "0").unwrap();
    }
}
