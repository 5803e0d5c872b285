//! The kernel's books in the words of the control socket.

use neap_memory::account::cgroup::Usage;
use neap_memory::account::hugepages::HugePages;
use neap_memory::account::mappings::Resident;
use neap_memory::table::Place;
use neap_memory::tiers::{Accounts, Failure, Met, TierAccount};

use super::api::{self, Hex};

pub(super) fn accounts(accounts: Accounts) -> api::Accounts {
    let promised = accounts.promised;
    let nodes = accounts.nodes.into_iter().map(|(node, bytes)| api::NodeBytes { node, bytes });
    api::Accounts {
        settled: accounts.settled,
        tiers: accounts.tiers.iter().map(tier).collect(),
        mapped: accounts.resident.map(mapped),
        nodes: nodes.collect(),
        huge_pages: accounts.huge_pages.map(|pool| huge_pages(pool, promised)),
        cgroups: accounts.cgroups.iter().map(cgroup).collect(),
        differences: accounts.differences,
    }
}

fn tier(tier: &TierAccount) -> api::TierAccount {
    api::TierAccount {
        region: tier.pool.map(|pool| pool.0),
        backing: tier.backing.to_string(),
        limit_bytes: tier.limit,
        believed_bytes: tier.believed,
        kernel_bytes: tier.found,
        zero_bytes: tier.zeros,
        untouched_bytes: tier.untouched,
    }
}

fn mapped(sums: Resident) -> api::Mapped {
    api::Mapped {
        rss_bytes: sums.rss,
        swap_bytes: sums.swap,
        anon_huge_bytes: sums.anon_huge,
        shmem_huge_bytes: sums.shmem_huge,
        hugetlb_bytes: sums.hugetlb,
    }
}

fn huge_pages(pool: HugePages, promised: u64) -> api::HugePages {
    api::HugePages { total: pool.total, free: pool.free, reserved: pool.reserved, promised }
}

fn cgroup(usage: &Usage) -> api::Cgroup {
    api::Cgroup {
        folder: usage.folder.display().to_string(),
        current_bytes: usage.current,
        limit_bytes: usage.limit,
        reclaimable_bytes: usage.reclaimable,
        anonymous_bytes: usage.anonymous,
        shared_bytes: usage.shared,
    }
}

pub(super) fn failed(failure: &Failure) -> api::MemoryFailed {
    let (region, frame) = match failure.place {
        Place::Device { pool, frame } => (Some(pool.0), Some(frame.0)),
        Place::Home | Place::Untouched => (None, None),
    };
    api::MemoryFailed {
        base: Hex(failure.range.base().0),
        size: failure.range.size(),
        region,
        frame,
        retired: failure.retired,
        met: match failure.met {
            Met::Vcpu => api::MetBy::Vcpu,
            Met::Ahead => api::MetBy::Ahead,
            Met::Move => api::MetBy::Move,
            Met::Frame => api::MetBy::Frame,
        },
        machine_check: failure.met == Met::Vcpu,
    }
}
