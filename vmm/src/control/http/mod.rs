//! HTTP/1.1 on the API socket: the same requests as in JSON lines, as
//! resources ([`routes`]), with events and metrics beside them.
//!
//! hyper reads and writes the messages. What it refuses by itself, with a
//! status and nothing else, gets a body here that says why ([`stream`]).
//! `Host`, `Accept` and `Content-Type` are not looked at: there is one machine
//! behind a socket, and one form of each answer.
//!
//! Memory for a client is bounded: a head of [`MAX_HEAD`], a body of
//! [`MAX_BODY`], one request at a time, an answer, and hyper's buffers.

mod answer;
mod body;
pub mod openapi;
mod query;
mod read;
mod routes;
mod stream;
mod timer;

use std::pin::pin;
use std::rc::Rc;

use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::api::{Error, ErrorKind};
use super::hang_up::hung_up;
use super::server::Ways;
use stream::{Exchange, Stream};
use timer::TokioTimer;

/// Most bytes of a request's head.
pub const MAX_HEAD: usize = 16 << 10;
/// Most bytes of a request's body.
pub const MAX_BODY: usize = 64 << 10;

/// Serves a client whose first bytes are `first`, until it or the machine goes.
pub(super) async fn serve(
    socket: UnixStream,
    first: &[u8],
    ways: Rc<Ways>,
    mut stop: watch::Receiver<bool>,
) {
    let socket = Rc::new(socket);
    let exchange = Rc::new(Exchange::default());
    let limits = ways.limits;
    let stream = Stream::new(Rc::clone(&socket), first, limits.reading, Rc::clone(&exchange));
    let service = {
        let exchange = Rc::clone(&exchange);
        service_fn(move |request| routes::serve(request, Rc::clone(&ways), Rc::clone(&exchange)))
    };
    let mut builder = Builder::new();
    // A client may say its last and wait for the answer; that it is gone is
    // seen by `hung_up`.
    builder.half_close(true).timer(TokioTimer).header_read_timeout(limits.sending);
    builder.max_buf_size(MAX_HEAD);
    let connection = builder.serve_connection(stream, service);
    let mut connection = pin!(connection);
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = hung_up(&socket) => return,
            _ = stop.changed(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Some(refusal) = exchange.refusal(ended.err().as_ref(), limits.sending) {
        // It fits the socket's buffer, or the client does not read.
        let _ = socket.try_write(&refusal);
    }
}

/// What a client is told before anything of it is read.
pub(super) fn refusal(error: &Error) -> Vec<u8> {
    answer::raw(answer::status(error.kind), error)
}

/// What is wrong with a request.
fn malformed(message: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Malformed, message)
}
