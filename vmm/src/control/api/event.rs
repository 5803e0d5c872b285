//! What happens, as readers of events are told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Error, Hex, Job, Lifecycle, PolicyWord};

/// Something that happened, as `GET /v1/events` tells it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A job began.
    JobStarted(Job),
    /// A job is further.
    JobProgress(Job),
    /// A job ended.
    JobEnded(Job),
    /// The vCPUs do something else.
    Lifecycle(Lifecycle),
    /// Another policy is at work.
    Policy(PolicyChanged),
    /// A device region was taken away, or given back.
    Region(RegionChanged),
    /// Host memory under the guest has failed.
    MemoryFailed(MemoryFailed),
    /// Granules of a migration stayed, because a cgroup of the process is near
    /// its limit; told once, when it has ended.
    NoMemory(NoMemory),
    /// Neap or the kernel failed at something.
    Error(Error),
    /// Events that were not told, because the reader was too slow.
    Lost(Lost),
    /// The machine is over.
    Over {},
}

impl Event {
    /// Its name, as in `event`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::JobStarted(_) => "job-started",
            Self::JobProgress(_) => "job-progress",
            Self::JobEnded(_) => "job-ended",
            Self::Lifecycle(_) => "lifecycle",
            Self::Policy(_) => "policy",
            Self::Region(_) => "region",
            Self::MemoryFailed(_) => "memory-failed",
            Self::NoMemory(_) => "no-memory",
            Self::Error(_) => "error",
            Self::Lost(_) => "lost",
            Self::Over {} => "over",
        }
    }
}

/// Another policy is at work.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyChanged {
    /// The policy from now on.
    pub policy: PolicyWord,
    /// The one before.
    pub before: PolicyWord,
}

/// A device region was taken away, or given back.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionChanged {
    /// Its number.
    pub region: u8,
    /// Whether it is there.
    pub there: bool,
}

/// Host memory under the guest has failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryFailed {
    /// First byte, as the guest sees it: of the page, where that is known, or of
    /// the granule.
    pub base: Hex,
    /// Bytes.
    pub size: u64,
    /// Device region whose memory it is; none: host memory's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<u8>,
    /// The frame in that region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<u32>,
    /// Whether that frame is never handed out again.
    pub retired: bool,
    /// Who met it.
    pub met: MetBy,
    /// Whether the guest got a machine check for it now.
    pub machine_check: bool,
}

/// Who met memory that has failed.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum MetBy {
    /// A vCPU.
    Vcpu,
    /// Nobody yet: the kernel told ahead, or a request had it fail. The guest
    /// hears of it when it touches it.
    Ahead,
    /// A move, in what it copied: what is lost stays where it was, and is a
    /// machine check when the guest touches it.
    Move,
    /// A move, in the frame that it was to go to: nothing is lost.
    Frame,
}

/// Granules that stayed where they were for want of memory.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    /// The job; none: an unplug.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<u64>,
    /// How many.
    pub granules: u64,
}

/// Events that were not told.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub lost: u64,
}
