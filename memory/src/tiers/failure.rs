//! Host memory that has failed under guest memory, as far as the tiers have
//! to know: its frame is retired for good.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::core::lock;
use super::{PinRangeError, Tiers};
use crate::engine::memory;
use crate::granule::Granule;
use crate::hva::Hva;
use crate::poison::Lost;
use crate::{Gpa, GpaRange};

/// Why no failure was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FailPageError {
    /// No guest memory.
    #[error("{0} is no guest memory")]
    Outside(Gpa),
    /// In motion for too long.
    #[error(transparent)]
    Place(#[from] PinRangeError),
    /// The kernel does not let.
    #[error(
        "the kernel does not make memory fail ({0}): it needs CAP_SYS_ADMIN and CONFIG_MEMORY_FAILURE"
    )]
    Refused(Errno),
}

/// Granules of which a part is lost: they stay where they are.
#[derive(Debug, Default)]
pub(crate) struct Damaged {
    any: AtomicBool,
    granules: Mutex<BTreeSet<Granule>>,
}

impl Damaged {
    pub(crate) fn contains(&self, granule: Granule) -> bool {
        self.any.load(Ordering::Acquire) && lock(&self.granules).contains(&granule)
    }

    pub(crate) fn insert(&self, granule: Granule) {
        lock(&self.granules).insert(granule);
        self.any.store(true, Ordering::Release);
    }
}

/// How long a granule in motion is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

impl Tiers {
    /// Somebody met host memory that has failed: if it is a frame's, that frame
    /// is never handed out again. The granule stays in it; its other pages are
    /// as good as ever.
    ///
    /// False if it is not guest memory.
    pub fn memory_failed(&self, lost: Lost) -> bool {
        let core = &self.core;
        let Some(granule) = core.space.at_hva(lost.0.start()) else { return false };
        core.damaged.insert(granule);
        core.lose(core.space.actual(granule, core.table.get(granule).place));
        true
    }

    /// Makes the host's page behind the guest's page at `gpa` fail, for good,
    /// so that what follows can be tried (madvise(2), `MADV_HWPOISON`).
    ///
    /// # Errors
    /// Why not; nothing has happened.
    pub fn fail_page(&self, gpa: Gpa) -> Result<(), FailPageError> {
        let bytes = self.core.space.size().bytes();
        let base = Gpa(gpa.0 & !(bytes - 1));
        let outside = FailPageError::Outside(gpa);
        let range = GpaRange::new(base, bytes).ok_or(outside)?;
        let _here = self.pin(range, PATIENCE)?;
        let granules = self.core.space.granules_of(range).ok_or(outside)?;
        let start = granules.first().and_then(|(granule, _)| self.core.space.hva(*granule));
        let Hva(start) = start.ok_or(outside)?;
        let page = Hva(start + ((gpa.0 - base.0) as usize & !0xfff));
        memory::fail_page(page).map_err(FailPageError::Refused)
    }
}
