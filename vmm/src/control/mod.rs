//! The control socket: how others look at a machine that runs, and move its
//! memory.
//!
//! ```text
//!   client ──line──► control thread ──Call──► main thread ──job──► mover thread
//!     ▲                   ▲                       │                     │
//!     └──────line─────────┴────────Reply──────────┴─────────────────────┘
//! ```
//!
//! The control thread ([`server`]) reads and writes sockets, in JSON lines
//! ([`talk`]) or HTTP ([`http`]), and holds nothing of the machine. The main thread ([`desk`]) answers what is about vCPUs and
//! hands what is about memory to a thread of its own ([`movers`]). Replies go
//! back by a queue. Migrations are [`jobs`], which belong to the machine; what
//! happens is told through the [`hub`].
//!
//! Invariants:
//! - every request gets exactly one last line: a [`Reply`] that is dropped
//!   answers by itself;
//! - nobody waits for a client: what a slow one does not read is bounded, and
//!   after a while it is put out;
//! - when a client goes away, its requests are cancelled between two granules,
//!   but for jobs that were asked to go on;
//! - the control thread alone has a runtime; whatever it and others say to one
//!   another goes through channels that do not wait.

mod accounts;
pub mod api;
pub mod client;
mod connection;
pub mod desk;
mod hang_up;
pub mod http;
pub mod hub;
mod jobs;
mod lines;
mod metrics;
mod movers;
pub mod server;
pub mod socket;
mod talk;
mod translate;

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use neap_memory::migrate::{self, MigrateRequest, Report, RequestError};
use neap_memory::policy::PolicyName;
use neap_memory::{Gpa, GpaRange};
use tokio::sync::mpsc::UnboundedSender;
use vmm_sys_util::eventfd::EventFd;

use api::{Answer, Body, Error, ErrorKind, Event, Message};
use hub::Hub;

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

    /// Whether [`Self::migrate`] would take `request`, as far as can be known.
    ///
    /// # Errors
    /// The request makes no sense.
    fn check(&self, request: &MigrateRequest) -> Result<(), RequestError>;

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

    /// How much memory each tier has, by the kernel too; ends early once
    /// `wanted` is false.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn account(&self, wanted: &dyn Fn() -> bool) -> io::Result<api::Accounts>;

    /// Has `tell` called when host memory fails, from whichever thread meets it.
    fn on_failure(&self, tell: Box<dyn Fn(api::MemoryFailed) + Send + Sync>);

    /// Holds `range` where it is until the result is dropped; waits up to
    /// `patience` for what is in motion.
    ///
    /// # Errors
    /// Why not.
    fn pin(&self, range: GpaRange, patience: Duration) -> Result<Box<dyn Send>, String>;

    /// Empties a region and takes it away; `progress` is called now and then,
    /// and when it breaks the region stays.
    ///
    /// # Errors
    /// Why the region is as it was.
    fn unplug(
        &self,
        region: u8,
        progress: &mut dyn FnMut(&migrate::Progress) -> ControlFlow<()>,
    ) -> Result<api::Unplugged, String>;

    /// Gives a region back, with other memory behind it if that is asked for.
    ///
    /// # Errors
    /// Why not.
    fn plug(&self, asked: &api::Plug) -> Result<api::Plugged, String>;

    /// Makes the host's page behind `gpa` fail.
    ///
    /// # Errors
    /// Why not.
    fn fail_page(&self, gpa: Gpa) -> Result<(), String>;

    /// What moves by itself, and the policies that there can be.
    fn policy(&self) -> (PolicyName, Vec<PolicyName>);

    /// Has another policy decide from now on; the result is the one before.
    ///
    /// # Errors
    /// Why not.
    fn set_policy(&self, name: PolicyName) -> Result<PolicyName, String>;

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
    hub: Arc<Hub>,
    traffic: Arc<Traffic>,
}

/// What the control thread counts.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Requests in JSON lines.
    lines: AtomicU64,
    /// Requests by HTTP.
    http: AtomicU64,
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

/// Something for the control thread to pass on to a client.
#[derive(Debug)]
enum Outgoing {
    /// A line; `last` ends a request.
    Line { line: Vec<u8>, last: bool },
    /// The whole answer to a request by HTTP.
    Whole(Result<Rendered, Error>),
}

/// An answer as it is sent.
#[derive(Debug)]
struct Rendered {
    bytes: Vec<u8>,
    /// The number of what was made: a job's or a pin's.
    made: Option<u64>,
}

impl Rendered {
    /// None of the types can fail to be written, as in [`api`].
    fn new(answer: &Answer) -> Self {
        let made = match answer {
            Answer::Job(job) => Some(job.id),
            Answer::Pinned(pinned) => Some(pinned.pin),
            _ => None,
        };
        let bytes = match answer {
            Answer::Metrics(metrics) => metrics.text.clone().into_bytes(),
            answer => api::json(answer),
        };
        Self { bytes, made }
    }
}

/// What a client is answered in.
#[derive(Clone, Copy, Debug)]
enum Form {
    /// Lines with this id.
    Lines(u64),
    /// One answer.
    Http,
}

/// The way back to a client, for one request.
#[derive(Debug)]
pub struct Reply {
    outgoing: UnboundedSender<Outgoing>,
    form: Form,
    gone: Arc<AtomicBool>,
    hub: Arc<Hub>,
    answered: bool,
}

impl Reply {
    fn new(
        outgoing: UnboundedSender<Outgoing>,
        form: Form,
        gone: Arc<AtomicBool>,
        hub: Arc<Hub>,
    ) -> Self {
        Self { outgoing, form, gone, hub, answered: false }
    }

    /// Whether the client is still there.
    pub fn is_wanted(&self) -> bool {
        !self.gone.load(Ordering::Acquire)
    }

    /// Says how far it is. A client that does not read may miss it.
    pub fn progress(&self, progress: api::Progress) {
        if let Form::Lines(id) = self.form
            && self.is_wanted()
        {
            let body = Body::Progress(progress);
            let line = api::message_line(&Message { id: Some(id), body });
            // The control thread ends last, and with it the wish for replies.
            let _ = self.outgoing.send(Outgoing::Line { line, last: false });
        }
    }

    /// Says what came of it.
    pub fn finish(mut self, result: Result<Answer, Error>) {
        self.send(result);
    }

    fn send(&mut self, result: Result<Answer, Error>) {
        self.answered = true;
        if let Err(error) = &result
            && error.kind == ErrorKind::Failed
        {
            self.hub.tell(Event::Error(error.clone()));
        }
        // Here and not in the control thread, which has others to serve.
        let outgoing = match self.form {
            Form::Lines(id) => {
                let body = result.map_or_else(Body::Error, Body::Ok);
                let line = api::message_line(&Message { id: Some(id), body });
                Outgoing::Line { line, last: true }
            }
            Form::Http => Outgoing::Whole(result.map(|answer| Rendered::new(&answer))),
        };
        let _ = self.outgoing.send(outgoing);
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
            self.send(Err(error));
        }
    }
}
