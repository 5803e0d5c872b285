//! The files behind guest memory and pools, each with its alias.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, fstat, fstatfs};
use rustix::io::Errno;

use crate::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};
use crate::engine::memory::Slots;
use crate::hva::Hva;
use crate::region::Source;
use crate::space::Space;

/// A file and its alias.
#[derive(Debug)]
pub(crate) struct Area {
    pub(super) file: OwnedFd,
    pub(super) alias: Slots,
    /// First granule, for the home of a part; 0 for a pool.
    pub(super) first: u32,
    pub(super) kind: FileKind,
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileKind {
    /// Of small pages.
    Small,
    /// Of 2 MiB pages.
    Hugetlb,
    /// A device, which is all there, and which nobody can watch.
    Dax,
}

impl FileKind {
    fn of(file: &OwnedFd) -> Result<Self, Errno> {
        if FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::CharacterDevice {
            return Ok(Self::Dax);
        }
        let huge = fstatfs(file)?.f_type as u32 == HUGETLBFS;
        Ok(if huge { Self::Hugetlb } else { Self::Small })
    }
}

/// `HUGETLBFS_MAGIC` in include/uapi/linux/magic.h.
const HUGETLBFS: u32 = 0x9584_58f6;

impl Area {
    /// The alias of `count` granules of `file`.
    ///
    /// # Errors
    /// mmap(2)'s; ENOMEM if huge pages are missing and `reserve` is set.
    pub(crate) fn new(
        file: OwnedFd,
        first: u32,
        count: u32,
        space: &Space,
        reserve: bool,
    ) -> Result<Self, Errno> {
        let source = match reserve {
            true => Source::File(file.as_fd()),
            false => Source::FileUnreserved(file.as_fd()),
        };
        let alias = Slots::map(count, space.size(), source)?;
        let kind = FileKind::of(&file)?;
        if kind == FileKind::Dax {
            // It has its memory, with whatever is in it.
            (0..count).for_each(|index| alias.set_backed(index));
        }
        Ok(Self { file, alias, first, kind })
    }

    /// The same, treated as a device.
    pub(crate) fn unwatched(mut self) -> Self {
        self.kind = FileKind::Dax;
        self
    }

    /// Bytes of a page of it.
    pub(super) fn page(&self) -> usize {
        match self.kind {
            FileKind::Hugetlb => HUGE_PAGE_SIZE as usize,
            FileKind::Small | FileKind::Dax => PAGE_SIZE as usize,
        }
    }

    /// Whether userfaultfd can watch mappings of it.
    pub(super) fn is_watched(&self) -> bool {
        self.kind != FileKind::Dax
    }
}

/// Where the contents of a place are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<'a> {
    pub(super) area: &'a Area,
    pub(super) index: u32,
}

impl Spot<'_> {
    pub(super) fn alias(&self) -> Hva {
        self.area.alias.at(self.index)
    }

    pub(super) fn offset(&self, bytes: usize) -> u64 {
        u64::from(self.index) * bytes as u64
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.area.file.as_fd()
    }
}
