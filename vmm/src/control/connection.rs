//! One client: its socket, what it has sent, and what it has yet to read.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::io::Interest;
use tokio::net::UnixStream;

use super::lines::{Lines, TooLong};
use super::server::Limits;

/// Requests that a client may have open; more are not read until one ends.
pub(super) const MAX_OPEN: usize = 8;
/// Bytes waiting for a client above which progress is not told, and nothing
/// more is read from it.
const ENOUGH_WAITING: usize = 64 << 10;
/// Bytes read at once, so that no client keeps the others waiting.
pub(super) const CHUNK: usize = 16 << 10;

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    incoming: Lines,
    outgoing: VecDeque<Vec<u8>>,
    /// Bytes of the first of `outgoing` that are written.
    written: usize,
    /// Bytes of `outgoing` that are not.
    waiting: usize,
    /// When something was last written, or there was nothing to write.
    moved: Instant,
    /// Requests without a last line.
    open: usize,
    gone: Arc<AtomicBool>,
    /// Nothing more is read: the client said its last, or what it said makes
    /// no lines.
    ended: bool,
}

/// What a client has sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// A line, without its line break.
    Line(Vec<u8>),
    /// A line that is too long.
    TooLong,
}

impl Connection {
    /// A client that has just come, and has sent `first`.
    pub(super) fn new(stream: UnixStream, first: &[u8]) -> Self {
        let mut incoming = Lines::default();
        incoming.push(first);
        Self {
            stream,
            incoming,
            outgoing: VecDeque::new(),
            written: 0,
            waiting: 0,
            moved: Instant::now(),
            open: 0,
            gone: Arc::default(),
            ended: false,
        }
    }

    /// Set when the client is gone.
    pub(super) fn gone(&self) -> &Arc<AtomicBool> {
        &self.gone
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// What to wait for, if for anything.
    pub(super) fn wants(&self) -> Option<Interest> {
        match (self.wants_input(), self.waiting > 0) {
            (true, true) => Some(Interest::READABLE | Interest::WRITABLE),
            (true, false) => Some(Interest::READABLE),
            (false, true) => Some(Interest::WRITABLE),
            (false, false) => None,
        }
    }

    fn wants_input(&self) -> bool {
        !self.ended && self.open < MAX_OPEN && self.waiting < ENOUGH_WAITING
    }

    /// Reads what is there, at the most a chunk; false if nothing was.
    pub(super) fn read(&mut self) -> bool {
        if !self.wants_input() {
            return false;
        }
        let mut chunk = [0; CHUNK];
        match self.stream.try_read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(length) => self.incoming.push(&chunk[..length]),
            Err(error) if is_later(&error) => return false,
            Err(_) => {
                self.ended = true;
                self.incoming.take_rest();
            }
        }
        true
    }

    /// The next line that was read, if it may be taken: a client with enough
    /// open requests waits with the rest.
    pub(super) fn take(&mut self) -> Option<Received> {
        while self.open < MAX_OPEN && self.waiting < ENOUGH_WAITING {
            let line = match self.incoming.next() {
                Ok(Some(line)) => line,
                Ok(None) if self.ended && !self.incoming.is_empty() => self.incoming.take_rest(),
                Ok(None) => return None,
                Err(TooLong) => {
                    self.ended = true;
                    self.incoming.take_rest();
                    return Some(Received::TooLong);
                }
            };
            if !line.trim_ascii().is_empty() {
                return Some(Received::Line(line));
            }
        }
        None
    }

    /// A request has begun.
    pub(super) fn opened(&mut self) {
        self.open += 1;
    }

    /// Queues a line; `last` ends a request.
    pub(super) fn queue(&mut self, line: Vec<u8>, last: bool) {
        if last {
            self.open = self.open.saturating_sub(1);
        } else if self.waiting >= ENOUGH_WAITING {
            return;
        }
        self.queue_notice(line);
    }

    /// Queues a line that belongs to no request.
    pub(super) fn queue_notice(&mut self, line: Vec<u8>) {
        if self.waiting == 0 {
            self.moved = Instant::now();
        }
        self.waiting += line.len();
        self.outgoing.push_back(line);
    }

    /// Writes what the client takes. An error: it is gone.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while let Some(line) = self.outgoing.front() {
            match self.stream.try_write(&line[self.written..]) {
                Ok(length) => {
                    self.moved = Instant::now();
                    self.waiting -= length;
                    self.written += length;
                    if self.written == line.len() {
                        self.written = 0;
                        self.outgoing.pop_front();
                    }
                }
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether nothing is left to be said in either direction.
    pub(super) fn is_over(&self) -> bool {
        self.ended && self.incoming.is_empty() && self.open == 0 && self.waiting == 0
    }

    /// Whether every request has its answer and the client has read it.
    pub(super) fn is_answered(&self) -> bool {
        self.open == 0 && self.waiting == 0
    }

    /// When patience with a client that does not read ends.
    pub(super) fn deadline(&self, limits: &Limits) -> Option<Instant> {
        (self.waiting > 0).then(|| self.moved + limits.reading)
    }
}

impl Drop for Connection {
    /// Nobody waits for its requests any more.
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Release);
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}
