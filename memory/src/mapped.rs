//! How the hypervisor maps guest memory, which decides what it costs to take a
//! granule from the guest for a moment: what is taken away is mapped in anew,
//! page by page, as the guest touches it again.

use std::fmt;

use crate::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};

/// Somebody who knows. Whoever runs vCPUs implements it.
pub trait Mapped: fmt::Debug + Send + Sync {
    /// Pages that are mapped now; `None`: the hypervisor does not tell.
    fn pages(&self) -> Option<Pages>;
}

/// Pages of the hypervisor's own tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pages {
    /// Of 4 KiB.
    pub small: u64,
    /// Of 2 MiB or more.
    pub large: u64,
}

impl Pages {
    /// Faults that it takes to map `bytes` in anew, if they are mapped as the
    /// rest is; at least 1.
    pub fn faults(self, bytes: u64) -> u32 {
        let small = u128::from(self.small) * u128::from(PAGE_SIZE);
        let all = small + u128::from(self.large) * u128::from(HUGE_PAGE_SIZE);
        let pages = u128::from(bytes.div_ceil(PAGE_SIZE));
        // Of a granule whose share is less than a page all is in a large one.
        let faults = (pages * small).checked_div(all).unwrap_or(0);
        u32::try_from(faults).unwrap_or(u32::MAX).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mapped_by_small_pages_takes_a_fault_for_each() {
        let faults = |small, large, bytes| Pages { small, large }.faults(bytes);
        assert_eq!(faults(0, 0, HUGE_PAGE_SIZE), 1);
        assert_eq!(faults(0, 1500, HUGE_PAGE_SIZE), 1);
        assert_eq!(faults(1 << 30, 0, HUGE_PAGE_SIZE), 512);
        assert_eq!(faults(8, 1500, HUGE_PAGE_SIZE), 1);
        assert_eq!(faults(512, 1, HUGE_PAGE_SIZE), 256);
        assert_eq!(faults(512, 0, PAGE_SIZE), 1);
        assert_eq!(faults(u64::MAX, u64::MAX, u64::MAX), u32::MAX);
    }
}
