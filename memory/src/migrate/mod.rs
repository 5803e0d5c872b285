//! Moving granules of guest memory between host RAM (*home*) and the frames
//! of a device-public pool, under a running guest.
//!
//! [`request`] says what is asked for and what came of it.

pub mod request;

pub use request::{
    MigrateRequest, Moved, Outcome, Progress, Report, RequestError, Select, Skipped, Target,
};
