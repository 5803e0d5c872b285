//! What a fault is made of: a program that takes pages away from a bare guest
//! and gives each back when it is touched, with no pool, no states and no
//! copy. A vCPU waits in KVM_RUN for the page, the program waits in poll(2)
//! for the fault, and `UFFDIO_MOVE` resolves it: the same waits and the same
//! call as the `move` engine's.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use neap_memory::backing::{self, Mapped};
use neap_memory::guest::RangeSpec;
use neap_memory::hva::{Hva, HvaRange};
use neap_memory::uffd::{Modes, Userfaultfd};
use neap_memory::{Backing, GuestMemory};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use super::floor_move::{move_page, open_for_moves, range_of};
use super::host::{Places, SmallPages};
use super::{BenchError, Variant, system, window};
use crate::bare::Guest;

/// The program with its guest.
#[derive(Debug)]
pub struct Parts {
    // In the order in which they are to go.
    guest: Guest,
    handler: Option<JoinHandle<Result<(), BenchError>>>,
    end: OwnedFd,
    away: Away,
    _memory: Arc<GuestMemory>,
    _slots: Mapped,
    _small: Option<SmallPages>,
}

/// Guest memory and the places where its pages are while they are away.
#[derive(Clone, Debug)]
struct Away {
    uffd: Arc<Userfaultfd>,
    home: HvaRange,
    slots: HvaRange,
    granule: usize,
}

impl Away {
    fn places(&self, index: usize) -> (HvaRange, HvaRange) {
        let offset = index * self.granule;
        let part = |range: HvaRange| HvaRange::new(range.start().offset(offset), self.granule);
        (part(self.home), part(self.slots))
    }

    fn take(&self, index: usize) -> Result<(), BenchError> {
        let (home, slot) = self.places(index);
        // SAFETY: guest memory and a slot of `Parts`, anonymous and watched;
        // only vCPUs access the one, nobody the other.
        unsafe { move_page(&self.uffd, home, slot.start()) }
    }

    fn give(&self, index: usize) -> Result<(), BenchError> {
        let (home, slot) = self.places(index);
        // SAFETY: as above.
        unsafe { move_page(&self.uffd, slot, home.start()) }
    }
}

impl Parts {
    /// A guest of `size` bytes and `cpus` vCPUs.
    ///
    /// # Errors
    /// Too little memory, or a kernel that cannot move pages.
    pub fn new(
        variant: Variant,
        size: u64,
        cpus: usize,
        places: &Places,
    ) -> Result<Self, BenchError> {
        let small = variant.small_pages().then(SmallPages::only).transpose()?;
        let spec = RangeSpec { range: window(size)?, backing: Backing::Anon, prefault: true };
        let memory = Arc::new(GuestMemory::new(&[spec])?);
        let slots = backing::map(size, Backing::Anon, 0, false)?;
        let uffd = Arc::new(open_for_moves()?);
        let home = HvaRange::new(Hva(memory.slots()[0].hva as usize), size as usize);
        let granule = variant.granule().bytes() as usize;
        let away = Away { uffd, home, slots: range_of(&slots.region), granule };
        for range in [away.home, away.slots] {
            away.uffd.register(range, Modes::Missing).map_err(system("UFFDIO_REGISTER"))?;
        }
        let guest = Guest::new(Arc::clone(&memory), cpus)?;
        places.pin(&guest)?;
        let end = eventfd(0, EventfdFlags::CLOEXEC).map_err(system("eventfd"))?;
        let stop = end.try_clone().map_err(|source| BenchError::System { what: "dup", source })?;
        let for_thread = away.clone();
        let handler = thread::Builder::new()
            .name("parts".into())
            .spawn(move || handle(&for_thread, &stop))
            .map_err(|source| BenchError::System { what: "a thread", source })?;
        let handler = Some(handler);
        Ok(Self { guest, handler, end, away, _memory: memory, _slots: slots, _small: small })
    }

    /// Takes the pages of `granules` away.
    ///
    /// # Errors
    /// `UFFDIO_MOVE`'s.
    pub fn take(&self, granules: &[u64]) -> Result<(), BenchError> {
        granules.iter().try_for_each(|granule| self.away.take(*granule as usize))
    }

    /// The guest.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Whether every page that was touched was given back.
    ///
    /// # Errors
    /// What the handler met.
    pub fn check(&mut self) -> Result<(), BenchError> {
        match self.handler.take_if(|thread| thread.is_finished()) {
            Some(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(BenchError::Unexpected("a handler panicked".into()))),
            None => Ok(()),
        }
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        // vCPUs first: whoever waits for a page must be gone before the
        // descriptor is closed. One that is stuck keeps its memory.
        let _ = self.guest.stop(super::STOP);
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
        if let Some(thread) = self.handler.take() {
            let _ = thread.join();
        }
    }
}

fn handle(away: &Away, end: &OwnedFd) -> Result<(), BenchError> {
    let mut events = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(&*away.uffd, PollFlags::IN),
            PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(system("poll")(errno)),
        }
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        away.uffd.read(&mut events).map_err(system("read"))?;
        for event in events.drain(..) {
            away.give(event.address.0.saturating_sub(away.home.start().0) / away.granule)?;
        }
    }
}

/// Median of what the guest's touches of `granules` took.
pub(super) fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
