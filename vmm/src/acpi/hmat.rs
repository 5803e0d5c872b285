//! HMAT (ACPI 6.5, section 5.2.28): latency and bandwidth from the CPUs of
//! each node to the memory of each node.

use std::collections::BTreeSet;

use acpi_tables::sdt::Sdt;

use super::{AcpiError, cpu_nodes, memory_nodes, table};
use crate::topology::{Performance, Topology};

/// Latencies count picoseconds from this revision on.
const REVISION: u8 = 2;

const MEMORY_PROXIMITY: u16 = 0;
const SYSTEM_LOCALITY: u16 = 1;
/// Memory proximity flags: the initiator field is valid.
const INITIATOR_VALID: u16 = 1;
/// An entry for a pair of which nothing was said. (0xffff would say that the
/// memory cannot be reached.)
const NOT_PROVIDED: u16 = 0;
/// The largest entry that is a number.
const MAX_ENTRY: u64 = 0xfffe;

/// One kind of figure: the data type of its matrix (table 5.148), how many
/// base units of HMAT (picoseconds, MB/s) its own unit has, and where a
/// [`Performance`] keeps it.
struct Kind {
    data_type: u8,
    scale: u64,
    unit: &'static str,
    get: fn(&Performance) -> Option<u64>,
}

const KINDS: [Kind; 4] = [
    Kind { data_type: 1, scale: 1000, unit: "ns", get: |p| p.read_latency_ns },
    Kind { data_type: 2, scale: 1000, unit: "ns", get: |p| p.write_latency_ns },
    Kind { data_type: 4, scale: 1, unit: "MB/s", get: |p| p.read_bandwidth_mbps },
    Kind { data_type: 5, scale: 1, unit: "MB/s", get: |p| p.write_bandwidth_mbps },
];

/// The HMAT, or `None` when nothing is known.
pub(super) fn build(topology: &Topology) -> Result<Option<Sdt>, AcpiError> {
    if topology.performance.is_empty() {
        return Ok(None);
    }
    let (initiators, targets) = (cpu_nodes(topology), memory_nodes(topology));
    for pair in &topology.performance {
        if !initiators.contains(&pair.initiator) {
            return Err(AcpiError::NotAnInitiator(pair.initiator));
        }
        if !targets.contains(&pair.target) {
            return Err(AcpiError::NotATarget(pair.target));
        }
    }

    let mut body = vec![0; 4];
    for &target in &targets {
        memory_proximity(&mut body, target, initiators.contains(&target));
    }
    for kind in &KINDS {
        if topology.performance.iter().any(|pair| (kind.get)(pair).is_some()) {
            system_locality(&mut body, kind, topology, &initiators, &targets)?;
        }
    }
    Ok(Some(table(*b"HMAT", REVISION, &body)))
}

/// A memory domain (section 5.2.28.3). Where the node has CPUs they are the
/// attached initiator; memory without CPUs names none, and the guest finds the
/// best initiator in the matrices.
fn memory_proximity(body: &mut Vec<u8>, node: u32, has_cpus: bool) {
    body.extend(MEMORY_PROXIMITY.to_le_bytes());
    body.extend([0; 2]);
    body.extend(40u32.to_le_bytes());
    body.extend(if has_cpus { INITIATOR_VALID } else { 0 }.to_le_bytes());
    body.extend([0; 2]);
    body.extend(if has_cpus { node } else { 0 }.to_le_bytes());
    body.extend(node.to_le_bytes());
    body.extend([0; 20]);
}

/// A matrix of one kind of figure (section 5.2.28.4).
fn system_locality(
    body: &mut Vec<u8>,
    kind: &Kind,
    topology: &Topology,
    initiators: &BTreeSet<u32>,
    targets: &BTreeSet<u32>,
) -> Result<(), AcpiError> {
    // Linux multiplies entry and base unit in 32 bits, and rounding an entry
    // up may add half a unit.
    let limit = u64::from(u32::MAX) / 2 / kind.scale;
    let mut values = Vec::new();
    for pair in &topology.performance {
        let value = (kind.get)(pair).unwrap_or(0);
        if value > limit {
            let (initiator, target) = (pair.initiator, pair.target);
            return Err(AcpiError::Performance {
                initiator,
                target,
                value,
                unit: kind.unit,
                limit,
            });
        }
        values.push(value);
    }
    let unit = entry_unit(&values);

    let length = 32 + 4 * (initiators.len() + targets.len()) + 2 * initiators.len() * targets.len();
    body.extend(SYSTEM_LOCALITY.to_le_bytes());
    body.extend([0; 2]);
    body.extend((length as u32).to_le_bytes());
    // Flags 0: the memory itself, no cache before it. Transfer size 0: any.
    body.extend([0, kind.data_type, 0, 0]);
    body.extend((initiators.len() as u32).to_le_bytes());
    body.extend((targets.len() as u32).to_le_bytes());
    body.extend([0; 4]);
    body.extend((unit * kind.scale).to_le_bytes());
    for node in initiators.iter().chain(targets) {
        body.extend(node.to_le_bytes());
    }
    for initiator in initiators {
        for target in targets {
            let value = topology
                .performance
                .iter()
                .filter(|pair| pair.initiator == *initiator && pair.target == *target)
                .find_map(|pair| (kind.get)(pair));
            body.extend(value.map_or(NOT_PROVIDED, |value| entry(value, unit)).to_le_bytes());
        }
    }
    Ok(())
}

/// How much one step of an entry is worth: 1 when all values fit then, else
/// their greatest common divisor, with which they stay exact, else the
/// smallest step with which the largest fits.
fn entry_unit(values: &[u64]) -> u64 {
    let largest = values.iter().copied().max().unwrap_or(0);
    if largest <= MAX_ENTRY {
        return 1;
    }
    let common = values.iter().copied().fold(0, greatest_common_divisor);
    if largest / common <= MAX_ENTRY { common } else { largest.div_ceil(MAX_ENTRY) }
}

fn greatest_common_divisor(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// A value in steps of `unit`, to the nearest; what is not 0 does not become
/// 0, which would mean "not provided".
fn entry(value: u64, unit: u64) -> u16 {
    let steps = (value + unit / 2) / unit;
    steps.clamp(u64::from(value > 0), MAX_ENTRY) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_values_are_exact_and_large_ones_share_a_divisor() {
        assert_eq!(entry_unit(&[100, 350]), 1);
        assert_eq!(entry_unit(&[400_000, 25_000, 0]), 25_000);
        assert_eq!(entry_unit(&[1_000_000, 1]), 16);
        assert_eq!(entry_unit(&[]), 1);
    }

    proptest! {
        #[test]
        fn entries_are_near_their_value_and_never_mean_something_else(
            values in prop::collection::vec(1u64..=u64::from(u32::MAX) / 2, 1..20),
        ) {
            let unit = entry_unit(&values);
            for value in values {
                let entry = u64::from(entry(value, unit));
                prop_assert!((1..=MAX_ENTRY).contains(&entry));
                // The product must not pass 32 bits, or Linux drops the entry.
                prop_assert!(unit <= u64::from(u32::MAX) / entry);
                prop_assert!(value.abs_diff(entry * unit) < unit.max(2));
            }
        }
    }
}
