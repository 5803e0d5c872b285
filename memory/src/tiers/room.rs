//! How much more memory moves may take before a cgroup of this process is at
//! its limit: the kernel answers a charge beyond that by killing a process, not
//! by an error, so moves stop before.
//!
//! Only what takes memory anew asks: a frame or a home page that never had any,
//! pages that adoption makes present, a home page that was punched out. What has
//! its memory moves on at the limit.

use std::time::{Duration, Instant};

use super::core::{Core, lock};
use crate::account::cgroup::{Cgroups, Left};
use crate::engine::rows::Holder;
use crate::granule::{Frame, Granule, PoolId};

/// How long what was read of limits counts. Others in the cgroup may take
/// memory meanwhile; the margin is for them.
const FRESH: Duration = Duration::from_millis(10);
/// Frames that are looked at for one that has memory, before a granule stays.
const LOOKS: u32 = 1 << 16;

/// The room that is left.
#[derive(Debug)]
pub(crate) struct Room {
    cgroups: Cgroups,
    /// As of the last look, less what was taken since; `None`: no limit.
    left: Option<Left>,
    /// Bytes that were taken and may not be charged yet.
    pending: u64,
    /// When was last looked.
    looked: Option<Instant>,
    /// Where the next look for a frame with memory begins.
    next: u32,
}

impl Room {
    pub(crate) fn new(cgroups: Cgroups) -> Self {
        Self { cgroups, left: None, pending: 0, looked: None, next: 0 }
    }

    /// Whether there is any limit, so that it is worth knowing what a move takes.
    pub(crate) fn is_limited(&mut self) -> bool {
        if self.looked.is_none_or(|looked| looked.elapsed() >= FRESH) {
            // What is pending may be charged already, and is counted twice then:
            // it is little, and settled soon.
            self.left = self.cgroups.room().map(|left| less(left, self.pending));
            self.looked = Some(Instant::now());
        }
        self.left.is_some()
    }

    /// Takes `bytes` that are about to be charged; false if that is too many.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        self.take_of(bytes, |left| left.for_moves)
    }

    /// The same for what a vCPU waits for.
    pub(crate) fn take_for_fault(&mut self, bytes: u64) -> bool {
        self.take_of(bytes, |left| left.for_faults)
    }

    fn take_of(&mut self, bytes: u64, which: impl Fn(&Left) -> u64) -> bool {
        if bytes > 0 && self.is_limited() {
            if self.left.is_some_and(|left| which(&left) < bytes) {
                return false;
            }
            self.left = self.left.map(|left| less(left, bytes));
        }
        self.pending += bytes;
        true
    }

    /// `bytes` that were taken are charged, or will not be.
    pub(crate) fn landed(&mut self, bytes: u64) {
        self.pending = self.pending.saturating_sub(bytes);
    }
}

fn less(left: Left, bytes: u64) -> Left {
    Left {
        for_moves: left.for_moves.saturating_sub(bytes),
        for_faults: left.for_faults.saturating_sub(bytes),
    }
}

impl Core {
    /// A free frame that has memory, for `owner`, with refcount 1.
    pub(super) fn frame_with_memory(&self, pool: PoolId, owner: Granule) -> Option<Frame> {
        let rows = self.engine.rows();
        let row = rows.iter().find(|row| row.holder == Holder::Pool(pool))?;
        let first = lock(&self.room).next;
        let mut pool = self.pool(pool)?;
        let count = pool.frames();
        let at = |n: u32| ((u64::from(first) + u64::from(n)) % u64::from(count.max(1))) as u32;
        let found = (0..count.min(LOOKS)).map(|n| Frame(at(n))).find(|frame| {
            let free = pool.refcount(*frame) == 0 && !pool.is_retired(*frame);
            free && row.slots.is_backed(frame.0) && pool.allocate_at(*frame, owner)
        });
        drop(pool);
        lock(&self.room).next = found.map_or(first.wrapping_add(LOOKS), |frame| frame.0 + 1);
        found
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;
    use crate::addr::MIB;

    #[test]
    fn what_is_taken_counts_until_it_is_charged() {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("own"), "0::/\n").unwrap();
        fs::write(
            at("mounts"),
            format!("1 0 0:1 / {} rw - cgroup2 n rw\n", folder.path().display()),
        )
        .unwrap();
        let mut room = Room::new(Cgroups::told_by(at("own"), at("mounts")));
        assert!(room.take(1 << 50) && !room.is_limited());
        room.landed(1 << 50);
        fs::write(at("memory.max"), (64 * MIB).to_string()).unwrap();
        fs::write(at("memory.current"), "0").unwrap();
        room.looked = None;
        assert!(room.is_limited());
        // The margin is 16 MiB.
        assert!(room.take(40 * MIB) && !room.take(9 * MIB) && room.take(0));
        // Whoever waits for it may have three quarters of that, too.
        assert!(!room.take_for_fault(21 * MIB) && room.take_for_fault(9 * MIB));
        room.landed(9 * MIB);
        room.looked = None;
        assert!(!room.take(9 * MIB) && room.take(8 * MIB));
        room.landed(48 * MIB);
        room.looked = None;
        assert!(room.take(48 * MIB) && !room.take(1));
    }
}
