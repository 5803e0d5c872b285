//! What sysfs says of the host's nodes
//! (Documentation/admin-guide/mm/numaperf.rst,
//! Documentation/ABI/stable/sysfs-devices-node). Reads, and changes nothing.

use std::fs;

use crate::addr::{KIB, MIB};

const FOLDER: &str = "/sys/devices/system/node";

/// Nodes in one of the kernel's lists, such as `online` or `has_cpu`; none if
/// it has no such list.
fn list(name: &str) -> Vec<u32> {
    parse(&fs::read_to_string(format!("{FOLDER}/{name}")).unwrap_or_default())
}

/// From a list like `0-1,4`.
fn parse(text: &str) -> Vec<u32> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse::<u32>().ok()?)
    };
    text.trim().split(',').filter_map(part).flatten().collect()
}

/// Nodes that have processors.
pub fn with_cpus() -> Vec<u32> {
    list("has_cpu")
}

/// Nodes that have memory.
pub fn with_memory() -> Vec<u32> {
    list("has_memory")
}

/// Nodes that there are, with memory or without.
pub fn online() -> Vec<u32> {
    list("online")
}

/// Bytes of `node` that are free now.
pub fn free(node: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("{FOLDER}/node{node}/meminfo")).ok()?;
    free_in(&text)
}

/// Whether one of `nodes` has memory that is online.
pub fn have_memory(nodes: &[u32]) -> bool {
    let there = with_memory();
    nodes.iter().any(|node| there.contains(node))
}

/// Whether `bytes` can be had of one of `nodes` without the kernel killing
/// somebody for them: a page that must come from a node that has none left is a
/// case for its OOM killer (`CONSTRAINT_MEMORY_POLICY` in mm/oom_kill.c). True if
/// the kernel does not say; false of nodes that are offline.
pub fn have_room(nodes: &[u32], bytes: u64) -> bool {
    /// What others may take meanwhile, and the kernel's own reserve.
    const MARGIN: u64 = 16 * MIB;
    let room = |node: &u32| match fs::read_to_string(format!("{FOLDER}/node{node}/meminfo")) {
        Ok(text) => available_in(&text).is_none_or(|free| free >= bytes.saturating_add(MARGIN)),
        Err(_) => false,
    };
    nodes.iter().any(room)
}

/// What is free, or can be had back by dropping files from memory.
fn available_in(meminfo: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = meminfo.lines().find(|line| line.contains(name))?;
        line.split_whitespace().nth_back(1)?.parse::<u64>().ok()
    };
    let files = kib(" FilePages:").unwrap_or(0).saturating_sub(kib(" Shmem:").unwrap_or(0));
    kib(" MemFree:")?.checked_add(files)?.checked_mul(KIB)
}

/// From lines like `Node 1 MemFree:     1992040 kB`.
fn free_in(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.contains(" MemFree:"))?;
    let kib: u64 = line.split_whitespace().nth_back(1)?.parse().ok()?;
    kib.checked_mul(KIB)
}

/// Why memory cannot be had of a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// There is none.
    #[error("backing=node:{node}: there is no such node: this host has memory on {}", names(.there))]
    Missing {
        /// The node.
        node: u32,
        /// Those with memory.
        there: Vec<u32>,
    },
    /// It has no memory that is online.
    #[error(
        "backing=node:{node}: no memory of that node is online: this host has memory on {}; \
         or bring blocks of it online (/sys/devices/system/memory)", names(.there)
    )]
    NoMemory {
        /// The node.
        node: u32,
        /// Those with memory.
        there: Vec<u32>,
    },
    /// It has too little.
    #[error(
        "backing=node:{node}: {} are asked for and {} are free there: ask for less",
        crate::addr::display_size(*.size), crate::addr::display_size(*.free)
    )]
    Full {
        /// The node.
        node: u32,
        /// Bytes asked for.
        size: u64,
        /// Bytes that are free.
        free: u64,
    },
}

fn names(nodes: &[u32]) -> String {
    let names: Vec<_> = nodes.iter().map(|node| format!("node:{node}")).collect();
    if names.is_empty() { "none that it tells of".to_owned() } else { names.join(", ") }
}

/// Whether `size` bytes can be had of `node` now. Somebody else may be faster;
/// then moves find no frame.
///
/// # Errors
/// [`NodeError`].
pub fn check(node: u32, size: u64) -> Result<(), NodeError> {
    let there = with_memory();
    if !there.contains(&node) {
        return Err(match online().contains(&node) {
            true => NodeError::NoMemory { node, there },
            false => NodeError::Missing { node, there },
        });
    }
    // A kernel that does not say how much there is refuses by itself.
    match free(node) {
        Some(free) if free < size => Err(NodeError::Full { node, size, free }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_figures_are_read() {
        assert_eq!(parse("0-1,4\n"), [0, 1, 4]);
        assert_eq!(parse("\n"), [0u32; 0]);
        let meminfo = "Node 1 MemTotal: 2063936 kB\nNode 1 MemFree:   1024 kB\n";
        assert_eq!(free_in(meminfo), Some(1 << 20));
        let files = "Node 1 FilePages: 4096 kB\nNode 1 Shmem: 1024 kB\n";
        assert_eq!(available_in(&format!("{meminfo}{files}")), Some(4 << 20));
        assert_eq!(available_in(files), None);
        assert!(!have_room(&[4000], 0) && !have_room(&[], 0));
    }

    #[test]
    fn what_cannot_be_had_says_so() {
        // Linux has at the most 1024 nodes.
        let error = check(4000, 1).unwrap_err().to_string();
        assert!(error.contains("node:4000: there is no such node"), "{error}");
        if let Some(&node) = with_memory().first() {
            check(node, 4096).unwrap();
            let error = check(node, 1 << 60).unwrap_err();
            assert!(matches!(error, NodeError::Full { .. }), "{error}");
        }
    }
}
