//! What `neap ctl status --verify` prints of the kernel's books.

use std::fmt::Write;

use neap_memory::addr::display_size;

use super::show::{columns, row};
use crate::control::api::{Accounts, Cgroup};

pub(super) fn accounts(accounts: &Accounts) -> String {
    let mut rows =
        vec![row(["tier", "backing", "limit", "neap gave", "kernel has", "zeros", "untouched"])];
    rows.extend(accounts.tiers.iter().map(|tier| {
        row([
            &tier.region.map_or_else(|| "home".to_owned(), |region| format!("region {region}")),
            &tier.backing,
            &display_size(tier.limit_bytes),
            &display_size(tier.believed_bytes),
            &display_size(tier.kernel_bytes),
            &display_size(tier.zero_bytes),
            &display_size(tier.untouched_bytes),
        ])
    }));
    let mut text = columns(&rows);
    // A text takes everything that is written to it, here and below.
    if let Some(mapped) = accounts.mapped {
        let [rss, huge, files, hugetlb, swap] = [
            mapped.rss_bytes,
            mapped.anon_huge_bytes,
            mapped.shmem_huge_bytes,
            mapped.hugetlb_bytes,
            mapped.swap_bytes,
        ]
        .map(display_size);
        let _ = writeln!(
            text,
            "mapped {rss}, of which in huge pages {huge} private, {files} of files; hugetlb \
             {hugetlb}; swapped {swap}"
        );
    }
    for node in &accounts.nodes {
        let _ = writeln!(text, "node {} has {}", node.node, display_size(node.bytes));
    }
    if let Some(pool) = accounts.huge_pages {
        let _ = writeln!(
            text,
            "huge pages: {} of {} free, {} of those reserved, {} for this machine",
            pool.free, pool.total, pool.reserved, pool.promised
        );
    }
    for cgroup in &accounts.cgroups {
        text.push_str(&of_cgroup(cgroup));
    }
    match (accounts.settled, accounts.differences.as_slice()) {
        (false, _) => text.push_str("moving: nothing is compared while memory moves\n"),
        (true, []) => text.push_str("the kernel agrees\n"),
        (true, differences) => {
            for difference in differences {
                let _ = writeln!(text, "the kernel says otherwise: {difference}");
            }
        }
    }
    text
}

fn of_cgroup(cgroup: &Cgroup) -> String {
    let limit = cgroup
        .limit_bytes
        .map_or_else(|| "no limit".to_owned(), |l| format!("of {}", display_size(l)));
    format!(
        "cgroup {}: {} ({limit}), {} private, {} files in memory, {} to be taken back\n",
        cgroup.folder,
        display_size(cgroup.current_bytes),
        display_size(cgroup.anonymous_bytes),
        display_size(cgroup.shared_bytes),
        display_size(cgroup.reclaimable_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::TierAccount;

    #[test]
    fn it_says_whether_the_kernel_agrees() {
        let tier = TierAccount { backing: "memfd".to_owned(), ..TierAccount::default() };
        let region = TierAccount { region: Some(1), kernel_bytes: 2 << 20, ..tier.clone() };
        let mut told = Accounts { tiers: vec![tier, region], ..Accounts::default() };
        assert!(accounts(&told).ends_with("moving: nothing is compared while memory moves\n"));
        told.settled = true;
        let text = accounts(&told);
        assert!(text.contains("\nregion 1  memfd"), "{text}");
        assert!(text.ends_with("the kernel agrees\n"), "{text}");
        told.differences.push("home should have 2 bytes and has 1".to_owned());
        let text = accounts(&told);
        assert!(text.ends_with("otherwise: home should have 2 bytes and has 1\n"), "{text}");
    }
}
