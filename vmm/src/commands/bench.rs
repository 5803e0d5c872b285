//! `neap bench`: Measures this machine

use clap::Args;

use crate::failure::{Failure, Outcome};

/// Measures this machine
#[derive(Args, Debug)]
pub struct BenchArgs {}

/// Carries the command out.
pub fn execute(_args: BenchArgs) -> Outcome {
    Err(Failure::usage("not built yet"))
}
