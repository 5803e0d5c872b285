//! `UFFDIO_MOVE`, and what the kernel's answers mean.
#![allow(unsafe_code)]

use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::MoveEngine;
use crate::engine::hooks::{Inject, Point};
use crate::engine::{Step, TRIES, memory};
use crate::hva::{Hva, HvaRange};
use crate::uffd::MoveError;

/// How long a page that must go back is tried for: the kernel holds a page
/// for microseconds, unless it is short of memory.
const MUST: Duration = Duration::from_secs(10);

impl MoveEngine {
    /// `UFFDIO_MOVE`, tried again while the kernel looks at the pages.
    pub(super) fn move_pages(&self, from: HvaRange, to: Hva) -> Result<(), MoveError> {
        let mut done = 0;
        for attempt in 0.. {
            let rest = HvaRange::new(from.start().offset(done), from.len() - done);
            // SAFETY: both are slots or guest memory of this engine, which is
            // anonymous and private; all access to them is by vCPUs, by
            // vm-memory's volatile accesses and by this module's copies. `to`
            // is watched: rows since they were made, guest memory since it was
            // adopted.
            match unsafe { self.uffd.move_pages(rest, to.offset(done)) } {
                Ok(()) => break,
                Err(MoveError { moved, errno: Errno::AGAIN }) if attempt < TRIES || moved > 0 => {
                    done += moved;
                    thread::yield_now();
                }
                Err(MoveError { moved, errno }) => {
                    done += moved;
                    let forgotten = match errno {
                        Errno::EXIST => self.forgotten(from, done, to)?,
                        _ => 0,
                    };
                    if forgotten == 0 {
                        return Err(MoveError { moved: done, errno });
                    }
                    done += forgotten;
                    if done == from.len() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Bytes after the first `done` of `from` that were moved although the
    /// kernel does not say so; whoever waits for them is woken.
    ///
    /// Linux since 6.18 does that (`move_pages` in mm/userfaultfd.c): once it
    /// has met a page that it has to try again, it goes back to the start of
    /// what it moves next, finds that it has arrived, and says EEXIST. Nobody
    /// but this engine puts pages into slots, or into guest memory that is
    /// watched, so what is gone here and has come there was moved.
    fn forgotten(&self, from: HvaRange, done: usize, to: Hva) -> Result<usize, MoveError> {
        let failed = |errno| MoveError { moved: done, errno };
        let rest = HvaRange::new(from.start().offset(done), from.len() - done);
        let bytes = memory::moved_ahead(rest, to.offset(done)).map_err(failed)?;
        if bytes > 0 {
            self.uffd.wake(HvaRange::new(to.offset(done), bytes)).map_err(failed)?;
        }
        Ok(bytes)
    }

    /// The same, for pages that must go back to where they were.
    pub(super) fn must_move(&self, from: HvaRange, to: Hva) {
        let (mut done, since) = (0, Instant::now());
        while done < from.len() {
            let rest = HvaRange::new(from.start().offset(done), from.len() - done);
            match self.move_pages(rest, to.offset(done)) {
                Ok(()) => return,
                Err(MoveError { moved, errno }) => {
                    done += moved;
                    if since.elapsed() > MUST {
                        (self.fatal)(&format!("guest memory could not be put back: {errno}"));
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Moves the pages of `steps`, which follow one another on both sides. An
    /// error that a hook injects at `point` ends the run where the kernel's
    /// would.
    pub(super) fn move_run(
        &self,
        steps: &[Step],
        point: Point,
        from: Hva,
        to: Hva,
    ) -> Result<(), MoveError> {
        let size = self.space.bytes();
        let injected = steps.iter().enumerate().find_map(|(index, step)| {
            match self.hook(point, step.granule) {
                Inject::Fail(errno) => Some(MoveError { moved: index * size, errno }),
                Inject::Short(errno) => Some(MoveError { moved: index * size + size / 2, errno }),
                Inject::Nothing | Inject::Omit | Inject::Poison => None,
            }
        });
        let len = injected.map_or(steps.len() * size, |error| error.moved & !0xfff);
        if len > 0 {
            self.move_pages(HvaRange::new(from, len), to)?;
        }
        injected.map_or(Ok(()), Err)
    }
}
