//! The control thread: one runtime over all sockets, none of which it waits
//! for. The first byte of a client decides what it speaks: a capital letter
//! begins an HTTP request, anything else a JSON line.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::{JoinSet, LocalSet};
use tokio::time::timeout;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::api::{self, Body, Error, ErrorKind, Message, Request};
use super::connection::CHUNK;
use super::hub::Hub;
use super::socket::ListeningSocket;
use super::{Call, Calls, Reply, Traffic, http, talk};

/// Most clients at a time.
pub const MAX_CLIENTS: usize = 16;
/// How long nobody is let in after a failure to let somebody in, such as too
/// many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long last answers get at the end.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long a client too many may take to show what it speaks, before it is
/// turned away in JSON.
const DOORSTEP: Duration = Duration::from_millis(200);

/// How long clients may take; tests have less time than the defaults.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// For an HTTP request's head, and again for its body. Also the time that
    /// a connection is kept without a request.
    pub sending: Duration,
    /// To leave what waits for it without reading a byte.
    pub reading: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sending: Duration::from_secs(10), reading: Duration::from_secs(30) }
    }
}

/// The control thread, seen from its owner.
#[derive(Debug)]
pub struct Server {
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to serve `socket`; requests arrive at the other result.
    ///
    /// # Errors
    /// No thread or descriptor could be had.
    pub fn start(socket: ListeningSocket) -> io::Result<(Self, Calls)> {
        Self::start_with(socket, Limits::default())
    }

    /// The same with other limits.
    ///
    /// # Errors
    /// No thread or descriptor could be had.
    pub fn start_with(socket: ListeningSocket, limits: Limits) -> io::Result<(Self, Calls)> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::from_std(socket.listener().try_clone()?)?
        };
        let calls_wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (calls, receiver) = mpsc::channel();
        let (hub, traffic) = (Arc::new(Hub::default()), Arc::new(Traffic::default()));
        let calls = Ways {
            calls,
            calls_wake: Arc::clone(&calls_wake),
            hub: Arc::clone(&hub),
            traffic: Arc::clone(&traffic),
            limits,
        };
        let (stop, stopped) = watch::channel(false);
        let work = move || run(&runtime, listener, socket, calls, stopped);
        let thread = thread::Builder::new().name("control".into()).spawn(work)?;
        let calls = Calls { receiver, wake: calls_wake, hub, traffic };
        Ok((Self { stop, thread: Some(thread) }, calls))
    }

    /// Ends it: requests that are still open get a short while for their last
    /// line, then the socket is removed.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The ways from a client into the machine, and what there is to know about
/// them.
pub(super) struct Ways {
    calls: Sender<Call>,
    calls_wake: Arc<EventFd>,
    pub(super) hub: Arc<Hub>,
    pub(super) traffic: Arc<Traffic>,
    pub(super) limits: Limits,
}

impl Ways {
    /// Hands a request to the main thread.
    pub(super) fn ask(&self, request: Request, reply: Reply) {
        // Where the main thread has ended, the reply says so.
        let _ = self.calls.send(Call { request, reply });
        let _ = self.calls_wake.write(1);
    }
}

/// `_socket` removes its file when this ends.
fn run(
    runtime: &Runtime,
    listener: UnixListener,
    _socket: ListeningSocket,
    ways: Ways,
    stop: watch::Receiver<bool>,
) {
    LocalSet::new().block_on(runtime, serve(listener, Rc::new(ways), stop));
}

async fn serve(listener: UnixListener, ways: Rc<Ways>, mut stop: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    let mut doorstep = JoinSet::new();
    // For the tasks, which see by it that the end has come.
    let stopped = stop.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if clients.len() < MAX_CLIENTS => {
                    clients.spawn_local(client(stream, Rc::clone(&ways), stopped.clone()));
                }
                Ok((stream, _)) if doorstep.len() < MAX_CLIENTS => {
                    doorstep.spawn_local(turn_away(stream));
                }
                Ok((stream, _)) => turn_away_in(&stream, None),
                Err(_) => {
                    if timeout(ACCEPT_PAUSE, stop.changed()).await.is_ok() {
                        break;
                    }
                }
            },
            Some(_) = clients.join_next() => {}
            Some(_) = doorstep.join_next() => {}
            _ = stop.changed() => break,
        }
    }
    // Whoever does not come to an end by itself is left.
    let farewell = async { while clients.join_next().await.is_some() {} };
    let _ = timeout(FAREWELL, farewell).await;
}

async fn client(stream: UnixStream, ways: Rc<Ways>, mut stop: watch::Receiver<bool>) {
    let mut first = [0; CHUNK];
    let length = tokio::select! {
        read = read_some(&stream, &mut first) => read,
        _ = stop.changed() => return,
    };
    // Nothing at all, and gone again.
    let Some(first) = first.get(..length).filter(|first| !first.is_empty()) else { return };
    if is_http(first) {
        http::serve(stream, first, ways, stop).await;
    } else {
        talk::serve(stream, first, ways, stop).await;
    }
}

/// No JSON begins with a capital letter, and no HTTP method with anything else.
fn is_http(first: &[u8]) -> bool {
    first.first().is_some_and(u8::is_ascii_uppercase)
}

/// Bytes as soon as there are some; none: there will be none.
async fn read_some(stream: &UnixStream, buffer: &mut [u8]) -> usize {
    loop {
        if stream.readable().await.is_err() {
            return 0;
        }
        match stream.try_read(buffer) {
            Ok(length) => return length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return 0,
        }
    }
}

/// Tells a client too many so, in what it speaks.
async fn turn_away(stream: UnixStream) {
    let mut first = [0; 1];
    let spoken = timeout(DOORSTEP, read_some(&stream, &mut first)).await;
    turn_away_in(&stream, spoken.ok().and_then(|length| first.get(..length)));
}

/// One answer fits the socket's buffer; then it is closed.
fn turn_away_in(stream: &UnixStream, first: Option<&[u8]>) {
    let message = format!("{MAX_CLIENTS} clients are connected already: at most as many");
    let error = Error::new(ErrorKind::TooManyClients, message);
    let bytes = if first.is_some_and(is_http) {
        http::refusal(&error)
    } else {
        api::message_line(&Message { id: None, body: Body::Error(error) })
    };
    let _ = stream.try_write(&bytes);
}
