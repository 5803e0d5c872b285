//! The words that placement is spoken in: granules, frames, pools, kinds.
//!
//! A granule is the unit of tracking and moving. [`Granule`] counts granules of
//! the guest's managed memory, [`Frame`] counts the granule-sized frames of one
//! pool: the two are numbers of different things, and the compiler keeps them
//! apart.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::addr::{HUGE_PAGE_SIZE, KIB, PAGE_SIZE, display_size};

/// How large a granule is; one size for the whole of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum GranuleSize {
    /// 4 KiB, a base page.
    K4,
    /// 64 KiB.
    K64,
    /// 2 MiB, a huge page.
    #[default]
    M2,
}

impl GranuleSize {
    /// Every size, smallest first.
    pub const ALL: [Self; 3] = [Self::K4, Self::K64, Self::M2];

    /// Size in bytes, a power of two.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::K4 => PAGE_SIZE,
            Self::K64 => 64 * KIB,
            Self::M2 => HUGE_PAGE_SIZE,
        }
    }

    /// Base-two logarithm of the size in bytes.
    pub const fn shift(self) -> u32 {
        self.bytes().trailing_zeros()
    }
}

impl fmt::Display for GranuleSize {
    /// As the option takes it: `4K`, `64K`, `2M`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&display_size(self.bytes()))
    }
}

/// A word that names no granule size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no granule size; 4K, 64K and 2M are")]
pub struct GranuleSizeError(String);

impl FromStr for GranuleSize {
    type Err = GranuleSizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|size| text.eq_ignore_ascii_case(&size.to_string()))
            .ok_or_else(|| GranuleSizeError(text.to_owned()))
    }
}

/// Number of a granule in the guest's managed memory, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Granule(pub u32);

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a device frame in its pool, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frame(pub u32);

impl fmt::Display for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which pool, that is, which device region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u8);

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a device region's frames are to the guest's processors; the words are
/// those of the kernel's `enum memory_type` (include/linux/memremap.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Processors use frames in place; granules move both ways. The kernel
    /// calls it `coherent`.
    #[default]
    Public,
    /// A processor's touch brings the granule home to host memory.
    Private,
    /// Processors use frames in place; nothing ever moves.
    Generic,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Public, Self::Private, Self::Generic];

    /// The word for it, as options and JSON have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no kind of device memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no kind of device memory; public (or coherent), private and generic are")]
pub struct KindError(String);

impl FromStr for Kind {
    type Err = KindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "coherent" => Ok(Self::Public),
            _ => Self::ALL
                .into_iter()
                .find(|kind| kind.name() == text)
                .ok_or_else(|| KindError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_they_print() {
        for size in GranuleSize::ALL {
            assert_eq!(size.to_string().parse(), Ok(size));
            assert_eq!(size.to_string().to_lowercase().parse(), Ok(size));
            assert_eq!(1 << size.shift(), size.bytes());
        }
        assert_eq!(GranuleSize::default().to_string(), "2M");
    }

    #[test]
    fn a_wrong_size_is_told_what_would_do() {
        for wrong in ["", "1G", "2MiB", "4096", " 2M"] {
            let error = wrong.parse::<GranuleSize>().unwrap_err().to_string();
            assert_eq!(error, format!("{wrong:?} is no granule size; 4K, 64K and 2M are"));
        }
    }

    #[test]
    fn kinds_read_as_they_print() {
        for kind in Kind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!("coherent".parse(), Ok(Kind::Public));
        assert!("Public".parse::<Kind>().unwrap_err().to_string().contains("private and generic"));
    }
}
