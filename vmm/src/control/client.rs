//! The other end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::api::{self, Body, Error, Event, Message, Progress, Request};

/// How long a server may say nothing while a request is open. A pause takes
/// ten seconds at the most; a migration tells of its progress.
const SILENCE: Duration = Duration::from_secs(60);
/// Longest answer, in bytes: the most runs that there may be, each some
/// hundred bytes, several times over.
const MAX_ANSWER: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody to ask.
    #[error("{}: {why}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The connection broke, or the server says nothing.
    #[error("no answer: {0}")]
    Lost(String),
    /// What came is no answer.
    #[error("not understood: {0}")]
    Nonsense(String),
    /// The server refuses.
    #[error(transparent)]
    Refused(#[from] Error),
}

/// Connects; reading waits for as long as `silence`.
fn connect(path: &Path, silence: Option<Duration>) -> Result<BufReader<UnixStream>, ClientError> {
    let unreachable = |error: io::Error| {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no socket: is the guest running?".to_owned(),
            io::ErrorKind::ConnectionRefused => {
                "nobody listens: the machine that made this socket is gone".to_owned()
            }
            _ => error.to_string(),
        };
        ClientError::Unreachable { path: path.to_owned(), why }
    };
    let stream = UnixStream::connect(path).map_err(unreachable)?;
    stream.set_read_timeout(silence).map_err(unreachable)?;
    stream.set_write_timeout(Some(SILENCE)).map_err(unreachable)?;
    Ok(BufReader::new(stream))
}

/// A connection to a machine.
#[derive(Debug)]
pub struct Client {
    reader: BufReader<UnixStream>,
    next_id: u64,
}

impl Client {
    /// Connects to the machine behind the socket at `path`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Ok(Self { reader: connect(path, Some(SILENCE))?, next_id: 1 })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask<A: DeserializeOwned>(&mut self, request: &Request) -> Result<A, ClientError> {
        self.ask_with(request, |_| {})
    }

    /// As [`Self::ask`], with `progress` told how far it is.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn ask_with<A: DeserializeOwned>(
        &mut self,
        request: &Request,
        mut progress: impl FnMut(&Progress),
    ) -> Result<A, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let line = api::request_line(id, request);
        // A server that refuses this client has said why and closed: that is
        // the answer to read.
        let written = self.reader.get_mut().write_all(&line);
        loop {
            let message = self.read().map_err(|error| match &written {
                Err(broken) => ClientError::Lost(broken.to_string()),
                Ok(()) => error,
            })?;
            if message.id.is_some_and(|other| other != id) {
                continue;
            }
            match message.body {
                Body::Progress(how_far) => progress(&how_far),
                Body::Error(error) => return Err(error.into()),
                Body::Ok(answer) => {
                    return serde_json::from_value(answer)
                        .map_err(|error| ClientError::Nonsense(error.to_string()));
                }
            }
        }
    }

    fn read(&mut self) -> Result<Message<Value>, ClientError> {
        let mut line = Vec::new();
        let read = self.reader.by_ref().take(MAX_ANSWER).read_until(b'\n', &mut line);
        read.map_err(|error| {
            ClientError::Lost(match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    format!("the machine has said nothing for {} s", SILENCE.as_secs())
                }
                _ => error.to_string(),
            })
        })?;
        if line.last() != Some(&b'\n') {
            return Err(ClientError::Lost("the machine has ended the connection".to_owned()));
        }
        serde_json::from_slice(&line).map_err(|error| ClientError::Nonsense(error.to_string()))
    }
}

/// Events of a machine, by HTTP. In its version 1.0 an answer is what comes
/// until the connection ends, so that lines are all there is to read.
#[derive(Debug)]
pub struct Events {
    reader: BufReader<UnixStream>,
}

/// Longest line of an event, in bytes; an event has less than a kilobyte.
const MAX_EVENT: u64 = 64 << 10;

impl Events {
    /// Asks for events from now on.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        let mut events = Self { reader: connect(path, Some(SILENCE))? };
        let lost = |error: io::Error| ClientError::Lost(error.to_string());
        // A server that refuses this client has said why and closed: that is
        // the answer to read.
        let _ = events.reader.get_mut().write_all(b"GET /v1/events HTTP/1.0\r\n\r\n");
        let status = events.line()?;
        while !events.line()?.is_empty() {}
        if !status.contains(" 200 ") {
            #[derive(serde::Deserialize)]
            struct Failure {
                error: Error,
            }
            let mut body = String::new();
            let read = events.reader.by_ref().take(MAX_EVENT).read_to_string(&mut body);
            read.map_err(lost)?;
            return Err(match serde_json::from_str::<Failure>(&body) {
                Ok(failure) => failure.error.into(),
                Err(_) => ClientError::Nonsense(status),
            });
        }
        // Nothing may happen for as long as it likes.
        events.reader.get_ref().set_read_timeout(None).map_err(lost)?;
        Ok(events)
    }

    /// The next event; `None` when there are no more.
    ///
    /// # Errors
    /// [`ClientError`].
    #[expect(clippy::should_implement_trait, reason = "an iterator does not end at an error")]
    pub fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            let mut line = String::new();
            let read = self.reader.by_ref().take(MAX_EVENT).read_line(&mut line);
            if read.map_err(|error| ClientError::Lost(error.to_string()))? == 0 {
                return Ok(None);
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data)
                    .map(Some)
                    .map_err(|error| ClientError::Nonsense(error.to_string()));
            }
        }
    }

    fn line(&mut self) -> Result<String, ClientError> {
        let mut line = String::new();
        let read = self.reader.by_ref().take(MAX_EVENT).read_line(&mut line);
        match read {
            Ok(0) => Err(ClientError::Lost("the machine has ended the connection".to_owned())),
            Ok(_) => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
            Err(error) => Err(ClientError::Lost(error.to_string())),
        }
    }
}
