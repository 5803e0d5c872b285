//! Who is told what happens: each reader of events has a bounded queue, and
//! nobody who tells waits for one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::mpsc::{self, error::TrySendError};

use super::api::{Event, Lost};

/// Events that wait for a reader; those that come when there are as many are
/// lost to it, and counted.
pub const MAX_WAITING: usize = 256;

/// Where events are told.
#[derive(Debug, Default)]
pub struct Hub {
    readers: Mutex<Vec<Reader>>,
}

#[derive(Debug)]
struct Reader {
    queue: mpsc::Sender<Arc<Event>>,
    lost: Arc<AtomicU64>,
}

impl Reader {
    /// False if the reader is gone.
    fn tell(&self, event: &Arc<Event>) -> bool {
        // What was lost is told where it is missing.
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let gap = (lost > 0).then(|| Arc::new(Event::Lost(Lost { lost })));
        let told = gap.into_iter().try_for_each(|gap| self.queue.try_send(gap));
        let (lost, told) = match told {
            Ok(()) => (0, self.queue.try_send(Arc::clone(event))),
            full => (lost, full),
        };
        match told {
            Ok(()) => true,
            Err(TrySendError::Full(_)) => {
                self.lost.fetch_add(lost + 1, Ordering::Relaxed);
                true
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

impl Hub {
    /// Tells every reader.
    pub fn tell(&self, event: Event) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.is_empty() {
            return;
        }
        let event = Arc::new(event);
        readers.retain(|reader| reader.tell(&event));
    }

    /// Events from now on.
    pub(super) fn subscribe(&self) -> Subscription {
        let (queue, events) = mpsc::channel(MAX_WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let reader = Reader { queue, lost: Arc::clone(&lost) };
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that went and have missed nothing since.
        readers.retain(|reader| !reader.queue.is_closed());
        readers.push(reader);
        Subscription { events, lost }
    }

    /// Tells every reader for the last time.
    pub(super) fn end(&self) {
        self.tell(Event::Over {});
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// One reader's end.
#[derive(Debug)]
pub(super) struct Subscription {
    events: mpsc::Receiver<Arc<Event>>,
    lost: Arc<AtomicU64>,
}

impl Subscription {
    /// The next event; `None` when there are no more. The last ones, if they
    /// are lost, are told of when what waited before them is read.
    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Arc<Event>>> {
        if self.events.is_empty() {
            let lost = self.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                return Poll::Ready(Some(Arc::new(Event::Lost(Lost { lost }))));
            }
        }
        self.events.poll_recv(context)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::control::api::{Lifecycle, State};

    fn next(subscription: &mut Subscription) -> Option<Event> {
        match subscription.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event.map(|event| (*event).clone()),
            Poll::Pending => panic!("no event waits"),
        }
    }

    #[test]
    fn a_slow_reader_is_told_how_much_it_lost_and_goes_on() {
        let hub = Hub::default();
        let event = Event::Lifecycle(Lifecycle { state: State::Paused });
        hub.tell(event.clone());
        let mut slow = hub.subscribe();
        for _ in 0..MAX_WAITING + 5 {
            hub.tell(event.clone());
        }
        for _ in 0..2 {
            assert_eq!(next(&mut slow), Some(event.clone()));
        }
        // The gap is told where it is, and one event after it.
        for _ in 0..2 {
            hub.tell(event.clone());
        }
        for _ in 0..MAX_WAITING - 2 {
            assert_eq!(next(&mut slow), Some(event.clone()));
        }
        assert_eq!(next(&mut slow), Some(Event::Lost(Lost { lost: 5 })));
        assert_eq!(next(&mut slow), Some(event.clone()));
        assert_eq!(next(&mut slow), Some(Event::Lost(Lost { lost: 1 })));
        hub.end();
        assert_eq!(next(&mut slow), Some(Event::Over {}));
        assert_eq!(next(&mut slow), None);
    }

    #[test]
    fn a_reader_that_went_is_forgotten() {
        let hub = Hub::default();
        drop(hub.subscribe());
        hub.tell(Event::Over {});
        assert!(hub.readers.lock().unwrap().is_empty());
    }
}
