//! Where tests may interfere with an engine: errors that the kernel gives
//! only rarely, copies that stop short, and seeded bugs that show that a
//! checker would notice. Nothing is installed outside of tests.

use std::fmt;

use rustix::io::Errno;

use crate::granule::Granule;

/// A point of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Getting memory for the destination.
    Populate,
    /// Taking the page from the guest, or protecting it.
    Freeze,
    /// Copying it.
    Copy,
    /// Giving the copy to the guest.
    Arrive,
}

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inject {
    /// What should.
    Nothing,
    /// The kernel's refusal.
    Fail(Errno),
    /// The step fails after half of its bytes.
    Short(Errno),
    /// The first page of the source loses its contents.
    Poison,
    /// A bug: the step is left out and said to have succeeded.
    Omit,
}

/// Decides about each point of each granule. Called from the threads that
/// move.
pub trait Hooks: fmt::Debug + Send + Sync {
    /// What happens to `granule` at `point`.
    fn at(&self, point: Point, granule: Granule) -> Inject;
}

/// No interference.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn at(&self, _: Point, _: Granule) -> Inject {
        Inject::Nothing
    }
}
