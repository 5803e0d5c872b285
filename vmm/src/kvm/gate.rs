//! Where vCPU threads learn what is wanted of them, and where they wait while
//! the machine is paused.
//!
//! Whoever changes what is wanted kicks the threads afterwards (see
//! [`super::kick`]); a thread looks at the gate each time before it enters the
//! guest.
//!
//! Beside what the machine's owner wants, moves of memory *hold* the threads at
//! the gate for milliseconds. A hold neither waits for a pause nor ends one:
//! threads go on when nobody holds them and nobody wants them to pause.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use neap_memory::park::{Park, Parked};

use super::kick::VcpuThread;

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
    /// Those that have begun, for kicks.
    begun: Vec<VcpuThread>,
}

/// The gate of one machine.
#[derive(Debug)]
pub struct Gate {
    // A copy of what `threads` guards would do; the atomic spares the lock on
    // the way into the guest. Written only under the lock.
    wanted: AtomicU8,
    /// How many hold the threads here; written only under the lock too.
    holds: AtomicUsize,
    threads: Mutex<Threads>,
    changed: Condvar,
}

impl Gate {
    /// A gate for `threads` vCPU threads, each of which holds a [`Pass`].
    pub fn new(threads: usize, wanted: Wanted) -> Self {
        Self {
            wanted: AtomicU8::new(wanted as u8),
            holds: AtomicUsize::new(0),
            threads: Mutex::new(Threads { alive: threads, parked: 0, begun: Vec::new() }),
            changed: Condvar::new(),
        }
    }

    /// Counters stay right even if a thread panicked while it held the lock:
    /// each critical section is a single assignment.
    fn lock(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wanted of threads now.
    pub fn wanted(&self) -> Wanted {
        match self.wanted.load(Ordering::Acquire) {
            0 if self.holds.load(Ordering::Acquire) > 0 => Wanted::Pause,
            0 => Wanted::Run,
            1 => Wanted::Pause,
            _ => Wanted::Stop,
        }
    }

    /// Whether the machine's owner wants threads to wait, and not only a move of
    /// memory for a moment.
    pub fn is_paused(&self) -> bool {
        self.wanted.load(Ordering::Acquire) == Wanted::Pause as u8
    }

    /// Changes what is wanted; kick the threads after this. Stop is final.
    pub fn want(&self, wanted: Wanted) {
        let _threads = self.lock();
        if self.wanted() != Wanted::Stop {
            self.wanted.store(wanted as u8, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Holds every thread at the gate, wherever it is now, until the hold is
    /// dropped. `None` if one did not come within `limit`.
    pub fn hold(self: &Arc<Self>, limit: Duration) -> Option<Hold> {
        let threads = self.lock();
        self.holds.fetch_add(1, Ordering::AcqRel);
        let hold = Hold { gate: Arc::clone(self), threads: threads.alive };
        threads.begun.iter().for_each(|thread| thread.kick());
        drop(threads);
        self.wait_parked(limit).then_some(hold)
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

/// Threads that are held at the gate, until this is dropped.
#[derive(Debug)]
pub struct Hold {
    gate: Arc<Gate>,
    threads: usize,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _threads = self.gate.lock();
        self.gate.holds.fetch_sub(1, Ordering::AcqRel);
        self.gate.changed.notify_all();
    }
}

impl Parked for Hold {
    fn vcpus(&self) -> usize {
        self.threads
    }
}

/// The gate as whoever moves memory knows it.
#[derive(Debug)]
pub struct Holder(pub Arc<Gate>);

impl Park for Holder {
    fn park(&self, patience: Duration) -> Option<Box<dyn Parked>> {
        self.0.hold(patience).map(|hold| Box::new(hold) as _)
    }
}

/// A vCPU thread's place at the gate; given up when it ends, however it ends.
#[derive(Debug)]
pub struct Pass<'a> {
    gate: &'a Gate,
    thread: VcpuThread,
}

impl<'a> Pass<'a> {
    /// A place for a thread that the gate was not made for, from now until it
    /// is dropped. Look at what is wanted before the guest is entered.
    pub fn joining(gate: &'a Gate) -> Self {
        gate.lock().alive += 1;
        Self::new(gate)
    }

    /// The place of this thread.
    pub fn new(gate: &'a Gate) -> Self {
        let thread = VcpuThread::this();
        gate.lock().begun.push(thread);
        Self { gate, thread }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let mut threads = self.gate.lock();
        threads.alive -= 1;
        threads.begun.retain(|begun| *begun != self.thread);
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Threads that do what the gate says, as vCPUs do.
    fn vcpus(gate: &Arc<Gate>, count: usize) -> Vec<thread::JoinHandle<()>> {
        let vcpu = |gate: Arc<Gate>| {
            let _pass = Pass::new(&gate);
            loop {
                match gate.wanted() {
                    Wanted::Run => thread::yield_now(),
                    Wanted::Pause => gate.park(),
                    Wanted::Stop => break,
                }
            }
        };
        (0..count)
            .map(|_| {
                let gate = Arc::clone(gate);
                thread::spawn(move || vcpu(gate))
            })
            .collect()
    }

    #[test]
    fn threads_park_resume_and_end() {
        let gate = Arc::new(Gate::new(3, Wanted::Run));
        let threads = vcpus(&gate, 3);
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

    #[test]
    fn holds_overlap_with_each_other_and_with_pauses() {
        crate::kvm::kick::install().unwrap();
        let gate = Arc::new(Gate::new(2, Wanted::Run));
        assert!(gate.hold(Duration::from_millis(1)).is_none(), "threads that have not begun");
        let threads = vcpus(&gate, 2);
        for _ in 0..50 {
            let first = gate.hold(LIMIT).unwrap();
            let second = gate.hold(LIMIT).unwrap();
            assert_eq!(second.vcpus(), 2);
            drop(first);
            assert_eq!(gate.wanted(), Wanted::Pause);
            // Somebody pauses and resumes meanwhile.
            gate.want(Wanted::Pause);
            assert!(gate.wait_parked(LIMIT));
            gate.want(Wanted::Run);
            assert_eq!(gate.wanted(), Wanted::Pause);
            gate.want(Wanted::Pause);
            drop(second);
            // A hold while it is paused, which goes on after it.
            drop(gate.hold(LIMIT).unwrap());
            assert_eq!(gate.wanted(), Wanted::Pause);
            gate.want(Wanted::Run);
            assert_eq!(gate.wanted(), Wanted::Run);
        }
        let hold = gate.hold(LIMIT).unwrap();
        gate.want(Wanted::Stop);
        assert!(gate.wait_ended(LIMIT));
        assert!(gate.hold(LIMIT).is_some(), "nobody is left to wait for");
        drop(hold);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
