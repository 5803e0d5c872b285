//! The device-public pool: the frames of one device region, who owns each, and
//! how many users it has.
//!
//! A frame's refcount counts its users and nothing else: 0 is free, the first
//! user makes it 1, and the put that makes it 0 again calls the pool's
//! `page_free` hook, as `dev_pagemap_ops.page_free` does in the kernel
//! (include/linux/memremap.h), where an off-by-one used to live.
//!
//! A pool has no lock and no thread of its own. It takes 6 1/4 bytes a frame,
//! all in zeroed memory that the kernel gives when it is first written, so that
//! a pool over any region is ready at once.
//!
//! Invariants: a frame is free in `space` if and only if its refcount is 0 and
//! it is not retired; `free + used + retired` is the number of frames.

mod bitmap;
mod runs;
mod space;
mod stats;
#[cfg(test)]
mod tests;

use thiserror::Error;

use crate::granule::{Frame, Granule, Kind, PoolId};
pub use runs::FrameRun;
use space::Space;
pub use stats::PoolStats;

/// Most users that a frame can have.
pub const MAX_REFCOUNT: u16 = RETIRED - 1;

/// In a frame's state: never to be handed out again. The rest is the refcount.
const RETIRED: u16 = 1 << 15;

/// Called with a frame that has just lost its last user.
pub type PageFree = Box<dyn FnMut(Frame) + Send>;

/// What a put came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The frame has other users.
    StillUsed,
    /// That was the last user; `page_free` has been called.
    Freed,
}

/// What is wrong with a request about a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// There is no such frame.
    #[error("frame {frame} is not one of the pool's {frames}")]
    OutOfRange {
        /// The frame asked for.
        frame: Frame,
        /// How many there are.
        frames: u32,
    },
    /// Nobody uses the frame.
    #[error("frame {0} is not in use")]
    NotInUse(Frame),
    /// The frame has [`MAX_REFCOUNT`] users.
    #[error("frame {0} has as many users as can be counted")]
    Overflow(Frame),
}

/// The frames of one device region.
pub struct Pool {
    id: PoolId,
    kind: Kind,
    space: Space,
    /// Valid while the frame is in use.
    owners: Vec<u32>,
    /// Refcount and `RETIRED`.
    states: Vec<u16>,
    stats: PoolStats,
    page_free: Option<PageFree>,
    closed: bool,
}

impl Pool {
    /// A pool of `frames` free frames.
    pub fn new(id: PoolId, frames: u32, kind: Kind) -> Self {
        Self {
            id,
            kind,
            space: Space::new(frames),
            owners: vec![0; frames as usize],
            states: vec![0; frames as usize],
            stats: PoolStats { frames, free: frames, ..PoolStats::default() },
            page_free: None,
            closed: false,
        }
    }

    /// Sets what is called with each frame that loses its last user.
    pub fn on_page_free(&mut self, hook: PageFree) {
        self.page_free = Some(hook);
    }

    /// Hands out no frame from now on, or again.
    pub fn close(&mut self, closed: bool) {
        self.closed = closed;
    }

    /// Whether it hands out none.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// The most frames that it can have: those that it was made with.
    pub fn most(&self) -> u32 {
        // Made from a u32.
        self.states.len() as u32
    }

    /// Has only its first `frames` frames from now on, which may be all that it
    /// was made with again. False, and nothing done, while anybody uses one, or
    /// if there never were so many.
    pub fn resize(&mut self, frames: u32) -> bool {
        if self.stats.used > 0 || frames == 0 || frames > self.most() {
            return false;
        }
        let mut space = Space::new(frames);
        let mut retired = 0;
        for frame in (0..frames).filter(|frame| self.is_retired(Frame(*frame))) {
            space.take(frame);
            retired += 1;
        }
        self.space = space;
        self.stats = PoolStats { frames, free: frames - retired, retired, ..self.stats };
        true
    }

    /// Which pool it is.
    pub fn id(&self) -> PoolId {
        self.id
    }

    /// What its frames are to processors.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many frames there are.
    pub fn frames(&self) -> u32 {
        self.stats.frames
    }

    /// How many frames can be handed out.
    pub fn free(&self) -> u32 {
        if self.closed { 0 } else { self.stats.free }
    }

    /// The pool in numbers.
    pub fn stats(&self) -> PoolStats {
        self.stats
    }

    /// Bytes of address space that the pool takes, whether used or not.
    pub fn metadata_bytes(&self) -> usize {
        self.space.bytes()
            + size_of_val(self.owners.as_slice())
            + size_of_val(self.states.as_slice())
    }

    /// A frame for `owner`, in constant time, with refcount 1. `None` if no
    /// frame is free. Frames of successive calls are neighbours where they can
    /// be.
    pub fn allocate(&mut self, owner: Granule) -> Option<Frame> {
        let Some(frame) = (!self.closed).then(|| self.space.take_next()).flatten() else {
            self.stats.refused += 1;
            return None;
        };
        self.hand_out(frame, 1, owner);
        Some(Frame(frame))
    }

    /// Up to `want` frames in a row for as many granules from `first_owner`
    /// on: the longest run found in a few looks, at least 1 long. `None` if no
    /// frame is free.
    pub fn allocate_run(&mut self, first_owner: Granule, want: u32) -> Option<(Frame, u32)> {
        // No run of granules goes past the last number.
        let want = want.min((u32::MAX - first_owner.0).saturating_add(1));
        let Some((first, count)) = (!self.closed).then(|| self.space.take_run(want)).flatten()
        else {
            self.stats.refused += 1;
            return None;
        };
        self.hand_out(first, count, first_owner);
        Some((Frame(first), count))
    }

    /// That very frame for `owner`; false if it is not free.
    pub fn allocate_at(&mut self, frame: Frame, owner: Granule) -> bool {
        self.allocate_window(frame, 1, owner)
    }

    /// `count` frames from `first` for as many granules from `first_owner`, as
    /// a window of special-purpose memory has them. False, and nothing done, if
    /// one of them is not free, or there is no such frame or granule.
    pub fn allocate_window(&mut self, first: Frame, count: u32, first_owner: Granule) -> bool {
        let within = first.0.checked_add(count).is_some_and(|end| end <= self.frames())
            && first_owner.0.checked_add(count).is_some();
        if self.closed || !within || !self.space.is_free_range(first.0, count) {
            self.stats.refused += 1;
            return false;
        }
        self.space.take_range(first.0, count);
        self.hand_out(first.0, count, first_owner);
        true
    }

    /// One user more of a frame in use.
    ///
    /// # Errors
    /// No such frame, not in use, or too many users.
    pub fn get(&mut self, frame: Frame) -> Result<(), PoolError> {
        let state = self.state_in_use(frame)?;
        if *state & !RETIRED == MAX_REFCOUNT {
            return Err(PoolError::Overflow(frame));
        }
        *state += 1;
        Ok(())
    }

    /// One user less. The last one frees the frame, unless it is retired, and
    /// calls `page_free`.
    ///
    /// # Errors
    /// No such frame, or not in use.
    pub fn put(&mut self, frame: Frame) -> Result<Put, PoolError> {
        let state = self.state_in_use(frame)?;
        *state -= 1;
        match *state {
            0 => {
                self.space.release(frame.0);
                self.stats.free += 1;
            }
            RETIRED => self.stats.retired += 1,
            _ => return Ok(Put::StillUsed),
        }
        self.stats.used -= 1;
        self.stats.frees += 1;
        // Last, so that a hook that panics finds the books in order.
        if let Some(hook) = &mut self.page_free {
            hook(frame);
        }
        Ok(Put::Freed)
    }

    /// Takes a frame out of service: it is never handed out again. One that is
    /// in use goes at its last put.
    ///
    /// # Errors
    /// No such frame.
    pub fn retire(&mut self, frame: Frame) -> Result<(), PoolError> {
        let frames = self.frames();
        let state = self
            .states
            .get_mut(frame.0 as usize)
            .filter(|_| frame.0 < frames)
            .ok_or(PoolError::OutOfRange { frame, frames })?;
        let before = std::mem::replace(state, *state | RETIRED);
        if before == 0 {
            self.space.take(frame.0);
            self.stats.free -= 1;
            self.stats.retired += 1;
        }
        Ok(())
    }

    /// Whether a frame is retired, in use or not.
    pub fn is_retired(&self, frame: Frame) -> bool {
        self.state(frame) & RETIRED != 0
    }

    /// The granule that a frame in use was handed out for.
    pub fn owner(&self, frame: Frame) -> Option<Granule> {
        if self.refcount(frame) == 0 {
            return None;
        }
        self.owners.get(frame.0 as usize).copied().map(Granule)
    }

    /// Makes another granule the owner of a frame in use.
    ///
    /// # Errors
    /// No such frame, or not in use.
    pub fn set_owner(&mut self, frame: Frame, owner: Granule) -> Result<(), PoolError> {
        self.state_in_use(frame)?;
        self.owners[frame.0 as usize] = owner.0;
        Ok(())
    }

    /// How many users a frame has; 0 if it is free or there is no such frame.
    pub fn refcount(&self, frame: Frame) -> u32 {
        u32::from(self.state(frame) & !RETIRED)
    }

    /// The frames in use as runs, in order: neighbours that belong to
    /// successive granules and are equal in the rest count as one.
    pub fn used_runs(&self) -> impl Iterator<Item = FrameRun> + '_ {
        runs::UsedRuns { pool: self, next: 0 }
    }

    fn state(&self, frame: Frame) -> u16 {
        self.states.get(frame.0 as usize).copied().unwrap_or(0)
    }

    fn state_in_use(&mut self, frame: Frame) -> Result<&mut u16, PoolError> {
        let frames = self.stats.frames;
        let state =
            self.states.get_mut(frame.0 as usize).ok_or(PoolError::OutOfRange { frame, frames })?;
        if *state & !RETIRED == 0 {
            return Err(PoolError::NotInUse(frame));
        }
        Ok(state)
    }

    /// Books frames that `space` has just taken.
    fn hand_out(&mut self, first: u32, count: u32, first_owner: Granule) {
        let range = first as usize..first as usize + count as usize;
        self.states[range.clone()].fill(1);
        for (owner, number) in self.owners[range].iter_mut().zip(first_owner.0..=u32::MAX) {
            *owner = number;
        }
        self.stats.free -= count;
        self.stats.used += count;
        self.stats.allocations += u64::from(count);
    }
}
