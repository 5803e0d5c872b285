//! The control socket: how others look at a machine that runs, and move its
//! memory.
//!
//! ```text
//!   client ──line──► control thread ──Call──► main thread ──job──► mover thread
//!     ▲                   ▲                       │                     │
//!     └──────line─────────┴────────Reply──────────┴─────────────────────┘
//! ```
//!
//! The control thread ([`server`]) reads and writes sockets and holds nothing
//! of the machine. The main thread ([`desk`]) answers what is about vCPUs and
//! hands what is about memory to a thread of its own ([`movers`]). Replies go
//! back by a queue.
//!
//! Invariants:
//! - every request gets exactly one last line: a [`Reply`] that is dropped
//!   answers by itself;
//! - nobody waits for a client: what a slow one does not read is bounded, and
//!   after a while it is put out;
//! - when a client goes away, its requests are cancelled between two granules.

pub mod api;
pub mod client;
mod connection;
pub mod desk;
mod lines;
mod movers;
pub mod server;
pub mod socket;
mod translate;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use neap_memory::migrate::{self, MigrateRequest, Report, RequestError};
use neap_memory::{Gpa, GpaRange};
use vmm_sys_util::eventfd::EventFd;

use api::{Answer, Body, Error, ErrorKind, Message};

/// Memory that moves, as the control socket needs it. Calls come from several
/// threads at a time.
pub trait Memory: Send + Sync {
    /// Moves what `request` names; `progress` is called now and then, and what
    /// has not begun when it breaks is left.
    ///
    /// # Errors
    /// The request makes no sense; nothing has moved.
    fn migrate(
        &self,
        request: &MigrateRequest,
        progress: &mut dyn FnMut(&migrate::Progress) -> ControlFlow<()>,
    ) -> Result<Report, RequestError>;

    /// Where guest memory is, in order of address, from what lies at `from` on:
    /// at the most `most` runs.
    fn residency(&self, from: Gpa, most: usize) -> Vec<api::Run>;

    /// Where the kernel says that it is; ends early once `wanted` is false.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn verify(&self, wanted: &dyn Fn() -> bool) -> io::Result<api::Verified>;

    /// Numbers.
    fn status(&self) -> api::Tiers;

    /// Holds `range` where it is until the result is dropped; waits up to
    /// `patience` for what is in motion.
    ///
    /// # Errors
    /// Why not.
    fn pin(&self, range: GpaRange, patience: Duration) -> Result<Box<dyn Send>, String>;

    /// Refuses requests from now on, and ends those at work.
    fn stop(&self);
}

/// A request and the way back to whoever sent it.
#[derive(Debug)]
pub struct Call {
    /// What is asked.
    pub request: api::Request,
    /// The way back.
    pub reply: Reply,
}

/// Requests as they arrive at the main thread.
#[derive(Debug)]
pub struct Calls {
    receiver: Receiver<Call>,
    wake: Arc<EventFd>,
}

impl Calls {
    /// Readable when there are calls.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// The next one, if there is one.
    pub fn next(&self) -> Option<Call> {
        self.receiver.try_recv().ok()
    }
}

/// A line for a client.
#[derive(Debug)]
struct Outgoing {
    client: u64,
    line: Vec<u8>,
    /// Whether it ends a request.
    last: bool,
}

/// The way back to a client, for one request.
#[derive(Debug)]
pub struct Reply {
    outgoing: Sender<Outgoing>,
    wake: Arc<EventFd>,
    client: u64,
    id: u64,
    gone: Arc<AtomicBool>,
    answered: bool,
}

impl Reply {
    /// Whether the client is still there.
    pub fn is_wanted(&self) -> bool {
        !self.gone.load(Ordering::Acquire)
    }

    /// Says how far it is. A client that does not read may miss it.
    pub fn progress(&self, progress: api::Progress) {
        self.send(Body::Progress(progress), false);
    }

    /// Says what came of it.
    pub fn finish(mut self, result: Result<Answer, Error>) {
        self.answered = true;
        self.send(result.map_or_else(Body::Error, Body::Ok), true);
    }

    fn send(&self, body: Body<Answer>, last: bool) {
        if last || self.is_wanted() {
            let line = api::message_line(&Message { id: Some(self.id), body });
            // The control thread ends last, and with it the wish for replies.
            let _ = self.outgoing.send(Outgoing { client: self.client, line, last });
            let _ = self.wake.write(1);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            let error = if std::thread::panicking() {
                Error::new(ErrorKind::Failed, "a thread of Neap failed at it")
            } else {
                Error::new(ErrorKind::Over, "the machine is over")
            };
            self.send(Body::Error(error), true);
        }
    }
}
