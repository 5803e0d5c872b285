//! The kernel's own books, read from the files in which it shows them: memory
//! cgroups, mappings, NUMA nodes, huge pages. Nothing here knows of tiers, and
//! nothing keeps anything open.

pub mod cgroup;
pub mod hugepages;
pub mod mappings;

/// The number after `key` in lines of `KEY NUMBER`.
fn number_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == key).then(|| words.next()?.parse().ok())?
    })
}
