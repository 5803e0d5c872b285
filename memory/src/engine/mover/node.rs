//! Whether a node that a tier is on can give memory now.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::MoveEngine;
use crate::engine::memory::Slots;
use crate::numa::{calls, nodes};
use crate::table::Place;
use crate::tiers::core::lock;

/// For how long the answer is taken as good: a node goes offline in some
/// milliseconds a block, and asking takes microseconds.
const GOOD_FOR: Duration = Duration::from_millis(50);

/// What was found of one node: when, and whether it had memory.
#[derive(Debug, Default)]
pub(super) struct Online(Mutex<Option<(Instant, bool)>>);

impl MoveEngine {
    /// Whether the node of `to` can give a slot of `row` memory, or, if it has
    /// some, is the node where that is.
    pub(super) fn has_room(&self, to: Place, row: &Slots, is_backed: bool) -> bool {
        let placement = self.placement.now();
        let nodes = placement.of(to);
        if nodes.is_empty() {
            return true;
        }
        if let Place::Device { pool, .. } = to
            && let Some(online) = self.online.get(usize::from(pool.0))
        {
            let mut known = lock(&online.0);
            match *known {
                Some((looked, there)) if looked.elapsed() < GOOD_FOR => {
                    if !there {
                        return false;
                    }
                }
                before => {
                    let there = nodes::have_memory(nodes);
                    if there && before.is_some_and(|(_, there)| !there) {
                        // The kernel moved what was there elsewhere; what waits in
                        // slots goes back; what the guest has, verification names.
                        let _ = calls::bind(row.range(), nodes);
                    }
                    *known = Some((Instant::now(), there));
                    if !there {
                        return false;
                    }
                }
            }
        }
        is_backed || nodes::have_room(nodes, self.space.size().bytes())
    }
}
