//! A loop whose speed tells how guest code is executed.

/// Asks the host for a count at port [`PORT`], counts it down, and asks
/// again: the time between two requests is that of
/// [`INSTRUCTIONS_PER_COUNT`] instructions a count, plus one exit.
///
/// The bytes mean the same in CPL 0 and CPL 3 and touch no memory but the
/// page they lie in. A count of 0 stands for 2^32.
#[rustfmt::skip]
pub const COUNTING_LOOP: [u8; 7] = [
    0xed,       // in eax, dx   (start)
    0xff, 0xc8, // dec eax      (again)
    0x75, 0xfc, // jnz again
    0xeb, 0xf9, // jmp start
];

/// I/O port at which [`COUNTING_LOOP`] asks, in DX at its start. No in-kernel
/// device answers there.
pub const PORT: u16 = 0x510;

/// Instructions that [`COUNTING_LOOP`] executes for each count: `dec`, `jnz`.
pub const INSTRUCTIONS_PER_COUNT: u64 = 2;
