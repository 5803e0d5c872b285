//! The words of the control socket: JSON objects, one a line.
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
//! Addresses and sizes come in as numbers or as texts (`"0x100000000"`,
//! `"4G"`); addresses go out as hexadecimal texts, because JSON numbers are not
//! exact above 2^53 everywhere. A key that nobody knows is an error.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::keyvalue::lenient;
use crate::config::units::{Address, Size};

/// Longest line that a client may send, in bytes, with its line break.
pub const MAX_LINE: usize = 64 << 10;
/// Most runs in one answer to [`Request::Residency`].
pub const MAX_RUNS: usize = 16 << 10;

/// What a client can ask.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "request", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
#[serde(deny_unknown_fields)]
pub enum Request {
    /// How the machine and its memory are: [`Status`].
    Status {},
    /// Where guest memory is: [`Residency`].
    Residency {
        /// Ask the kernel too.
        #[serde(default)]
        verify: bool,
        /// First address to tell of.
        #[serde(default)]
        from: Hex,
    },
    /// Move guest memory: [`Migrated`].
    Migrate(Migrate),
    /// Bring home everything that is in frames of a region: [`Migrated`].
    Evacuate {
        /// The region's number, from 0.
        region: u8,
    },
    /// Park the vCPUs: [`Lifecycle`].
    Pause {},
    /// Let the vCPUs go on: [`Lifecycle`].
    Resume {},
    /// Hold guest memory where it is until `unpin`: [`Pinned`].
    Pin {
        /// What to hold.
        range: Range,
    },
    /// Let go of what `pin` holds: [`Unpinned`].
    Unpin {
        /// The number that `pin` answered.
        pin: u64,
    },
}

/// [`Request::Migrate`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Migrate {
    /// Guest memory; none: all of it.
    #[serde(default)]
    pub ranges: Vec<Range>,
    /// Where to.
    pub to: To,
    /// What may be collected; nothing said: all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub select: Option<Vec<SelectFlag>>,
    /// Of what is in device frames, only that in this region's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_pool: Option<u8>,
    /// Most granules to move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

/// What may be collected; the words of `MIGRATE_VMA_SELECT_*`.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum SelectFlag {
    /// What is in host memory.
    System,
    /// What is in frames of a `private` region.
    DevicePrivate,
    /// What is in frames of a `public` region.
    DevicePublic,
}

impl FromStr for SelectFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "system" => Ok(Self::System),
            "device-private" => Ok(Self::DevicePrivate),
            "device-public" => Ok(Self::DevicePublic),
            _ => Err(format!("\"{text}\" is none of system, device-private, device-public")),
        }
    }
}

/// Where a migration goes: `"home"` or `"pool:N"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Host memory.
    Home,
    /// The pool of this region.
    Pool(u8),
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Home => f.write_str("home"),
            Self::Pool(pool) => write!(f, "pool:{pool}"),
        }
    }
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pool = text.strip_prefix("pool:").and_then(|number| number.parse().ok());
        match (text, pool) {
            ("home", _) => Ok(Self::Home),
            (_, Some(pool)) => Ok(Self::Pool(pool)),
            _ => Err(format!("\"{text}\" is neither home nor pool:N")),
        }
    }
}

impl Serialize for To {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for To {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer)
    }
}

/// A guest-physical address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lenient(deserializer).map(|address: Address| Self(address.0))
    }
}

/// Guest-physical memory, from `base` on.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Range {
    /// First byte.
    pub base: Hex,
    /// Bytes.
    #[serde(deserialize_with = "size")]
    pub size: u64,
}

fn size<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    lenient(deserializer).map(|size: Size| size.0)
}

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
}

/// Why a request was not carried out.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For programs.
    pub kind: ErrorKind,
    /// For people, one line.
    pub message: String,
}

/// Kinds of [`Error`].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
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
    /// This machine cannot do it at all.
    Unsupported,
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

/// Granules and bytes.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Granules.
    pub granules: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How far a migration is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Granules that have an outcome.
    pub done: u64,
    /// Granules of the request.
    pub total: u64,
    /// What has moved.
    pub moved: Amount,
}

/// What vCPUs do.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// They run.
    Running,
    /// They are asked to park.
    Pausing,
    /// They are parked.
    Paused,
    /// The machine is over.
    Stopped,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// Answer to [`Request::Pause`] and [`Request::Resume`].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// State now.
    pub state: State,
}

/// Answer to [`Request::Status`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Neap's version.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// What the vCPUs do.
    pub state: State,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// Bytes of guest memory, RAM and windows of device regions.
    pub memory_bytes: u64,
    /// Memory that moves; `None`: none does.
    pub tiers: Option<Tiers>,
}

/// How memory that moves is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Tiers {
    /// Bytes of a granule.
    pub granule_bytes: u64,
    /// How memory moves.
    pub engine: String,
    /// How faults are had.
    pub userfaultfd: String,
    /// What moves by itself.
    pub policy: String,
    /// Threads that copy.
    pub copy_threads: usize,
    /// Kind of host memory behind RAM.
    pub ram_backing: String,
    /// Device regions.
    pub regions: Vec<Region>,
    /// What has moved.
    pub moves: Moves,
    /// Granules by outcome, those that there are.
    pub outcomes: BTreeMap<String, u64>,
    /// Faults by what came of them.
    pub faults: BTreeMap<String, u64>,
    /// Mappings that the process has, at the most.
    pub vmas: u64,
    /// Mappings that it may have.
    pub vma_budget: u64,
}

/// What has moved.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Moves {
    /// Granules from host memory to device frames.
    pub to_device: u64,
    /// Granules from device frames to host memory.
    pub to_home: u64,
    /// Granules from one region to another.
    pub between: u64,
    /// Bytes of all of them.
    pub bytes: u64,
}

/// A device region's frames.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Number.
    pub region: u8,
    /// `public`, `private` or `generic`.
    pub kind: String,
    /// Kind of host memory.
    pub backing: String,
    /// What the guest sees of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Range>,
    /// Frames that there are.
    pub frames: u64,
    /// Those that can be handed out.
    pub free: u64,
    /// Those in use.
    pub used: u64,
    /// Those out of service.
    pub retired: u64,
}

/// Answer to [`Request::Residency`].
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Residency {
    /// Guest memory in order of address, at the most [`MAX_RUNS`] runs.
    pub runs: Vec<Run>,
    /// Where the next run begins, if there are more: ask again with `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Hex>,
    /// What the kernel says, if it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// Granules side by side that are alike. Frames count up along it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// First byte.
    pub base: Hex,
    /// Bytes.
    pub size: u64,
    /// Where it is.
    pub place: Place,
    /// Device region that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<u8>,
    /// First frame in that region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<u32>,
    /// Kind of that region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Whether nobody has moved it yet, nor touched it as far as is known.
    pub untouched: bool,
    /// Whether vCPUs reach it without a fault.
    pub mapped: bool,
    /// Users of each frame.
    pub refcount: u32,
    /// Pins on each granule.
    pub pins: u32,
    /// Whether it is on its way.
    pub moving: bool,
}

/// Where memory is.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Host memory.
    Home,
    /// Device frames.
    Device,
}

/// What the kernel says of where pages are.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Verified {
    /// Granules that were asked about.
    pub checked: u64,
    /// Granules that nobody has moved, or that moved meanwhile.
    pub passed_over: u64,
    /// Bytes in huge pages.
    pub huge_bytes: u64,
    /// Where the kernel says otherwise; some of them.
    pub mismatches: Vec<Mismatch>,
}

/// Memory that is not where Neap believes it is.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// First byte.
    pub base: Hex,
    /// Bytes.
    pub size: u64,
    /// What the kernel says.
    pub found: String,
}

/// Answer to [`Request::Migrate`] and [`Request::Evacuate`].
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Migrated {
    /// What has moved.
    pub moved: Amount,
    /// Granules by outcome, those that there are.
    pub outcomes: BTreeMap<String, u64>,
    /// Runs that did not move and were not there already; some of them.
    pub skipped: Vec<Skipped>,
    /// Other such runs.
    pub skipped_more: u64,
    /// Microseconds from the first granule to the last.
    pub elapsed_us: u64,
}

/// Granules side by side that did not move, for one reason.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// First byte.
    pub base: Hex,
    /// Bytes.
    pub size: u64,
    /// Why, a name of `outcomes`.
    pub outcome: String,
}

/// Answer to [`Request::Pin`].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Number for [`Request::Unpin`].
    pub pin: u64,
}

/// Answer to [`Request::Unpin`].
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpinned {}

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
fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
