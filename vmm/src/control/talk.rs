//! A client's conversation in JSON lines, from its first byte to its end.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::api::{self, Body, Error, ErrorKind, MAX_LINE, Message};
use super::connection::{Connection, Received};
use super::hang_up::hung_up;
use super::server::Ways;
use super::{Form, Outgoing, Reply};

/// Serves a client whose first bytes are `first`. Ends when there is nothing
/// left to be said, the client is gone or does not read, or, after `stop`, when
/// its requests are answered.
pub(super) async fn serve(
    stream: UnixStream,
    first: &[u8],
    ways: Rc<Ways>,
    mut stop: watch::Receiver<bool>,
) {
    let (outgoing, mut replies) = unbounded_channel();
    let mut connection = Connection::new(stream, first);
    let mut stopping = false;
    loop {
        // Until nothing is left of what has come, or enough waits for the
        // client: one that took its answers may go on with what it sent before.
        loop {
            if connection.write().is_err() {
                return;
            }
            if stopping || !receive_all(&mut connection, &ways, &outgoing) {
                break;
            }
        }
        if connection.is_over() {
            return;
        }
        if stopping && connection.is_answered() {
            return;
        }
        let wants = connection.wants().filter(|wants| !stopping || wants.is_writable());
        let deadline = connection.deadline(&ways.limits).map(Instant::from_std);
        tokio::select! {
            // Replies first: a client whose request is done may have sent
            // another.
            biased;
            Some(reply) = replies.recv() => queue(&mut connection, reply),
            _ = stop.changed(), if !stopping => stopping = true,
            ready = connection.stream().ready(wants.unwrap_or(Interest::READABLE)),
                if wants.is_some() =>
            {
                match ready {
                    Ok(ready) if ready.is_readable() && !stopping => {
                        connection.read();
                    }
                    Ok(_) => {}
                    Err(_) => return,
                }
            }
            () = hung_up(connection.stream()) => {
                // What a client sent before it went is carried out as far as
                // it came whole.
                while !stopping && connection.read() {
                    receive_all(&mut connection, &ways, &outgoing);
                }
                return;
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => return,
        }
    }
}

fn queue(connection: &mut Connection, reply: Outgoing) {
    if let Outgoing::Line { line, last } = reply {
        connection.queue(line, last);
    }
}

/// False if there was nothing to receive.
fn receive_all(
    connection: &mut Connection,
    ways: &Ways,
    outgoing: &UnboundedSender<Outgoing>,
) -> bool {
    let mut some = false;
    while let Some(received) = connection.take() {
        some = true;
        let (id, error) = match received {
            Received::Line(line) => match api::parse(&line) {
                Ok((id, request)) => {
                    connection.opened();
                    ways.traffic.lines.fetch_add(1, Ordering::Relaxed);
                    let (gone, hub) = (Arc::clone(connection.gone()), Arc::clone(&ways.hub));
                    ways.ask(request, Reply::new(outgoing.clone(), Form::Lines(id), gone, hub));
                    continue;
                }
                Err(wrong) => wrong,
            },
            Received::TooLong => {
                let message = format!("a line longer than {MAX_LINE} bytes: the connection ends");
                (None, Error::new(ErrorKind::TooLong, message))
            }
        };
        connection.queue_notice(api::message_line(&Message { id, body: Body::Error(error) }));
    }
    some
}
