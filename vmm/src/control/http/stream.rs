//! A client's socket as hyper reads and writes it.
//!
//! hyper answers what is no HTTP by a status line alone. Such an answer is
//! told from those of the service by when it is written: while there is no
//! request that the service has been given and whose answer is not yet sent. It
//! is kept back, and [`Exchange::refusal`] has the one that says why.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::net::{Shutdown, shutdown};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

use super::super::api::{Error, ErrorKind};
use super::{MAX_HEAD, answer};

/// Bytes read at once.
const CHUNK: usize = 8 << 10;

/// How far the request at hand is.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// The service has been given a request whose answer is not yet sent.
    serving: Cell<bool>,
    /// All of that answer is with hyper.
    answered: Cell<bool>,
    /// Something of a request has come that the service has not been given.
    begun: Cell<bool>,
    /// What hyper answered by itself.
    refused: Cell<Option<u16>>,
}

impl Exchange {
    /// The service has been given a request.
    pub(super) fn open(&self) {
        self.serving.set(true);
        self.answered.set(false);
        self.begun.set(false);
    }

    /// hyper has all of the answer.
    pub(super) fn close(&self) {
        self.answered.set(true);
    }

    /// What to tell a client whose connection has ended with `error`; a head
    /// had as long as `limit`.
    pub(super) fn refusal(&self, error: Option<&hyper::Error>, limit: Duration) -> Option<Vec<u8>> {
        let error = error?;
        // One that has sent nothing of a request has kept its connection for
        // as long as it may.
        if error.is_timeout() && self.begun.get() {
            let message = format!("no whole head of a request within {limit:?}");
            let error = Error::new(ErrorKind::TimedOut, message);
            return Some(answer::raw(StatusCode::REQUEST_TIMEOUT, &error));
        }
        if error.is_incomplete_message() && self.begun.get() {
            let error = Error::new(ErrorKind::Malformed, "a head of a request that is cut off");
            return Some(answer::raw(StatusCode::BAD_REQUEST, &error));
        }
        // HTTP/2 hyper does not answer at all.
        let status = self.refused.get().or(error.is_parse().then_some(400))?;
        let status = StatusCode::from_u16(status).ok()?;
        let error = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE | StatusCode::URI_TOO_LONG => {
                let message = format!("a head of more than {MAX_HEAD} bytes, or too many fields");
                Error::new(ErrorKind::TooLong, message)
            }
            _ => Error::new(ErrorKind::Malformed, "no HTTP/1.1 request"),
        };
        Some(answer::raw(status, &error))
    }
}

/// The socket.
pub(super) struct Stream {
    socket: Rc<UnixStream>,
    /// What was read to see what the client speaks.
    first: Vec<u8>,
    exchange: Rc<Exchange>,
    patience: Duration,
    /// Ends the patience with a client that does not read.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Stream {
    pub(super) fn new(
        socket: Rc<UnixStream>,
        first: &[u8],
        patience: Duration,
        exchange: Rc<Exchange>,
    ) -> Self {
        Self { socket, first: first.to_vec(), exchange, patience, stalled: None }
    }

    fn note(&self, length: usize) {
        if length > 0 && !self.exchange.serving.get() {
            self.exchange.begun.set(true);
        }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let length = self.first.len().min(buffer.remaining());
            let rest = self.first.split_off(length);
            let now = std::mem::replace(&mut self.first, rest);
            buffer.put_slice(&now);
            self.note(length);
            return Poll::Ready(Ok(()));
        }
        // Copied once more, which spares memory that is not initialised.
        let mut chunk = [0; CHUNK];
        let most = buffer.remaining().min(CHUNK);
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            match self.socket.try_read(&mut chunk[..most]) {
                Ok(length) => {
                    buffer.put_slice(&chunk[..length]);
                    self.note(length);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.exchange.serving.get() {
            if self.exchange.refused.get().is_none() {
                self.exchange.refused.set(status(bytes));
            }
            return Poll::Ready(Ok(bytes.len()));
        }
        loop {
            if self.socket.poll_write_ready(context)?.is_pending() {
                let patience = self.patience;
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(patience)));
                ready!(stalled.as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            match self.socket.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    self.stalled = None;
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.exchange.answered.replace(false) {
            self.exchange.serving.set(false);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A refusal is yet to be written.
        if self.exchange.refused.get().is_none() {
            // The other side may be gone.
            let _ = shutdown(&*self.socket, Shutdown::Write);
        }
        Poll::Ready(Ok(()))
    }
}

/// The status in the first line of an answer (RFC 9112, section 4).
fn status(head: &[u8]) -> Option<u16> {
    let code = head.strip_prefix(b"HTTP/1.1 ").or_else(|| head.strip_prefix(b"HTTP/1.0 "))?;
    std::str::from_utf8(code.get(..3)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_from_heads() {
        assert_eq!(status(b"HTTP/1.1 431 Request Header Fields Too Large\r\n"), Some(431));
        assert_eq!(status(b"HTTP/1.1 4"), None);
        assert_eq!(status(b""), None);
    }
}
