//! The command line: which commands there are, and how their outcome becomes
//! an exit status.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{bench, completions, ctl, doctor, hmm_tests, lab, man, openapi, run, setup};
use crate::failure::{Outcome, SUCCESS, USAGE, tell};

/// A virtual machine monitor for coherent device memory: memory of a GPU or
/// of CXL that processors can address.
#[derive(Parser, Debug)]
#[command(name = "neap", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(Box<run::RunArgs>),
    Ctl(ctl::CtlArgs),
    HmmTests(hmm_tests::HmmTestsArgs),
    Lab(lab::LabArgs),
    Doctor(doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    Setup(setup::SetupArgs),
    Openapi(openapi::OpenapiArgs),
    Completions(completions::CompletionsArgs),
    Man(man::ManArgs),
    #[command(hide = true)]
    LabAgent(lab::LabAgentArgs),
}

/// `neap` with `run` alone. To make all the options of all the commands takes a
/// fifth of the processor time of starting a tiny guest; help and messages come
/// out the same (test).
#[derive(Parser, Debug)]
#[command(name = "neap", version, max_term_width = 100)]
struct RunCli {
    #[command(subcommand)]
    command: RunOnly,
}

#[derive(Subcommand, Debug)]
enum RunOnly {
    Run(Box<run::RunArgs>),
}

/// What the words of a command line, the program's name first, ask for.
fn parse(words: &[OsString]) -> Result<Command, clap::Error> {
    if words.get(1).is_some_and(|word| word == "run") {
        let RunOnly::Run(args) = RunCli::try_parse_from(words)?.command;
        return Ok(Command::Run(args));
    }
    Ok(Cli::try_parse_from(words)?.command)
}

/// Parses the command line of this process and carries it out.
pub fn main() -> ExitCode {
    let words: Vec<_> = env::args_os().collect();
    let command = match parse(&words) {
        Ok(command) => command,
        Err(error) if error.use_stderr() && error.kind() != MISSING_COMMAND => {
            tell(one_line(&error.to_string()));
            return ExitCode::from(USAGE);
        }
        Err(error) => {
            // Help and version go to stdout; without a command the help is the
            // answer to a mistake.
            let status = if error.use_stderr() { USAGE } else { SUCCESS };
            return match error.print() {
                Ok(()) => ExitCode::from(status),
                Err(_) => ExitCode::from(USAGE),
            };
        }
    };
    match dispatch(command) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            tell(&failure);
            ExitCode::from(failure.status)
        }
    }
}

fn dispatch(command: Command) -> Outcome {
    match command {
        Command::Run(args) => run::execute(*args),
        Command::Ctl(args) => ctl::execute(args),
        Command::HmmTests(args) => hmm_tests::execute(args),
        Command::Lab(args) => lab::execute(args),
        Command::Doctor(args) => doctor::execute(args),
        Command::Bench(args) => bench::execute(args),
        Command::Setup(args) => setup::execute(args),
        Command::Openapi(args) => openapi::execute(args),
        Command::Completions(args) => completions::execute(args, Cli::command()),
        Command::Man(args) => man::execute(args, Cli::command()),
        Command::LabAgent(args) => lab::execute_agent(args),
    }
}

/// Clap's help where no command was given.
const MISSING_COMMAND: ErrorKind = ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;

/// The first paragraph of clap's message in one line; the others repeat the
/// usage.
fn one_line(message: &str) -> String {
    let paragraph = message.strip_prefix("error: ").unwrap_or(message);
    let lines = paragraph.lines().take_while(|line| !line.trim().is_empty());
    lines.map(str::trim).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn run_alone_says_what_run_among_all_says() {
        for words in ["--help", "-h", "--memory", "--no-such-option", "--cpus two", "extra"] {
            let words: Vec<OsString> =
                ["neap", "run"].into_iter().chain(words.split(' ')).map(Into::into).collect();
            let alone = parse(&words).unwrap_err();
            let among = Cli::try_parse_from(&words).unwrap_err();
            assert_eq!(alone.to_string(), among.to_string());
            assert_eq!(alone.exit_code(), among.exit_code());
        }
    }

    #[test]
    fn messages_of_several_lines_become_one() {
        let message = "error: the following were not provided:\n  --a\n  --b\n\nUsage: x\n";
        assert_eq!(one_line(message), "the following were not provided: --a --b");
    }
}
