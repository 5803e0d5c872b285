//! The host's NUMA nodes, what firmware says of their speed, and what the
//! kernel does behind a VMM's back.

use neap_memory::addr::KIB;

use crate::doctor::{Check, Host};

const NODES: &str = "numa.nodes";
const HMAT: &str = "numa.hmat";
const BALANCING: &str = "numa.balancing";
const DEMOTION: &str = "numa.demotion";
const FOLDER: &str = "sys/devices/system/node";

pub(in crate::doctor) fn all(host: &Host) -> Vec<Check> {
    let nodes = host.numbered(FOLDER, "node");
    vec![
        list(host, &nodes),
        performance(host, &nodes),
        balancing(host, nodes.len()),
        demotion(host, nodes.len()),
    ]
}

fn list(host: &Host, nodes: &[u32]) -> Check {
    if nodes.is_empty() {
        return Check::missing(
            NODES,
            "the kernel knows none",
            "backing=node:N cannot be used",
            "a kernel with CONFIG_NUMA",
        );
    }
    let value = nodes.iter().map(|node| describe(host, *node)).collect::<Vec<_>>().join("; ");
    if nodes.len() == 1 {
        return Check::limited(
            NODES,
            value,
            "one node: memory of different speed cannot be had from the host",
            "for tiers without the hardware: neap lab --host-tiers",
        );
    }
    Check::ok(NODES, value, "backing=node:N can place a device region on any of these")
}

/// `0: 16384 MiB, CPUs 0-7, distances 10 21`.
fn describe(host: &Host, node: u32) -> String {
    let folder = format!("{FOLDER}/node{node}");
    let size = host
        .text(format!("{folder}/meminfo"))
        .and_then(|text| total_kib(&text))
        .map_or_else(|| "size unknown".to_owned(), |kib| format!("{} MiB", kib / KIB));
    let cpus = match host.text(format!("{folder}/cpulist")) {
        Some(list) if !list.is_empty() => format!("CPUs {list}"),
        _ => "no CPUs".to_owned(),
    };
    let distances = host.text(format!("{folder}/distance")).unwrap_or_default();
    format!("{node}: {size}, {cpus}, distances {distances}")
}

/// From a line like `Node 0 MemTotal:       24568484 kB`.
fn total_kib(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.contains("MemTotal:"))?;
    line.split_whitespace().nth_back(1)?.parse().ok()
}

fn performance(host: &Host, nodes: &[u32]) -> Check {
    let lines: Vec<String> = nodes.iter().filter_map(|node| figures(host, *node)).collect();
    if lines.is_empty() {
        return Check::missing(
            HMAT,
            "no figures",
            "the firmware tells nothing of latency and bandwidth; distances are all there is",
            "for figures without the hardware: neap lab --host-tiers",
        );
    }
    Check::ok(HMAT, lines.join("; "), "speed of each node's memory from its nearest CPUs")
}

/// `1 from 0: read 200 ns 51200 MB/s, write ...`, of access class 0, which
/// has the nearest initiators.
fn figures(host: &Host, node: u32) -> Option<String> {
    let folder = format!("{FOLDER}/node{node}/access0/initiators");
    let figure = |name: &str| host.number(format!("{folder}/{name}"));
    let direction = |name: &str| {
        let latency = figure(&format!("{name}_latency")).map(|ns| format!(" {ns} ns"));
        let bandwidth = figure(&format!("{name}_bandwidth")).map(|mbps| format!(" {mbps} MB/s"));
        if latency.is_none() && bandwidth.is_none() {
            return None;
        }
        Some(format!("{name}{}{}", latency.unwrap_or_default(), bandwidth.unwrap_or_default()))
    };
    let known: Vec<String> = ["read", "write"].into_iter().filter_map(direction).collect();
    if known.is_empty() {
        return None;
    }
    let initiators = host.numbered(&folder, "node");
    let from = initiators.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    Some(format!("{node} from {from}: {}", known.join(", ")))
}

fn balancing(host: &Host, nodes: usize) -> Check {
    match host.text("proc/sys/kernel/numa_balancing").as_deref() {
        None => Check::ok(BALANCING, "the kernel has none", "pages stay where Neap puts them"),
        Some("0") => Check::ok(BALANCING, "off", "pages stay where Neap puts them"),
        Some(setting) if nodes < 2 => Check::ok(
            BALANCING,
            format!("on ({setting})"),
            "there is one node, so it has nothing to move",
        ),
        Some(setting) => Check::limited(
            BALANCING,
            format!("on ({setting})"),
            "the kernel may move guest pages between nodes on its own",
            "for measurements: sysctl kernel.numa_balancing=0",
        ),
    }
}

fn demotion(host: &Host, nodes: usize) -> Check {
    const FILE: &str = "sys/kernel/mm/numa/demotion_enabled";
    match host.text(FILE).as_deref() {
        None => Check::ok(DEMOTION, "the kernel has none", "pages stay where Neap puts them"),
        Some("false" | "0") => Check::ok(DEMOTION, "off", "pages stay where Neap puts them"),
        Some(_) if nodes < 2 => {
            Check::ok(DEMOTION, "on", "there is one node, so it has nowhere to demote to")
        }
        Some(_) => Check::limited(
            DEMOTION,
            "on",
            "under memory pressure the kernel may move guest pages to a slower node",
            format!("for measurements: echo 0 > /{FILE}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use crate::doctor::host::fixture::host;

    /// A processor's node, and a node of memory alone with HMAT figures.
    const TIERS: [(&str, &str); 9] = [
        ("sys/devices/system/node/node0/meminfo", "Node 0 MemTotal:     2097152 kB\nNode 0 x\n"),
        ("sys/devices/system/node/node0/cpulist", "0-1\n"),
        ("sys/devices/system/node/node0/distance", "10 20\n"),
        ("sys/devices/system/node/node1/meminfo", "Node 1 MemTotal:     1048576 kB\n"),
        ("sys/devices/system/node/node1/cpulist", "\n"),
        ("sys/devices/system/node/node1/distance", "20 10\n"),
        ("sys/devices/system/node/node1/access0/initiators/read_latency", "200\n"),
        ("sys/devices/system/node/node1/access0/initiators/read_bandwidth", "51200\n"),
        ("sys/devices/system/node/node1/access0/initiators/node0/x", ""),
    ];

    #[test]
    fn nodes_show_size_processors_and_distances() {
        let (_guard, host) = host(&TIERS);
        let checks = all(&host);
        assert_eq!(checks[0].state, State::Ok);
        assert_eq!(
            checks[0].value,
            "0: 2048 MiB, CPUs 0-1, distances 10 20; 1: 1024 MiB, no CPUs, distances 20 10"
        );
    }

    #[test]
    fn performance_names_target_and_initiator() {
        let (_guard, host) = host(&TIERS);
        let checks = all(&host);
        assert_eq!(checks[1].state, State::Ok);
        assert_eq!(checks[1].value, "1 from 0: read 200 ns 51200 MB/s");
    }

    #[test]
    fn balancing_matters_only_with_several_nodes() {
        let (_guard, host) = host(&[("proc/sys/kernel/numa_balancing", "1\n")]);
        assert_eq!(balancing(&host, 1).state, State::Ok);
        assert_eq!(balancing(&host, 2).state, State::Limited);
    }
}
