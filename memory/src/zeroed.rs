//! Zeroed arrays of atomics that cost nothing until they are used.
//!
//! A large zeroed allocation is fresh memory of the kernel's, which gives a
//! page when it is first written. The standard library makes such a `Vec` of
//! integers but not of atomics, hence the one conversion here.
#![allow(unsafe_code)]

use crate::sync::AtomicU64;

/// `count` atomics, all zero.
#[cfg(not(feature = "loom"))]
pub(crate) fn atomics(count: usize) -> Box<[AtomicU64]> {
    const _: () = assert!(align_of::<AtomicU64>() == align_of::<u64>());

    let zeroes = vec![0u64; count].into_boxed_slice();
    // SAFETY: AtomicU64 has the size and bit validity of u64 (its
    // documentation) and here its alignment (asserted), so the slice is valid
    // as the other type and its allocation has the layout that the box will
    // free. Ownership goes from one box to the other.
    unsafe { Box::from_raw(Box::into_raw(zeroes) as *mut [AtomicU64]) }
}

/// The same for loom, whose atomics are more than a number.
#[cfg(feature = "loom")]
pub(crate) fn atomics(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}
