//! How many VMAs the process may still take. A mapping that does not continue
//! its neighbour is a VMA of its own, and past `vm.max_map_count` the kernel
//! refuses any mapping at all, also those of the allocator. So moves stop
//! before that.

use std::fs;

/// VMAs that are left to everything else.
const RESERVE: u64 = 2048;

/// Refusals between two counts: counting tens of thousands of VMAs takes
/// milliseconds, and most refusals come in a row.
const COUNT_EVERY: u32 = 512;

/// An estimate from above, put right by counting when it reaches the limit.
#[derive(Debug)]
pub(crate) struct VmaBudget {
    limit: u64,
    estimate: u64,
    /// Of the estimate: taken for mappings that are still to be made, which
    /// counting does not find.
    pending: u64,
    /// Whether a count could find less than the last one.
    stale: bool,
    /// Refusals since something was last taken.
    refused: u32,
}

impl VmaBudget {
    /// The budget of this process.
    pub(crate) fn new() -> Self {
        let max = fs::read_to_string("/proc/sys/vm/max_map_count");
        // The kernel's default, DEFAULT_MAX_MAP_COUNT.
        let max = max.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65_530u64);
        Self {
            limit: max.saturating_sub(RESERVE.min(max / 2)),
            estimate: count(),
            pending: 0,
            stale: true,
            refused: 0,
        }
    }

    /// Takes `vmas` for mappings that are about to be made; false if that is
    /// too many.
    pub(crate) fn take(&mut self, vmas: u64) -> bool {
        let fits = |estimate: u64| vmas == 0 || estimate + vmas <= self.limit;
        if !fits(self.estimate) {
            if self.stale && self.refused.is_multiple_of(COUNT_EVERY) {
                self.estimate = count() + self.pending;
                self.stale = false;
            }
            if !fits(self.estimate) {
                self.refused = self.refused.wrapping_add(1);
                return false;
            }
        }
        self.refused = 0;
        self.estimate += vmas;
        self.pending += vmas;
        true
    }

    /// The mappings that `vmas` were taken for are made, or were given up.
    pub(crate) fn landed(&mut self, vmas: u64) {
        self.pending = self.pending.saturating_sub(vmas);
        self.stale = true;
    }

    /// The rest of the process may have fewer than at the last count.
    pub(crate) fn look_again(&mut self) {
        self.stale = true;
        self.refused = 0;
    }

    /// Most VMAs, and how many there may be now.
    pub(crate) fn numbers(&self) -> (u64, u64) {
        (self.limit, self.estimate)
    }
}

/// VMAs of this process now.
fn count() -> u64 {
    fs::read("/proc/self/maps")
        .map_or(0, |maps| maps.iter().filter(|b| **b == b'\n').count() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_put_right_at_the_limit() {
        let mut budget = VmaBudget::new();
        let room = budget.limit - budget.estimate;
        assert!(budget.take(room));
        // They may be mapped any moment.
        assert!(!budget.take(2));
        budget.landed(room);
        // Nothing was mapped, so counting finds that there is room again, once
        // it is worth to count.
        assert!((0..COUNT_EVERY).any(|_| budget.take(2)));
        budget.limit = 1;
        budget.look_again();
        assert!(!budget.take(2));
        assert!(budget.take(0));
    }
}
