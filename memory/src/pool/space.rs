//! Which frames are taken, and which to hand out next.
//!
//! Placement is *next-fit*: a search begins where the last one ended. Two
//! things follow that later moves live on. Frames handed out one after another
//! are neighbours, so a batch that was put in granule by granule can be mapped
//! and moved back as one run. And a freed frame rests until the search has come
//! round, so that its neighbours can become free too and be handed out with it
//! as a run; first-fit would fill each hole at once with a lone granule, and
//! each lone granule costs a VMA.
//!
//! A run that does not fit where the search stands is looked for in a few of
//! the next holes, and then in the next *whole block* (64 frames of which none
//! is taken), which a second bitmap finds in constant time. Holes passed over
//! are left for single frames.

use super::bitmap::Bitmap;

/// Frames of a block, the unit of the second bitmap.
const BLOCK: u32 = u64::BITS;
/// How many holes are measured for one run. A hole costs about a cache miss; a
/// longer run saves VMAs and system calls. Twice as many are worth a tenth more
/// granules to a VMA, half as many cost an eighth (simulated as in
/// `tests/placement`).
const HOLES: u32 = 16;

/// The frames of a pool as free or taken.
pub(super) struct Space {
    taken: Bitmap,
    /// A bit for each block, set when any of its frames is taken.
    broken: Bitmap,
    /// Where the next search begins.
    cursor: u32,
}

impl Space {
    /// `frames` free frames.
    pub(super) fn new(frames: u32) -> Self {
        let mut broken = Bitmap::new(frames.div_ceil(BLOCK));
        if !frames.is_multiple_of(BLOCK) {
            broken.set(frames / BLOCK);
        }
        Self { taken: Bitmap::new(frames), broken, cursor: 0 }
    }

    /// Bytes that the bitmaps take.
    pub(super) fn bytes(&self) -> usize {
        self.taken.bytes() + self.broken.bytes()
    }

    /// Takes the next free frame.
    pub(super) fn take_next(&mut self) -> Option<u32> {
        let frame = self.next_free(self.cursor)?;
        self.take(frame);
        self.cursor = frame + 1;
        Some(frame)
    }

    /// Takes up to `want` frames in a row: the first run found that is long
    /// enough, else the longest of those looked at. Returns the first frame
    /// and how many, at least 1.
    pub(super) fn take_run(&mut self, want: u32) -> Option<(u32, u32)> {
        let (first, count) = self.find_run(want.max(1))?;
        self.take_range(first, count);
        self.cursor = first + count;
        Some((first, count))
    }

    /// Takes one free frame.
    pub(super) fn take(&mut self, frame: u32) {
        self.taken.set(frame);
        self.broken.set(frame / BLOCK);
    }

    /// Takes `count` frames from `first` on that are free.
    pub(super) fn take_range(&mut self, first: u32, count: u32) {
        if count > 0 {
            self.taken.set_range(first, count);
            let (low, high) = (first / BLOCK, (first + (count - 1)) / BLOCK);
            self.broken.set_range(low, high - low + 1);
        }
    }

    /// Whether `count` frames from `first` on are all free.
    pub(super) fn is_free_range(&self, first: u32, count: u32) -> bool {
        self.taken.clear_from(first, count) == count
    }

    /// Gives back a frame that is taken.
    pub(super) fn release(&mut self, frame: u32) {
        self.taken.clear(frame);
        if self.taken.word(frame / BLOCK) == 0 {
            self.broken.clear(frame / BLOCK);
        }
    }

    /// The first frame at or after `from` that is taken.
    pub(super) fn next_taken(&self, from: u32) -> Option<u32> {
        let mut frame = from;
        while frame < self.taken.bits() {
            let block = frame / BLOCK;
            let here = self.taken.word(block) & (u64::MAX << (frame % BLOCK));
            if here != 0 {
                // Bits past the end are set, too.
                let found = block * BLOCK + here.trailing_zeros();
                return Some(found).filter(|frame| *frame < self.taken.bits());
            }
            // The blocks that are whole are passed over 64 at a time.
            let next = block + 1;
            let whole =
                self.broken.clear_from(next, self.broken.bits() - next.min(self.broken.bits()));
            frame = (next + whole).checked_mul(BLOCK)?;
        }
        None
    }

    /// The first free frame at or after `from`, or else the very first.
    fn next_free(&self, from: u32) -> Option<u32> {
        self.taken.next_clear(from).or_else(|| self.taken.next_clear(0))
    }

    fn find_run(&self, want: u32) -> Option<(u32, u32)> {
        let mut longest: Option<(u32, u32)> = None;
        let mut from = self.cursor;
        for _ in 0..HOLES {
            let first = self.next_free(from)?;
            let count = self.taken.clear_from(first, want);
            if longest.is_none_or(|(_, most)| count > most) {
                longest = Some((first, count));
            }
            if count == want {
                return longest;
            }
            from = first + count;
        }
        let whole =
            self.broken.next_clear(self.cursor / BLOCK).or_else(|| self.broken.next_clear(0));
        if let Some(block) = whole {
            let first = block * BLOCK - self.taken.clear_before(block * BLOCK);
            let count = self.taken.clear_from(first, want);
            if longest.is_none_or(|(_, most)| count > most) {
                longest = Some((first, count));
            }
        }
        longest
    }
}
