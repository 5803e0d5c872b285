//! What the kernel says of this process's mappings: /proc/self/smaps
//! (proc_pid_smaps(5)) and /proc/self/numa_maps (proc_pid_numa_maps(5)), of
//! certain ranges only.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use crate::hva::{Hva, HvaRange};

/// Sums over the mappings of certain ranges, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// Mapped pages (`Rss`).
    pub rss: u64,
    /// Pages that are swapped out (`Swap`).
    pub swap: u64,
    /// Of `rss`, transparent huge pages of private memory (`AnonHugePages`).
    pub anon_huge: u64,
    /// Of `rss`, transparent huge pages of files in memory (`ShmemPmdMapped`).
    pub shmem_huge: u64,
    /// Pages of hugetlb, which are not in `rss` (`Shared_Hugetlb`,
    /// `Private_Hugetlb`).
    pub hugetlb: u64,
    /// Mappings.
    pub mappings: u64,
}

/// Reads the mappings that lie in `ranges`. `None`: one lies in a range only
/// partly, so that no sum would be that of the ranges.
///
/// # Errors
/// The file cannot be read.
pub fn resident(ranges: &[HvaRange]) -> io::Result<Option<Resident>> {
    Ok(resident_of(&fs::read_to_string("/proc/self/smaps")?, ranges))
}

/// Bytes of the mappings in `ranges` on each NUMA node. `None`: as above.
///
/// # Errors
/// The file cannot be read; a kernel without NUMA has none.
pub fn on_nodes(ranges: &[HvaRange]) -> io::Result<Option<BTreeMap<u32, u64>>> {
    // It tells where mappings begin and not where they end.
    let ends = fs::read_to_string("/proc/self/maps")?;
    Ok(on_nodes_of(&fs::read_to_string("/proc/self/numa_maps")?, &ends, ranges))
}

/// How a mapping lies to a row of ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    Outside,
    Inside,
    Across,
}

fn lies(mapping: HvaRange, ranges: &[HvaRange]) -> Lies {
    let touches =
        |range: &&HvaRange| range.start() < mapping.end() && mapping.start() < range.end();
    match ranges.iter().find(touches) {
        None => Lies::Outside,
        Some(range) if range.start() <= mapping.start() && mapping.end() <= range.end() => {
            Lies::Inside
        }
        Some(_) => Lies::Across,
    }
}

/// The range at the start of a line of maps and smaps.
fn range_of(line: &str) -> Option<HvaRange> {
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).ok());
    Some(HvaRange::new(Hva(start?), end?.checked_sub(start?)?))
}

fn resident_of(smaps: &str, ranges: &[HvaRange]) -> Option<Resident> {
    let mut sum = Resident::default();
    let mut counts = false;
    for line in smaps.lines() {
        if let Some(mapping) = range_of(line) {
            counts = match lies(mapping, ranges) {
                Lies::Outside => false,
                Lies::Inside => true,
                Lies::Across => return None,
            };
            sum.mappings += u64::from(counts);
            continue;
        }
        let Some((key, rest)) = line.split_once(':').filter(|_| counts) else { continue };
        let field = match key {
            "Rss" => &mut sum.rss,
            "Swap" => &mut sum.swap,
            "AnonHugePages" => &mut sum.anon_huge,
            "ShmemPmdMapped" => &mut sum.shmem_huge,
            "Shared_Hugetlb" | "Private_Hugetlb" => &mut sum.hugetlb,
            _ => continue,
        };
        let kib = rest.split_ascii_whitespace().next().and_then(|kib| kib.parse::<u64>().ok());
        *field += kib.unwrap_or(0) * 1024;
    }
    Some(sum)
}

fn on_nodes_of(numa_maps: &str, maps: &str, ranges: &[HvaRange]) -> Option<BTreeMap<u32, u64>> {
    let mut ours = Vec::new();
    for mapping in maps.lines().filter_map(range_of) {
        match lies(mapping, ranges) {
            Lies::Outside => {}
            Lies::Inside => ours.push(mapping.start().0),
            Lies::Across => return None,
        }
    }
    let mut nodes = BTreeMap::new();
    for line in numa_maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let start = words.next().and_then(|start| usize::from_str_radix(start, 16).ok());
        if !start.is_some_and(|start| ours.contains(&start)) {
            continue;
        }
        let mut pages = Vec::new();
        let mut kib = 4;
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let node = key.strip_prefix('N').and_then(|node| node.parse::<u32>().ok());
            match (node, value.parse::<u64>()) {
                (Some(node), Ok(count)) => pages.push((node, count)),
                (None, Ok(size)) if key == "kernelpagesize_kB" => kib = size,
                _ => {}
            }
        }
        for (node, count) in pages {
            *nodes.entry(node).or_default() += count * kib * 1024;
        }
    }
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::PAGE_SIZE;
    use crate::region::{Region, Source};

    fn range(start: usize, len: usize) -> HvaRange {
        HvaRange::new(Hva(start), len)
    }

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \nSize: 4096 kB\nRss: 12 kB\nSwap: 4 kB\n\
AnonHugePages: 8 kB\nVmFlags: rd wr\n\
7f0000800000-7f0000a00000 rw-s 00000000 00:01 7 /memfd:x (deleted)\nRss: 16 kB\n\
Shared_Hugetlb: 2048 kB\n";

    #[test]
    fn mappings_inside_are_summed_and_others_are_not() {
        let all = [range(0x7f00_0000_0000, 0x40_0000), range(0x7f00_0080_0000, 0x20_0000)];
        let sum = resident_of(SMAPS, &all).unwrap();
        assert_eq!((sum.rss, sum.swap, sum.anon_huge), (28 << 10, 4 << 10, 8 << 10));
        assert_eq!((sum.hugetlb, sum.mappings), (2 << 20, 2));
        assert_eq!(resident_of(SMAPS, &all[..1]).unwrap().rss, 12 << 10);
        assert_eq!(resident_of(SMAPS, &[range(0x7f00_0000_0000, 4096)]), None);
        assert_eq!(resident_of("", &all), Some(Resident::default()));
    }

    #[test]
    fn nodes_are_summed_in_bytes() {
        let numa = "7f0000000000 default anon=3 dirty=3 N0=2 N1=1 kernelpagesize_kB=4\n\
                    7f0000800000 bind:1 file=/memfd:x huge dirty=1 N1=1 kernelpagesize_kB=2048\n\
                    7f0000c00000 default N0=99 kernelpagesize_kB=4\n";
        let all = [range(0x7f00_0000_0000, 0x40_0000), range(0x7f00_0080_0000, 0x20_0000)];
        let nodes = on_nodes_of(numa, SMAPS, &all).unwrap();
        assert_eq!(nodes, BTreeMap::from([(0, 8192), (1, 4096 + (2 << 20))]));
    }

    #[test]
    fn the_kernel_counts_what_was_touched() {
        let region = Region::map(16 * 4096, Source::Anonymous).unwrap();
        let start = Hva(region.start().as_ptr().expose_provenance());
        let range = HvaRange::new(start, region.size());
        assert_eq!(resident(&[range]).unwrap().unwrap().rss, 0);
        region.advise(13 * 4096, rustix::mm::Advice::LinuxPopulateWrite).unwrap();
        let sum = resident(&[range]).unwrap().unwrap();
        assert_eq!((sum.rss, sum.swap), (3 * PAGE_SIZE, 0));
        if let Ok(nodes) = on_nodes(&[range]) {
            assert_eq!(nodes.unwrap().values().sum::<u64>(), 3 * PAGE_SIZE);
        }
    }
}
