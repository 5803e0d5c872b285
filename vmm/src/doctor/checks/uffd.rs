//! userfaultfd and `PAGEMAP_SCAN`: what the migration engines stand on.

use std::io;

use linux_raw_sys::general::{
    UFFD_FEATURE_EVENT_FORK, UFFD_FEATURE_EVENT_REMAP, UFFD_FEATURE_EVENT_REMOVE,
    UFFD_FEATURE_EVENT_UNMAP, UFFD_FEATURE_EXACT_ADDRESS, UFFD_FEATURE_MINOR_HUGETLBFS,
    UFFD_FEATURE_MINOR_SHMEM, UFFD_FEATURE_MISSING_HUGETLBFS, UFFD_FEATURE_MISSING_SHMEM,
    UFFD_FEATURE_MOVE, UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFD_FEATURE_POISON, UFFD_FEATURE_SIGBUS,
    UFFD_FEATURE_THREAD_ID, UFFD_FEATURE_WP_ASYNC, UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
    UFFD_FEATURE_WP_UNPOPULATED,
};

use crate::doctor::Check;
use crate::doctor::abi::{self, Door};

const OPEN: &str = "uffd.open";
const MOVE: &str = "uffd.move";
const SCAN: &str = "pagemap.scan";

/// Names as in include/uapi/linux/userfaultfd.h, without their prefix.
const FEATURES: [(u32, &str); 17] = [
    (UFFD_FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"),
    (UFFD_FEATURE_EVENT_FORK, "EVENT_FORK"),
    (UFFD_FEATURE_EVENT_REMAP, "EVENT_REMAP"),
    (UFFD_FEATURE_EVENT_REMOVE, "EVENT_REMOVE"),
    (UFFD_FEATURE_MISSING_HUGETLBFS, "MISSING_HUGETLBFS"),
    (UFFD_FEATURE_MISSING_SHMEM, "MISSING_SHMEM"),
    (UFFD_FEATURE_EVENT_UNMAP, "EVENT_UNMAP"),
    (UFFD_FEATURE_SIGBUS, "SIGBUS"),
    (UFFD_FEATURE_THREAD_ID, "THREAD_ID"),
    (UFFD_FEATURE_MINOR_HUGETLBFS, "MINOR_HUGETLBFS"),
    (UFFD_FEATURE_MINOR_SHMEM, "MINOR_SHMEM"),
    (UFFD_FEATURE_EXACT_ADDRESS, "EXACT_ADDRESS"),
    (UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"),
    (UFFD_FEATURE_WP_UNPOPULATED, "WP_UNPOPULATED"),
    (UFFD_FEATURE_POISON, "POISON"),
    (UFFD_FEATURE_WP_ASYNC, "WP_ASYNC"),
    (UFFD_FEATURE_MOVE, "MOVE"),
];

pub(in crate::doctor) fn all() -> Vec<Check> {
    let opened = abi::userfaultfd().map(|opened| (opened.door, Features(opened.features.0)));
    let features = opened.as_ref().map_or(Features(0), |(_, features)| *features);
    vec![
        open(opened.as_ref().map(|(door, _)| *door)),
        list(features),
        page_move(features),
        features.check(
            "uffd.write_protect",
            UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM,
            "the remap engine can move memfd and hugetlb memory under a running guest",
            "memfd and hugetlb memory cannot be moved under a running guest",
            "Linux 5.19",
        ),
        features.check(
            "uffd.write_protect_async",
            UFFD_FEATURE_WP_ASYNC,
            "written pages can be counted without a fault to serve for each",
            "written pages are found with more faults",
            "Linux 6.7",
        ),
        features.check(
            "uffd.minor",
            UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS,
            "a page that is in its file already can be handed to the guest without a copy",
            "a page in its file is copied to hand it to the guest",
            "Linux 5.14",
        ),
        features.check(
            "uffd.poison",
            UFFD_FEATURE_POISON,
            "a lost page can be reported to the guest as a memory error",
            "a lost page ends the guest",
            "Linux 6.6",
        ),
        pagemap_scan(abi::try_pagemap_scan()),
    ]
}

fn open(door: Result<Door, &io::Error>) -> Check {
    match door {
        Ok(Door::SystemCall) => {
            Check::ok(OPEN, "by system call", "faults of vCPUs and of the kernel can be served")
        }
        Ok(Door::Device) => Check::ok(
            OPEN,
            "by /dev/userfaultfd; the system call is not allowed",
            "faults of vCPUs and of the kernel can be served",
        ),
        Err(error) => Check::missing(
            OPEN,
            error.to_string(),
            "no page can be moved under a running guest by the move and remap engines",
            "run as root, allow the user /dev/userfaultfd, or set \
             vm.unprivileged_userfaultfd=1; the kernel needs CONFIG_USERFAULTFD",
        ),
    }
}

fn list(features: Features) -> Check {
    const NAME: &str = "uffd.features";
    if features.0 == 0 {
        return Check::missing(NAME, "none", "see uffd.open", "see uffd.open");
    }
    Check::ok(NAME, features.to_string(), "what the kernel offers on this machine")
}

fn page_move(features: Features) -> Check {
    const WITHOUT: &str = "guest memory falls back to memfd, and moves to the remap engine";
    if !features.has(UFFD_FEATURE_MOVE) {
        return Check::missing(MOVE, "not offered", WITHOUT, "Linux 6.8 or later has it");
    }
    match abi::try_move() {
        Ok(true) => Check::ok(
            MOVE,
            "a page was moved",
            "the move engine works: the default for anonymous memory",
        ),
        Ok(false) => Check::missing(
            MOVE,
            "offered, but the content of a moved page did not arrive",
            WITHOUT,
            "report this to the vendor of the kernel",
        ),
        Err(error) => Check::missing(
            MOVE,
            format!("offered, but moving a page failed: {error}"),
            WITHOUT,
            "look for a policy that forbids it (seccomp, LSM)",
        ),
    }
}

fn pagemap_scan(tried: io::Result<()>) -> Check {
    match tried {
        Ok(()) => Check::ok(
            SCAN,
            "a page was scanned",
            "the heat of pages can be read for many at a time",
        ),
        Err(error) => Check::missing(
            SCAN,
            error.to_string(),
            "the heat of pages is read page by page",
            "Linux 6.7 or later has it",
        ),
    }
}

/// Feature bits of a handshake.
#[derive(Clone, Copy)]
struct Features(u64);

impl Features {
    fn has(self, bits: u32) -> bool {
        self.0 & u64::from(bits) == u64::from(bits)
    }

    fn check(
        self,
        name: &'static str,
        bits: u32,
        with: &'static str,
        without: &'static str,
        since: &str,
    ) -> Check {
        let named = Features(bits.into());
        if self.has(bits) {
            return Check::ok(name, named.to_string(), with);
        }
        let lacking = Features(u64::from(bits) & !self.0);
        Check::missing(
            name,
            format!("without {lacking}"),
            without,
            format!("{since} or later has it"),
        )
    }
}

impl std::fmt::Display for Features {
    /// Names separated by blanks, then the bits without a name in hexadecimal.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0;
        let mut words = Vec::new();
        for (bit, name) in FEATURES {
            if self.has(bit) {
                words.push(name.to_owned());
                rest &= !u64::from(bit);
            }
        }
        if rest != 0 {
            words.push(format!("{rest:#x}"));
        }
        f.write_str(&words.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn unknown_features_are_shown_as_bits() {
        let features = Features(1 << 40 | u64::from(UFFD_FEATURE_MOVE));
        assert_eq!(features.to_string(), "MOVE 0x10000000000");
    }

    #[test]
    fn a_check_of_several_features_names_those_that_lack() {
        let features = Features(UFFD_FEATURE_MINOR_SHMEM.into());
        let bits = UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_MINOR_HUGETLBFS;
        let check = features.check("uffd.minor", bits, "with", "without", "Linux 1.0");
        assert_eq!(check.state, State::Missing);
        assert_eq!(check.value, "without MINOR_HUGETLBFS");
        let check = Features(u64::MAX).check("uffd.minor", bits, "with", "without", "Linux 1.0");
        assert_eq!(check.state, State::Ok);
    }

    #[test]
    fn a_kernel_that_offers_moving_pages_moves_them() {
        let Ok(opened) = abi::userfaultfd() else {
            return eprintln!("skipped: userfaultfd is not allowed here");
        };
        let features = Features(opened.features.0);
        if !features.has(UFFD_FEATURE_MOVE) {
            return eprintln!("skipped: this kernel has no UFFDIO_MOVE");
        }
        assert!(abi::try_move().unwrap());
    }
}
