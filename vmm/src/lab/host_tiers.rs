//! A lab with tiers of its own: a node of memory alone, and soft-reserved
//! memory that the kernel's drivers make a /dev/dax of.
//!
//! | node | memory | |
//! |---|---|---|
//! | 0 | what is left | all processors |
//! | 1 | [`NODE_SIZE`] | none; slower, by HMAT |
//! | 2 | [`DAX_SIZE`] | soft-reserved: /dev/dax0.0 |

use std::path::{Path, PathBuf};

use neap_memory::addr::{GIB, MIB};

/// RAM of a lab with tiers where the host has enough of it, in bytes.
pub const MEMORY: u64 = 6656 * MIB;
/// Least RAM of such a lab, in bytes.
pub const MEMORY_MIN: u64 = 4 * GIB;
/// Memory of node 1, in bytes.
pub const NODE_SIZE: u64 = 2 * GIB;
/// Soft-reserved memory, in bytes.
pub const DAX_SIZE: u64 = GIB;

/// RAM below 4 GiB on QEMU's q35 when there are 2.75 GiB or more of it
/// (`pc_q35_init` in hw/i386/pc_q35.c); the rest begins at 4 GiB.
const LOW: u64 = 2 * GIB;
/// In this order: device_dax needs what dax_hmem makes.
const DRIVERS: [&str; 2] = ["dax_hmem.ko", "device_dax.ko"];

/// Distance, latency in ns and bandwidth as QEMU has them, from node 0 to each
/// node. The figures are those of a far memory, not measured ones: emulation
/// makes none of it slower.
const FIGURES: [(u32, u32, &str); 3] = [(10, 100, "100G"), (20, 200, "50G"), (30, 300, "25G")];

/// Drivers that the agent loads, from the folder of the kernel's modules.
pub(super) fn drivers(modules: &Path) -> Vec<PathBuf> {
    DRIVERS.iter().map(|name| modules.join(name)).collect()
}

/// Kernel command line that soft-reserves node 2 in a lab of so much memory.
pub(super) fn kernel_command_line(memory: u64) -> String {
    let start = 4 * GIB + memory - DAX_SIZE - LOW;
    format!("memmap={}M%{start:#x}-1+0xefffffff", DAX_SIZE / MIB)
}

/// Options of QEMU: pairs of name and value.
pub(super) fn arguments(memory: u64, cpus: u32) -> Vec<(&'static str, String)> {
    let near = memory - NODE_SIZE - DAX_SIZE;
    let mut line = Vec::new();
    for (node, size) in [near, NODE_SIZE, DAX_SIZE].into_iter().enumerate() {
        line.push(("-object", format!("memory-backend-ram,id=m{node},size={}M", size / MIB)));
        let cpus = match node {
            0 => format!(",cpus=0-{}", cpus - 1),
            _ => String::new(),
        };
        line.push(("-numa", format!("node,nodeid={node},memdev=m{node}{cpus},initiator=0")));
    }
    for from in 0..FIGURES.len() {
        for to in (0..FIGURES.len()).filter(|to| *to != from) {
            let distance = FIGURES[from.max(to)].0;
            line.push(("-numa", format!("dist,src={from},dst={to},val={distance}")));
        }
    }
    for (node, (_, latency, bandwidth)) in FIGURES.iter().enumerate() {
        let what = format!("hmat-lb,initiator=0,target={node},hierarchy=memory,data-type=access");
        line.push(("-numa", format!("{what}-latency,latency={latency}")));
        line.push(("-numa", format!("{what}-bandwidth,bandwidth={bandwidth}")));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_reserved_range_is_the_last_node() {
        assert_eq!(kernel_command_line(4 * GIB), "memmap=1024M%0x140000000-1+0xefffffff");
        let line = arguments(4 * GIB, 2);
        let sizes: Vec<_> =
            line.iter().filter(|(name, _)| *name == "-object").map(|(_, value)| value).collect();
        assert!(sizes[0].ends_with("size=1024M") && sizes[2].ends_with("size=1024M"), "{sizes:?}");
        assert!(line.iter().any(|(_, value)| value.ends_with("cpus=0-1,initiator=0")));
    }
}
