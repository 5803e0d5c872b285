//! A token bucket in bytes.

/// Bytes that may move, refilled tick by tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    per_tick: u64,
    most: u64,
    left: u64,
}

impl Bucket {
    /// A bucket that gets `per_tick` bytes a tick and holds at the most
    /// `most`. It is empty.
    pub fn new(per_tick: u64, most: u64) -> Self {
        Self { per_tick, most, left: 0 }
    }

    /// A tick passes.
    pub fn refill(&mut self) {
        self.left = self.left.saturating_add(self.per_tick).min(self.most);
    }

    /// Bytes that may move now.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Takes `bytes`, if they are there.
    pub fn take(&mut self, bytes: u64) -> bool {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// Gives back what was taken and not used.
    pub fn give_back(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes).min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_never_gives_more_than_it_got() {
        let mut bucket = Bucket::new(10, 25);
        assert!(!bucket.take(1));
        bucket.refill();
        assert!(bucket.take(6) && !bucket.take(5) && bucket.take(4));
        for _ in 0..9 {
            bucket.refill();
        }
        assert_eq!(bucket.left(), 25);
        bucket.give_back(u64::MAX);
        assert_eq!(bucket.left(), 25);
    }
}
