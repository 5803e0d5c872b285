//! How a granule is claimed for a move: what may be, with the frame, the mappings
//! and the memory that it takes.

use super::core::{Core, Job, lock};
use super::room::Room;
use crate::granule::{Granule, Kind, PoolId};
use crate::migrate::reserve::Reserve;
use crate::migrate::{MigrateRequest, Outcome, Target};
use crate::table::{ClaimError, Claimed, Place, View};

impl Core {
    /// Claims `granule` for what `request` wants, with a frame if it is to go
    /// to a pool: one of `frames`, which are of that pool. `last` is the end of
    /// the job before, whose mapping this one may continue.
    pub(crate) fn claim(
        &self,
        granule: Granule,
        request: &MigrateRequest,
        frames: &mut Option<Reserve>,
        last: Option<(Granule, Place)>,
    ) -> Result<Job, Outcome> {
        let mut view = self.table.get(granule);
        self.check(granule, view, request)?;
        if view.place == Place::Untouched {
            // Where first touches are watched the table knows of every page,
            // and whoever made one present here would wait for the fault thread.
            let watched = self.watches_first_touch && !self.is_window(granule);
            if watched || !(request.select.untouched || self.engine.exists(granule)) {
                return Err(Outcome::Untouched);
            }
            if self.engine.adopts() {
                self.adopt(granule)?;
                view = self.table.get(granule);
                // Passed over because of a pin that may be gone by now. It is
                // not watched, and without its page it would read as zeros.
                if view.place == Place::Untouched {
                    return Err(Outcome::Busy);
                }
            }
        }
        let (pool, to) = match (request.to, frames) {
            (Target::Pool(pool), Some(frames)) => {
                let frame = frames.take(self, granule).ok_or(Outcome::NoFrame)?;
                (Some((frames, frame)), Place::Device { pool, frame })
            }
            _ => (None, Place::Home),
        };
        let claimed = self.claim_to(granule, view, to, last);
        let (Err(outcome), Some((frames, frame))) = (&claimed, pool) else { return claimed };
        frames.untake(frame);
        match (outcome, request.to) {
            (Outcome::NoMemory, Target::Pool(pool)) => {
                // What is left of the run may have frames with memory.
                if let Some(mut pool) = self.pool(pool) {
                    frames.release(&mut pool);
                }
                self.claim_with_memory(granule, view, pool, last)
            }
            _ => claimed,
        }
    }

    /// Claims a granule to go to `to`, with all that its move takes.
    pub(super) fn claim_to(
        &self,
        granule: Granule,
        view: View,
        to: Place,
        last: Option<(Granule, Place)>,
    ) -> Result<Job, Outcome> {
        let mut job = self.claim_for(granule, view, to)?;
        job.vmas = self.vmas(&job, last);
        if job.vmas > 0 && !lock(&self.budget).take(job.vmas) {
            self.abort(job.claimed);
            return Err(Outcome::VmaBudget);
        }
        self.with_room(job, Room::take)
    }

    /// The same for a free frame that has its memory already, where there is no
    /// room for more.
    pub(super) fn claim_with_memory(
        &self,
        granule: Granule,
        view: View,
        pool: PoolId,
        last: Option<(Granule, Place)>,
    ) -> Result<Job, Outcome> {
        let frame = self.frame_with_memory(pool, granule).ok_or(Outcome::NoMemory)?;
        let to = Place::Device { pool, frame };
        let claimed = self.claim_to(granule, view, to, last);
        if claimed.is_err() {
            self.put(to);
        }
        claimed
    }

    /// What speaks against moving the granule, without touching it.
    pub(super) fn check(
        &self,
        granule: Granule,
        view: View,
        request: &MigrateRequest,
    ) -> Result<(), Outcome> {
        let actual = self.space.actual(granule, view.place);
        if let Place::Device { pool, frame } = actual {
            match request.to {
                Target::Pool(to) if to == pool => return Err(Outcome::AlreadyThere),
                _ => {}
            }
            let selected = match self.kind_for(granule, pool) {
                Kind::Public => request.select.device_public,
                Kind::Private => request.select.device_private,
                Kind::Generic => false,
            };
            if !selected || request.from_pool.is_some_and(|from| from != pool) {
                return Err(Outcome::WrongKind);
            }
            let refcount = self.pool(pool).map_or(0, |pool| pool.refcount(frame));
            if refcount > 1 {
                return Err(Outcome::Pinned);
            }
        } else if request.to == Target::Home {
            return Err(Outcome::AlreadyThere);
        } else if !request.select.system {
            return Err(Outcome::WrongKind);
        }
        if let Target::Pool(to) = request.to
            && self.kind_for(granule, to) == Kind::Generic
        {
            return Err(Outcome::WrongKind);
        }
        match view {
            _ if self.damaged.contains(granule) || self.gone.has(actual) => Err(Outcome::Poisoned),
            View { moving: true, .. } => Err(Outcome::Busy),
            View { pins: 1.., .. } => Err(Outcome::Pinned),
            _ => Ok(()),
        }
    }

    /// Claims a granule that was as `view` says, to go to `to`.
    pub(crate) fn claim_for(
        &self,
        granule: Granule,
        view: View,
        to: Place,
    ) -> Result<Job, Outcome> {
        let claimed = self.table.claim(granule).map_err(|error| match error {
            ClaimError::Moving => Outcome::Busy,
            ClaimError::Pinned => Outcome::Pinned,
        })?;
        if claimed.from != view.place {
            self.abort(claimed);
            return Err(Outcome::Busy);
        }
        let from = self.space.actual(granule, claimed.from);
        // Looked at after it was claimed: whoever finds a region gone gives up
        // what is not claimed by then.
        if self.gone.has(from) {
            self.abort(claimed);
            return Err(Outcome::Poisoned);
        }
        if self.gone.has(to) {
            self.abort(claimed);
            return Err(Outcome::BadFrame);
        }
        let aside = View { place: claimed.from, pins: 0, moving: true, mapped: claimed.was_mapped };
        let from_mapped = claimed.was_mapped
            || claimed.from == Place::Untouched
            || self.engine.aside_is_mapped() && self.is_aside(granule, &aside);
        let to_mapped = match to {
            Place::Device { pool, .. } => self.kind_for(granule, pool) != Kind::Private,
            Place::Home | Place::Untouched => true,
        };
        Ok(Job { claimed, from, from_mapped, to, to_mapped, vmas: 0, charge: 0 })
    }

    /// The job with room for the memory that it takes, or nothing done.
    pub(super) fn with_room(
        &self,
        mut job: Job,
        take: impl FnOnce(&mut Room, u64) -> bool,
    ) -> Result<Job, Outcome> {
        job.charge = self.charge_of(|| self.engine.takes(&job.step()));
        if take(&mut lock(&self.room), job.charge) {
            return Ok(job);
        }
        if job.vmas > 0 {
            lock(&self.budget).given_up(job.vmas);
        }
        self.abort(job.claimed);
        Err(Outcome::NoMemory)
    }

    /// What `takes` says, asked only if there is a limit that it counts for.
    pub(super) fn charge_of(&self, takes: impl FnOnce() -> u64) -> u64 {
        let limited = lock(&self.room).is_limited();
        if limited { takes() } else { 0 }
    }

    /// Lets go of a granule that was claimed and not touched.
    pub(super) fn abort(&self, claimed: Claimed) {
        let (granule, mapped) = (claimed.granule, claimed.was_mapped);
        self.table.abort(claimed);
        self.wake_settled(granule, mapped);
    }
}
