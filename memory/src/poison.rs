//! Host memory that has failed: what the kernel says of it by SIGBUS
//! (sigaction(2), `BUS_MCEERR_AR` and `BUS_MCEERR_AO`).
//!
//! A page whose contents are lost is unmapped; whoever touches it gets the
//! signal at that instruction. What that means depends on what the thread was
//! doing, which it says beforehand:
//!
//! * in KVM_RUN ([`in_guest`]) a vCPU touched it: the call returns EINTR, and
//!   the guest gets a machine check;
//! * copying ([`copying`]): the page is replaced by an empty one, so that the
//!   copy comes to its end, and the caller hears that it is void;
//! * anything else cannot go on: the process ends.
//!
//! A page that nobody has touched yet (`BUS_MCEERR_AO`) is put into a list,
//! and whoever asked for it is woken ([`announce`], [`announced`]).
#![allow(unsafe_code)]

use std::cell::Cell;
use std::fmt::{self, Write};
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering, compiler_fence};

use crate::addr::PAGE_SIZE;
use crate::hva::{Hva, HvaRange};

/// Memory whose contents are lost: whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost(pub HvaRange);

/// What a thread does that may touch guest memory.
#[derive(Clone, Copy)]
enum Doing {
    Other,
    Guest,
    Copy { from: HvaRange, to: HvaRange, private: bool },
}

thread_local! {
    static DOING: Cell<Doing> = const { Cell::new(Doing::Other) };
    static MET: Cell<Met> = const { Cell::new(Met { lost: [None; MET_MOST], count: 0 }) };
}

/// What a thread met since it began what it does.
#[derive(Clone, Copy)]
struct Met {
    lost: [Option<Lost>; MET_MOST],
    count: usize,
}

/// Pages that may fail within one copy; more is not a page that failed.
const MET_MOST: usize = 8;

static FATAL: OnceLock<fn(&str) -> !> = OnceLock::new();

/// Addresses with their pages' shift in the low bits, as they came; 0 is none.
static AHEAD: [AtomicUsize; 16] = [const { AtomicUsize::new(0) }; 16];
static AHEAD_WAKE: AtomicI32 = AtomicI32::new(-1);

/// From include/uapi/asm-generic/siginfo.h.
const BUS_ADRERR: i32 = 2;
const BUS_MCEERR_AR: i32 = 4;
const BUS_MCEERR_AO: i32 = 5;
/// Largest page that one signal can speak of, as a shift: 1 GiB.
const SHIFT_MAX: usize = 30;

/// Installs the handler, once for the process. `fatal` ends it where a thread
/// cannot go on; it is called from the handler and must neither allocate nor
/// wait for a lock.
///
/// # Errors
/// What sigaction(2) says.
pub fn install(fatal: fn(&str) -> !) -> io::Result<()> {
    if FATAL.set(fatal).is_err() {
        return Ok(());
    }
    // SAFETY: an all-zero `sigaction` is a valid one, and `handler` has the
    // signature that SA_SIGINFO wants. It only does what signal-safety(7)
    // allows: thread-locals without destructors, atomics, mmap and write.
    let result = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks for word of memory that fails before anybody touches it: `wake`, an
/// eventfd, is written then. Once for the process.
///
/// # Errors
/// What prctl(2) says.
pub fn announce(wake: OwnedFd) -> io::Result<()> {
    // It stays open, because the handler may be about to use it.
    AHEAD_WAKE.store(wake.into_raw_fd(), Ordering::Release);
    const EARLY: libc::c_ulong = libc::PR_MCE_KILL_EARLY as libc::c_ulong;
    // SAFETY: this option takes numbers only (prctl(2), PR_MCE_KILL).
    let result = unsafe {
        libc::prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_SET as libc::c_ulong, EARLY, 0, 0)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What has failed since this was asked last, without having been touched.
pub fn announced() -> Vec<Lost> {
    let words = AHEAD.iter().map(|slot| slot.swap(0, Ordering::AcqRel));
    words.filter(|word| *word != 0).map(|word| pages(word & !0xfff, word & 0xfff)).collect()
}

/// The page of `1 << shift` bytes at `address`; a shift that makes no page is
/// that of a small one.
fn pages(address: usize, shift: usize) -> Lost {
    let small = PAGE_SIZE.trailing_zeros() as usize;
    let shift = if (small..=SHIFT_MAX).contains(&shift) { shift } else { small };
    let size = 1 << shift;
    Lost(HvaRange::new(Hva(address & !(size - 1)), size))
}

/// Calls `run`, which enters the guest, or makes its memory fail, and touches
/// its memory in no other way; the second result is what the guest met.
pub fn in_guest<T>(run: impl FnOnce() -> T) -> (T, Option<Lost>) {
    let (result, met) = while_doing(Doing::Guest, run);
    (result, met.lost[0])
}

/// Calls `copy`, which copies `from` to `to` and touches no other guest
/// memory. `private`: both are private anonymous memory.
///
/// # Errors
/// What was lost of either; where it was now lies an empty page, which is not
/// the guest's memory any more, and the copy is void. Of private memory it is a
/// page like any other; of a file, a mapping that has to be put right.
pub(crate) fn copying(
    from: HvaRange,
    to: HvaRange,
    private: bool,
    copy: impl FnOnce(),
) -> Result<(), Vec<Lost>> {
    let ((), met) = while_doing(Doing::Copy { from, to, private }, copy);
    if met.count == 0 { Ok(()) } else { Err(met.lost.into_iter().flatten().collect()) }
}

fn while_doing<T>(doing: Doing, work: impl FnOnce() -> T) -> (T, Met) {
    let before = DOING.replace(doing);
    // The handler runs on this thread: program order is all that counts.
    compiler_fence(Ordering::SeqCst);
    let result = work();
    compiler_fence(Ordering::SeqCst);
    DOING.set(before);
    (result, MET.replace(Met { lost: [None; MET_MOST], count: 0 }))
}

/// Notes what this thread met.
fn meet(lost: Lost) {
    let mut met = MET.get();
    let Some(slot) = met.lost.get_mut(met.count) else { end("too many pages failed at once") };
    *slot = Some(lost);
    met.count += 1;
    MET.set(met);
}

extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the address of this thread's own variable. Whoever was interrupted
    // may be about to look at it.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { errno.read() };
    handle(info);
    // SAFETY: as above.
    unsafe { errno.write(before) };
}

fn handle(info: *mut libc::siginfo_t) {
    /// `siginfo_t` as far as SIGBUS fills it (x86-64).
    #[repr(C)]
    struct Fault {
        signo: i32,
        errno: i32,
        code: i32,
        pad: i32,
        address: usize,
        shift: i16,
    }
    const _: () = assert!(std::mem::offset_of!(Fault, address) == 16);
    const _: () = assert!(size_of::<Fault>() <= size_of::<libc::siginfo_t>());
    // SAFETY: the kernel passes a whole `siginfo_t`, of which these are the
    // first fields, and it lives until the handler returns.
    let Fault { code, address, shift, .. } = unsafe { info.cast::<Fault>().read() };
    let lost = pages(address, usize::try_from(shift).unwrap_or(0));
    if code == BUS_MCEERR_AO {
        return keep(lost);
    }
    // A thread at its end touches no guest memory.
    match DOING.try_with(Cell::get).unwrap_or(Doing::Other) {
        Doing::Guest if code == BUS_MCEERR_AR => meet(lost),
        // Whatever the code: kernels without CONFIG_MEMORY_FAILURE say
        // BUS_ADRERR of a page that was poisoned by UFFDIO_POISON.
        Doing::Copy { from, to, private } => {
            let inside = [from, to].into_iter().find(|range| contains(range, address));
            match inside.and_then(|range| match (code, private) {
                // The file has no memory any more (a device that was unbound). All
                // of it: mappings of devices are not split (`dev_dax_may_split`
                // in drivers/dax/device.c).
                (BUS_ADRERR, false) => replace(Lost(range), address, range, private),
                _ => replace(lost, address, range, private),
            }) {
                Some(lost) => meet(lost),
                None => end_at("while memory was copied", code, address),
            }
        }
        _ => end_at("memory that Neap needs has failed, or a file was cut off", code, address),
    }
}

/// Ends the process with a message that has the signal's facts; on the stack,
/// because a handler must not allocate.
fn end_at(why: &str, code: i32, address: usize) -> ! {
    struct Text([u8; 160], usize);
    impl Write for Text {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            let room = self.0.get_mut(self.1..self.1 + part.len()).ok_or(fmt::Error)?;
            room.copy_from_slice(part.as_bytes());
            self.1 += part.len();
            Ok(())
        }
    }
    let mut text = Text([0; 160], 0);
    // What does not fit is left out.
    let _ = write!(text, "SIGBUS (code {code} at {address:#x}): {why}");
    end(str::from_utf8(&text.0[..text.1]).unwrap_or(why))
}

fn contains(range: &HvaRange, address: usize) -> bool {
    (range.start().0..range.end().0).contains(&address)
}

/// Puts an empty page where `lost` was; one that reaches beyond `range` is
/// taken for the small one at `address`.
fn replace(lost: Lost, address: usize, range: HvaRange, private: bool) -> Option<Lost> {
    let whole = lost.0.start() >= range.start() && lost.0.end() <= range.end();
    let lost = if whole { lost } else { pages(address, 0) };
    let start = lost.0.start().as_ptr().cast();
    if private {
        // SAFETY: the page is within a range that this thread said it alone
        // uses; without its page it reads as zeros, and nobody reads it as guest
        // memory before the copy is known to be void.
        let dropped = unsafe { libc::madvise(start, lost.0.len(), libc::MADV_DONTNEED) };
        return (dropped == 0).then_some(lost);
    }
    // SAFETY: as above; the mapping of the file there is an alias, which the
    // caller puts right.
    let mapped = unsafe {
        libc::mmap(
            start,
            lost.0.len(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    (mapped != libc::MAP_FAILED).then_some(lost)
}

/// Notes what failed ahead; with the list full it is heard of when touched.
fn keep(lost: Lost) {
    let word = lost.0.start().0 | lost.0.len().trailing_zeros() as usize;
    for slot in &AHEAD {
        if slot.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            break;
        }
    }
    wake(AHEAD_WAKE.load(Ordering::Acquire));
}

fn wake(fd: RawFd) {
    if fd >= 0 {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of this stack frame; the descriptor is never
        // closed (`announce`). An eventfd that is full is readable already.
        let _ = unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
    }
}

fn end(why: &str) -> ! {
    match FATAL.get() {
        Some(fatal) => fatal(why),
        // The handler is installed after `FATAL`.
        None => std::process::abort(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_an_address_is_whole_and_small_if_nothing_is_said() {
        let range = |lost: Lost| (lost.0.start().0, lost.0.len());
        assert_eq!(range(pages(0x7000_1234, 0)), (0x7000_1000, 0x1000));
        assert_eq!(range(pages(0x7000_1234, 12)), (0x7000_1000, 0x1000));
        assert_eq!(range(pages(0x7012_3456, 21)), (0x7000_0000, 0x20_0000));
        assert_eq!(range(pages(0x7012_3456, 63)), (0x7012_3000, 0x1000));
    }

    #[test]
    fn what_fails_ahead_is_listed_once_and_the_list_is_bounded() {
        for page in 1..=40 {
            keep(pages(page << 12, 12));
        }
        let listed = announced();
        assert_eq!(listed.len(), AHEAD.len());
        assert_eq!(listed[0], pages(1 << 12, 12));
        assert_eq!(announced(), []);
    }
}
