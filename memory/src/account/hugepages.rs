//! The host's pool of 2 MiB pages.

use std::fs;

/// The pool of 2 MiB pages, whatever the default size of huge pages is
/// (Documentation/admin-guide/mm/hugetlbpage.rst).
pub const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

/// The pool in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// Pages that there are.
    pub total: u64,
    /// Of these, in use by nobody.
    pub free: u64,
    /// Of the free ones, promised to somebody.
    pub reserved: u64,
}

impl HugePages {
    /// As it is now; all 0 on a host without one.
    pub fn read() -> Self {
        let field = |name: &str| -> u64 {
            let text = fs::read_to_string(format!("{POOL}/{name}"));
            text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        Self {
            total: field("nr_hugepages"),
            free: field("free_hugepages"),
            reserved: field("resv_hugepages"),
        }
    }
}
