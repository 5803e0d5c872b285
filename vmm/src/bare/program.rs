//! What vCPUs can be told to do, and how it gets into their control blocks.

use std::mem::offset_of;
use std::time::Duration;

use neap_memory::addr::PAGE_SIZE;
use neap_memory::{Gpa, GpaRange};

use super::BareError;
use super::control::{ControlMemory, LIST_MAX, STALLS_MAX};
use crate::payload::bare::{Control, Entry};

/// What a writer does to each word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Checks it and writes the next value.
    CheckAndWrite,
    /// Writes the next value without a look.
    Write,
    /// Checks it. Values are those that a writer with the same range, stride,
    /// words and seed leaves after [`Writer::after`] passes.
    Check,
}

/// A vCPU that goes through memory in passes. Each pass visits every place
/// (`stride` bytes apart) and touches `words` words there.
///
/// A word's value after `n` passes is [`Writer::value`]; before the first
/// pass it may be anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// Guest-physical memory to go through.
    pub range: GpaRange,
    /// Offset of the first word from the start of the range, in bytes.
    pub offset: u64,
    /// Bytes from place to place.
    pub stride: u64,
    /// Words at each place, at least 1.
    pub words: u64,
    /// Bytes from word to word of a place.
    pub word_step: u64,
    /// What is done to each word.
    pub access: Access,
    /// Whether each touch is timed. Costs some 20 ns a touch.
    pub timed: bool,
    /// A timed touch this long is kept, see [`super::Guest::stalls`].
    pub stall_from: Duration,
    /// Complete passes after which it is done; `None`: it goes on for ever.
    pub passes: Option<u64>,
    /// Complete passes that memory has behind it when the writer starts.
    pub after: u64,
    /// Tells the values of different writers apart.
    pub seed: u64,
}

/// Odd, and without structure: every value differs from its neighbours' and
/// its own of other passes.
const PASS_STEP: u64 = 0x9e37_79b9_7f4a_7c15;
const ADDRESS_STEP: u64 = 0xd6e8_feb8_6659_fd93;
const SEED_STEP: u64 = 0xa076_1d64_78bd_642f;

impl Writer {
    /// A writer that checks and writes the first word of every 4 KiB page of
    /// `range`, for ever.
    pub fn over(range: GpaRange) -> Self {
        Self {
            range,
            offset: 0,
            stride: PAGE_SIZE,
            words: 1,
            word_step: 8,
            access: Access::CheckAndWrite,
            timed: false,
            stall_from: Duration::from_micros(20),
            passes: None,
            after: 0,
            seed: 0,
        }
    }

    /// The share of vCPU `cpu` of `cpus`: every `cpus`-th place.
    pub fn interleaved(mut self, cpu: usize, cpus: usize) -> Self {
        self.offset += self.stride * cpu as u64;
        self.stride *= cpus as u64;
        self.seed = cpu as u64;
        self
    }

    /// Every place, but words of vCPU `cpu`'s own, on cache lines of its own:
    /// a page has room for 32 vCPUs with two words each.
    pub fn own_words(mut self, cpu: usize) -> Self {
        self.offset += 128 * cpu as u64;
        self.seed = cpu as u64;
        self
    }

    /// Value of the word at `gpa` after `passes` complete passes; see
    /// [`Writer::after`] for how they are counted.
    pub fn value(&self, passes: u64, gpa: Gpa) -> u64 {
        let of = |step: u64, count: u64| step.wrapping_mul(count);
        of(PASS_STEP, passes)
            .wrapping_add(of(ADDRESS_STEP, gpa.0))
            .wrapping_add(of(SEED_STEP, self.seed))
    }

    /// Every word that it touches in a pass, in its order.
    pub fn words(&self) -> impl Iterator<Item = Gpa> + '_ {
        let places = (self.start()..self.range.end().0).step_by(self.stride.max(1) as usize);
        places.flat_map(move |place| {
            (0..self.words).map(move |word| Gpa(place + word * self.word_step))
        })
    }

    fn start(&self) -> u64 {
        self.range.base().0.saturating_add(self.offset)
    }

    /// The range that holds all of its words; `None` if the numbers make no
    /// sense.
    fn extent(&self) -> Option<GpaRange> {
        let aligned = [self.start(), self.stride, self.word_step].iter().all(|n| n % 8 == 0);
        let length = self.range.end().0.checked_sub(self.start())?.checked_sub(1)?;
        let places = length.checked_div(self.stride)?;
        let last = places * self.stride;
        let word = self.words.checked_sub(1)?.checked_mul(self.word_step)?;
        let size = last.checked_add(word)?.checked_add(8)?;
        aligned.then(|| GpaRange::new(Gpa(self.start()), size)).flatten()
    }

    fn entry(&self) -> Entry {
        match (self.access, self.timed) {
            (Access::CheckAndWrite, false) => Entry::Write,
            (Access::CheckAndWrite, true) => Entry::WriteTimed,
            (Access::Write, false) => Entry::Blind,
            (Access::Write, true) => Entry::BlindTimed,
            (Access::Check, false) => Entry::Read,
            (Access::Check, true) => Entry::ReadTimed,
        }
    }
}

/// A vCPU that touches words one after the other and times each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toucher {
    /// The words, in order.
    pub words: Vec<Gpa>,
    /// Whether it writes to them (their place from the end of the list) or
    /// reads them.
    pub writes: bool,
    /// Time to let pass before each touch, so that whoever resolves faults is
    /// back at its wait.
    pub gap: Duration,
}

pub(super) fn load_writer(
    control: &ControlMemory,
    cpu: usize,
    writer: &Writer,
    tsc_khz: u64,
) -> Result<Gpa, BareError> {
    let refused = || BareError::Refused(format!("{writer:?} touches what is not guest memory"));
    let extent = writer.extent().ok_or_else(refused)?;
    if !control.guest_has(&extent) {
        return Err(refused());
    }
    control.clear(cpu);
    // Checking expects the value of the pass before that which it would
    // write, so a reader is one pass ahead.
    let next = writer.after.wrapping_add(1);
    let check_from = match (writer.access, writer.after) {
        (Access::CheckAndWrite, 0) => 1,
        _ => 0,
    };
    let fields = [
        (offset_of!(Control, start), writer.start()),
        (offset_of!(Control, end), writer.range.end().0),
        (offset_of!(Control, stride), writer.stride),
        (offset_of!(Control, stride_value), ADDRESS_STEP.wrapping_mul(writer.stride)),
        (offset_of!(Control, words), writer.words),
        (offset_of!(Control, word_step), writer.word_step),
        (offset_of!(Control, word_value), ADDRESS_STEP.wrapping_mul(writer.word_step)),
        (offset_of!(Control, pass_step), PASS_STEP),
        (offset_of!(Control, pass_limit), writer.passes.unwrap_or(u64::MAX)),
        (offset_of!(Control, check_from), check_from),
        (offset_of!(Control, stall_from), ticks(writer.stall_from, tsc_khz)),
        (offset_of!(Control, stalls_max), STALLS_MAX),
        (offset_of!(Control, table), control.table(cpu).0),
        (offset_of!(Control, doorbell), control.doorbell().0),
        (offset_of!(Control, value), writer.value(next, Gpa(writer.start()))),
    ];
    fields.into_iter().for_each(|(offset, value)| control.store(cpu, offset, value));
    Ok(control.entry(writer.entry()))
}

pub(super) fn extend_writer(control: &ControlMemory, cpu: usize, passes: u64) {
    control.store(cpu, offset_of!(Control, pass_limit), passes);
}

pub(super) fn load_toucher(
    control: &ControlMemory,
    cpu: usize,
    toucher: &Toucher,
    tsc_khz: u64,
) -> Result<Gpa, BareError> {
    let count = toucher.words.len() as u64;
    if count > LIST_MAX {
        return Err(BareError::Refused(format!("{count} words to touch; {LIST_MAX} fit")));
    }
    let outside = |gpa: &&Gpa| {
        !gpa.is_aligned(8) || !GpaRange::new(**gpa, 8).is_some_and(|word| control.guest_has(&word))
    };
    if let Some(gpa) = toucher.words.iter().find(outside) {
        return Err(BareError::Refused(format!("there is no word of guest memory at {gpa}")));
    }
    control.clear(cpu);
    for (index, gpa) in toucher.words.iter().enumerate() {
        control.store_table(cpu, index as u64, gpa.0);
    }
    control.store(cpu, offset_of!(Control, list_len), count);
    control.store(cpu, offset_of!(Control, gap), ticks(toucher.gap, tsc_khz));
    control.store(cpu, offset_of!(Control, table), control.table(cpu).0);
    control.store(cpu, offset_of!(Control, doorbell), control.doorbell().0);
    Ok(control.entry(if toucher.writes { Entry::TouchWrite } else { Entry::TouchRead }))
}

fn ticks(time: Duration, tsc_khz: u64) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(tsc_khz) / 1_000_000).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(base: u64, size: u64) -> GpaRange {
        GpaRange::new(Gpa(base), size).unwrap()
    }

    #[test]
    fn shares_meet_every_page_once_and_own_words_meet_every_page_each() {
        let whole = Writer::over(range(0x10000, 8 * 4096));
        let mut shared: Vec<_> = (0..3)
            .flat_map(|cpu| whole.clone().interleaved(cpu, 3).words().collect::<Vec<_>>())
            .collect();
        shared.sort();
        assert_eq!(shared, whole.words().collect::<Vec<_>>());
        let own: Vec<_> = whole.clone().own_words(1).words().collect();
        assert!(own.iter().all(|word| word.0 % 4096 == 128) && own.len() == 8);
    }

    #[test]
    fn values_differ_by_pass_address_and_writer() {
        let writer = Writer::over(range(0, 4096));
        let other = writer.clone().own_words(1);
        let values = [
            writer.value(1, Gpa(0)),
            writer.value(2, Gpa(0)),
            writer.value(1, Gpa(8)),
            other.value(1, Gpa(0)),
        ];
        for (index, value) in values.iter().enumerate() {
            assert!(*value != 0 && !values[..index].contains(value), "{values:x?}");
        }
    }

    #[test]
    fn the_extent_ends_with_the_last_word() {
        let mut writer = Writer::over(range(0, 3 * 4096));
        assert_eq!(writer.extent(), Some(range(0, 2 * 4096 + 8)));
        writer.words = 512;
        assert_eq!(writer.extent(), Some(range(0, 3 * 4096)));
        writer.words = 0;
        assert_eq!(writer.extent(), None);
        let odd = Writer { stride: 12, ..Writer::over(range(0, 4096)) };
        assert_eq!(odd.extent(), None);
        assert_eq!(Writer::over(range(0, 4096)).interleaved(1, 2).extent(), None);
    }
}
