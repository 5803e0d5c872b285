//! `neap setup`: Installs and builds what is missing

use clap::Args;

use crate::failure::{Failure, Outcome};

/// Installs and builds what is missing
#[derive(Args, Debug)]
pub struct SetupArgs {}

/// Carries the command out.
pub fn execute(_args: SetupArgs) -> Outcome {
    Err(Failure::usage("not built yet"))
}
