//! Processors and NUMA nodes of a guest, as the ACPI tables and CPUID tell
//! them.

use neap_memory::GpaRange;

/// One vCPU: its APIC id and the NUMA node it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Local APIC id, which is also KVM's vCPU id.
    pub apic_id: u32,
    /// NUMA node (proximity domain).
    pub node: u32,
}

/// What a memory range is to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryKind {
    /// Ordinary RAM.
    Ram,
    /// Special-purpose memory of a device region.
    Spm,
}

/// One range of guest memory and the NUMA node it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeMemory {
    /// NUMA node (proximity domain).
    pub node: u32,
    /// Guest-physical range.
    pub range: GpaRange,
    /// RAM or SPM.
    pub kind: MemoryKind,
}

/// Latency and bandwidth from the CPUs of one node to the memory of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Performance {
    /// Node whose CPUs access.
    pub initiator: u32,
    /// Node whose memory is accessed.
    pub target: u32,
    /// Read latency in nanoseconds.
    pub read_latency_ns: Option<u64>,
    /// Write latency in nanoseconds.
    pub write_latency_ns: Option<u64>,
    /// Read bandwidth in MB/s (10^6 bytes a second).
    pub read_bandwidth_mbps: Option<u64>,
    /// Write bandwidth in MB/s (10^6 bytes a second).
    pub write_bandwidth_mbps: Option<u64>,
}

/// Everything that SRAT, SLIT, HMAT, MADT and CPUID are made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs in order of their index.
    pub cpus: Vec<Cpu>,
    /// Low bits of an APIC id that number the cores of a package; the bits
    /// above number the packages.
    pub core_bits: u32,
    /// Every byte of RAM and SPM once, in order of address.
    pub memory: Vec<NodeMemory>,
    /// Whether the guest is told of NUMA at all (SRAT, SLIT, HMAT).
    pub numa: bool,
    /// `distances[from][to]` as in SLIT, for nodes `0..distances.len()`;
    /// the diagonal is 10.
    pub distances: Vec<Vec<u8>>,
    /// HMAT entries; empty: no HMAT.
    pub performance: Vec<Performance>,
}
