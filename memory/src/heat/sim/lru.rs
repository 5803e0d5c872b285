//! Plain LRU under a budget.

use super::order::Order;
use super::{Access, Side};
use crate::heat::Bucket;

/// What was touched last is in the fast tier, as far as the budget allows.
#[derive(Clone, Debug)]
pub struct Lru {
    fast: Order,
    room: u32,
    bucket: Bucket,
    granule: u64,
    moved: u64,
}

impl Lru {
    /// An empty fast tier of `room` of `granules`, each of `granule` bytes, of
    /// which `budget` bytes may move in a window.
    pub fn new(granules: u32, room: u32, granule: u64, budget: u64) -> Self {
        let bucket = Bucket::new(budget, budget.max(2 * granule));
        Self { fast: Order::new(granules), room, bucket, granule, moved: 0 }
    }
}

impl Side for Lru {
    fn is_fast(&self, granule: u32) -> bool {
        self.fast.has(granule)
    }

    fn touch(&mut self, access: Access, _: u32, _: u32) {
        if self.fast.has(access.granule) {
            return self.fast.touch(access.granule);
        }
        let moves = if self.fast.count() < self.room { 1 } else { 2 };
        if self.room == 0 || !self.bucket.take(moves * self.granule) {
            return;
        }
        if moves == 2 {
            self.fast.take_oldest();
        }
        self.fast.touch(access.granule);
        self.moved += moves;
    }

    fn tick(&mut self) {
        self.bucket.refill();
    }

    fn moved(&self) -> u64 {
        self.moved
    }
}
