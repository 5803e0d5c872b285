//! `neap lab`: runs a `neap` command, or any program, inside the lab.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use clap::Args;

use super::place;
use crate::config::units::Size;
use crate::failure::{Failure, Outcome, tell};
use crate::images;
use crate::lab::{self, LabImages, LabRequest, agent};

/// Runs a neap command inside the lab: a machine in software emulation that
/// has nested paging, sees this machine's files and writes to the working
/// folder.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap lab -- doctor
  neap lab --verbose -- run --kernel vmlinux --initrd initramfs.cpio
  neap lab --host-tiers -- doctor
  neap lab --time-limit 300 -- bench boot --json")]
pub struct LabArgs {
    /// Give the lab a second NUMA node without CPUs and a /dev/dax0.0 of 1G
    #[arg(long, conflicts_with = "lab_kernel")]
    host_tiers: bool,
    /// RAM of the lab [default: 6G, with --host-tiers 6656M, or three quarters
    /// of what is available]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// CPUs of the lab
    #[arg(long, value_name = "N", default_value_t = lab::CPUS)]
    cpus: u32,
    /// End the lab after this many seconds
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    time_limit: Option<Duration>,
    /// Show the console of the lab's kernel on stderr
    #[arg(long)]
    verbose: bool,
    /// Run this program instead of neap
    #[arg(long, value_name = "PATH", hide = true)]
    program: Option<PathBuf>,
    /// Boot this kernel instead of the one that `neap setup` built
    #[arg(long, value_name = "PATH", hide = true, requires = "lab_initramfs")]
    lab_kernel: Option<PathBuf>,
    /// Boot this initramfs instead of the one that `neap setup` built
    #[arg(long, value_name = "PATH", hide = true, requires = "lab_kernel")]
    lab_initramfs: Option<PathBuf>,
    /// What neap runs in the lab
    #[arg(last = true, value_name = "ARGS")]
    arguments: Vec<OsString>,
}

/// Carries the command out.
pub fn execute(args: LabArgs) -> Outcome {
    let neap = place::this_program()?;
    let program = match args.program {
        Some(program) => program.canonicalize().map_err(|error| {
            Failure::usage(format_args!("--program {}: {error}", program.display()))
        })?,
        None if args.arguments.is_empty() => {
            return Err(Failure::usage("lab: no command after `--`; try `neap lab -- doctor`"));
        }
        None => neap.clone(),
    };
    if lab::inside() {
        tell(format_args!("this is the lab already; running {} directly", program.display()));
        let error = Command::new(&program).args(args.arguments).exec();
        return Err(Failure::usage(format_args!("cannot run {}: {error}", program.display())));
    }
    let (images, modules) = match (args.lab_kernel, args.lab_initramfs) {
        (Some(kernel), Some(initramfs)) => (LabImages { kernel, initramfs }, None),
        _ => {
            let images = images::locate().map_err(Failure::usage)?;
            (LabImages::from(&images), Some(images.modules))
        }
    };
    let host_tiers = modules.filter(|_| args.host_tiers);
    let memory = match host_tiers {
        Some(_) => lab::default_memory_with_tiers,
        None => lab::default_memory,
    };
    lab::run(&LabRequest {
        program,
        arguments: args.arguments,
        agent: neap,
        images,
        memory: args.memory.map_or_else(memory, |size| size.0),
        cpus: args.cpus,
        time_limit: args.time_limit,
        verbose: args.verbose,
        host_tiers,
    })
    .map_err(place::failure)
}

/// The lab's first process; started by the lab's kernel only.
#[derive(Args, Debug)]
pub struct LabAgentArgs {}

/// Carries the lab agent out.
pub fn execute_agent(_args: LabAgentArgs) -> Outcome {
    agent::main().map(|()| crate::failure::SUCCESS).map_err(Failure::usage)
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(seconds @ 1..) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!("{text:?} is no number of seconds from 1; 600 would do")),
    }
}
