//! `neap lab`: Runs a neap command inside the lab

use clap::Args;

use crate::failure::{Failure, Outcome};

/// Runs a neap command inside the lab
#[derive(Args, Debug)]
pub struct LabArgs {}

/// Carries the command out.
pub fn execute(_args: LabArgs) -> Outcome {
    Err(Failure::usage("not built yet"))
}

/// The lab's first process; started by the lab's kernel only.
#[derive(Args, Debug)]
pub struct LabAgentArgs {}

/// Carries the lab agent out.
pub fn execute_agent(_args: LabAgentArgs) -> Outcome {
    Err(Failure::usage("not built yet"))
}
