//! The words of the control socket: JSON objects, one a line, and the bodies of
//! HTTP ([`super::http`]).
//!
//! A client sends requests, each with an id of its choice:
//!
//! ```json
//! {"id":7,"request":"migrate","to":"pool:0","ranges":[{"base":"0x0","size":"64M"}]}
//! ```
//!
//! and gets, for each, any number of `progress` and then one `ok` or `error`:
//!
//! ```json
//! {"id":7,"progress":{"done":16,"total":32,"moved":{"granules":16,"bytes":33554432}}}
//! {"id":7,"ok":{"moved":{"granules":32,"bytes":67108864},"outcomes":{"moved":32}}}
//! ```
//!
//! With `"detach":true` the answer to a migration comes at once: the job that
//! goes on, to be asked for by its number.
//!
//! ```json
//! {"id":8,"request":"evacuate","region":0,"detach":true}
//! {"id":8,"ok":{"id":3,"what":"evacuate","detached":true,"state":"running","elapsed-ms":0}}
//! {"id":9,"request":"cancel","job":3}
//! ```
//!
//! Addresses and sizes come in as numbers or as texts (`"0x100000000"`,
//! `"4G"`); addresses go out as hexadecimal texts, because JSON numbers are not
//! exact above 2^53 everywhere. A key that nobody knows is an error.

mod account;
mod answer;
mod event;
mod job;
mod request;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use account::{Accounts, Cgroup, HugePages, Mapped, NodeBytes, TierAccount};
pub use answer::{
    Amount, FaultLatency, Heat, Lifecycle, Metrics, Migrated, Mismatch, Moves, PageFailed, Pinned,
    Place, Plugged, Policy, Progress, Region, Residency, Run, Skipped, Stalls, State, Status,
    Tiers, Unpinned, Unplugged, Verified,
};
pub use event::{Event, Lost, MemoryFailed, MetBy, NoMemory, PolicyChanged, RegionChanged};
pub use job::{Job, JobKind, JobState, Jobs};
pub use request::{
    BackingWord, Evacuate, Hex, Migrate, Plug, PolicyWord, Range, Request, SelectFlag, To,
};

/// Longest line that a client may send, in bytes, with its line break.
pub const MAX_LINE: usize = 64 << 10;
/// Most runs in one answer to [`Request::Residency`]: so many that the answer
/// fits the buffer of a Unix socket (`net.core.wmem_default`, 208 KiB), and goes
/// out at once, whenever the client gets round to reading it.
pub const MAX_RUNS: usize = 1 << 10;

/// One line from the server.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Message<A> {
    /// The request's id; `None` where it could not be read.
    pub id: Option<u64>,
    /// What is said.
    #[serde(flatten)]
    pub body: Body<A>,
}

/// What a [`Message`] says.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "kebab-case")]
pub enum Body<A> {
    /// How far it is.
    Progress(Progress),
    /// It is done; the last line about the request.
    Ok(A),
    /// It is not done; the last line about the request.
    Error(Error),
}

/// Every kind of answer.
#[derive(Serialize, Clone, Debug, PartialEq)]
#[serde(untagged)]
#[expect(missing_docs, reason = "each is documented where it is declared")]
pub enum Answer {
    Status(Box<Status>),
    Residency(Residency),
    Migrated(Migrated),
    Lifecycle(Lifecycle),
    Pinned(Pinned),
    Unpinned(Unpinned),
    /// [`Request::Unplug`].
    Unplugged(Unplugged),
    /// [`Request::Plug`].
    Plugged(Plugged),
    /// [`Request::FailPage`].
    PageFailed(PageFailed),
    Job(Box<Job>),
    Jobs(Jobs),
    Policy(Policy),
    Metrics(Metrics),
}

/// Why a request was not carried out.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// For people, one line.
    pub message: String,
}

/// Kinds of [`Error`].
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// No request at all; nothing was done.
    Malformed,
    /// A line longer than [`MAX_LINE`]; the connection is closed.
    TooLong,
    /// More clients than there may be; the connection is closed.
    TooManyClients,
    /// It cannot be done as it was asked; nothing was done.
    Refused,
    /// There is nothing of that name or number.
    NotFound,
    /// This machine cannot do it at all.
    Unsupported,
    /// Something took too long.
    TimedOut,
    /// It does not fit what the machine is doing, such as a pause of a machine
    /// that is paused.
    State,
    /// The machine is over.
    Over,
    /// Neap or the kernel failed.
    Failed,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }
}

/// Reads one line of a client, without its line break: the request's id and
/// the request.
///
/// # Errors
/// What is wrong, with the id if that could be read.
pub fn parse(line: &[u8]) -> Result<(u64, Request), (Option<u64>, Error)> {
    let malformed = |id, message: String| Err((id, Error::new(ErrorKind::Malformed, message)));
    let mut object = match serde_json::from_slice(line) {
        Ok(Value::Object(object)) => object,
        Ok(_) => return malformed(None, "a request is a JSON object".to_owned()),
        Err(error) => return malformed(None, format!("no JSON: {error}")),
    };
    let id = match object.remove("id") {
        None => return malformed(None, "\"id\" is missing: a number of your choice".to_owned()),
        Some(id) => match id.as_u64() {
            Some(id) => id,
            None => return malformed(None, format!("\"id\" is {id}, and no whole number from 0")),
        },
    };
    match serde_json::from_value(Value::Object(object)) {
        Ok(request) => Ok((id, request)),
        Err(error) => malformed(Some(id), error.to_string().replace('`', "\"")),
    }
}

/// One line for the server, with its line break.
pub fn request_line(id: u64, request: &Request) -> Vec<u8> {
    #[derive(Serialize)]
    struct Line<'a> {
        id: u64,
        #[serde(flatten)]
        request: &'a Request,
    }
    line(&Line { id, request })
}

/// One line for a client, with its line break.
pub fn message_line(message: &Message<Answer>) -> Vec<u8> {
    line(message)
}

/// None of these types can fail to be written: no map with other keys than
/// texts, and a `Vec` takes everything.
pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = json(value);
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests;
