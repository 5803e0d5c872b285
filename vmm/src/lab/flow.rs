//! Bounds between the threads of the host side: nothing is kept beyond the
//! window of its stream, and nobody waits for what will not come.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use super::wire::WINDOW;

/// Output on its way from the port to a slow reader: at most [`WINDOW`]
/// bytes, which an honest agent never exceeds (it has no credit to).
#[derive(Debug, Default)]
pub(super) struct Outlet {
    state: Mutex<OutletState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutletState {
    bytes: Vec<u8>,
    ended: bool,
}

impl Outlet {
    /// Adds bytes; `false` if that would exceed the window.
    #[must_use]
    pub(super) fn push(&self, bytes: &[u8]) -> bool {
        let mut state = lock(&self.state);
        if state.bytes.len() + bytes.len() > WINDOW {
            return false;
        }
        state.bytes.extend_from_slice(bytes);
        self.changed.notify_one();
        true
    }

    /// Nothing follows.
    pub(super) fn end(&self) {
        lock(&self.state).ended = true;
        self.changed.notify_one();
    }

    /// Waits for bytes and takes all there are; `None` after the end.
    pub(super) fn take(&self) -> Option<Vec<u8>> {
        let mut state = self
            .changed
            .wait_while(lock(&self.state), |state| state.bytes.is_empty() && !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        Some(mem::take(&mut state.bytes)).filter(|bytes| !bytes.is_empty())
    }
}

/// How many bytes of input the agent can still take; starts at [`WINDOW`].
#[derive(Debug)]
pub(super) struct Allowance {
    /// `None`: no input is wanted any more.
    bytes: Mutex<Option<usize>>,
    changed: Condvar,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { bytes: Mutex::new(Some(WINDOW)), changed: Condvar::new() }
    }
}

impl Allowance {
    /// Allows as many bytes more; `false` if that exceeds the window.
    #[must_use]
    pub(super) fn add(&self, more: u32) -> bool {
        let mut bytes = lock(&self.bytes);
        let Some(now) = *bytes else { return true };
        let sum = now.saturating_add(more as usize);
        *bytes = Some(sum.min(WINDOW));
        self.changed.notify_one();
        sum <= WINDOW
    }

    /// Takes bytes off that are being sent.
    pub(super) fn spend(&self, sent: usize) {
        if let Some(bytes) = lock(&self.bytes).as_mut() {
            *bytes = bytes.saturating_sub(sent);
        }
    }

    /// Ends every wait: no input is wanted any more.
    pub(super) fn close(&self) {
        *lock(&self.bytes) = None;
        self.changed.notify_one();
    }

    /// Waits until some bytes are allowed and says how many; `None` once no
    /// input is wanted.
    pub(super) fn wait(&self) -> Option<usize> {
        *self
            .changed
            .wait_while(lock(&self.bytes), |bytes| *bytes == Some(0))
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The states above are whole between any two statements, so a thread that
/// panicked elsewhere with the lock held has left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn output_arrives_whole_and_ends() {
        let outlet = Outlet::default();
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut all = Vec::new();
                while let Some(bytes) = outlet.take() {
                    all.extend(bytes);
                }
                all
            });
            for byte in 0..=255 {
                assert!(outlet.push(&[byte]));
            }
            outlet.end();
            assert_eq!(reader.join().unwrap(), (0..=255).collect::<Vec<u8>>());
        });
    }

    #[test]
    fn an_outlet_holds_no_more_than_the_window() {
        let outlet = Outlet::default();
        assert!(outlet.push(&vec![0; WINDOW]));
        assert!(!outlet.push(&[0]));
        assert_eq!(outlet.take().unwrap().len(), WINDOW);
        assert!(outlet.push(&[0]));
    }

    #[test]
    fn closing_ends_a_wait_for_credit() {
        let allowance = Allowance::default();
        allowance.spend(WINDOW);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| allowance.wait());
            allowance.close();
            assert_eq!(waiter.join().unwrap(), None);
        });
    }

    #[test]
    fn credit_beyond_the_window_is_refused() {
        let allowance = Allowance::default();
        assert!(!allowance.add(1));
        allowance.spend(10);
        assert!(allowance.add(10));
        assert!(!allowance.add(u32::MAX));
    }
}
