//! `neap man`: manual pages, one for each command.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command};

use crate::failure::{Failure, Outcome, SUCCESS};

/// Writes manual pages into a folder: neap.1, and one for each command
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// The folder, which is made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

/// Carries the command out; `command` is the whole command line.
///
/// # Errors
/// The folder cannot be written.
pub fn execute(args: ManArgs, command: Command) -> Outcome {
    let folder = args.folder;
    let failed = |error| Failure::usage(format_args!("{}: {error}", folder.display()));
    fs::create_dir_all(&folder).map_err(failed)?;
    clap_mangen::generate_to(command, &folder).map_err(failed)?;
    Ok(SUCCESS)
}
