//! The three ways in which a guest uses its special-purpose memory.

use std::time::Duration;

use libtest_mimic::Trial;
use neap_tests::{Guest, Neap};
use neap_vmm::images::Job;
use neap_vmm::lab;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("profile::hmm_passes_all_tests_of_the_kernel", hmm),
        trial("profile::dax_makes_a_device_of_each_region", dax),
        trial("profile::node_is_memory_with_the_given_figures", node),
    ]
}

/// What the harness of hmm-tests says of a test that took more than 30 s; all
/// of them together take 5 to 20.
pub(crate) const STOOD_STILL: &str = "Test terminated by timeout";

fn hmm() {
    let run = || Neap::new(["hmm-tests"]).deadline(Duration::from_secs(200)).run();
    let mut ended = run();
    // A machine that emulation failed says nothing of the tests, nor does one
    // that stood still until the harness lost patience (ARCHITECTURE.md, known
    // holes); a test that failed by itself gets no second try.
    let stood_still = ended.stdout.contains(STOOD_STILL);
    let failed = ended.stderr.contains("the machine ended with exit status: 2");
    if lab::inside() && (failed || stood_still) {
        eprintln!("the machine failed in the lab; once more: {}", ended.stderr.trim_end());
        ended = run();
    }
    ended.expect_status(0).expect_line("hmm-tests: 58 passed, 0 failed");
}

/// The key=value pairs of a line, without its first word.
fn pairs(line: &str) -> Vec<(&str, &str)> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

fn dax() {
    let ended = Guest::with_job(Job::dax())
        .options("--cpus 2 --numa node=0,cpus=0-1,memory=1G")
        .options("--device-memory size=512M,node=1,addr=0x100000000")
        .options("--device-memory size=256M,node=2,addr=0x200000000")
        .run();
    // Which one is dax0.0 is the kernel's choice.
    for (size, resource, node) in
        [("536870912", "0x100000000", "1"), ("268435456", "0x200000000", "2")]
    {
        let line = ended.expect_line(&format!("resource={resource} "));
        let expected = [
            ("dev", "present"),
            ("size", size),
            ("resource", resource),
            ("align", "2097152"),
            ("target_node", node),
        ];
        assert_eq!(pairs(line)[1..], expected);
    }
    assert_eq!(ended.expect_line("dax-devices"), "neap-job: dax-devices 2");
}

fn node() {
    let ended = Guest::with_job(Job::node())
        .options("--cpus 2 --numa node=0,cpus=0-1,memory=1G --numa-distance 0:1=30")
        .options("--device-memory size=1G,node=1")
        .options("--hmat 0:0,read-latency=80,write-latency=80,bandwidth=100G")
        .options("--hmat 0:1,read-latency=300,write-latency=350,bandwidth=25G")
        .run();
    let expected = [("node", "1"), ("cpus", ""), ("total_kb", "1048576"), ("distance", "30,10")];
    assert_eq!(pairs(ended.expect_line("node=1 cpus=")), expected);
    let expected = [
        ("node", "1"),
        ("class", "access0"),
        ("read_latency", "300"),
        ("write_latency", "350"),
        ("read_bandwidth", "25000"),
        ("write_bandwidth", "25000"),
        ("initiators", "0"),
    ];
    assert_eq!(pairs(ended.expect_line("node=1 class=access0")), expected);
    let local = ended.expect_line("node=0 class=access0");
    assert!(
        local.contains("read_latency=80") && local.contains("read_bandwidth=100000"),
        "{local}"
    );
}
