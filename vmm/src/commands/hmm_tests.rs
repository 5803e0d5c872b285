//! `neap hmm-tests`: the kernel's own tests of HMM, in a guest with coherent
//! device memory.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::place;
use crate::failure::Outcome;
use crate::hmm::{self, Options, Place, Variant};
use crate::lab;

/// Runs the kernel's hmm-tests in a guest with coherent device memory
///
/// Exit status 3 if a test failed, was skipped or did not run.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap hmm-tests
  neap hmm-tests --variant coherent -- -t migrate
  neap hmm-tests --kernel-tree ~/src/linux --json")]
pub struct HmmTestsArgs {
    /// Kind of device memory to test
    #[arg(long, value_enum, default_value_t)]
    variant: Variant,
    /// Test the kernel built in this folder; nothing is written to it
    #[arg(long, value_name = "DIR")]
    kernel_tree: Option<PathBuf>,
    /// vCPUs of the guest [default: 2, in the lab 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// RAM of the guest, with a suffix K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    memory: String,
    /// End the guest after this time, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600,
          value_parser = clap::value_parser!(u64).range(1..=86400))]
    time_limit: u64,
    /// Print one JSON object; progress goes to stderr
    #[arg(long)]
    json: bool,
    /// Kernel that the set-up outside of the lab chose
    #[arg(long, hide = true, requires = "prepared_initramfs", conflicts_with = "kernel_tree")]
    prepared_kernel: Option<PathBuf>,
    /// Initramfs that the set-up outside of the lab made
    #[arg(long, hide = true, requires = "prepared_kernel")]
    prepared_initramfs: Option<PathBuf>,
    /// Filters of hmm-tests: -t TEST, -f FIXTURE, -v VARIANT include, -T, -F,
    /// -V exclude, -r takes a full name
    #[arg(last = true, value_name = "TEST-ARGS")]
    test_args: Vec<String>,
}

/// vCPUs of a guest that runs directly.
const CPUS: u32 = 2;
/// vCPUs of a guest in the lab. With two, about one run in fifteen ended in a
/// triple fault of the guest under emulation (QEMU 7.2); with one, none of
/// eleven did.
const LAB_CPUS: u32 = 1;

/// Time for a lab to start and end beyond that of its guest.
const LAB_MARGIN: Duration = Duration::from_secs(180);

/// Carries the command out.
pub fn execute(args: HmmTestsArgs) -> Outcome {
    let needs_lab = place::needs_lab();
    let default_cpus = if needs_lab || lab::inside() { LAB_CPUS } else { CPUS };
    let plan = hmm::prepare(Options {
        variant: args.variant,
        kernel_tree: args.kernel_tree,
        cpus: args.cpus.unwrap_or(default_cpus),
        memory: args.memory,
        time_limit: Duration::from_secs(args.time_limit),
        json: args.json,
        test_args: args.test_args,
        prepared: args.prepared_kernel.zip(args.prepared_initramfs),
    })?;
    if needs_lab {
        // The guest has its own limit; this one is for a lab that hangs.
        let limit = Duration::from_secs(args.time_limit) + LAB_MARGIN;
        return place::in_lab(plan.arguments(), Some(limit));
    }
    hmm::execute(&plan, if lab::inside() { Place::Lab } else { Place::Kvm })
}
