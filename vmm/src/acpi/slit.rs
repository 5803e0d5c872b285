//! SLIT (ACPI 6.5, section 5.2.17): the distance between any two nodes.

use acpi_tables::sdt::Sdt;

use super::{AcpiError, table};
use crate::topology::Topology;

const REVISION: u8 = 1;

/// The SLIT, or `None` when no distances are given.
pub(super) fn build(topology: &Topology) -> Result<Option<Sdt>, AcpiError> {
    let nodes = topology.distances.len();
    if nodes == 0 {
        return Ok(None);
    }
    let mut body = Vec::with_capacity(8 + nodes * nodes);
    body.extend((nodes as u64).to_le_bytes());
    for (node, row) in topology.distances.iter().enumerate() {
        if row.len() != nodes {
            return Err(AcpiError::Distances { node, entries: row.len(), nodes });
        }
        body.extend(row);
    }
    Ok(Some(table(*b"SLIT", REVISION, &body)))
}
