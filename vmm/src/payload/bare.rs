//! Programs that write, check and time memory in CPL 3, and the control block
//! through which the host tells them what to do and reads what they found.
//!
//! A program is entered in long mode (see [`super::long_mode`]) with the
//! address of its [`Control`] in RDI and guest-physical memory mapped at equal
//! virtual addresses. It uses no stack and touches nothing but what the
//! control block names and the block itself. When it is done it writes
//! [`DONE`], four bytes, to [`Control::doorbell`]; entered again, it starts
//! over with whatever the control block says then. (No port: a KVM was seen
//! that forgets the I/O privilege level of a guest in CPL 3 when it faults.)
//!
//! The **writers** go through memory in passes, the words of one place after
//! the other, and give each word a value that follows from pass, address and
//! vCPU. Before they write, they look whether the word still has its value of
//! the pass before: a word that was lost, is old, or belongs elsewhere shows.
//! The **touchers** touch a list of words, one after the other, and write down
//! how long each took.
//!
//! The text below is assembled by the Rust compiler; it runs at any address.
#![allow(unsafe_code)]

use std::arch::global_asm;
use std::mem::offset_of;

/// Written to the doorbell by a program that has done what it was told.
pub const DONE: u32 = 0x0d0e;

/// Wrong words that are kept with their particulars; more are only counted.
pub const WRONG_WORDS: usize = 16;
/// Passes whose length is kept, the newest ones.
pub const PASS_TIMES: usize = 512;

/// What a program does. The discriminant is the order of the entry points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Entry {
    /// Checks each word and writes its next value.
    Write,
    /// The same, with the time of every touch.
    WriteTimed,
    /// Writes without a look at what was there.
    Blind,
    /// The same, with the time of every touch.
    BlindTimed,
    /// Checks each word and writes nothing; values stay those of one pass.
    Read,
    /// The same, with the time of every touch.
    ReadTimed,
    /// Writes the words of a list, with the time of each.
    TouchWrite,
    /// Reads the words of a list, with the time of each.
    TouchRead,
}

/// A word that had not the value that it should have had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WrongWord {
    /// Guest-physical address.
    pub gpa: u64,
    /// What should have been there.
    pub expected: u64,
    /// What was there.
    pub found: u64,
    /// Passes that were complete by then.
    pub pass: u64,
}

/// A touch that took long.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Stall {
    /// Guest-physical address of the word.
    pub gpa: u64,
    /// From the touch before to the end of this one, in TSC ticks.
    pub ticks: u64,
    /// Time stamp counter of the guest at its end.
    pub end: u64,
    /// Passes that were complete by then.
    pub pass: u64,
}

/// The control block of one vCPU. All times are ticks of the guest's time
/// stamp counter, all addresses guest-physical.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    // What the host asks of a writer. Set while the vCPU is out of the guest.
    /// First word.
    pub start: u64,
    /// First address after the last place.
    pub end: u64,
    /// Bytes from place to place.
    pub stride: u64,
    /// What a value grows by from place to place.
    pub stride_value: u64,
    /// Words at each place, at least 1.
    pub words: u64,
    /// Bytes from word to word of a place.
    pub word_step: u64,
    /// What a value grows by from word to word.
    pub word_value: u64,
    /// What a value grows by from pass to pass.
    pub pass_step: u64,
    /// The program is done when so many passes are complete.
    pub pass_limit: u64,
    /// Wrong words are errors in passes from this one on, counted from 0.
    pub check_from: u64,
    /// A timed touch this long is kept as a stall.
    pub stall_from: u64,
    /// Stalls that there is room for.
    pub stalls_max: u64,
    // What the host asks of a toucher.
    /// Entries of the list.
    pub list_len: u64,
    /// Ticks to let pass before each touch.
    pub gap: u64,
    /// Address of the table: stalls of a writer, or the list of a toucher, an
    /// address to touch each, which the ticks that it took take the place of.
    pub table: u64,
    /// Address where no memory is, for the exit that says that it is done.
    pub doorbell: u64,
    reserved: [u64; 16],

    // What the program says. On cache lines of its own.
    /// Value of the first word in the current pass; the host sets the first.
    pub value: u64,
    /// Complete passes.
    pub passes: u64,
    /// Words touched.
    pub touches: u64,
    /// Wrong words.
    pub errors: u64,
    /// Stalls, also those that found no room.
    pub stalls: u64,
    /// The longest touch.
    pub longest: u64,
    /// Where that was.
    pub longest_gpa: u64,
    /// Time stamp counter at the end of the last complete pass.
    pub pass_end: u64,
    reserved_2: [u64; 24],
    /// The first wrong words.
    pub wrong: [WrongWord; WRONG_WORDS],
    /// Timed touches by the logarithm of their length: 2^i to 2^(i+1) - 1
    /// ticks at index i.
    pub histogram: [u64; 64],
    reserved_3: [u64; 256 - 64],
    /// Length of pass n at index n modulo [`PASS_TIMES`].
    pub pass_ticks: [u64; PASS_TIMES],
}

const _: () = assert!(offset_of!(Control, value) == 0x100);
const _: () = assert!(offset_of!(Control, wrong) == 0x200);
const _: () = assert!(offset_of!(Control, pass_ticks) == 0xc00);
const _: () = assert!(size_of::<Control>() == 0x1c00);
// The programs scale by shifting.
const _: () = assert!(size_of::<WrongWord>() == 32 && size_of::<Stall>() == 32);
const _: () = assert!(PASS_TIMES.is_power_of_two());

// Registers of a writer: rsi place, r9 its value, rbx word, r10 its value, rcx
// words left, r11 touches, r12 value per pass, r13 found, r14 expected, r15
// time of the touch before; rax, rdx and rbp for the moment.
global_asm!(
    ".pushsection .rodata.neap_bare, \"a\"",
    ".macro neap_bare_ticks", // rax = time stamp counter
    "rdtsc",
    "shl rdx, 32",
    "or rax, rdx",
    ".endm",
    ".macro neap_bare_done", // tells the host, and starts over when run again
    "mov rdx, [rdi + {DOORBELL}]",
    "mov dword ptr [rdx], {DONE}",
    ".endm",
    //
    ".macro neap_bare_writer checks, writes, timed",
    "90:",
    "mov r12, [rdi + {PASS_STEP}]",
    "mov r11, [rdi + {TOUCHES}]",
    "neap_bare_ticks",
    "mov r15, rax",
    "mov [rdi + {PASS_END}], rax",
    "mov rax, [rdi + {PASSES}]",
    "cmp rax, [rdi + {PASS_LIMIT}]",
    "jae 80f",
    "20:", // a pass
    "mov r9, [rdi + {VALUE}]",
    "mov rsi, [rdi + {START}]",
    "30:", // a place
    "mov rbx, rsi",
    "mov r10, r9",
    "mov rcx, [rdi + {WORDS}]",
    "40:", // a word
    ".if \\checks",
    "mov r14, r10",
    "sub r14, r12",
    "mov r13, [rbx]",
    "cmp r13, r14",
    "jne 70f",
    "50:",
    ".endif",
    ".if \\writes",
    "mov [rbx], r10",
    ".endif",
    ".if \\timed",
    // A touch that faults is not over before its fault is resolved, and what
    // follows it is executed anew then: no fence is needed.
    "neap_bare_ticks",
    "mov rbp, rax",
    "sub rbp, r15",
    "mov r15, rax",
    "bsr rdx, rbp",
    "inc qword ptr [rdi + rdx * 8 + {HISTOGRAM}]",
    "cmp rbp, [rdi + {LONGEST}]",
    "ja 60f",
    "55:",
    "cmp rbp, [rdi + {STALL_FROM}]",
    "jae 65f",
    "57:",
    ".endif",
    "inc r11",
    "mov [rdi + {TOUCHES}], r11",
    "add rbx, [rdi + {WORD_STEP}]",
    "add r10, [rdi + {WORD_VALUE}]",
    "dec rcx",
    "jnz 40b",
    "add rsi, [rdi + {STRIDE}]",
    "add r9, [rdi + {STRIDE_VALUE}]",
    "cmp rsi, [rdi + {END}]",
    "jb 30b",
    ".if \\writes",
    "add [rdi + {VALUE}], r12",
    ".endif",
    "neap_bare_ticks",
    "mov rdx, rax",
    "xchg rdx, [rdi + {PASS_END}]",
    "sub rax, rdx",
    "mov rbp, [rdi + {PASSES}]",
    "mov rdx, rbp",
    "and edx, {PASS_MASK}",
    "mov [rdi + rdx * 8 + {PASS_TICKS}], rax",
    "inc rbp",
    "mov [rdi + {PASSES}], rbp",
    "cmp rbp, [rdi + {PASS_LIMIT}]",
    "jb 20b",
    "80:",
    "neap_bare_done",
    "jmp 90b",
    ".if \\timed",
    "60:", // the longest so far
    "mov [rdi + {LONGEST}], rbp",
    "mov [rdi + {LONGEST_GPA}], rbx",
    "jmp 55b",
    "65:", // a stall
    "mov rdx, [rdi + {STALLS}]",
    "inc qword ptr [rdi + {STALLS}]",
    "cmp rdx, [rdi + {STALLS_MAX}]",
    "jae 57b",
    "shl rdx, 5",
    "add rdx, [rdi + {TABLE}]",
    "mov [rdx], rbx",
    "mov [rdx + 8], rbp",
    "mov [rdx + 16], r15",
    "mov rax, [rdi + {PASSES}]",
    "mov [rdx + 24], rax",
    "jmp 57b",
    ".endif",
    ".if \\checks",
    "70:", // a wrong word
    "mov rbp, [rdi + {PASSES}]",
    "cmp rbp, [rdi + {CHECK_FROM}]",
    "jb 50b",
    "mov rdx, [rdi + {ERRORS}]",
    "inc qword ptr [rdi + {ERRORS}]",
    "cmp rdx, {WRONG_WORDS}",
    "jae 50b",
    "shl edx, 5",
    "lea rdx, [rdi + rdx + {WRONG}]",
    "mov [rdx], rbx",
    "mov [rdx + 8], r14",
    "mov [rdx + 16], r13",
    "mov [rdx + 24], rbp",
    "jmp 50b",
    ".endif",
    ".endm",
    //
    // rsi entry of the list, rcx entries left, rbx word, r15 time before.
    ".macro neap_bare_toucher writes",
    "90:",
    "mov rsi, [rdi + {TABLE}]",
    "mov rcx, [rdi + {LIST_LEN}]",
    "test rcx, rcx",
    "jz 80f",
    "20:",
    "mov rbx, [rsi]",
    "neap_bare_ticks",
    "mov r15, rax",
    "30:",
    "neap_bare_ticks",
    "sub rax, r15",
    "cmp rax, [rdi + {GAP}]",
    "jb 30b",
    "lfence",
    "neap_bare_ticks",
    "mov r15, rax",
    ".if \\writes",
    "mov [rbx], rcx",
    ".else",
    "mov r13, [rbx]",
    ".endif",
    "lfence",
    "neap_bare_ticks",
    "sub rax, r15",
    "mov [rsi], rax",
    "inc qword ptr [rdi + {TOUCHES}]",
    "add rsi, 8",
    "dec rcx",
    "jnz 20b",
    "80:",
    "neap_bare_done",
    "jmp 90b",
    ".endm",
    //
    ".balign 64",
    ".globl neap_bare_code",
    ".hidden neap_bare_code",
    "neap_bare_code:",
    ".Lneap_bare_0: neap_bare_writer 1, 1, 0",
    ".Lneap_bare_1: neap_bare_writer 1, 1, 1",
    ".Lneap_bare_2: neap_bare_writer 0, 1, 0",
    ".Lneap_bare_3: neap_bare_writer 0, 1, 1",
    ".Lneap_bare_4: neap_bare_writer 1, 0, 0",
    ".Lneap_bare_5: neap_bare_writer 1, 0, 1",
    ".Lneap_bare_6: neap_bare_toucher 1",
    ".Lneap_bare_7: neap_bare_toucher 0",
    ".globl neap_bare_code_end",
    ".hidden neap_bare_code_end",
    "neap_bare_code_end:",
    ".balign 8",
    ".globl neap_bare_entries",
    ".hidden neap_bare_entries",
    "neap_bare_entries:",
    ".irp entry, 0, 1, 2, 3, 4, 5, 6, 7",
    ".quad .Lneap_bare_\\entry - neap_bare_code",
    ".endr",
    ".purgem neap_bare_ticks",
    ".purgem neap_bare_done",
    ".purgem neap_bare_writer",
    ".purgem neap_bare_toucher",
    ".popsection",
    DONE = const DONE,
    START = const offset_of!(Control, start),
    END = const offset_of!(Control, end),
    STRIDE = const offset_of!(Control, stride),
    STRIDE_VALUE = const offset_of!(Control, stride_value),
    WORDS = const offset_of!(Control, words),
    WORD_STEP = const offset_of!(Control, word_step),
    WORD_VALUE = const offset_of!(Control, word_value),
    PASS_STEP = const offset_of!(Control, pass_step),
    PASS_LIMIT = const offset_of!(Control, pass_limit),
    CHECK_FROM = const offset_of!(Control, check_from),
    STALL_FROM = const offset_of!(Control, stall_from),
    STALLS_MAX = const offset_of!(Control, stalls_max),
    LIST_LEN = const offset_of!(Control, list_len),
    GAP = const offset_of!(Control, gap),
    TABLE = const offset_of!(Control, table),
    DOORBELL = const offset_of!(Control, doorbell),
    VALUE = const offset_of!(Control, value),
    PASSES = const offset_of!(Control, passes),
    TOUCHES = const offset_of!(Control, touches),
    ERRORS = const offset_of!(Control, errors),
    STALLS = const offset_of!(Control, stalls),
    LONGEST = const offset_of!(Control, longest),
    LONGEST_GPA = const offset_of!(Control, longest_gpa),
    PASS_END = const offset_of!(Control, pass_end),
    WRONG = const offset_of!(Control, wrong),
    WRONG_WORDS = const WRONG_WORDS,
    HISTOGRAM = const offset_of!(Control, histogram),
    PASS_TICKS = const offset_of!(Control, pass_ticks),
    PASS_MASK = const PASS_TIMES - 1,
);

unsafe extern "C" {
    static neap_bare_code: u8;
    static neap_bare_code_end: u8;
    static neap_bare_entries: [u64; 8];
}

/// The code of all programs.
pub fn code() -> &'static [u8] {
    let (start, end) = (&raw const neap_bare_code, &raw const neap_bare_code_end);
    // SAFETY: both symbols stand in one section of constants, the second one
    // behind the last byte of the first one's code (see the text above).
    unsafe { std::slice::from_raw_parts(start, end.addr() - start.addr()) }
}

impl Entry {
    /// Offset of the program in [`code`].
    pub fn offset(self) -> u64 {
        // SAFETY: an aligned table of 8 constants, one for each entry.
        let entries = unsafe { &neap_bare_entries };
        entries[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_lies_in_the_code_and_begins_in_its_own_way() {
        let all = [
            Entry::Write,
            Entry::WriteTimed,
            Entry::Blind,
            Entry::BlindTimed,
            Entry::Read,
            Entry::ReadTimed,
            Entry::TouchWrite,
            Entry::TouchRead,
        ];
        let offsets = all.map(Entry::offset);
        assert_eq!(offsets[0], 0);
        assert!(offsets.is_sorted_by(|a, b| a < b), "{offsets:?}");
        assert!(offsets[7] < code().len() as u64);
        assert!(code().len() < 4096, "{}", code().len());
        // mov r12, [rdi + 0x38]; mov rsi, [rdi + 0x70]
        assert_eq!(code()[..4], [0x4c, 0x8b, 0x67, 0x38]);
        assert_eq!(code()[offsets[6] as usize..][..4], [0x48, 0x8b, 0x77, 0x70]);
        // The last instruction is the jump back.
        assert_eq!(code()[code().len() - 2], 0xeb);
    }
}
