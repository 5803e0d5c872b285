//! Where vCPU threads learn what is wanted of them, and where they wait while
//! the machine is paused.
//!
//! Whoever changes what is wanted kicks the threads afterwards (see
//! [`super::kick`]); a thread looks at the gate each time before it enters the
//! guest.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a vCPU thread should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Wanted {
    /// Run the guest.
    Run,
    /// Wait at the gate.
    Pause,
    /// End.
    Stop,
}

#[derive(Debug, Default)]
struct Threads {
    /// vCPU threads that have not ended.
    alive: usize,
    /// Of those, the ones that wait at the gate.
    parked: usize,
}

/// The gate of one machine.
#[derive(Debug)]
pub struct Gate {
    // A copy of what `threads` guards would do; the atomic spares the lock on
    // the way into the guest. Written only under the lock.
    wanted: AtomicU8,
    threads: Mutex<Threads>,
    changed: Condvar,
}

impl Gate {
    /// A gate for `threads` vCPU threads, each of which holds a [`Pass`].
    pub fn new(threads: usize, wanted: Wanted) -> Self {
        Self {
            wanted: AtomicU8::new(wanted as u8),
            threads: Mutex::new(Threads { alive: threads, parked: 0 }),
            changed: Condvar::new(),
        }
    }

    /// Counters stay right even if a thread panicked while it held the lock:
    /// each critical section is a single assignment.
    fn lock(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted now.
    pub fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            0 => Wanted::Run,
            1 => Wanted::Pause,
            _ => Wanted::Stop,
        }
    }

    /// Changes what is wanted; kick the threads after this. Stop is final.
    pub fn want(&self, wanted: Wanted) {
        let _threads = self.lock();
        if self.wanted() != Wanted::Stop {
            self.wanted.store(wanted as u8, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Waits while the gate is paused; the caller's own thread counts as
    /// parked meanwhile.
    pub fn park(&self) {
        let mut threads = self.lock();
        threads.parked += 1;
        self.changed.notify_all();
        while self.wanted() == Wanted::Pause {
            threads = self.changed.wait(threads).unwrap_or_else(PoisonError::into_inner);
        }
        threads.parked -= 1;
        self.changed.notify_all();
    }

    /// Waits until every living thread is parked. False if that took longer
    /// than `limit`.
    pub fn wait_parked(&self, limit: Duration) -> bool {
        self.wait_until(limit, |threads| threads.parked == threads.alive)
    }

    /// Waits until every thread has ended. False if that took longer than
    /// `limit`.
    pub fn wait_ended(&self, limit: Duration) -> bool {
        self.wait_until(limit, |threads| threads.alive == 0)
    }

    fn wait_until(&self, limit: Duration, done: impl Fn(&Threads) -> bool) -> bool {
        let (_threads, timeout) = self
            .changed
            .wait_timeout_while(self.lock(), limit, |threads| !done(threads))
            .unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }
}

/// A vCPU thread's place at the gate; given up when it ends, however it ends.
#[derive(Debug)]
pub struct Pass<'a>(pub &'a Gate);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.lock().alive -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn threads_park_resume_and_end() {
        let gate = Arc::new(Gate::new(3, Wanted::Run));
        let threads: Vec<_> = (0..3)
            .map(|_| {
                let gate = Arc::clone(&gate);
                thread::spawn(move || {
                    let _pass = Pass(&gate);
                    loop {
                        match gate.wanted() {
                            Wanted::Run => thread::yield_now(),
                            Wanted::Pause => gate.park(),
                            Wanted::Stop => break,
                        }
                    }
                })
            })
            .collect();
        for _ in 0..50 {
            gate.want(Wanted::Pause);
            assert!(gate.wait_parked(LIMIT));
            gate.want(Wanted::Run);
        }
        assert!(!gate.wait_ended(Duration::from_millis(1)));
        gate.want(Wanted::Stop);
        gate.want(Wanted::Run);
        assert!(gate.wait_ended(LIMIT));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
