//! Address newtypes and size arithmetic.
//!
//! A guest-physical address ([`Gpa`]) and a length never mix with host
//! addresses: the compiler refuses it. All arithmetic that a guest or a user
//! can influence is checked.

use std::fmt;

/// 1 KiB in bytes.
pub const KIB: u64 = 1 << 10;
/// 1 MiB in bytes.
pub const MIB: u64 = 1 << 20;
/// 1 GiB in bytes.
pub const GIB: u64 = 1 << 30;
/// 1 TiB in bytes.
pub const TIB: u64 = 1 << 40;
/// Size of a base page on x86_64, in bytes.
pub const PAGE_SIZE: u64 = 4 * KIB;
/// Size of a huge page on x86_64, in bytes; also the default granule.
pub const HUGE_PAGE_SIZE: u64 = 2 * MIB;

/// A guest-physical address, in bytes from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

impl Gpa {
    /// The address `bytes` further up, or `None` if that wraps.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }

    /// Whether the address is a multiple of `align` (a power of two, bytes).
    pub fn is_aligned(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }

    /// The next multiple of `align` (a power of two, bytes) at or above this
    /// address, or `None` if that wraps.
    pub fn align_up(self, align: u64) -> Option<Self> {
        Some(Self(self.0.checked_add(align - 1)? & !(align - 1)))
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpa({:#x})", self.0)
    }
}

/// A range of guest-physical addresses `[base, base + size)` that is not
/// empty and does not wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GpaRange {
    base: Gpa,
    size: u64,
}

impl GpaRange {
    /// The range of `size` bytes from `base`, or `None` if it is empty or its
    /// end would pass 2^64.
    pub fn new(base: Gpa, size: u64) -> Option<Self> {
        if size == 0 {
            return None;
        }
        base.checked_add(size)?;
        Some(Self { base, size })
    }

    /// First byte.
    pub fn base(&self) -> Gpa {
        self.base
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// First byte after the range.
    pub fn end(&self) -> Gpa {
        Gpa(self.base.0 + self.size)
    }

    /// Whether the two ranges share a byte.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.base < other.end() && other.base < self.end()
    }

    /// Whether every byte of `other` lies in this range.
    pub fn contains(&self, other: &Self) -> bool {
        self.base <= other.base && other.end() <= self.end()
    }
}

impl fmt::Display for GpaRange {
    /// First to last byte, as the kernel prints it: `0x1000-0x1fff`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.base.0, self.end().0 - 1)
    }
}

/// Prints a size in the largest unit that shows it exactly: `512M`, `6144K`.
pub fn display_size(bytes: u64) -> String {
    for (unit, suffix) in [(TIB, "T"), (GIB, "G"), (MIB, "M"), (KIB, "K")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{suffix}", bytes / unit);
        }
    }
    bytes.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_print_in_the_largest_exact_unit() {
        assert_eq!(display_size(512 * MIB), "512M");
        assert_eq!(display_size(GIB), "1G");
        assert_eq!(display_size(GIB + 4 * KIB), "1048580K");
        assert_eq!(display_size(0), "0");
        assert_eq!(display_size(1), "1");
    }

    #[test]
    fn ranges_refuse_to_be_empty_or_to_wrap() {
        assert!(GpaRange::new(Gpa(0), 0).is_none());
        assert!(GpaRange::new(Gpa(u64::MAX), 2).is_none());
        assert!(GpaRange::new(Gpa(u64::MAX - 1), 1).is_some());
    }

    #[test]
    fn touching_ranges_do_not_overlap() {
        let low = GpaRange::new(Gpa(0), 0x1000).unwrap();
        let high = GpaRange::new(Gpa(0x1000), 0x1000).unwrap();
        assert!(!low.overlaps(&high));
        assert!(low.overlaps(&low));
    }

    #[test]
    fn alignment_up_does_not_wrap() {
        assert_eq!(Gpa(1).align_up(MIB), Some(Gpa(MIB)));
        assert_eq!(Gpa(MIB).align_up(MIB), Some(Gpa(MIB)));
        assert_eq!(Gpa(u64::MAX).align_up(MIB), None);
    }
}
