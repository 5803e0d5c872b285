//! What clients are answered.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::account::Accounts;
use super::request::{Hex, PolicyWord, Range};

/// Granules and bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Granules.
    pub granules: u64,
    /// Bytes.
    pub bytes: u64,
}

/// How far a migration is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Granules that have an outcome.
    pub done: u64,
    /// Granules of the request.
    pub total: u64,
    /// What has moved.
    pub moved: Amount,
}

/// What vCPUs do.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// They run.
    Running,
    /// They are asked to park.
    Pausing,
    /// They are parked.
    Paused,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Pausing => "being paused",
            Self::Paused => "paused",
        })
    }
}

/// Answer to [`Request::Pause`](super::Request::Pause) and [`Request::Resume`](super::Request::Resume).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifecycle {
    /// State now.
    pub state: State,
}

/// Answer to [`Request::Status`](super::Request::Status).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
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
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
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
    /// What policy `heat` did, if that is the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heat: Option<Heat>,
    /// How long faults took that were served one by one.
    #[serde(default)]
    pub fault_latency: FaultLatency,
    /// Pieces of host memory that have failed under guest memory.
    #[serde(default)]
    pub memory_failures: u64,
    /// Mappings that the process has, at the most.
    pub vmas: u64,
    /// Mappings that it may have.
    pub vma_budget: u64,
    /// How long vCPUs were parked for moves, where they ever are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalls: Option<Stalls>,
    /// How much memory each tier has, if the kernel was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accounts: Option<Accounts>,
}

/// vCPUs parked for moves out of memory that nobody can watch.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Stalls {
    /// How often.
    pub batches: u64,
    /// Granules that moved meanwhile.
    pub granules: u64,
    /// Microseconds, all together.
    pub total_us: u64,
    /// Of that, copying.
    pub copying_us: u64,
    /// The longest.
    pub longest_us: u64,
    /// The most that one took beside the copying, for each vCPU.
    pub longest_beside_copy_us: u64,
    /// How often a vCPU did not park in time, and nothing moved.
    pub given_up: u64,
}

/// What policy `heat` did.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Heat {
    /// Granules that were watched for a tick, each time that they were.
    pub watched: u64,
    /// Of these, touched meanwhile.
    pub touched: u64,
    /// Granules moved to device frames.
    pub promoted: u64,
    /// Granules moved home.
    pub demoted: u64,
    /// Bytes of both.
    pub bytes: u64,
    /// Microseconds of the guest's time that watching is taken to have cost.
    #[serde(default)]
    pub cost_us: u64,
    /// Whether the trace of it could not be written any more, and ends early.
    #[serde(default)]
    pub trace_failed: bool,
}

/// How long faults took, from the moment in which one was read to the moment
/// in which whoever waited was woken. Faults on memory in motion are not in it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct FaultLatency {
    /// Upper bounds of the buckets, in microseconds.
    pub bounds_us: Vec<u64>,
    /// Faults in each bucket, and, one more, above the last bound.
    pub counts: Vec<u64>,
    /// Nanoseconds of all of them.
    pub total_ns: u64,
}

/// What has moved.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
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
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
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
    /// Its device is gone, and what was in it is lost.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
}

/// Answer to [`Request::Residency`](super::Request::Residency).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Residency {
    /// Guest memory in order of address, at the most [`MAX_RUNS`](super::MAX_RUNS) runs.
    pub runs: Vec<Run>,
    /// Where the next run begins, if there are more: ask again with `from`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Hex>,
    /// What the kernel says, if it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// Granules side by side that are alike. Frames count up along it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
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
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Host memory.
    Home,
    /// Device frames.
    Device,
}

/// What the kernel says of where pages are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
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
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// First byte.
    pub base: Hex,
    /// Bytes.
    pub size: u64,
    /// What the kernel says.
    pub found: String,
}

/// Answer to [`Request::Migrate`](super::Request::Migrate) and [`Request::Evacuate`](super::Request::Evacuate).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
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
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// First byte.
    pub base: Hex,
    /// Bytes.
    pub size: u64,
    /// Why, a name of `outcomes`.
    pub outcome: String,
}

/// Answer to [`Request::Pin`](super::Request::Pin).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// Number for [`Request::Unpin`](super::Request::Unpin).
    pub pin: u64,
}

/// Answer to [`Request::Unpin`](super::Request::Unpin).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpinned {}

/// Answer to [`Request::Unplug`](super::Request::Unplug).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Unplugged {
    /// Whether the region is gone; if not, it serves on as before.
    pub gone: bool,
    /// What came home.
    pub moved: Amount,
    /// Bytes of host memory that came free.
    pub released: u64,
    /// What could not be moved, and why.
    pub left: Vec<Skipped>,
}

/// Answer to [`Request::Plug`](super::Request::Plug).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plugged {
    /// Frames that are free.
    pub frames: u32,
}

/// Answer to [`Request::FailPage`](super::Request::FailPage).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFailed {}

/// Answer to [`Request::Policy`](super::Request::Policy).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What moves by itself.
    pub policy: PolicyWord,
    /// The policies that this machine can have.
    pub available: Vec<PolicyWord>,
}

/// Answer to [`Request::Metrics`](super::Request::Metrics).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Metrics {
    /// Prometheus' text format, version 0.0.4.
    pub text: String,
}
