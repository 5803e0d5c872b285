//! What policy `heat` sees on this machine, and by what: the order in which
//! `memory::tiers::heat` chooses.

use neap_memory::uffd::Features;

use crate::doctor::{Check, Host, abi};

const READS: &str = "heat.reads";
const WRITES: &str = "heat.writes";

pub(in crate::doctor) fn all(host: &Host) -> Vec<Check> {
    let features = abi::userfaultfd().map_or(Features::NONE, |opened| opened.features);
    let scan = abi::try_pagemap_scan().is_ok();
    // It goes by physical frames and sees use once per page and look, where a
    // fault tells when in a tick it came.
    let idle = match host.path("sys/kernel/mm/page_idle/bitmap").exists() {
        true => "idle page tracking is there and not needed",
        false => "no idle page tracking, which is not needed",
    };
    vec![reads(features, idle), writes(features, scan)]
}

fn reads(features: Features, idle: &str) -> Check {
    let sources = [
        (Features::MOVE, "anonymous memory by UFFDIO_MOVE"),
        (Features::MINOR_SHMEM, "memfd by minor faults"),
        (Features::MINOR_HUGETLB, "hugetlb by minor faults"),
    ];
    let seen: Vec<&str> = sources
        .iter()
        .filter(|(feature, _)| features.contains(*feature))
        .map(|(_, source)| *source)
        .collect();
    let value = format!("{}; {idle}", seen.join(", "));
    const MEANING: &str = "--policy heat sees reads and writes of this memory, by the first touch \
                           of the few granules that it looks at";
    if seen.len() == sources.len() {
        return Check::ok(READS, value, MEANING);
    }
    if !seen.is_empty() {
        return Check::limited(READS, value, MEANING, "Linux 6.8 or later has all three");
    }
    Check::missing(
        READS,
        format!("nothing; {idle}"),
        "--policy heat is refused, but for engine=node where writes are seen",
        "Linux 5.14 or later sees memfd, 6.8 anonymous memory; see uffd.open",
    )
}

fn writes(features: Features, scan: bool) -> Check {
    if features.contains(Features::WRITES_NOTED) && scan {
        return Check::ok(
            WRITES,
            "write-protection that notes (WP_ASYNC) and PAGEMAP_SCAN",
            "with engine=node, whose reads nobody sees, and transparent huge pages off, which \
             looks would take apart, --policy heat promotes what is written and demotes nothing",
        );
    }
    Check::missing(
        WRITES,
        "no write-protection that notes",
        "--policy heat is refused with engine=node",
        "Linux 6.7 or later has it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn a_kernel_is_told_by_what_it_sees() {
        let check = |features| reads(features, "idle").state;
        let files = Features::MINOR_SHMEM.with(Features::MINOR_HUGETLB);
        assert_eq!(check(Features::NONE), State::Missing);
        assert_eq!(check(files), State::Limited);
        assert_eq!(check(files.with(Features::MOVE)), State::Ok);
        assert_eq!(writes(Features::WRITES_NOTED, true).state, State::Ok);
        assert_eq!(writes(Features::WRITES_NOTED, false).state, State::Missing);
        assert_eq!(writes(Features::NONE, true).state, State::Missing);
    }
}
