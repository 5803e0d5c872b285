//! The command line: which commands there are, and how their outcome becomes
//! an exit status.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{bench, doctor, hmm_tests, lab, run, setup};
use crate::failure::{Outcome, SUCCESS, USAGE};

/// A virtual machine monitor for coherent device memory: memory of a GPU or
/// of CXL that processors can address.
#[derive(Parser, Debug)]
#[command(name = "neap", version, max_term_width = 100, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(run::RunArgs),
    HmmTests(hmm_tests::HmmTestsArgs),
    Lab(lab::LabArgs),
    Doctor(doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    Setup(setup::SetupArgs),
    #[command(hide = true)]
    LabAgent(lab::LabAgentArgs),
}

/// Parses the command line of this process and carries it out.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no mistakes; clap exits those with 0 and
            // mistakes with 2, which here means a failed machine.
            let status = if error.use_stderr() { USAGE } else { SUCCESS };
            return match error.print() {
                Ok(()) => ExitCode::from(status),
                Err(_) => ExitCode::from(USAGE),
            };
        }
    };
    match dispatch(cli.command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("neap: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::execute(args),
        Command::HmmTests(args) => hmm_tests::execute(args),
        Command::Lab(args) => lab::execute(args),
        Command::Doctor(args) => doctor::execute(args),
        Command::Bench(args) => bench::execute(args),
        Command::Setup(args) => setup::execute(args),
        Command::LabAgent(args) => lab::execute_agent(args),
    }
}
