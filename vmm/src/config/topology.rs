//! From `--cpus`, `--numa`, `--numa-distance`, `--hmat` and the nodes of the
//! device regions to one [`Topology`]. Pure.

use std::collections::BTreeMap;

use neap_memory::GpaRange;
use neap_memory::addr::{HUGE_PAGE_SIZE, display_size};
use neap_memory::layout::Layout;

use super::ConfigError;
use super::spec::{DistanceOption, HmatOption, NodePair, NumaOption};
use crate::topology::{Cpu, MemoryKind, NodeMemory, Performance, Topology};

/// Most NUMA nodes of a guest (Linux' default `NODES_SHIFT` is 6).
pub const MAX_NODES: u32 = 64;
/// Distance of a node to itself (ACPI 6.5, section 5.2.17).
const LOCAL_DISTANCE: u8 = 10;
/// Distance between two nodes that nobody gave (`REMOTE_DISTANCE` in Linux).
const REMOTE_DISTANCE: u8 = 20;
/// Local APIC ids from here on need x2APIC addressing.
const XAPIC_LIMIT: u32 = 255;

/// What the options say about processors and nodes.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) cpus: u32,
    pub(super) numa: &'a [NumaOption],
    pub(super) distances: &'a [DistanceOption],
    pub(super) hmat: &'a [HmatOption],
    /// Node of each device region, in order.
    pub(super) region_nodes: &'a [Option<u32>],
}

/// Bytes of RAM that the nodes name, if any does.
pub(super) fn named_ram(numa: &[NumaOption]) -> Option<u64> {
    let sizes: Vec<u64> = numa.iter().filter_map(|n| n.memory).map(|size| size.0).collect();
    (!sizes.is_empty()).then(|| sizes.iter().fold(0, |sum, size| u64::saturating_add(sum, *size)))
}

/// Works the topology out.
pub(super) fn resolve(request: &Request<'_>, layout: &Layout) -> Result<Topology, ConfigError> {
    // With SPM even one node is told: dax devices take their target node from
    // SRAT, and kmem refuses a device without one.
    let numa = !request.numa.is_empty()
        || !request.distances.is_empty()
        || !request.hmat.is_empty()
        || !request.region_nodes.is_empty();
    let nodes = collect_nodes(request)?;
    let count = nodes.len() as u32;
    let cpu_nodes = assign_cpus(request, &nodes)?;
    let memory = assign_memory(request, &nodes, layout)?;
    let distances = distances(request.distances, count)?;
    let performance = performance(request.hmat, count, &cpu_nodes, &memory)?;
    let (core_bits, apic_ids) = apic_ids(&cpu_nodes);
    let cpus =
        cpu_nodes.iter().zip(apic_ids).map(|(&node, apic_id)| Cpu { apic_id, node }).collect();
    Ok(Topology { cpus, core_bits, memory, numa, distances, performance })
}

type Nodes<'a> = BTreeMap<u32, Option<&'a NumaOption>>;

fn collect_nodes<'a>(request: &Request<'a>) -> Result<Nodes<'a>, ConfigError> {
    let mut nodes = Nodes::new();
    for option in request.numa {
        check_number("--numa", option.node)?;
        if nodes.insert(option.node, Some(option)).is_some() {
            let message = format!("node={} is given twice: once per node", option.node);
            return Err(ConfigError::new("--numa", message));
        }
    }
    for &node in request.region_nodes.iter().flatten() {
        check_number("--device-memory", node)?;
        nodes.entry(node).or_insert(None);
    }
    // Node 0 is always there: it holds what nobody assigned.
    nodes.entry(0).or_insert(None);
    for (expected, &node) in (0u32..).zip(nodes.keys()) {
        if node != expected {
            let message = format!(
                "node={node}, but there is no node {expected}: number nodes from 0 without gaps"
            );
            let by_numa = nodes.get(&node).is_some_and(Option::is_some);
            return Err(ConfigError::new(
                if by_numa { "--numa" } else { "--device-memory" },
                message,
            ));
        }
    }
    Ok(nodes)
}

fn check_number(option: &'static str, node: u32) -> Result<(), ConfigError> {
    if node < MAX_NODES {
        return Ok(());
    }
    Err(ConfigError::new(option, format!("node={node} is too high: at most {}", MAX_NODES - 1)))
}

/// The node of each vCPU.
fn assign_cpus(request: &Request<'_>, nodes: &Nodes<'_>) -> Result<Vec<u32>, ConfigError> {
    let mut assigned: Vec<Option<u32>> = vec![None; request.cpus as usize];
    let mut any = false;
    for (&node, option) in nodes {
        for &cpu in option.iter().flat_map(|option| &option.cpus.0) {
            any = true;
            let message = match assigned.get_mut(cpu as usize) {
                None => format!(
                    "node={node} has vCPU {cpu}, but --cpus {} gives 0 to {}",
                    request.cpus,
                    request.cpus.saturating_sub(1)
                ),
                Some(Some(other)) => format!("vCPU {cpu} is on nodes {other} and {node}"),
                Some(slot) => {
                    *slot = Some(node);
                    continue;
                }
            };
            return Err(ConfigError::new("--numa", message));
        }
    }
    if let (true, Some(cpu)) = (any, assigned.iter().position(Option::is_none)) {
        let message = format!("vCPU {cpu} is on no node: add it to the cpus= of one");
        return Err(ConfigError::new("--numa", message));
    }
    Ok(assigned.into_iter().map(Option::unwrap_or_default).collect())
}

fn assign_memory(
    request: &Request<'_>,
    nodes: &Nodes<'_>,
    layout: &Layout,
) -> Result<Vec<NodeMemory>, ConfigError> {
    let total: u64 = layout.ram().iter().map(GpaRange::size).sum();
    let mut sizes: Vec<u64> = nodes
        .values()
        .map(|option| option.and_then(|o| o.memory).map_or(0, |size| size.0))
        .collect();
    match named_ram(request.numa) {
        None => sizes[0] = total,
        Some(sum) if sum == total => {}
        Some(sum) => {
            let message = format!(
                "the nodes add up to {}, but --memory is {}: make them equal, or leave --memory out",
                display_size(sum),
                display_size(total)
            );
            return Err(ConfigError::new("--numa", message));
        }
    }
    if let Some(size) = sizes.iter().find(|size| !size.is_multiple_of(HUGE_PAGE_SIZE)) {
        let message = format!(
            "memory={} is not a multiple of {}",
            display_size(*size),
            display_size(HUGE_PAGE_SIZE)
        );
        return Err(ConfigError::new("--numa", message));
    }
    let ram = layout.deal_ram(&sizes).into_iter().map(|(node, range)| NodeMemory {
        node: node as u32,
        range,
        kind: MemoryKind::Ram,
    });
    let spm = layout.windows().iter().zip(request.region_nodes).map(|(&range, node)| NodeMemory {
        node: node.unwrap_or(0),
        range,
        kind: MemoryKind::Spm,
    });
    let mut memory: Vec<NodeMemory> = ram.chain(spm).collect();
    memory.sort_by_key(|part| part.range.base());
    Ok(memory)
}

fn check_pair(option: &'static str, pair: NodePair, count: u32) -> Result<(), ConfigError> {
    match [pair.from, pair.to].into_iter().find(|&node| node >= count) {
        None => Ok(()),
        Some(node) => Err(ConfigError::new(
            option,
            format!(
                "{}:{} names node {node}, but the nodes are 0 to {}",
                pair.from,
                pair.to,
                count - 1
            ),
        )),
    }
}

fn distances(options: &[DistanceOption], count: u32) -> Result<Vec<Vec<u8>>, ConfigError> {
    let refuse = |message: String| Err(ConfigError::new("--numa-distance", message));
    let mut given: BTreeMap<(u32, u32), u8> = BTreeMap::new();
    for option in options {
        let NodePair { from, to } = option.pair;
        let distance = option.distance;
        check_pair("--numa-distance", option.pair, count)?;
        if from == to && distance != LOCAL_DISTANCE {
            return refuse(format!("{from}:{to}={distance}: a node is at distance 10 to itself"));
        }
        if from != to && distance <= LOCAL_DISTANCE {
            return refuse(format!("{from}:{to}={distance}: another node is at 11 to 255"));
        }
        match given.insert((from, to), distance) {
            Some(other) if other != distance => {
                return refuse(format!("{from}:{to} is given as {other} and as {distance}"));
            }
            _ => {}
        }
    }
    let cell = |from: u32, to: u32| match (given.get(&(from, to)), given.get(&(to, from))) {
        (Some(&distance), _) | (None, Some(&distance)) => distance,
        (None, None) if from == to => LOCAL_DISTANCE,
        (None, None) => REMOTE_DISTANCE,
    };
    Ok((0..count).map(|from| (0..count).map(|to| cell(from, to)).collect()).collect())
}

fn performance(
    options: &[HmatOption],
    count: u32,
    cpu_nodes: &[u32],
    memory: &[NodeMemory],
) -> Result<Vec<Performance>, ConfigError> {
    let refuse = |message: String| Err(ConfigError::new("--hmat", message));
    let mut entries: Vec<Performance> = Vec::with_capacity(options.len());
    for option in options {
        let NodePair { from, to } = option.nodes;
        check_pair("--hmat", option.nodes, count)?;
        if !cpu_nodes.contains(&from) {
            return refuse(format!(
                "{from}:{to}: node {from} has no vCPU, so nothing to access from"
            ));
        }
        if !memory.iter().any(|part| part.node == to) {
            return refuse(format!("{from}:{to}: node {to} has no memory to access"));
        }
        if entries.iter().any(|entry| (entry.initiator, entry.target) == (from, to)) {
            return refuse(format!("{from}:{to} is given twice: put all keys into one"));
        }
        let megabytes = |own: Option<super::units::Bandwidth>| {
            own.or(option.bandwidth).map(|bandwidth| bandwidth.megabytes)
        };
        let entry = Performance {
            initiator: from,
            target: to,
            read_latency_ns: option.read_latency,
            write_latency_ns: option.write_latency,
            read_bandwidth_mbps: megabytes(option.read_bandwidth),
            write_bandwidth_mbps: megabytes(option.write_bandwidth),
        };
        let values = [
            entry.read_latency_ns,
            entry.write_latency_ns,
            entry.read_bandwidth_mbps,
            entry.write_bandwidth_mbps,
        ];
        if values == [None; 4] {
            return refuse(format!(
                "{from}:{to} says nothing: add read-latency=, write-latency= or bandwidth="
            ));
        }
        if values.contains(&Some(0)) {
            return refuse(format!("{from}:{to}: a latency of 0 ns: at least 1"));
        }
        entries.push(entry);
    }
    Ok(entries)
}

/// Local APIC ids: one package per node, so that the caches which CPUID
/// declares shared within a package never span two nodes (Linux warns if they
/// do). Packages come in the order of their first vCPU, so that vCPU 0 has id
/// 0: KVM boots that one and no other. Falls back to one package where the ids
/// would pass xAPIC's. Returns the bits that number cores within a package,
/// and the ids.
fn apic_ids(cpu_nodes: &[u32]) -> (u32, Vec<u32>) {
    let mut populated: Vec<u32> = Vec::new();
    for node in cpu_nodes {
        if !populated.contains(node) {
            populated.push(*node);
        }
    }
    let most = populated
        .iter()
        .map(|node| cpu_nodes.iter().filter(|other| *other == node).count())
        .max()
        .unwrap_or(1);
    let width = most.next_power_of_two() as u32;
    if width.saturating_mul(populated.len() as u32) > XAPIC_LIMIT {
        let ids: Vec<u32> = (0..cpu_nodes.len() as u32).collect();
        return (ids.len().next_power_of_two().trailing_zeros(), ids);
    }
    let mut next = vec![0u32; populated.len()];
    let mut ids = Vec::with_capacity(cpu_nodes.len());
    for node in cpu_nodes {
        let package = populated.iter().position(|other| other == node).unwrap_or(0);
        ids.push(package as u32 * width + next[package]);
        next[package] += 1;
    }
    (width.trailing_zeros(), ids)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::keyvalue::KeyValues;
    use neap_memory::addr::{GIB, MIB};
    use neap_memory::layout::WindowRequest;

    fn numa(texts: &[&str]) -> Vec<NumaOption> {
        texts.iter().map(|text| text.parse::<KeyValues<NumaOption>>().unwrap().0).collect()
    }

    fn with(
        cpus: u32,
        numa_texts: &[&str],
        distances: &[&str],
        hmat: &[&str],
    ) -> Result<Topology, String> {
        let window = WindowRequest { size: 512 * MIB, addr: None };
        let layout = Layout::new(GIB, &[window], 46).unwrap();
        let distances: Vec<_> = distances.iter().map(|text| text.parse().unwrap()).collect();
        let hmat: Vec<_> =
            hmat.iter().map(|text| text.parse::<KeyValues<HmatOption>>().unwrap().0).collect();
        let request = Request {
            cpus,
            numa: &numa(numa_texts),
            distances: &distances,
            hmat: &hmat,
            region_nodes: &[Some(1)],
        };
        resolve(&request, &layout).map_err(|error| error.to_string())
    }

    #[test]
    fn a_device_region_makes_a_memory_only_node() {
        let topology = with(2, &["node=0,cpus=0-1,memory=1G"], &["0:1=30"], &[]).unwrap();
        assert!(topology.numa);
        assert_eq!(topology.distances, [[10, 30], [30, 10]]);
        assert!(topology.cpus.iter().all(|cpu| cpu.node == 0));
        let spm = topology.memory.iter().find(|part| part.kind == MemoryKind::Spm).unwrap();
        assert_eq!(spm.node, 1);
    }

    #[test]
    fn distances_may_differ_by_direction_and_default_to_20() {
        let topology =
            with(1, &["node=0", "node=2"], &["0:1=17", "1:0=28"], &[]).unwrap().distances;
        assert_eq!(topology, [[10, 17, 20], [28, 10, 20], [20, 20, 10]]);
    }

    #[test]
    fn mistakes_name_the_option_and_the_value() {
        let one = &["node=0,cpus=0-1"][..];
        for (result, option, part) in [
            (with(2, &["node=0,cpus=0-2"], &[], &[]), "--numa", "vCPU 2"),
            (with(2, &["node=0,cpus=0"], &[], &[]), "--numa", "vCPU 1 is on no node"),
            (with(2, &["node=0,cpus=0-1", "node=1,cpus=1"], &[], &[]), "--numa", "0 and 1"),
            (with(2, &["node=0", "node=0"], &[], &[]), "--numa", "given twice"),
            (with(2, &["node=3"], &[], &[]), "--numa", "no node 2"),
            (with(2, &["node=64"], &[], &[]), "--numa", "at most 63"),
            (with(2, &["node=0,memory=2G"], &[], &[]), "--numa", "add up to 2G"),
            (with(2, one, &["0:2=20"], &[]), "--numa-distance", "names node 2"),
            (with(2, one, &["0:1=9"], &[]), "--numa-distance", "11 to 255"),
            (with(2, one, &["0:0=11"], &[]), "--numa-distance", "to itself"),
            (with(2, one, &["0:1=11", "0:1=12"], &[]), "--numa-distance", "11 and as 12"),
            (with(2, one, &[], &["0:4,read-latency=1"]), "--hmat", "names node 4"),
            (with(2, one, &[], &["1:0,read-latency=1"]), "--hmat", "no vCPU"),
            (with(2, one, &[], &["0:1"]), "--hmat", "says nothing"),
            (with(2, one, &[], &["0:1,read-latency=0"]), "--hmat", "at least 1"),
        ] {
            let message = result.unwrap_err();
            assert!(
                message.starts_with(&format!("{option}:")) && message.contains(part),
                "{message}"
            );
        }
    }

    #[test]
    fn every_node_is_a_package() {
        assert_eq!(apic_ids(&[0, 0, 0, 1, 1]), (2, vec![0, 1, 2, 4, 5]));
        assert_eq!(apic_ids(&[0, 1, 0, 1]), (1, vec![0, 2, 1, 3]));
        assert_eq!(apic_ids(&[1, 0, 0]), (1, vec![0, 2, 3]));
    }

    proptest! {
        #[test]
        fn apic_ids_are_unique_and_within_xapic(nodes in prop::collection::vec(0u32..64, 1..65)) {
            let (_, ids) = apic_ids(&nodes);
            let mut unique = ids.clone();
            unique.sort_unstable();
            unique.dedup();
            prop_assert_eq!(unique.len(), nodes.len());
            prop_assert!(ids.iter().all(|&id| id < XAPIC_LIMIT));
            prop_assert_eq!(ids[0], 0);
        }
    }
}
