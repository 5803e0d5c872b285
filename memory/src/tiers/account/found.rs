//! What the kernel says each tier has.

use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, SeekFrom, fstat, fstatfs, seek};
use rustix::io::Errno;

use super::believed::{home_row, index};
use crate::addr::HUGE_PAGE_SIZE;
use crate::dax;
use crate::engine::memory;
use crate::engine::rows::{Holder, Row};
use crate::granule::Granule;
use crate::hva::HvaRange;
use crate::space::Origin;
use crate::table::Place;
use crate::tiers::Tiers;

/// `HUGETLBFS_MAGIC` in include/uapi/linux/magic.h.
const HUGETLBFS: u32 = 0x9584_58f6;
/// `st_blocks` counts in these, whatever the file system (stat(3type)).
const BLOCK: u64 = 512;

/// Bytes of each tier that take memory, and of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// In frames and home pages that Neap has given memory.
    pub(super) given: Vec<u64>,
    /// Beside these, where the kernel has its page of zeros: no memory.
    pub(super) zeros: Vec<u64>,
    /// In those that Neap has not given any.
    pub(super) untouched: Vec<u64>,
    /// Mapped where the guest should have nothing.
    pub(super) astray: u64,
    /// Of private memory, in huge pages.
    pub(super) huge: u64,
}

impl Found {
    /// All of private memory.
    pub(super) fn private(&self) -> u64 {
        self.given.iter().chain(&self.untouched).sum::<u64>() + self.astray
    }
}

/// What a file is.
enum File {
    Device(u64),
    Hugetlb,
    Small,
}

fn kind(file: BorrowedFd<'_>) -> Result<File, Errno> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
        return Ok(File::Device(dax::size_of(stat.st_rdev).unwrap_or(0)));
    }
    let huge = fstatfs(file)?.f_type as u32 == HUGETLBFS;
    Ok(if huge { File::Hugetlb } else { File::Small })
}

fn allocated(file: BorrowedFd<'_>) -> Result<u64, Errno> {
    Ok(u64::try_from(fstat(file)?.st_blocks).unwrap_or(0) * BLOCK)
}

/// Bytes of data from `start` to `end`.
fn data(file: BorrowedFd<'_>, start: u64, end: u64) -> Result<u64, Errno> {
    let (mut at, mut bytes) = (start, 0);
    while at < end {
        let from = match seek(file, SeekFrom::Data(at)) {
            Ok(from) if from < end => from,
            // Only a hole is left.
            Ok(_) | Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        at = seek(file, SeekFrom::Hole(from))?.min(end);
        bytes += at - from;
    }
    Ok(bytes)
}

impl Tiers {
    pub(super) fn find(&self, rows: &[Row<'_>]) -> Result<Found, Errno> {
        let tiers = 1 + self.core.pools.len();
        let mut found = Found {
            given: vec![0; tiers],
            zeros: vec![0; tiers],
            untouched: vec![0; tiers],
            astray: 0,
            huge: 0,
        };
        for row in rows {
            let tier = match row.holder {
                Holder::Home(_) => 0,
                Holder::Pool(pool) => index(Some(pool)),
            };
            match row.file {
                None => {
                    let present = memory::resident(row.slots.range())?;
                    found.given[tier] += present.bytes;
                    found.zeros[tier] += present.zeros;
                    found.huge += present.huge;
                }
                Some(file) => self.find_in_file(row, file, tier, &mut found)?,
            }
        }
        if self.config.ram.is_anonymous() {
            self.find_in_guest(&mut found)?;
        }
        Ok(found)
    }

    /// Private memory in the guest.
    fn find_in_guest(&self, found: &mut Found) -> Result<(), Errno> {
        let core = &self.core;
        for part in core.space.parts() {
            let first = Granule(part.first);
            for (run, view) in core.table.runs(first, Granule(part.first + part.count)) {
                let range = core.space.hva_range(Granule(run.start), run.end - run.start);
                let present = memory::resident(range.ok_or(Errno::INVAL)?)?;
                found.huge += present.huge;
                let place = core.space.actual(Granule(run.start), view.place);
                let tier = match place {
                    Place::Device { pool, .. } => index(Some(pool)),
                    Place::Home | Place::Untouched => 0,
                };
                match view.place {
                    Place::Untouched => found.untouched[tier] += present.bytes,
                    _ if view.mapped => {
                        found.given[tier] += present.bytes;
                        found.zeros[tier] += present.zeros;
                    }
                    _ => found.astray += present.bytes,
                }
            }
        }
        Ok(())
    }

    fn find_in_file(
        &self,
        row: &Row<'_>,
        file: BorrowedFd<'_>,
        tier: usize,
        found: &mut Found,
    ) -> Result<(), Errno> {
        let bytes = self.core.space.size().bytes();
        let untouched = match kind(file)? {
            File::Device(size) => {
                found.given[tier] += size.min(row.slots.range().len() as u64);
                return Ok(());
            }
            File::Small => row
                .slots
                .unbacked()
                .map(|(first, count)| {
                    let start = u64::from(first) * bytes;
                    data(file, start, start + u64::from(count) * bytes)
                })
                .sum::<Result<u64, Errno>>()?,
            File::Hugetlb => row
                .slots
                .unbacked()
                .flat_map(|(first, count)| first..first + count)
                .filter(|slot| self.has_huge_page(row, *slot))
                .map(|_| bytes)
                .sum(),
        };
        found.untouched[tier] += untouched;
        found.given[tier] += allocated(file)?.saturating_sub(untouched);
        Ok(())
    }

    /// Whether a slot of huge pages that Neap gave no memory has some: it is in
    /// the page tables of the guest, whose it was from birth, or of the alias.
    fn has_huge_page(&self, row: &Row<'_>, slot: u32) -> bool {
        let space = &self.core.space;
        let born = match row.holder {
            Holder::Home(first) => Some(Granule(first + slot))
                .filter(|granule| space.birthplace(*granule) == Place::Home),
            Holder::Pool(pool) => space
                .parts()
                .iter()
                .find(|part| part.origin == Origin::Window(pool) && slot < part.count)
                .map(|part| Granule(part.first + slot)),
        };
        let guest = born.and_then(|granule| space.hva_range(granule, 1));
        let there = |range: HvaRange| memory::any_in_core(range);
        guest.is_some_and(there) || there(row.slots.slot(slot))
    }

    /// Bytes of huge pages that were reserved and have not come yet.
    pub(super) fn promised(&self, rows: &[Row<'_>]) -> Result<u64, Errno> {
        let core = &self.core;
        let mut promised = 0u64;
        for row in rows {
            let Some(file) = row.file else { continue };
            let granule = match row.holder {
                Holder::Home(first) => Some(Granule(first)),
                Holder::Pool(_) => None,
            };
            // The homes of windows get pages as they come.
            if !matches!(kind(file)?, File::Hugetlb) || granule.is_some_and(|g| core.is_window(g)) {
                continue;
            }
            promised += (row.slots.range().len() as u64).saturating_sub(allocated(file)?);
        }
        // A page that is punched out is promised to nobody.
        let mut punched = 0;
        for part in core.space.parts().iter().filter(|part| part.origin == Origin::Ram) {
            let first = Granule(part.first);
            if home_row(rows, first).is_none_or(|row| row.file.is_none()) {
                continue;
            }
            for (run, view) in core.table.runs(first, Granule(part.first + part.count)) {
                if view.place.is_device() && !view.mapped {
                    punched += u64::from(run.end - run.start) * HUGE_PAGE_SIZE;
                }
            }
        }
        Ok(promised.saturating_sub(punched))
    }
}
