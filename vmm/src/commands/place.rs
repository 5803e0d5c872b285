//! Where a command that needs a Linux guest runs: here, or once more in the
//! lab.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::doctor::{GuestMode, guest_mode};
use crate::failure::{Failure, Outcome};
use crate::images;
use crate::lab::{self, LabError, LabImages, LabRequest};

/// Whether Linux guests need the lab. Measured, which takes 20 ms; inside the
/// lab the answer is known.
pub(super) fn needs_lab() -> bool {
    !lab::inside() && guest_mode() != GuestMode::Native
}

/// Runs `neap ARGUMENTS` in a lab with the defaults. A lab that takes longer
/// than `limit` is ended.
pub(super) fn in_lab(arguments: Vec<OsString>, limit: Option<Duration>) -> Outcome {
    let neap = this_program()?;
    let images = images::locate().map_err(Failure::usage)?;
    lab::run(&LabRequest {
        program: neap.clone(),
        arguments,
        agent: neap,
        images: LabImages::from(&images),
        memory: lab::default_memory(),
        cpus: lab::CPUS,
        time_limit: limit,
        verbose: false,
        host_tiers: None,
    })
    .map_err(failure)
}

/// Path of this `neap`.
pub(super) fn this_program() -> Result<PathBuf, Failure> {
    env::current_exe()
        .map_err(|error| Failure::vm(format_args!("cannot find the path of neap: {error}")))
}

/// Who can do something about a lab that did not run.
pub(super) fn failure(error: LabError) -> Failure {
    match error {
        LabError::Cpus(_)
        | LabError::Memory(_)
        | LabError::TiersMemory(_)
        | LabError::QemuMissing
        | LabError::Image { .. }
        | LabError::AgentPath { .. }
        | LabError::TooLarge(_)
        | LabError::Program { .. } => Failure::usage(error),
        error => Failure::vm(error),
    }
}
