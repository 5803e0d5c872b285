//! Huge pages of the host's pool, for as long as a proof needs them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use neap_memory::Backing;
use neap_memory::addr::HUGE_PAGE_SIZE;
use rustix::fs::{FlockOperation, flock};

use crate::Unfit;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// Reads a count of the pool, such as `free_hugepages`.
pub(crate) fn count(name: &str) -> u64 {
    fs::read_to_string(format!("{POOL}/{name}")).unwrap().trim().parse().unwrap()
}

/// Pages added to the pool; taken out again when this is dropped. Whoever has
/// one is alone: the lock is the kernel's, so it goes with a process that is
/// killed. The file says how many were added, so that the next one takes them
/// out then.
pub(crate) struct HugePages {
    added: u64,
    lock: File,
}

fn set_pool(pages: u64) -> io::Result<()> {
    fs::write(format!("{POOL}/nr_hugepages"), pages.to_string())
}

/// Writes how many pages were added.
fn note(lock: &File, pages: u64) -> io::Result<()> {
    lock.set_len(0)?;
    lock.write_all_at(pages.to_string().as_bytes(), 0)
}

impl HugePages {
    /// Adds `bytes` to the pool.
    pub(crate) fn reserve(bytes: u64) -> Result<Self, Unfit> {
        let unfit = |why: String| Unfit(format!("no huge pages to be had: {why}"));
        let failed = |error: io::Error| unfit(format!("the lock: {error}"));
        let path = std::env::temp_dir().join("neap-tests-hugetlb.lock");
        let mut options = OpenOptions::new();
        let mut lock = options
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(failed)?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| unfit(error.to_string()))?;
        let mut left = String::new();
        lock.read_to_string(&mut left).map_err(failed)?;
        let left = left.trim().parse().unwrap_or(0);
        let before = count("nr_hugepages").saturating_sub(left);
        let wanted = bytes.div_ceil(HUGE_PAGE_SIZE);
        note(&lock, wanted).map_err(failed)?;
        set_pool(before + wanted)
            .map_err(|error| unfit(format!("nr_hugepages: {error}; are you root?")))?;
        let pages = Self { added: count("nr_hugepages").saturating_sub(before), lock };
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
        if set_pool(count("nr_hugepages").saturating_sub(self.added)).is_ok() {
            let _ = note(&self.lock, 0);
        }
    }
}
