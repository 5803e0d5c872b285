//! `neap run`: Runs a guest

use clap::Args;

use crate::failure::{Failure, Outcome};

/// Runs a guest
#[derive(Args, Debug)]
pub struct RunArgs {}

/// Carries the command out.
pub fn execute(_args: RunArgs) -> Outcome {
    Err(Failure::usage("not built yet"))
}
