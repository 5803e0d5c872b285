//! What the programs found, read while they run or after.

use std::mem::offset_of;
use std::time::Duration;

use super::control::STALLS_MAX;
use super::{Guest, Stall, WrongWord};
use crate::payload::bare::{Control, PASS_TIMES, WRONG_WORDS};

/// Counters of one vCPU's program, since it was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Complete passes.
    pub passes: u64,
    /// Words touched.
    pub touches: u64,
    /// Words that had not the value that they should have had.
    pub errors: u64,
    /// Timed touches of at least [`super::Writer::stall_from`].
    pub stalls: u64,
    /// The longest timed touch.
    pub longest: Duration,
    /// Where that was.
    pub longest_gpa: u64,
}

impl Guest {
    /// Counters of vCPU `cpu`, also while it runs; each is right by itself.
    /// All zero if there is no such vCPU.
    pub fn counters(&self, cpu: usize) -> Counters {
        if cpu >= self.cpus() {
            return Counters::default();
        }
        let load = |offset| self.control.load(cpu, offset);
        Counters {
            passes: load(offset_of!(Control, passes)),
            touches: load(offset_of!(Control, touches)),
            errors: load(offset_of!(Control, errors)),
            stalls: load(offset_of!(Control, stalls)),
            longest: self.duration(load(offset_of!(Control, longest))),
            longest_gpa: load(offset_of!(Control, longest_gpa)),
        }
    }

    /// The first [`WRONG_WORDS`] wrong words that vCPU `cpu` met.
    pub fn wrong_words(&self, cpu: usize) -> Vec<WrongWord> {
        let count = self.counters(cpu).errors.min(WRONG_WORDS as u64) as usize;
        let word = |index: usize, field: usize| {
            let at = offset_of!(Control, wrong) + index * size_of::<WrongWord>() + field;
            self.control.load(cpu, at)
        };
        let read = |index| WrongWord {
            gpa: word(index, offset_of!(WrongWord, gpa)),
            expected: word(index, offset_of!(WrongWord, expected)),
            found: word(index, offset_of!(WrongWord, found)),
            pass: word(index, offset_of!(WrongWord, pass)),
        };
        (0..count).map(read).collect()
    }

    /// The stalls that vCPU `cpu` had, in order; the first ones if there were
    /// more than fit (65 thousand).
    pub fn stalls(&self, cpu: usize) -> Vec<Stall> {
        let count = self.counters(cpu).stalls.min(STALLS_MAX);
        let word = |index: u64, field: usize| {
            self.control.load_table(cpu, (index * size_of::<Stall>() as u64 + field as u64) / 8)
        };
        let read = |index| Stall {
            gpa: word(index, offset_of!(Stall, gpa)),
            ticks: word(index, offset_of!(Stall, ticks)),
            end: word(index, offset_of!(Stall, end)),
            pass: word(index, offset_of!(Stall, pass)),
        };
        (0..count).map(read).collect()
    }

    /// How many timed touches took 2^i to 2^(i+1) - 1 ticks, at index i.
    pub fn histogram(&self, cpu: usize) -> [u64; 64] {
        std::array::from_fn(|index| {
            if cpu >= self.cpus() {
                return 0;
            }
            self.control.load(cpu, offset_of!(Control, histogram) + 8 * index)
        })
    }

    /// How long the newest passes of vCPU `cpu` took, oldest first; at the most
    /// [`PASS_TIMES`] of them.
    pub fn pass_times(&self, cpu: usize) -> Vec<Duration> {
        let passes = self.counters(cpu).passes;
        let first = passes.saturating_sub(PASS_TIMES as u64);
        let ticks = |pass: u64| {
            let index = (pass % PASS_TIMES as u64) as usize;
            self.control.load(cpu, offset_of!(Control, pass_ticks) + 8 * index)
        };
        (first..passes).map(|pass| self.duration(ticks(pass))).collect()
    }

    /// How long each touch of the toucher of vCPU `cpu` took, as far as it is.
    pub fn touch_times(&self, cpu: usize) -> Vec<Duration> {
        let touches = self.counters(cpu).touches;
        (0..touches).map(|index| self.duration(self.control.load_table(cpu, index))).collect()
    }
}
