//! Huge pages and limits of host memory.

use neap_memory::addr::{KIB, display_size};

use crate::doctor::{Check, Host};

const HUGE_PAGES: &str = "memory.huge_pages";
const THP: &str = "memory.thp";
const MAX_MAP_COUNT: &str = "memory.max_map_count";

/// The kernel's default; enough for few scattered remaps only.
const DEFAULT_MAP_COUNT: u64 = 65_530;
/// Enough for 4 GiB of scattered 4 KiB remaps.
const GOOD_MAP_COUNT: u64 = 1 << 20;

pub(in crate::doctor) fn all(host: &Host) -> Vec<Check> {
    vec![huge_pages(host), transparent_huge_pages(host), max_map_count(host)]
}

fn huge_pages(host: &Host) -> Check {
    const FOLDER: &str = "sys/kernel/mm/hugepages";
    const WITHOUT: &str = "backing=hugetlb cannot be used";
    let mut sizes: Vec<(u64, u64, u64)> = host
        .names(FOLDER)
        .iter()
        .filter_map(|name| {
            let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = |file| host.number(format!("{FOLDER}/{name}/{file}"));
            Some((kib, count("free_hugepages")?, count("nr_hugepages")?))
        })
        .collect();
    sizes.sort_unstable();
    if sizes.is_empty() {
        return Check::missing(
            HUGE_PAGES,
            "the kernel has none",
            WITHOUT,
            "a kernel with CONFIG_HUGETLBFS",
        );
    }
    let value = sizes
        .iter()
        .map(|(kib, free, all)| format!("{free} of {all} free of {}", display_size(kib * KIB)))
        .collect::<Vec<_>>()
        .join(", ");
    if sizes.iter().any(|(_, free, _)| *free > 0) {
        Check::ok(HUGE_PAGES, value, "backing=hugetlb has pages to take")
    } else {
        Check::limited(
            HUGE_PAGES,
            value,
            WITHOUT,
            "for hugetlb backing: sysctl vm.nr_hugepages=N, with N pages of 2M for the guest",
        )
    }
}

fn transparent_huge_pages(host: &Host) -> Check {
    const FILE: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    let setting = host.text(FILE).and_then(|text| chosen(&text));
    match setting.as_deref() {
        Some(setting @ ("always" | "madvise")) => {
            Check::ok(THP, setting, "anonymous guest memory gets 2M pages, which move fastest")
        }
        Some(setting) => Check::limited(
            THP,
            setting,
            "anonymous guest memory has 4K pages only: a 2M granule costs 512 faults after a move",
            format!("echo madvise > /{FILE}"),
        ),
        None => Check::missing(
            THP,
            "the kernel has none",
            "anonymous guest memory has 4K pages only",
            "a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or hugetlb backing",
        ),
    }
}

/// The bracketed word of a list like `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (word, _) = rest.split_once(']')?;
    Some(word.to_owned())
}

fn max_map_count(host: &Host) -> Check {
    match host.number("proc/sys/vm/max_map_count") {
        Some(count) if count > DEFAULT_MAP_COUNT => Check::ok(
            MAX_MAP_COUNT,
            count.to_string(),
            format!("room for {} of scattered 4K remaps", mib(count)),
        ),
        Some(count) => Check::limited(
            MAX_MAP_COUNT,
            count.to_string(),
            format!("scattered 4K remaps are refused from about {} on", mib(count)),
            format!("for small granules: sysctl vm.max_map_count={GOOD_MAP_COUNT}"),
        ),
        None => Check::missing(
            MAX_MAP_COUNT,
            "cannot be read",
            "the limit of mappings is not known",
            "mount /proc",
        ),
    }
}

/// A remap that touches no other costs one mapping, and parts its neighbours.
fn mib(count: u64) -> String {
    format!("{} MiB", count * 4 / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use crate::doctor::host::fixture::host;

    #[test]
    fn huge_pages_are_listed_by_size() {
        let (_guard, host) = host(&[
            ("sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages", "0\n"),
            ("sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages", "0\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "64\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n"),
        ]);
        let check = huge_pages(&host);
        assert_eq!(check.state, State::Ok);
        assert_eq!(check.value, "3 of 64 free of 2M, 0 of 0 free of 1G");
    }

    #[test]
    fn the_bracketed_word_is_the_setting() {
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("always"), None);
        let (_guard, host) =
            host(&[("sys/kernel/mm/transparent_hugepage/enabled", "always madvise [never]\n")]);
        assert_eq!(transparent_huge_pages(&host).state, State::Limited);
    }

    #[test]
    fn the_default_number_of_mappings_is_little() {
        let (_guard, host) = host(&[("proc/sys/vm/max_map_count", "65530\n")]);
        let check = max_map_count(&host);
        assert_eq!(check.state, State::Limited);
        assert!(check.meaning.contains("255 MiB"), "{}", check.meaning);
    }
}
