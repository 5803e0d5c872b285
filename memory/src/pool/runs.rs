//! The frames in use as a list of runs.

use super::Pool;
use crate::granule::{Frame, Granule};

/// Frames in a row that belong to as many granules in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRun {
    /// The first frame.
    pub first: Frame,
    /// How many.
    pub count: u32,
    /// Owner of the first.
    pub owner: Granule,
    /// Users of each.
    pub refcount: u32,
    /// Whether they go out of service at their last put.
    pub retired: bool,
}

/// Iterator of [`Pool::used_runs`].
pub(super) struct UsedRuns<'a> {
    pub(super) pool: &'a Pool,
    pub(super) next: u32,
}

impl UsedRuns<'_> {
    /// The frame as a run of one, if it is in use.
    fn one(&self, frame: u32) -> Option<FrameRun> {
        let first = Frame(frame);
        Some(FrameRun {
            first,
            count: 1,
            owner: self.pool.owner(first)?,
            refcount: self.pool.refcount(first),
            retired: self.pool.is_retired(first),
        })
    }
}

impl Iterator for UsedRuns<'_> {
    type Item = FrameRun;

    fn next(&mut self) -> Option<FrameRun> {
        let mut run = loop {
            // Retired frames are taken although nobody uses them.
            let frame = self.pool.space.next_taken(self.next)?;
            self.next = frame + 1;
            if let Some(run) = self.one(frame) {
                break run;
            }
        };
        while let Some(one) = self.one(self.next) {
            let owner = run.owner.0.checked_add(run.count).map(Granule);
            let next = FrameRun { first: run.first, count: run.count, ..one };
            if owner != Some(one.owner) || next != (FrameRun { owner: one.owner, ..run }) {
                break;
            }
            run.count += 1;
            self.next += 1;
        }
        Some(run)
    }
}
