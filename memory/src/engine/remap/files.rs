//! The files behind guest memory and pools, each with its alias.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use rustix::fs::{FileType, fstat, fstatfs};
use rustix::io::Errno;

use crate::addr::{HUGE_PAGE_SIZE, PAGE_SIZE};
use crate::engine::memory::Slots;
use crate::hva::Hva;
use crate::numa::calls;
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
    /// Nodes that its pages come from, which each mapping has to say. Empty: any.
    pub(super) nodes: Box<[u32]>,
    /// Whether it was a device and is none any more.
    pub(super) gone: AtomicBool,
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
    /// The alias of `count` granules of `file`, whose pages come from `nodes`.
    ///
    /// # Errors
    /// mmap(2)'s or mbind(2)'s; ENOMEM if huge pages are missing and `reserve` is set.
    pub(crate) fn new(
        file: OwnedFd,
        first: u32,
        count: u32,
        space: &Space,
        reserve: bool,
        nodes: &[u32],
    ) -> Result<Self, Errno> {
        let source = match reserve {
            true => Source::File(file.as_fd()),
            false => Source::FileUnreserved(file.as_fd()),
        };
        let alias = Slots::map(count, space.size(), source)?;
        let kind = FileKind::of(&file)?;
        if kind != FileKind::Dax && !nodes.is_empty() {
            calls::bind(alias.range(), nodes)?;
        }
        if kind == FileKind::Dax {
            // It has its memory, with whatever is in it.
            (0..count).for_each(|index| alias.set_backed(index));
        }
        let nodes = nodes.into();
        Ok(Self { file, alias, first, kind, nodes, gone: AtomicBool::new(false) })
    }

    /// The same, treated as a device.
    pub(crate) fn unwatched(mut self) -> Self {
        self.kind = FileKind::Dax;
        self
    }

    /// Gives every slot of it memory.
    ///
    /// # Errors
    /// What madvise(2) says.
    pub(crate) fn back_all(&self) -> Result<(), Errno> {
        let slots = (self.alias.range().len() / self.alias.slot(0).len()) as u32;
        (0..slots).try_for_each(|index| self.alias.back(index))
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
