//! The granule table: one state word per granule of the guest's managed memory.
//!
//! Where a granule is, whether it moves, and how many pins hold it are *one*
//! word, changed by compare-exchange only. So of a pin and a claim that race
//! one wins, and the other sees it: a pin on a moving granule waits, a claim of
//! a pinned one is refused. To check first and to freeze later would lose
//! data: neither write-protection nor MAP_FIXED stops somebody who already
//! holds a reference to the page.
//!
//! Whoever claims owns the granule until [`GranuleTable::finish`] or
//! [`GranuleTable::abort`]: nobody else changes its word (waiters mark it, no
//! more), and what the mover wrote before is seen by whoever pins after.
//!
//! No deadlock: a claim never waits, and whoever holds a claim must not wait
//! for a pin or for another granule. Then every wait is for a move that goes
//! on, also where one thread holds pins while it waits for more.
//!
//! Every method panics if the granule is not of this table: numbers come from
//! the memory map, never unchecked from a guest or a client.
//!
//! Known hole: a [`Claimed`] that is dropped leaves its granule moving for
//! ever, and whoever touches it waits to the deadline. That is better than to
//! settle it without knowing where it is.

mod park;
mod runs;
mod state;
#[cfg(all(test, not(feature = "loom")))]
mod tests;
mod word;

use std::convert::Infallible;
use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::time::Instant;

use crate::granule::{Frame, Granule, PoolId};
use crate::sync::AtomicU64;
use crate::zeroed;
use park::ParkingLot;
pub use state::{ClaimError, PinError, Place, TryPinError, View};
use word::Word;

/// The right to move one granule, and the duty to say how that ended.
#[derive(Debug)]
#[must_use = "a claimed granule moves until `finish` or `abort`"]
pub struct Claimed {
    /// The granule.
    pub granule: Granule,
    /// Where it was when it was claimed.
    pub from: Place,
    /// Whether it was mapped into the guest then.
    pub was_mapped: bool,
    /// The word that was claimed; what an abort brings back.
    word: Word,
}

impl Claimed {
    fn new(granule: Granule, word: Word) -> Self {
        Self { granule, from: word.place(), was_mapped: word.is_mapped(), word }
    }
}

/// One state word per granule.
pub struct GranuleTable {
    words: Box<[AtomicU64]>,
    lot: ParkingLot,
}

impl GranuleTable {
    /// A table of `granules` untouched granules; takes no memory until words
    /// are written.
    pub fn new(granules: u32) -> Self {
        Self { words: zeroed::atomics(granules as usize), lot: ParkingLot::new() }
    }

    /// How many granules there are.
    pub fn granules(&self) -> u32 {
        // Made from a u32.
        self.words.len() as u32
    }

    /// Bytes of address space that the table takes for each granule.
    pub const BYTES_PER_GRANULE: usize = size_of::<u64>();

    /// The granule's state now.
    pub fn get(&self, granule: Granule) -> View {
        self.load(granule).view()
    }

    /// Puts a granule somewhere, for setting up before anybody else sees the
    /// table: it looks at nothing that was there.
    pub fn set(&self, granule: Granule, place: Place, mapped: bool) {
        self.word(granule).store(Word::settled(place, mapped).0, Release);
    }

    /// The same for a window: `count` granules from `first` in as many frames
    /// of `pool` from `frame`, all mapped.
    pub fn set_window(&self, first: Granule, count: u32, pool: PoolId, frame: Frame) {
        for n in 0..count {
            let frame = Frame(frame.0 + n);
            self.set(Granule(first.0 + n), Place::Device { pool, frame }, true);
        }
    }

    /// Takes the granule for a move. Never waits.
    ///
    /// # Errors
    /// Somebody else moves it, or it is pinned.
    pub fn claim(&self, granule: Granule) -> Result<Claimed, ClaimError> {
        let word = self.update(granule, |word| {
            if word.is_moving() {
                Err(ClaimError::Moving)
            } else if word.pins() != 0 {
                Err(ClaimError::Pinned)
            } else {
                Ok(word.moving())
            }
        })?;
        Ok(Claimed::new(granule, word))
    }

    /// Takes an untouched granule to give it its first page. Never waits; `None`
    /// if it was touched before or is moving.
    ///
    /// It may be pinned: whoever pinned it may be waiting for that very page,
    /// and there are no contents to be lost. But a pinned granule does not go
    /// to a frame, whose users its pins were not counted among: try
    /// [`Self::claim`] first, and after this finish with [`Place::Home`].
    pub fn claim_first(&self, granule: Granule) -> Option<Claimed> {
        let claimed = self.update(granule, |word| {
            if word.is_moving() || word.place() != Place::Untouched {
                Err(())
            } else {
                Ok(word.moving())
            }
        });
        claimed.ok().map(|word| Claimed::new(granule, word))
    }

    /// Ends a move: the granule is now at `to`. Wakes whoever waits for it.
    pub fn finish(&self, claimed: Claimed, to: Place, mapped: bool) {
        self.settle(claimed.granule, Word::settled(to, mapped));
    }

    /// Ends a move that came to nothing: the granule is where it was.
    pub fn abort(&self, claimed: Claimed) {
        self.settle(claimed.granule, Word::settled(claimed.word.place(), claimed.word.is_mapped()));
    }

    /// Holds the granule where it is; waits while it moves.
    ///
    /// # Errors
    /// It still moved at `deadline`, or it has too many pins.
    pub fn pin(&self, granule: Granule, deadline: Instant) -> Result<(), PinError> {
        loop {
            match self.try_pin(granule) {
                Ok(()) => return Ok(()),
                Err(TryPinError::TooMany) => return Err(PinError::TooMany),
                Err(TryPinError::Moving) => drop(self.wait_settled(granule, deadline)?),
            }
        }
    }

    /// Holds the granule where it is, if it does not move.
    ///
    /// # Errors
    /// It moves, or it has too many pins.
    pub fn try_pin(&self, granule: Granule) -> Result<(), TryPinError> {
        self.update(granule, |word| {
            if word.is_moving() {
                Err(TryPinError::Moving)
            } else {
                word.with_pin().ok_or(TryPinError::TooMany)
            }
        })
        .map(drop)
    }

    /// Takes back one pin.
    pub fn unpin(&self, granule: Granule) {
        let unpinned = self.update(granule, |word| word.without_pin().ok_or(()));
        debug_assert!(unpinned.is_ok(), "granule {granule} was not pinned");
    }

    /// Pins `count` granules from `first` in ascending order, or none.
    ///
    /// # Errors
    /// As [`Self::pin`], of the first granule that could not be pinned.
    pub fn pin_range(&self, first: Granule, count: u32, deadline: Instant) -> Result<(), PinError> {
        for n in 0..count {
            if let Err(error) = self.pin(Granule(first.0 + n), deadline) {
                self.unpin_range(first, n);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes back one pin of each of `count` granules from `first`.
    pub fn unpin_range(&self, first: Granule, count: u32) {
        for n in 0..count {
            self.unpin(Granule(first.0 + n));
        }
    }

    /// Waits until the granule does not move, and says how it was then; it may
    /// be claimed again right after.
    ///
    /// # Errors
    /// It still moved at `deadline`.
    pub fn wait_settled(&self, granule: Granule, deadline: Instant) -> Result<View, PinError> {
        let word = self.load(granule);
        if !word.is_moving() {
            return Ok(word.view());
        }
        let mut entered = self.lot.enter();
        loop {
            let marked =
                self.update(
                    granule,
                    |word| {
                        if word.is_moving() { Ok(word.waited()) } else { Err(word) }
                    },
                );
            if let Err(settled) = marked {
                return Ok(settled.view());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PinError::TimedOut);
            }
            entered = self.lot.wait(entered, left);
        }
    }

    /// The granules from `from` up to but without `to` (at most the table's
    /// end) as runs of equal state, in order. In a run of device frames they
    /// follow one another, and the view names the first. Each granule is read
    /// once at its own moment: the list is no snapshot while granules move.
    pub fn runs(
        &self,
        from: Granule,
        to: Granule,
    ) -> impl Iterator<Item = (Range<u32>, View)> + '_ {
        runs::Runs { table: self, next: from.0, end: to.0.min(self.granules()) }
    }

    fn word(&self, granule: Granule) -> &AtomicU64 {
        &self.words[granule.0 as usize]
    }

    fn load(&self, granule: Granule) -> Word {
        Word(self.word(granule).load(Acquire))
    }

    /// Replaces the word by what `change` makes of it, and returns the word
    /// that was replaced.
    fn update<E>(
        &self,
        granule: Granule,
        change: impl Fn(Word) -> Result<Word, E>,
    ) -> Result<Word, E> {
        let slot = self.word(granule);
        let mut old = slot.load(Acquire);
        loop {
            let new = change(Word(old))?;
            match slot.compare_exchange_weak(old, new.0, AcqRel, Acquire) {
                Ok(_) => return Ok(Word(old)),
                Err(now) => old = now,
            }
        }
    }

    fn settle(&self, granule: Granule, word: Word) {
        // Meanwhile waiters may have marked the word, and a granule that is
        // given its first page keeps its pins.
        let Ok(old) = self.update(granule, |old| Ok::<_, Infallible>(word.with_pins_of(old)));
        debug_assert!(old.is_moving(), "granule {granule} was settled twice");
        if old.is_waited() {
            self.lot.wake();
        }
    }
}
