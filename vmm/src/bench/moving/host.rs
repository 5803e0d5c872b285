//! What the host is made to be while something is measured, and is made to be
//! again afterwards.

use std::fs;
use std::path::Path;

use neap_memory::addr::{HUGE_PAGE_SIZE, MIB, display_size};
use rustix::thread::{
    CpuSet, disable_transparent_huge_pages, sched_getaffinity, sched_setaffinity,
    transparent_huge_pages_are_disabled,
};

use super::{BATCH, BenchError, Variant, system};
use crate::bare::Guest;
use crate::doctor::Host;
use crate::images::guarded;

/// Bytes of the last-level cache that the first processor sees.
pub fn last_level_cache(host: &Host) -> Option<u64> {
    let caches = Path::new("sys/devices/system/cpu/cpu0/cache");
    let indices = host.numbered(caches, "index").into_iter();
    let levels = indices.filter_map(|index| {
        let cache = caches.join(format!("index{index}"));
        let size = host.text(cache.join("size"))?;
        // "307200K" (Documentation/ABI/stable/sysfs-devices-system-cpu).
        let kib: u64 = size.strip_suffix('K')?.parse().ok()?;
        Some((host.number(cache.join("level"))?, kib * 1024))
    });
    levels.max().map(|(_, size)| size)
}

/// A window that no cache holds: 8 times the last-level cache, in whole pairs
/// of batches, and at least 256 MiB.
///
/// # Errors
/// The kernel does not say how large the cache is.
pub fn window_size(host: &Host) -> Result<u64, BenchError> {
    let cache = last_level_cache(host).ok_or_else(|| {
        BenchError::Unable(
            "the kernel does not say how large the last-level cache is, so how much memory \
             escapes it is not known"
                .into(),
        )
    })?;
    Ok((8 * cache).max(256 * MIB).next_multiple_of(2 * BATCH))
}

/// Refuses what would take more than nine tenths of the memory that is
/// available.
///
/// # Errors
/// How much there is and how much it takes.
pub fn check_memory(host: &Host, bytes: u64) -> Result<(), BenchError> {
    let available = host.text("proc/meminfo").and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    let available = available.unwrap_or(0) * 1024;
    if bytes > available / 10 * 9 {
        return Err(BenchError::Unable(format!(
            "it takes {} of memory, and {} are available",
            display_size(bytes),
            display_size(available / MIB * MIB)
        )));
    }
    Ok(())
}

/// The least share of memory in transparent huge pages that counts as such: on
/// a machine that has run for a while the kernel does not find them all, and
/// what a few small pages cost does not show.
pub const HUGE_ENOUGH: f64 = 0.95;

/// Refuses a figure of huge pages that were small: mappings of this process
/// within `bytes` from `start` must have [`HUGE_ENOUGH`] of that in transparent
/// huge pages (Documentation/filesystems/proc.rst, smaps).
///
/// # Errors
/// How much of it is in huge pages.
pub fn check_huge(start: usize, bytes: u64) -> Result<(), BenchError> {
    let smaps = fs::read_to_string("/proc/self/smaps")
        .map_err(|source| BenchError::System { what: "/proc/self/smaps", source })?;
    let huge = huge_bytes(&smaps, start, bytes);
    if (huge as f64) < HUGE_ENOUGH * bytes as f64 {
        return Err(BenchError::Unable(format!(
            "the kernel put {} of {} into huge pages: free memory, or compact it with \
             sysctl vm.compact_memory=1, and allow them in \
             /sys/kernel/mm/transparent_hugepage/enabled",
            display_size(huge),
            display_size(bytes)
        )));
    }
    Ok(())
}

/// Bytes in transparent huge pages of the mappings within `bytes` from `start`.
fn huge_bytes(smaps: &str, start: usize, bytes: u64) -> u64 {
    let end = start as u64 + bytes;
    let (mut inside, mut kib) = (false, 0);
    for line in smaps.lines() {
        let from = line.split_once('-').and_then(|(from, _)| u64::from_str_radix(from, 16).ok());
        if let Some(from) = from {
            inside = (start as u64..end).contains(&from);
        } else if let Some(rest) = line.strip_prefix("AnonHugePages:")
            && inside
        {
            let value = rest.split_whitespace().next().and_then(|value| value.parse::<u64>().ok());
            kib += value.unwrap_or(0);
        }
    }
    kib * 1024
}

/// Small pages only for this process, until dropped. May be nested.
#[derive(Debug)]
pub struct SmallPages {
    before: bool,
}

impl SmallPages {
    /// # Errors
    /// prctl(2)'s.
    pub fn only() -> Result<Self, BenchError> {
        let before = transparent_huge_pages_are_disabled().map_err(system("PR_GET_THP_DISABLE"))?;
        disable_transparent_huge_pages(true).map_err(system("PR_SET_THP_DISABLE"))?;
        Ok(Self { before })
    }
}

impl Drop for SmallPages {
    fn drop(&mut self) {
        // It was accepted before.
        let _ = disable_transparent_huge_pages(self.before);
    }
}

/// Free hugetlb pages, until dropped; the pool has its old size then.
#[derive(Debug)]
pub struct HugePages {
    before: Option<u64>,
}

const POOL: &str = "sys/kernel/mm/hugepages/hugepages-2048kB";

impl HugePages {
    /// Sees to it that `bytes` of 2 MiB pages are free.
    ///
    /// # Errors
    /// Not root, or memory is too fragmented.
    pub fn free(host: &Host, bytes: u64) -> Result<Self, BenchError> {
        let field = |name: &str| host.number(Path::new(POOL).join(name)).unwrap_or(0);
        let free = || field("free_hugepages").saturating_sub(field("resv_hugepages"));
        let needed = bytes.div_ceil(HUGE_PAGE_SIZE);
        if free() >= needed {
            return Ok(Self { before: None });
        }
        check_memory(host, (needed - free()) * HUGE_PAGE_SIZE)?;
        let before = field("nr_hugepages");
        let wanted = before + needed - free();
        let why = |why: String| {
            BenchError::Unable(format!(
                "{needed} free hugetlb pages of 2M are needed: {why}; \
                 set sysctl vm.nr_hugepages={wanted}"
            ))
        };
        let path = host.path(Path::new(POOL).join("nr_hugepages"));
        // Given back from here on, whatever follows.
        let pages = Self { before: Some(before) };
        fs::write(path, wanted.to_string()).map_err(|error| why(error.to_string()))?;
        match free() {
            free if free < needed => Err(why(format!("the kernel found {free}"))),
            _ => Ok(pages),
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let path = Host::this_machine().path(Path::new(POOL).join("nr_hugepages"));
            if let Err(error) = fs::write(path, before.to_string())
                && before > 0
            {
                crate::failure::tell(format_args!("sysctl vm.nr_hugepages={before}: {error}"));
            }
        }
    }
}

/// Where threads run while something is measured: everything on the last
/// processor that this process may use, vCPUs on the others.
#[derive(Debug)]
pub struct Places {
    before: CpuSet,
    guests: Vec<usize>,
}

impl Places {
    /// Moves this thread, and with it the threads that it makes from now on,
    /// away from the vCPUs' processors. Undone when dropped.
    ///
    /// # Errors
    /// sched_setaffinity(2)'s.
    pub fn take() -> Result<Self, BenchError> {
        let before = sched_getaffinity(None).map_err(system("sched_getaffinity"))?;
        let mut guests: Vec<usize> =
            (0..CpuSet::MAX_CPU).filter(|cpu| before.is_set(*cpu)).collect();
        let last = guests.pop().filter(|_| !guests.is_empty());
        if let Some(last) = last {
            let mut here = CpuSet::new();
            here.set(last);
            sched_setaffinity(None, &here).map_err(system("sched_setaffinity"))?;
        }
        Ok(Self { before, guests })
    }

    /// Gives the vCPUs of `guest` their processors. Where there are fewer, they
    /// share; where there is only one, they stay where they are.
    ///
    /// # Errors
    /// sched_setaffinity(2)'s.
    pub fn pin(&self, guest: &Guest) -> Result<(), BenchError> {
        for (cpu, place) in (0..guest.cpus()).zip(self.guests.iter().cycle()) {
            guest.pin(cpu, *place)?;
        }
        Ok(())
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        // It was this thread's before.
        let _ = sched_setaffinity(None, &self.before);
    }
}

/// Memory for `variant`: huge pages, which are given back when the result is
/// dropped, or a look whether there is enough of the other.
///
/// # Errors
/// How much there is and how much it takes.
pub fn room_for(
    host: &Host,
    variant: Variant,
    bytes: u64,
) -> Result<Option<HugePages>, BenchError> {
    match variant {
        Variant::Hugetlb2m => HugePages::free(host, bytes).map(Some),
        _ => check_memory(host, bytes).map(|()| None),
    }
}

/// Whether somebody asked for an end: the bench stops between two turns then
/// and gives back what it took.
#[derive(Debug)]
pub struct Interrupts(guarded::Interrupts);

impl Interrupts {
    /// Takes SIGINT, SIGTERM and SIGHUP.
    ///
    /// # Errors
    /// sigaction(2)'s.
    pub fn watch() -> Result<Self, BenchError> {
        guarded::Interrupts::watch()
            .map(Self)
            .map_err(|source| BenchError::System { what: "sigaction", source })
    }

    /// # Errors
    /// [`BenchError::Interrupted`].
    pub fn check(&self) -> Result<(), BenchError> {
        if self.0.seen() { Err(BenchError::Interrupted) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_level_cache_is_the_one_of_the_highest_level() {
        let folder = tempfile::tempdir().unwrap();
        let caches = folder.path().join("sys/devices/system/cpu/cpu0/cache");
        for (index, level, size) in [(0, "1", "48K"), (1, "3", "307200K"), (2, "2", "2048K")] {
            let cache = caches.join(format!("index{index}"));
            fs::create_dir_all(&cache).unwrap();
            fs::write(cache.join("level"), level).unwrap();
            fs::write(cache.join("size"), size).unwrap();
        }
        let host = Host::at(folder.path());
        assert_eq!(last_level_cache(&host), Some(300 * MIB));
        assert_eq!(window_size(&host).unwrap(), 2432 * MIB);
        assert!(window_size(&Host::at("/nonexistent")).is_err());
    }

    #[test]
    fn huge_pages_are_counted_in_mappings_that_begin_inside() {
        let smaps = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
VmFlags: rd wr
7f0000400000-7f0000800000 rw-p 00000000 00:00 0
AnonHugePages:      4096 kB
7f0000800000-7f0000a00000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
";
        assert_eq!(huge_bytes(smaps, 0x7f00_0000_0000, 8 * MIB), 6 * MIB);
        assert_eq!(huge_bytes(smaps, 0x7f00_0040_0000, 4 * MIB), 4 * MIB);
        assert_eq!(huge_bytes(smaps, 0x1000, MIB), 0);
    }

    #[test]
    fn more_than_there_is_cannot_be_measured() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("proc")).unwrap();
        fs::write(folder.path().join("proc/meminfo"), "MemAvailable:  4096000 kB\n").unwrap();
        let host = Host::at(folder.path());
        assert!(check_memory(&host, 3_000_000_000).is_ok());
        let error = check_memory(&host, 4 << 30).unwrap_err();
        assert_eq!(error.to_string(), "it takes 4G of memory, and 4000M are available");
    }
}
