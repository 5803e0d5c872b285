//! `neap bench`: figures of this machine, each beside what it is compared
//! with, taken in turn in the same run.
//!
//! [`figure`], [`rows`] and [`child`] know nothing of what is measured; each
//! subject has a file, and memory that moves a folder.

pub mod boot;
pub mod child;
pub mod dax;
pub mod figure;
pub mod heat;
pub mod machine;
pub mod moving;
pub mod node;
pub mod plot;
pub mod rows;
pub mod start;
pub mod table;

use serde::Serialize;

pub use figure::{Figure, Samples};
pub use machine::Machine;

use crate::bare::BareError;

/// What a bench prints with `--json`.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Where it was measured.
    pub machine: Machine,
    /// What was measured.
    pub figures: Vec<Figure>,
    /// What could not be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<LeftOut>,
}

/// A figure that cannot be had on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// Its name.
    pub name: String,
    /// Why, and what would do.
    pub why: String,
}

impl Results {
    /// JSON, indented, with a final newline.
    ///
    /// # Errors
    /// None in practice: strings and finite numbers always serialize.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|json| json + "\n")
    }
}

/// Why a bench has no result.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A child process could not be started, failed, or took too long.
    #[error(transparent)]
    Child(#[from] child::ChildError),
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    File {
        /// Which file, and what for.
        what: String,
        /// What the system answered.
        source: std::io::Error,
    },
    /// Fewer runs than a median needs.
    #[error("--runs {0}: at least 1 run is needed")]
    NoRuns(usize),
    /// The two sides did not do the same.
    #[error("{0}")]
    Unexpected(String),
    /// This machine cannot do what is to be measured.
    #[error("{0}")]
    Unable(String),
    /// The bare guest failed.
    #[error("{0}")]
    Guest(#[source] BareError),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What for.
        what: &'static str,
        /// What the system answered.
        source: std::io::Error,
    },
    /// Somebody asked for an end.
    #[error("interrupted")]
    Interrupted,
}
