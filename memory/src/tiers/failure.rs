//! Host memory that has failed under guest memory, as far as the tiers have
//! to know: its frame is retired for good.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::io::Errno;

use super::core::{Core, lock};
use super::{PinRangeError, Tiers};
use crate::engine::memory;
use crate::granule::Granule;
use crate::hva::Hva;
use crate::poison::{self, Lost};
use crate::table::Place;
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

/// Who met memory that has failed, and what that meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// A vCPU: its guest gets a machine check.
    Vcpu,
    /// Nobody yet: the kernel told ahead.
    Ahead,
    /// A move, in the granule's own memory: what is lost is marked there.
    Move,
    /// A move, or a first touch, in the frame that was to be had: nothing is
    /// lost, and the granule is whole where it was.
    Frame,
}

/// Host memory that has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Of the guest's memory: the page, where that is known, or the granule.
    pub range: GpaRange,
    /// Where it is, or was to go.
    pub place: Place,
    /// Whether that frame is out of service from now on, or from its last put.
    pub retired: bool,
    /// Who met it.
    pub met: Met,
}

/// Called with each failure.
pub type OnFailure = Box<dyn Fn(&Failure) + Send + Sync>;

/// Who is told of failures.
#[derive(Default)]
pub(crate) struct Listener(OnceLock<OnFailure>);

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
    /// Has `tell` called with every failure from now on, from whichever thread
    /// meets it; it waits for nothing and touches no guest memory. Only the
    /// first who asks is told.
    pub fn on_failure(&self, tell: OnFailure) {
        // Another would be a second control socket, which there is not.
        let _ = self.core.on_failure.0.set(tell);
    }

    /// Somebody met host memory that has failed: if it is a frame's, that frame
    /// is never handed out again. The granule stays in it; its other pages are
    /// as good as ever.
    ///
    /// False if it is not guest memory.
    pub fn memory_failed(&self, lost: Lost, met: Met) -> bool {
        let core = &self.core;
        let Some(granule) = core.space.at_hva(lost.0.start()) else { return false };
        core.damaged.insert(granule);
        let place = core.space.actual(granule, core.table.get(granule).place);
        let page = core.space.part(granule).and_then(|part| {
            let offset = (lost.0.start().0 - part.hva.0) as u64;
            GpaRange::new(Gpa(part.range.base().0 + offset), lost.0.len() as u64)
        });
        core.lose(granule, page, place, met);
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
        // The kernel tells the thread that asks as if it had touched the page
        // (`madvise_inject_error`, mm/madvise.c).
        let (failed, lost) = poison::in_guest(|| memory::fail_page(page));
        if let Some(lost) = lost {
            self.memory_failed(lost, Met::Ahead);
        }
        failed.map_err(FailPageError::Refused)
    }
}

impl Core {
    /// Host memory of `place` has failed: a frame is never handed out again.
    /// `page`: what of the granule was lost, if that is known.
    pub(crate) fn lose(&self, granule: Granule, page: Option<GpaRange>, place: Place, met: Met) {
        self.counters.lost.fetch_add(1, Ordering::Relaxed);
        let mut retired = false;
        if let Place::Device { pool, frame } = place
            && let Some(mut pool) = self.pool(pool)
        {
            if let Err(error) = pool.retire(frame) {
                drop(pool);
                (self.fatal)(&format!("the pool has lost count: {error}"));
            }
            retired = true;
        }
        if let Some(tell) = self.on_failure.0.get()
            && let Some(range) = page.or_else(|| self.space.gpa(granule, 1))
        {
            tell(&Failure { range, place, retired, met });
        }
    }
}
