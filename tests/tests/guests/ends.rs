//! Every way in which a machine ends has its exit status, and nothing that
//! the guest printed is lost.

use std::time::Duration;

use libtest_mimic::Trial;
use neap_tests::Guest;
use rustix::process::Signal;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ends::power_off_is_success_and_loses_no_output", power_off),
        trial("ends::reset_is_success_and_says_so", reset),
        trial("ends::keyboard_reset_is_a_reset", keyboard_reset),
        trial("ends::triple_fault_is_a_failure", triple_fault),
        trial("ends::sigterm_ends_a_running_guest", sigterm),
        trial("ends::exits_are_counted_by_kind", exit_stats),
    ]
}

fn power_off() {
    let ended = Guest::script("seq 1 3000").run();
    let numbers: Vec<u32> =
        ended.stdout.lines().filter_map(|line| line.trim().parse().ok()).collect();
    assert_eq!(numbers, (1..=3000).collect::<Vec<_>>());
    assert_eq!(ended.stderr, "");
}

fn reset() {
    let ended = Guest::script("reboot -f").boot().wait().expect_status(0);
    assert!(ended.stderr.contains("the guest asked for a reset"), "{}", ended.stderr);
}

fn keyboard_reset() {
    let ended = Guest::script("reboot -f").cmdline("reboot=k").boot().wait().expect_status(0);
    assert!(ended.stderr.contains("the guest asked for a reset"), "{}", ended.stderr);
}

fn triple_fault() {
    let ended = Guest::script("reboot -f").cmdline("reboot=t").boot().wait().expect_status(2);
    assert!(ended.stderr.contains("triple-faulted"), "{}", ended.stderr);
}

fn sigterm() {
    let guest = Guest::script("while :; do :; done").options("--cpus 2").boot();
    // Long enough to be somewhere in the boot; the end must come from any
    // place.
    std::thread::sleep(Duration::from_millis(1500));
    guest.running().signal(Signal::TERM);
    let ended = guest.wait().expect_status(143);
    assert!(ended.stderr.contains("stopped by signal 15"), "{}", ended.stderr);
}

fn exit_stats() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let options = format!("--cpus 2 --exit-stats {}", file.path().display());
    Guest::script("true").options(&options).run();
    let stats: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
    assert_eq!(stats["vcpus"].as_array().unwrap().len(), 2);
    // A boot scans PCI and prints through the serial port.
    for kind in ["port_in", "port_out"] {
        assert!(stats["total"][kind].as_u64().unwrap() > 50, "{stats}");
    }
}
