//! A promotion rule like TPP's.

use super::order::Order;
use super::{Access, Side};
use crate::heat::Bucket;

/// Promotes at the second touch in a window; demotes the least recently
/// touched until a fiftieth of the fast tier is free.
#[derive(Clone, Debug)]
pub struct Tpp {
    fast: Order,
    room: u32,
    free: u32,
    bucket: Bucket,
    granule: u64,
    moved: u64,
    window: u32,
    /// Window of each granule's last touch in the slow tier.
    touched: Vec<u32>,
}

impl Tpp {
    /// An empty fast tier, as [`super::lru::Lru::new`].
    pub fn new(granules: u32, room: u32, granule: u64, budget: u64) -> Self {
        Self {
            fast: Order::new(granules),
            room,
            free: (room / 50).max(1),
            bucket: Bucket::new(budget, budget.max(2 * granule)),
            granule,
            moved: 0,
            window: 1,
            touched: vec![0; granules as usize],
        }
    }
}

impl Side for Tpp {
    fn is_fast(&self, granule: u32) -> bool {
        self.fast.has(granule)
    }

    fn touch(&mut self, access: Access, _: u32, _: u32) {
        if self.fast.has(access.granule) {
            return self.fast.touch(access.granule);
        }
        let Some(touched) = self.touched.get_mut(access.granule as usize) else { return };
        if *touched != self.window {
            *touched = self.window;
            return;
        }
        if self.fast.count() < self.room && self.bucket.take(self.granule) {
            self.fast.touch(access.granule);
            self.moved += 1;
        }
    }

    fn tick(&mut self) {
        self.window += 1;
        self.bucket.refill();
        while self.room - self.fast.count() < self.free && self.bucket.take(self.granule) {
            if self.fast.take_oldest().is_none() {
                break;
            }
            self.moved += 1;
        }
    }

    fn moved(&self) -> u64 {
        self.moved
    }
}
