//! `neap hmm-tests`: Runs the kernel's hmm-tests in a guest

use clap::Args;

use crate::failure::{Failure, Outcome};

/// Runs the kernel's hmm-tests in a guest
#[derive(Args, Debug)]
pub struct HmmTestsArgs {}

/// Carries the command out.
pub fn execute(_args: HmmTestsArgs) -> Outcome {
    Err(Failure::usage("not built yet"))
}
