//! `neap doctor`: Says what this machine can do, and why not

use clap::Args;

use crate::failure::{Failure, Outcome};

/// Says what this machine can do, and why not
#[derive(Args, Debug)]
pub struct DoctorArgs {}

/// Carries the command out.
pub fn execute(_args: DoctorArgs) -> Outcome {
    Err(Failure::usage("not built yet"))
}
