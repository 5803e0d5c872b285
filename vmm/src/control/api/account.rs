//! The kernel's books beside Neap's, as `status` with `verify` tells them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How much memory each tier has, by Neap's books and by the kernel's.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Accounts {
    /// Whether everything was at rest; otherwise memory was moving, and nothing
    /// is judged.
    pub settled: bool,
    /// Home, then each region.
    pub tiers: Vec<TierAccount>,
    /// Mappings of guest memory and of the tiers, if they can be told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapped: Option<Mapped>,
    /// What of them is on each NUMA node of the host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeBytes>,
    /// The host's huge pages, if any tier has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// Memory cgroups: the process's, then those above.
    pub cgroups: Vec<Cgroup>,
    /// Where the kernel says otherwise.
    pub differences: Vec<String>,
}

/// Bytes of one tier.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct TierAccount {
    /// The region; none: home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<u8>,
    /// Kind of host memory.
    pub backing: String,
    /// The most that it may have.
    pub limit_bytes: u64,
    /// What Neap gave it.
    pub believed_bytes: u64,
    /// What the kernel says of the same.
    pub kernel_bytes: u64,
    /// What of it the kernel has taken back because it held zeros.
    pub zero_bytes: u64,
    /// What the guest got by touching it, which only the kernel knows.
    pub untouched_bytes: u64,
}

/// Sums of /proc/self/smaps, in bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Mapped {
    /// `Rss`.
    pub rss_bytes: u64,
    /// `Swap`.
    pub swap_bytes: u64,
    /// `AnonHugePages`.
    pub anon_huge_bytes: u64,
    /// `ShmemPmdMapped`.
    pub shmem_huge_bytes: u64,
    /// `Shared_Hugetlb` and `Private_Hugetlb`.
    pub hugetlb_bytes: u64,
}

/// Bytes on a NUMA node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeBytes {
    /// Its number.
    pub node: u32,
    /// Bytes.
    pub bytes: u64,
}

/// The host's huge pages of 2 MiB.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Those that there are.
    pub total: u64,
    /// Of these, in use by nobody.
    pub free: u64,
    /// Of the free ones, promised to somebody.
    pub reserved: u64,
    /// Of these, to this machine.
    pub promised: u64,
}

/// A memory cgroup.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Cgroup {
    /// Its folder.
    pub folder: String,
    /// What is charged to it.
    pub current_bytes: u64,
    /// What may be; none: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// Of the charge, file pages that the kernel can take back at once.
    pub reclaimable_bytes: u64,
    /// Of the charge, private memory.
    pub anonymous_bytes: u64,
    /// Of the charge, files in memory.
    pub shared_bytes: u64,
}
