//! Where threads wait for a granule to settle.
//!
//! One lot for the whole table: waiters are few (device-model threads that met
//! a move), and the state word itself says whether a move has any. A wake-up
//! cannot be lost: a waiter holds the lot's lock from before it marks the word
//! until the condition variable has let go of it, and a mover that finds the
//! mark takes the lock before it notifies.

use std::sync::PoisonError;
use std::time::Duration;

use crate::sync::{Condvar, Mutex, MutexGuard};

pub(super) struct ParkingLot {
    lock: Mutex<()>,
    settled: Condvar,
}

impl ParkingLot {
    pub(super) fn new() -> Self {
        Self { lock: Mutex::new(()), settled: Condvar::new() }
    }

    /// Enters the lot; to be done before the word is marked.
    pub(super) fn enter(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data that a panic could leave half changed.
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until somebody wakes the lot or `limit` has passed. May also
    /// return for no reason: the caller looks at its word again.
    pub(super) fn wait<'a>(
        &self,
        entered: MutexGuard<'a, ()>,
        limit: Duration,
    ) -> MutexGuard<'a, ()> {
        match self.settled.wait_timeout(entered, limit) {
            Ok((guard, _)) => guard,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }

    /// Wakes everybody in the lot; to be done after the word has changed.
    pub(super) fn wake(&self) {
        drop(self.enter());
        self.settled.notify_all();
    }
}
