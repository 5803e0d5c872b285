//! What happens, as readers of events are told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Error, Job, Lifecycle, PolicyWord};

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

/// Events that were not told.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub lost: u64,
}
