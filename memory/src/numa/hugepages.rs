//! The kernel's pools of 2 MiB pages, node by node
//! (Documentation/admin-guide/mm/hugetlbpage.rst). Reads, and changes nothing.

use std::fs;
use std::path::Path;

use super::nodes::{self, NodeError};
use crate::addr::HUGE_PAGE_SIZE;

const FOLDER: &str = "/sys/devices/system/node";

/// A node that has too few.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "backing=hugetlb:{node}: {needed} huge pages of 2M are needed on that node and {free} are free \
     there: echo {} > {}", total + needed - free, file(*node, "nr_hugepages")
)]
pub struct NodeHugePages {
    /// The node.
    pub node: u32,
    /// Huge pages that are asked for.
    pub needed: u64,
    /// Those that are free there.
    pub free: u64,
    /// All that it has.
    pub total: u64,
}

fn file(node: u32, name: &str) -> String {
    format!("{FOLDER}/node{node}/hugepages/hugepages-2048kB/{name}")
}

/// Whether `bytes` of huge pages are free on `node`. Somebody else may be
/// faster: a reservation that somebody has is of no node.
///
/// # Errors
/// No such node, or too few.
pub fn check(node: u32, bytes: u64) -> Result<(), crate::backing::BackingError> {
    if !Path::new(&format!("{FOLDER}/node{node}")).exists() {
        return Err(NodeError::Missing { node, there: nodes::with_memory() }.into());
    }
    let read = |name| fs::read_to_string(file(node, name)).ok()?.trim().parse::<u64>().ok();
    let (free, total) = (read("free_hugepages").unwrap_or(0), read("nr_hugepages").unwrap_or(0));
    let needed = bytes.div_ceil(HUGE_PAGE_SIZE);
    if free < needed {
        return Err(NodeHugePages { node, needed, free, total }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_say_what_would_do() {
        let error = NodeHugePages { node: 1, needed: 64, free: 10, total: 30 }.to_string();
        assert!(error.contains("64 huge pages of 2M are needed on that node"), "{error}");
        assert!(
            error.ends_with(
                "echo 84 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
            ),
            "{error}"
        );
        let missing = check(4000, 1).unwrap_err().to_string();
        assert!(missing.contains("4000: there is no such node"), "{missing}");
    }
}
