//! A bitmap with summaries, so that the next clear bit is found in constant
//! time.
//!
//! Level 0 has a bit for each item; each level above has a bit for each word
//! below, set when that word is full of ones. Six levels of 64-bit words reach
//! past 2^32 items, so a search reads at most a dozen words whatever the size.
//! All clear is all zero: a new bitmap is zeroed memory, which the kernel gives
//! when it is first written.
//!
//! Invariant: bits past the last item are set on every level, so that no search
//! ever finds them.

const WORD: u32 = u64::BITS;

/// Bits that are set or clear, numbered from 0.
pub(super) struct Bitmap {
    /// From the items up to the level that is one word.
    levels: Vec<Vec<u64>>,
    bits: u32,
}

impl Bitmap {
    /// `bits` clear bits.
    pub(super) fn new(bits: u32) -> Self {
        let mut levels = Vec::new();
        let mut count = bits;
        loop {
            let words = count.div_ceil(WORD).max(1);
            let mut level = vec![0u64; words as usize];
            // Without an item, the only word has no item's bits.
            let used = if count == 0 { 0 } else { (count - 1) % WORD + 1 };
            if let Some(last) = level.last_mut() {
                *last = !ones(0, used);
            }
            levels.push(level);
            if words == 1 {
                break;
            }
            count = words;
        }
        Self { levels, bits }
    }

    /// How many bits there are.
    pub(super) fn bits(&self) -> u32 {
        self.bits
    }

    /// Bytes that the levels take.
    pub(super) fn bytes(&self) -> usize {
        self.levels.iter().map(|level| size_of_val(level.as_slice())).sum()
    }

    /// The 64 bits from `64 * index` on; ones past the end.
    pub(super) fn word(&self, index: u32) -> u64 {
        self.levels[0].get(index as usize).copied().unwrap_or(u64::MAX)
    }

    /// Whether a bit is set; bits past the end are.
    #[cfg(test)]
    pub(super) fn is_set(&self, bit: u32) -> bool {
        self.word(bit / WORD) & mask(bit) != 0
    }

    /// Sets a bit.
    pub(super) fn set(&mut self, bit: u32) {
        let mut bit = bit;
        for level in &mut self.levels {
            let word = &mut level[(bit / WORD) as usize];
            *word |= mask(bit);
            if *word != u64::MAX {
                break;
            }
            bit /= WORD;
        }
    }

    /// Clears a bit.
    pub(super) fn clear(&mut self, bit: u32) {
        let mut bit = bit;
        for level in &mut self.levels {
            let word = &mut level[(bit / WORD) as usize];
            let was_full = *word == u64::MAX;
            *word &= !mask(bit);
            if !was_full {
                break;
            }
            bit /= WORD;
        }
    }

    /// Sets `count` bits from `first` on, a word at a time.
    pub(super) fn set_range(&mut self, first: u32, count: u32) {
        // The bits of one level that are to be set, first to last.
        let mut range = if count == 0 { None } else { Some((first, first + (count - 1))) };
        for level in &mut self.levels {
            let Some((first, last)) = range else { break };
            let (low, high) = (first / WORD, last / WORD);
            for index in low..=high {
                let from = if index == low { first % WORD } else { 0 };
                let to = if index == high { last % WORD + 1 } else { WORD };
                level[index as usize] |= ones(from, to);
            }
            // All words between the two at the ends are full now.
            let low = low + u32::from(level[low as usize] != u64::MAX);
            range = if level[high as usize] == u64::MAX {
                Some((low, high))
            } else {
                high.checked_sub(1).map(|high| (low, high))
            }
            .filter(|(low, high)| low <= high);
        }
    }

    /// The first clear bit at or after `from`.
    pub(super) fn next_clear(&self, from: u32) -> Option<u32> {
        // Up, until a level has a clear bit in the word where the search is;
        // above level 0 the search is for the word *after* the one below.
        let mut from = from;
        for (height, level) in self.levels.iter().enumerate() {
            let index = from / WORD;
            let word = *level.get(index as usize)?;
            let clear = !word & ones(from % WORD, WORD);
            if clear != 0 {
                return Some(self.descend(height, index * WORD + clear.trailing_zeros()));
            }
            from = index + 1;
        }
        None
    }

    /// The first clear bit below a clear bit on level `height`.
    fn descend(&self, height: usize, bit: u32) -> u32 {
        self.levels[..height]
            .iter()
            .rev()
            .fold(bit, |index, level| index * WORD + (!level[index as usize]).trailing_zeros())
    }

    /// How many bits from `from` on are clear, counted up to `limit`.
    pub(super) fn clear_from(&self, from: u32, limit: u32) -> u32 {
        let mut found = 0;
        while found < limit {
            let Some(bit) = from.checked_add(found) else { break };
            let shift = bit % WORD;
            // The shift fills with zeroes from above, which are not counted.
            let here = (!self.word(bit / WORD) >> shift).trailing_ones();
            found += here;
            if here < WORD - shift {
                break;
            }
        }
        found.min(limit)
    }

    /// How many bits right before `from`, a multiple of 64, are clear, counted
    /// up to 64.
    pub(super) fn clear_before(&self, from: u32) -> u32 {
        match (from / WORD).checked_sub(1) {
            Some(index) => self.word(index).leading_zeros(),
            None => 0,
        }
    }
}

/// The one bit of a word that stands for `bit`.
const fn mask(bit: u32) -> u64 {
    1 << (bit % WORD)
}

/// Ones from bit `from` up to but without `to`, which is at most 64.
const fn ones(from: u32, to: u32) -> u64 {
    if from >= to { 0 } else { (u64::MAX >> (WORD - (to - from))) << from }
}

#[cfg(test)]
mod tests;
