//! `neap completions`: what a shell needs to complete the command line.

use clap::{Args, Command, ValueEnum};

use crate::failure::{Failure, Outcome, SUCCESS, print};

/// Prints completions of the command line for a shell
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap completions bash > /usr/share/bash-completion/completions/neap
  neap completions zsh > /usr/local/share/zsh/site-functions/_neap
  neap completions fish > ~/.config/fish/completions/neap.fish")]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Carries the command out; `command` is the whole command line.
///
/// # Errors
/// stdout takes no more.
pub fn execute(args: CompletionsArgs, mut command: Command) -> Outcome {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "neap", &mut script);
    print(String::from_utf8(script).map_err(Failure::vm)?)?;
    Ok(SUCCESS)
}
