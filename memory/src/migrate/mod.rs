//! Moving granules of guest memory between host RAM (*home*) and the frames
//! of a device-public pool, under a running guest, in the phases of
//! migrate_vma (mm/migrate_device.c): the request is set up and its granules
//! collected ([`run`]), each is claimed with a frame (`Core::claim`), the
//! engine moves it on a copy thread ([`crew`]), and it is settled where it now
//! is (`Core::carry_out`).
//!
//! [`request`] says what is asked for and what came of it.

#[cfg(not(feature = "loom"))]
pub(crate) mod crew;
pub mod request;
#[cfg(not(feature = "loom"))]
pub(crate) mod reserve;
#[cfg(not(feature = "loom"))]
pub mod run;

pub use request::{
    MigrateRequest, Moved, Outcome, Progress, Report, RequestError, Select, Skipped, Target,
};
