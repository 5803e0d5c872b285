//! What the tests of Neap share: running the binary with a deadline, and
//! guests that say what they are rather than which pipes they have.
//!
//! Every child has a deadline and is killed by the id it was started with; a
//! test that cannot run on this machine says why and counts as ignored.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod churn;
pub mod command;
pub mod guest;
pub mod in_lab;
pub mod machine;
pub mod refusal;
pub mod terminal;

pub use churn::{Churn, Moves, connect};
pub use command::{Ended, Neap};
pub use guest::{Booted, Guest};

use std::path::PathBuf;

/// The binary under test: `NEAP_BIN`, or the `neap` beside the test binary's
/// folder.
pub fn neap() -> PathBuf {
    let path = std::env::var_os("NEAP_BIN").map_or_else(
        || std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("neap"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not there; `make test` builds it", path.display());
    path
}
