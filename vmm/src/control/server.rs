//! The control thread: one loop over all sockets, none of which it waits for.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::api::{self, Body, Error, ErrorKind, MAX_LINE, Message};
use super::connection::{Connection, Received};
use super::socket::ListeningSocket;
use super::{Call, Calls, Outgoing, Reply};
use crate::fd;

/// Most clients at a time.
pub const MAX_CLIENTS: usize = 16;
/// How long nobody is let in after a failure to let somebody in, such as too
/// many open files.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long last answers get at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// The control thread, seen from its owner.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to serve `socket`; requests arrive at the other result.
    ///
    /// # Errors
    /// No thread or descriptor could be had.
    pub fn start(socket: ListeningSocket) -> io::Result<(Self, Calls)> {
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let calls_wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let stop = Arc::new(AtomicBool::new(false));
        let (calls, receiver) = mpsc::channel();
        let (outgoing, replies) = mpsc::channel();
        let work = Work {
            socket,
            clients: BTreeMap::new(),
            next_client: 0,
            refuse_until: None,
            calls,
            calls_wake: Arc::clone(&calls_wake),
            outgoing,
            replies,
            wake: Arc::clone(&wake),
            stop: Arc::clone(&stop),
        };
        let thread = thread::Builder::new().name("control".into()).spawn(move || work.run())?;
        let calls = Calls { receiver, wake: calls_wake };
        Ok((Self { stop, wake, thread: Some(thread) }, calls))
    }

    /// Ends it: requests that are still open get a short while for their last
    /// line, then the socket is removed.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        let _ = self.wake.write(1);
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

struct Work {
    socket: ListeningSocket,
    clients: BTreeMap<u64, Connection>,
    next_client: u64,
    refuse_until: Option<Instant>,
    calls: Sender<Call>,
    calls_wake: Arc<EventFd>,
    outgoing: Sender<Outgoing>,
    replies: Receiver<Outgoing>,
    wake: Arc<EventFd>,
    stop: Arc<AtomicBool>,
}

impl Work {
    fn run(mut self) {
        let mut farewell: Option<Instant> = None;
        loop {
            if farewell.is_none() && self.stop.load(Ordering::Acquire) {
                farewell = Some(Instant::now() + FAREWELL);
            }
            if let Some(end) = farewell {
                self.clients.retain(|_, client| client.open() + client.waiting() > 0);
                if self.clients.is_empty() || Instant::now() >= end {
                    return;
                }
            }
            match self.wait(farewell) {
                Ok(ready) => self.serve(&ready, farewell.is_some()),
                Err(Errno::INTR) => {}
                Err(error) => {
                    crate::failure::tell(format_args!("control socket: poll: {error}"));
                    return;
                }
            }
        }
    }

    /// Waits until there is something to do. The result is for the wake-up,
    /// the listener, and each client in order.
    fn wait(&self, end: Option<Instant>) -> Result<Vec<PollFlags>, Errno> {
        let now = Instant::now();
        let accept = match self.refuse_until {
            _ if end.is_some() => PollFlags::empty(),
            Some(until) if until > now => PollFlags::empty(),
            _ => PollFlags::IN,
        };
        let mut fds = vec![
            PollFd::from_borrowed_fd(fd::of_event(&self.wake), PollFlags::IN),
            PollFd::new(self.socket.listener(), accept),
        ];
        for client in self.clients.values() {
            fds.push(PollFd::from_borrowed_fd(client.fd(), client.wants()));
        }
        let deadlines = self.clients.values().filter_map(Connection::deadline);
        let deadline = deadlines.chain(end).chain(self.refuse_until.filter(|at| *at > now)).min();
        let timeout = deadline.map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        poll(&mut fds, timeout.as_ref())?;
        Ok(fds.iter().map(PollFd::revents).collect())
    }

    fn serve(&mut self, ready: &[PollFlags], ending: bool) {
        let _ = self.wake.read();
        // First, because a client whose request is done may have sent another.
        while let Ok(Outgoing { client, line, last }) = self.replies.try_recv() {
            if let Some(connection) = self.clients.get_mut(&client) {
                connection.queue(line, last);
            }
        }
        let clients: Vec<u64> = self.clients.keys().copied().collect();
        for (client, flags) in clients.into_iter().zip(ready.iter().skip(2)) {
            self.serve_client(client, *flags, ending);
        }
        let now = Instant::now();
        self.clients.retain(|_, client| {
            client.write().is_ok()
                && !client.is_over()
                && client.deadline().is_none_or(|deadline| deadline > now)
        });
        // A client that took its answers may go on with what it sent before.
        if !ending {
            let clients: Vec<u64> = self.clients.keys().copied().collect();
            for client in clients {
                self.serve_client(client, PollFlags::empty(), ending);
            }
        }
        if ready.get(1).is_some_and(|flags| !flags.is_empty()) {
            self.accept();
        }
    }

    fn serve_client(&mut self, client: u64, flags: PollFlags, ending: bool) {
        let Some(mut connection) = self.clients.remove(&client) else { return };
        let hung_up = flags.intersects(PollFlags::HUP | PollFlags::ERR);
        if !ending {
            if flags.contains(PollFlags::IN) {
                connection.read();
            }
            while let Some(received) = connection.take() {
                self.receive(client, &mut connection, received);
            }
        }
        // What a client sent before it went is carried out as far as it came
        // whole; to read on is for the next round.
        if !hung_up || (!ending && flags.contains(PollFlags::IN) && !connection.has_ended()) {
            self.clients.insert(client, connection);
        }
    }

    fn receive(&self, client: u64, connection: &mut Connection, received: Received) {
        let (id, error) = match received {
            Received::Line(line) => match api::parse(&line) {
                Ok((id, request)) => {
                    connection.opened();
                    let reply = Reply {
                        outgoing: self.outgoing.clone(),
                        wake: Arc::clone(&self.wake),
                        client,
                        id,
                        gone: Arc::clone(connection.gone()),
                        answered: false,
                    };
                    // Where the main thread has ended, the reply says so.
                    let _ = self.calls.send(Call { request, reply });
                    let _ = self.calls_wake.write(1);
                    return;
                }
                Err(wrong) => wrong,
            },
            Received::TooLong => {
                let message = format!("a line longer than {MAX_LINE} bytes: the connection ends");
                (None, Error::new(ErrorKind::TooLong, message))
            }
        };
        let body = Body::Error(error);
        connection.queue_notice(api::message_line(&Message { id, body }));
    }

    fn accept(&mut self) {
        self.refuse_until = None;
        let stream = match self.socket.listener().accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => {
                self.refuse_until = Some(Instant::now() + ACCEPT_PAUSE);
                return;
            }
        };
        let Ok(mut connection) = Connection::new(stream) else { return };
        if self.clients.len() < MAX_CLIENTS {
            self.clients.insert(self.next_client, connection);
            self.next_client += 1;
            return;
        }
        let message = format!("{MAX_CLIENTS} clients are connected already: at most as many");
        let body = Body::Error(Error::new(ErrorKind::TooManyClients, message));
        connection.queue_notice(api::message_line(&Message { id: None, body }));
        // One line fits the socket's buffer; then it is closed.
        let _ = connection.write();
    }
}
