//! How the host memory behind RAM or behind a device region is got.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::str::FromStr;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::account::hugepages::HugePages;
use crate::addr::{HUGE_PAGE_SIZE, KIB, display_size};
use crate::dax::{self, DaxError, DaxPath};
use crate::hva::{Hva, HvaRange};
use crate::numa::calls;
use crate::numa::nodes::NodeError;
use crate::region::{Region, Source};

/// Kind of host memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory; transparent huge pages where the host allows
    /// them.
    #[default]
    Anon,
    /// A memory file (memfd), shared.
    Memfd,
    /// A memory file of 2 MiB huge pages from the host's pool.
    Hugetlb,
    /// Private anonymous memory of one NUMA node of the host.
    Node(u32),
    /// A /dev/dax, shared.
    Dax(DaxPath),
}

impl Backing {
    /// Whether it is private anonymous memory, rather than a file's.
    pub fn is_anonymous(self) -> bool {
        matches!(self, Self::Anon | Self::Node(_))
    }

    /// The node that it is of, if it is of a certain one.
    pub fn node(self) -> Option<u32> {
        match self {
            Self::Node(node) => Some(node),
            _ => None,
        }
    }

    /// Kinds that have no parameter, with their names on the command line.
    pub const NAMES: [(&'static str, Self); 3] =
        [("anon", Self::Anon), ("memfd", Self::Memfd), ("hugetlb", Self::Hugetlb)];
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node:{node}"),
            Self::Dax(path) => write!(f, "dax:{path}"),
            named => {
                let found = Self::NAMES.iter().find(|(_, kind)| kind == named);
                f.write_str(found.map_or("", |(name, _)| name))
            }
        }
    }
}

impl FromStr for Backing {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(node) = text.strip_prefix("node:") {
            let refused = |_| format!("\"{node}\" is no number of a NUMA node, as in node:1");
            return node.parse().map(Self::Node).map_err(refused);
        }
        if let Some(path) = text.strip_prefix("dax:") {
            let refused = || format!("\"{path}\" is no path of a device, as in dax:/dev/dax0.0");
            let path = Some(path).filter(|path| path.starts_with('/')).and_then(DaxPath::new);
            return path.map(Self::Dax).ok_or_else(refused);
        }
        Self::NAMES.iter().find(|(name, _)| *name == text).map(|(_, kind)| *kind).ok_or_else(|| {
            let names: Vec<_> = Self::NAMES.iter().map(|(name, _)| *name).collect();
            format!("\"{text}\" is none of {}, node:N, dax:PATH", names.join(", "))
        })
    }
}

/// Why host memory could not be got.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    /// The host's pool of huge pages is too small.
    #[error(
        "backing=hugetlb: {needed} huge pages of 2M are needed and {free} are free: \
         add {} with sysctl vm.nr_hugepages={}", needed - free, total + needed - free
    )]
    HugePages {
        /// Huge pages that the region takes.
        needed: u64,
        /// Free ones that nobody has reserved.
        free: u64,
        /// Size of the pool now.
        total: u64,
    },
    /// More than the host has, and every page of it wanted now.
    #[error(
        "prefault=on needs {} now, and {} are available: ask for less, or leave prefault out",
        display_size(*.size), display_size(*.available)
    )]
    TooMuch {
        /// Bytes asked for.
        size: u64,
        /// Bytes that the host could give without swapping.
        available: u64,
    },
    /// A node that cannot give it.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// A device that cannot.
    #[error(transparent)]
    Dax(#[from] DaxError),
    /// The kernel refused.
    #[error(
        "{} of backing={backing} memory: {source}: ask for less, or look at ulimit -v \
         and sysctl vm.overcommit_memory",
        display_size(*.size)
    )]
    Refused {
        /// Bytes asked for.
        size: u64,
        /// Kind asked for.
        backing: Backing,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Host memory behind a range of guest memory.
#[derive(Debug)]
pub struct Mapped {
    /// Where it is mapped.
    pub region: Region,
    /// The file, whose first byte is the range's; none for anonymous memory.
    pub file: Option<OwnedFd>,
}

/// Maps `size` bytes of host memory; with `prefault` every page is there when
/// this returns. Anonymous memory is advised to have transparent huge pages
/// from byte `huge_from` on.
///
/// # Errors
/// [`BackingError`] when the host has too little of it.
pub fn map(
    size: u64,
    backing: Backing,
    huge_from: usize,
    prefault: bool,
) -> Result<Mapped, BackingError> {
    let refused = |source: Errno| BackingError::Refused { size, backing, source: source.into() };
    if backing == Backing::Hugetlb {
        check_huge_pages(size)?;
    } else if prefault {
        check_available(size)?;
    }
    let bytes = usize::try_from(size).map_err(|_| refused(Errno::NOMEM))?;
    let file = match backing {
        Backing::Anon | Backing::Node(_) => None,
        Backing::Memfd | Backing::Hugetlb | Backing::Dax(_) => Some(file(size, backing)?),
    };
    let source = match &file {
        None => Source::Anonymous,
        Some(file) => Source::File(file.as_fd()),
    };
    let region = Region::map(bytes, source).map_err(refused)?;
    if let Backing::Node(node) = backing {
        let start = Hva(region.start().as_ptr().expose_provenance());
        calls::bind(HvaRange::new(start, bytes), &[node]).map_err(refused)?;
    }
    if backing.is_anonymous() {
        // A host without transparent huge pages says EINVAL; small pages are
        // slower and no error.
        let _ = region.advise(huge_from, Advice::LinuxHugepage);
        // A child would turn private memory copy-on-write under the guest.
        // Files stay shared, and have no such mark, because mappings of them
        // that the `remap` engine makes could not be joined to it.
        region.advise(0, Advice::LinuxDontFork).map_err(refused)?;
    }
    if let Backing::Dax(_) = backing {
        // Somebody else's data may be in it.
        region.zero();
    } else if prefault {
        region.advise(0, Advice::LinuxPopulateWrite).map_err(refused)?;
    }
    Ok(Mapped { region, file })
}

/// A file in memory of `size` bytes, or a device that has as many, of a kind
/// that has files.
///
/// # Errors
/// [`BackingError`], also for anonymous memory.
pub fn file(size: u64, backing: Backing) -> Result<OwnedFd, BackingError> {
    if let Backing::Dax(path) = backing {
        return Ok(dax::open_device(path, size)?);
    }
    let make = || -> Result<OwnedFd, Errno> {
        let flags = match backing {
            Backing::Anon | Backing::Node(_) | Backing::Dax(_) => return Err(Errno::INVAL),
            Backing::Memfd => MemfdFlags::CLOEXEC,
            Backing::Hugetlb => MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        };
        let file = memfd_create("neap-memory", flags)?;
        ftruncate(&file, size)?;
        Ok(file)
    };
    make().map_err(|source| BackingError::Refused { size, backing, source: source.into() })
}

/// hugetlb reserves at mmap time and says ENOMEM; this says how many pages
/// are missing for `size` bytes. The check may be overtaken by another process,
/// and then the kernel's own refusal stands.
///
/// # Errors
/// [`BackingError::HugePages`].
pub fn check_huge_pages(size: u64) -> Result<(), BackingError> {
    let needed = size.div_ceil(HUGE_PAGE_SIZE);
    let pool = HugePages::read();
    let free = pool.free.saturating_sub(pool.reserved);
    if free < needed {
        return Err(BackingError::HugePages { needed, free, total: pool.total });
    }
    Ok(())
}

/// Filling more memory than there is would end in the OOM killer instead of an
/// answer. A host that does not say how much there is gets its chance.
fn check_available(size: u64) -> Result<(), BackingError> {
    let Ok(meminfo) = std::fs::read_to_string("/proc/meminfo") else { return Ok(()) };
    let kib = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    match kib.map(|kib| kib.saturating_mul(KIB)) {
        Some(available) if available < size => Err(BackingError::TooMuch { size, available }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{MIB, TIB};

    #[test]
    fn names_round_trip() {
        for (name, kind) in Backing::NAMES {
            assert_eq!(name.parse::<Backing>().unwrap(), kind);
            assert_eq!(kind.to_string(), name);
        }
        let error = "gpu".parse::<Backing>().unwrap_err();
        assert_eq!(error, "\"gpu\" is none of anon, memfd, hugetlb, node:N, dax:PATH");
        assert_eq!("node:3".parse::<Backing>().unwrap(), Backing::Node(3));
        assert_eq!(Backing::Node(3).to_string(), "node:3");
        let error = "node:x".parse::<Backing>().unwrap_err();
        assert_eq!(error, "\"x\" is no number of a NUMA node, as in node:1");
        let dax = "dax:/dev/dax0.0".parse::<Backing>().unwrap();
        assert_eq!(dax.to_string(), "dax:/dev/dax0.0");
        assert!("dax:dax0.0".parse::<Backing>().is_err());
    }

    #[test]
    fn a_sparse_tebibyte_costs_nothing() {
        let region = map(2 * TIB, Backing::Anon, 0, false).unwrap();
        assert_eq!(region.region.size() as u64, 2 * TIB);
    }

    #[test]
    fn memory_files_and_anonymous_memory_can_be_populated() {
        for backing in [Backing::Anon, Backing::Memfd] {
            assert_eq!(map(4 * MIB, backing, 0, true).unwrap().region.size() as u64, 4 * MIB);
        }
    }

    #[test]
    fn more_memory_than_there_is_cannot_be_filled() {
        let error = map(64 * TIB, Backing::Anon, 0, true).unwrap_err();
        assert!(matches!(error, BackingError::TooMuch { .. }), "{error}");
    }

    #[test]
    fn more_huge_pages_than_there_are_say_how_many() {
        let error = map(8 * TIB, Backing::Hugetlb, 0, false).unwrap_err();
        assert!(matches!(error, BackingError::HugePages { needed: 4_194_304, .. }), "{error}");
        assert!(error.to_string().contains("sysctl vm.nr_hugepages="), "{error}");
    }
}
