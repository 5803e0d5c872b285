//! Huge pages of the host's pool, for as long as a proof needs them.

use std::fs;
use std::os::fd::OwnedFd;

use neap_memory::Backing;
use neap_memory::addr::HUGE_PAGE_SIZE;
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

use crate::Unfit;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Reads a count of the pool, such as `free_hugepages`.
pub(crate) fn count(name: &str) -> u64 {
    fs::read_to_string(format!("{POOL}/{name}")).unwrap().trim().parse().unwrap()
}

/// Pages added to the pool; taken out again when this is dropped. Whoever has
/// one is alone: the lock is the kernel's, so it goes with a process that is
/// killed.
pub(crate) struct HugePages {
    added: u64,
    _lock: OwnedFd,
}

impl HugePages {
    /// Adds `bytes` to the pool.
    pub(crate) fn reserve(bytes: u64) -> Result<Self, Unfit> {
        let unfit = |why: String| Unfit(format!("no huge pages to be had: {why}"));
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
        let path = std::env::temp_dir().join("neap-tests-hugetlb.lock");
        let lock = open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| unfit(format!("the lock: {error}")))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| unfit(error.to_string()))?;
        let wanted = bytes.div_ceil(HUGE_PAGE_SIZE);
        let before = count("nr_hugepages");
        let set = fs::write(format!("{POOL}/nr_hugepages"), (before + wanted).to_string());
        set.map_err(|error| unfit(format!("nr_hugepages: {error}; are you root?")))?;
        let pages = Self { added: count("nr_hugepages").saturating_sub(before), _lock: lock };
        if pages.added < wanted {
            return Err(unfit(format!("the host gives {} of {wanted}", pages.added)));
        }
        Ok(pages)
    }

    /// The same if `backing` needs them, with a few to spare.
    pub(crate) fn behind(backing: Backing, bytes: u64) -> Result<Option<Self>, Unfit> {
        let spare = 2 * HUGE_PAGE_SIZE;
        (backing == Backing::Hugetlb).then(|| Self::reserve(bytes + spare)).transpose()
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let rest = count("nr_hugepages").saturating_sub(self.added);
        let _ = fs::write(format!("{POOL}/nr_hugepages"), rest.to_string());
    }
}
