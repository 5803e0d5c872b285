//! What memory the engine has, and what a step would add.

use super::MoveEngine;
use crate::engine::Step;
use crate::engine::rows::{Holder, Row};
use crate::granule::PoolId;

impl MoveEngine {
    pub(super) fn all_rows(&self) -> Vec<Row<'_>> {
        let row = |holder, slots| Row { holder, slots, file: None };
        let pools = (0..).zip(&self.pools).map(|(id, slots)| row(Holder::Pool(PoolId(id)), slots));
        [row(Holder::Home(0), &self.home)].into_iter().chain(pools).collect()
    }

    /// Bytes that a step takes anew.
    pub(super) fn bytes_taken_by(&self, step: &Step) -> u64 {
        let (row, index) = self.slot(step.granule, step.to);
        if row.is_backed(index) { 0 } else { self.space.size().bytes() }
    }
}
