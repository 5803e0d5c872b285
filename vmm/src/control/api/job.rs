//! Jobs: migrations with a number.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Error, Migrated, Progress};

/// Answer to [`Request::Jobs`](super::Request::Jobs).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
pub struct Jobs {
    /// In the order in which they began: those at work, and the last that
    /// ended.
    pub jobs: Vec<Job>,
}

/// A migration, from its request on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub struct Job {
    /// Number, from 0 on.
    pub id: u64,
    /// What was asked for.
    pub what: JobKind,
    /// Whether it goes on when whoever asked for it is gone.
    pub detached: bool,
    /// How it is.
    pub state: JobState,
    /// How far it is, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What came of it; what was skipped is listed only where one job is asked
    /// for by number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Migrated>,
    /// Why nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
    /// Milliseconds since it began, or that it took.
    pub elapsed_ms: u64,
}

/// What a [`Job`] is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// A migration.
    Migrate,
    /// Everything of a region comes home.
    Evacuate,
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Migrate => "migrate",
            Self::Evacuate => "evacuate",
        })
    }
}

/// How a [`Job`] is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// At work.
    Running,
    /// Somebody has asked for its end, which comes after the granules in
    /// flight.
    Cancelling,
    /// It came to its end; some granules may have stayed where they were.
    Done,
    /// It ended before its time.
    Cancelled,
    /// It was refused, or failed.
    Failed,
}

impl JobState {
    /// Whether it is at work.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Cancelling)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Cancelling => "being cancelled",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        })
    }
}
