//! The other end of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::api::{self, Body, Error, Message, Progress, Request};

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
        stream.set_read_timeout(Some(SILENCE)).map_err(unreachable)?;
        stream.set_write_timeout(Some(SILENCE)).map_err(unreachable)?;
        Ok(Self { reader: BufReader::new(stream), next_id: 1 })
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
