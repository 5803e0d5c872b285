//! How much more memory moves may take before a cgroup of this process is at
//! its limit: the kernel answers a charge beyond that by killing a process, not
//! by an error, so moves stop before.
//!
//! Only what takes memory anew asks: a frame or a home page that never had any,
//! pages that adoption makes present, a home page that was punched out. What has
//! its memory moves on at the limit.

use std::time::{Duration, Instant};

use crate::account::cgroup::Cgroups;

/// How long what was read of a limit counts. Others in the cgroup may take
/// memory meanwhile; the margin is for them.
const FRESH: Duration = Duration::from_millis(10);
/// The same of there being none.
const FRESH_UNLIMITED: Duration = Duration::from_millis(100);

/// The room that is left.
#[derive(Debug)]
pub(crate) struct Room {
    cgroups: Cgroups,
    /// Bytes, as of the last look, less what was taken since; `None`: no limit.
    left: Option<u64>,
    /// Bytes that were taken and may not be charged yet.
    pending: u64,
    /// When was last looked.
    looked: Option<Instant>,
}

impl Room {
    pub(crate) fn new(cgroups: Cgroups) -> Self {
        Self { cgroups, left: None, pending: 0, looked: None }
    }

    /// Whether there is any limit, so that it is worth knowing what a move takes.
    pub(crate) fn is_limited(&mut self) -> bool {
        let fresh = if self.left.is_some() { FRESH } else { FRESH_UNLIMITED };
        if self.looked.is_none_or(|looked| looked.elapsed() >= fresh) {
            // What is pending may be charged already, and is counted twice then:
            // it is little, and settled soon.
            self.left = self.cgroups.room().map(|room| room.saturating_sub(self.pending));
            self.looked = Some(Instant::now());
        }
        self.left.is_some()
    }

    /// Takes `bytes` that are about to be charged; false if that is too many.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        if bytes > 0 && self.is_limited() {
            let Some(left) = self.left.and_then(|left| left.checked_sub(bytes)) else {
                return false;
            };
            self.left = Some(left);
        }
        self.pending += bytes;
        true
    }

    /// `bytes` that were taken are charged, or will not be.
    pub(crate) fn landed(&mut self, bytes: u64) {
        self.pending = self.pending.saturating_sub(bytes);
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
        room.looked = None;
        assert!(!room.take(9 * MIB) && room.take(8 * MIB));
        room.landed(48 * MIB);
        room.looked = None;
        assert!(room.take(48 * MIB) && !room.take(1));
    }
}
