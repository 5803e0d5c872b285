//! The floor for anonymous memory: a program that moves one granule at a time
//! with `UFFDIO_MOVE` and knows nothing of pools, states or faults. For each
//! granule:
//!
//! 1. watch it: the program keeps no state that would tell that it does,
//! 2. move its page from the guest to a staging place,
//! 3. copy that to a frame,
//! 4. move the frame's page to the guest, which wakes who waits,
//! 5. move the staged page to where the frame was, as the next free frame.
//!
//! It never ends a watch, and all of guest memory is watched as one range from
//! the start, so the first step changes nothing and splits no mapping: it
//! costs a call, about a sixth of the work beside the copy.
#![allow(unsafe_code)]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use neap_memory::backing::{self, Mapped};
use neap_memory::guest::RangeSpec;
use neap_memory::hva::{Hva, HvaRange};
use neap_memory::region::Region;
use neap_memory::uffd::abi::Door;
use neap_memory::uffd::{Features, Modes, MoveError, Userfaultfd};
use neap_memory::{Backing, GuestMemory};
use rustix::io::Errno;

use super::host::{Places, SmallPages};
use super::{BenchError, Side, Spent, Variant, Way, system, window};
use crate::bare::Guest;

/// The program with its guest.
#[derive(Debug)]
pub struct FloorMove {
    // In the order in which they are to go.
    guest: Guest,
    uffd: Userfaultfd,
    memory: Arc<GuestMemory>,
    frames: Mapped,
    staging: Mapped,
    granule: usize,
    _small: Option<SmallPages>,
}

impl FloorMove {
    /// A guest of `size` bytes and as many bytes of frames, all present.
    ///
    /// # Errors
    /// Too little memory, or a kernel that cannot move pages.
    pub fn new(variant: Variant, size: u64, places: &Places) -> Result<Self, BenchError> {
        let small = variant.small_pages().then(SmallPages::only).transpose()?;
        let range = window(size)?;
        let spec = RangeSpec { range, backing: Backing::Anon, prefault: true };
        let memory = Arc::new(GuestMemory::new(&[spec])?);
        let frames = backing::map(size, Backing::Anon, 0, true)?;
        let granule = variant.granule().bytes();
        let staging = backing::map(granule.max(2 << 20), Backing::Anon, 0, false)?;
        let uffd = open_for_moves()?;
        let home = HvaRange::new(Hva(memory.slots()[0].hva as usize), size as usize);
        let registered = uffd
            .register(home, Modes::Missing)
            .and_then(|()| uffd.register(range_of(&frames.region), Modes::Missing))
            .and_then(|()| uffd.register(range_of(&staging.region), Modes::Missing));
        registered.map_err(system("UFFDIO_REGISTER"))?;
        let guest = Guest::new(Arc::clone(&memory), 1)?;
        places.pin(&guest)?;
        let granule = granule as usize;
        Ok(Self { guest, uffd, memory, frames, staging, granule, _small: small })
    }

    /// Moves one granule and answers how long the copy took.
    fn one(&self, granule: u64) -> Result<Duration, BenchError> {
        let offset = granule as usize * self.granule;
        let home = Hva(self.memory.slots()[0].hva as usize).offset(offset);
        let frame = range_of(&self.frames.region).start().offset(offset);
        let staging = range_of(&self.staging.region).start();
        let page = |start| HvaRange::new(start, self.granule);
        self.uffd.register(page(home), Modes::Missing).map_err(system("UFFDIO_REGISTER"))?;
        // SAFETY: three places of anonymous memory that `self` owns and
        // watches; only vCPUs access the first, nobody the others.
        unsafe { move_page(&self.uffd, page(home), staging) }?;
        let since = Instant::now();
        // SAFETY: both are mapped, apart and as long as a granule; the page is
        // out of the guest's reach.
        unsafe {
            std::ptr::copy_nonoverlapping(staging.as_ptr(), frame.as_ptr(), self.granule);
        }
        let copying = since.elapsed();
        // SAFETY: as above.
        unsafe { move_page(&self.uffd, page(frame), home) }?;
        // SAFETY: as above.
        unsafe { move_page(&self.uffd, page(staging), frame) }?;
        Ok(copying)
    }
}

impl Side for FloorMove {
    fn send(&mut self, granules: &[u64], _: Way) -> Result<Spent, BenchError> {
        let since = Instant::now();
        let mut copying = Duration::ZERO;
        for granule in granules {
            copying += self.one(*granule)?;
        }
        Ok(Spent { elapsed: since.elapsed(), copying })
    }

    fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// A userfaultfd that can move pages.
pub(super) fn open_for_moves() -> Result<Userfaultfd, BenchError> {
    let uffd = Userfaultfd::open(Features::MOVE, &[Door::SystemCall, Door::Device])
        .map_err(|error| BenchError::Unable(error.to_string()))?;
    if !uffd.opened().features.contains(Features::MOVE) {
        return Err(BenchError::Unable(
            "this kernel cannot move pages (UFFDIO_MOVE, since Linux 6.8)".into(),
        ));
    }
    Ok(uffd)
}

pub(super) fn range_of(region: &Region) -> HvaRange {
    HvaRange::new(Hva(region.start().as_ptr().expose_provenance()), region.size())
}

/// `UFFDIO_MOVE` until it is done: the kernel says EAGAIN while it looks at a
/// page itself.
///
/// # Safety
/// As [`Userfaultfd::move_pages`].
pub(super) unsafe fn move_page(
    uffd: &Userfaultfd,
    from: HvaRange,
    to: Hva,
) -> Result<(), BenchError> {
    const TRIES: u32 = 100_000;
    let mut done = 0;
    for _ in 0..TRIES {
        let rest = HvaRange::new(from.start().offset(done), from.len() - done);
        // SAFETY: as this function's contract says.
        match unsafe { uffd.move_pages(rest, to.offset(done)) } {
            Ok(()) => return Ok(()),
            Err(MoveError { moved, errno: Errno::AGAIN | Errno::BUSY }) => {
                done += moved;
                thread::yield_now();
            }
            Err(MoveError { errno, .. }) => return Err(system("UFFDIO_MOVE")(errno)),
        }
    }
    Err(system("UFFDIO_MOVE")(Errno::AGAIN))
}
