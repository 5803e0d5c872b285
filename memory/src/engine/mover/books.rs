//! What memory the engine has, and what a step would add.

use rustix::io::Errno;

use super::MoveEngine;
use crate::engine::rows::{Holder, Row};
use crate::engine::{Step, memory};
use crate::granule::PoolId;
use crate::numa::calls;

impl MoveEngine {
    pub(super) fn all_rows(&self) -> Vec<Row<'_>> {
        let row = |holder, slots| Row { holder, slots, file: None };
        let pools = (0..).zip(&self.pools).map(|(id, slots)| row(Holder::Pool(PoolId(id)), slots));
        [row(Holder::Home(0), &self.home)].into_iter().chain(pools).collect()
    }

    /// Has the memory of a pool come from `node`, or from anywhere.
    pub(super) fn bind_pool(&self, pool: PoolId, node: Option<u32>) -> Result<(), Errno> {
        let row = self.pools.get(usize::from(pool.0)).ok_or(Errno::INVAL)?;
        match node {
            Some(node) => calls::bind(row.range(), &[node])?,
            None => calls::unbind(row.range())?,
        }
        self.placement.set_pool(pool, node);
        Ok(())
    }

    /// Bytes that a step takes anew: pages that its destination never had, and
    /// those that the kernel took away because they held zeros.
    pub(super) fn bytes_taken_by(&self, step: &Step) -> u64 {
        let (row, index) = self.slot(step.granule, step.to);
        let bytes = self.space.size().bytes();
        let has = match row.is_backed(index) {
            true => memory::resident(row.slot(index)).map_or(bytes, |found| found.bytes),
            false => 0,
        };
        bytes - has.min(bytes)
    }
}
