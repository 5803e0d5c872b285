//! How a command ends when it does not succeed: one line for stderr and an
//! exit status.

use std::fmt;
use std::io::{self, Write};

/// Exit status of a success: the guest shut down, the tests passed.
pub const SUCCESS: u8 = 0;
/// Exit status of a mistake in usage or configuration.
pub const USAGE: u8 = 1;
/// Exit status of a virtual machine that failed.
pub const VM_FAILED: u8 = 2;
/// Exit status of a run in which a test in the guest failed.
pub const TEST_FAILED: u8 = 3;

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// Exit status of the process.
    pub status: u8,
    /// One line that names the option, the value and what would do.
    pub message: String,
}

/// What commands return: the exit status, or why there is none.
pub type Outcome = Result<u8, Failure>;

impl Failure {
    /// A mistake of whoever gave the command: exit status 1.
    pub fn usage(message: impl fmt::Display) -> Self {
        Self { status: USAGE, message: message.to_string() }
    }

    /// The machine failed: exit status 2.
    pub fn vm(message: impl fmt::Display) -> Self {
        Self { status: VM_FAILED, message: message.to_string() }
    }

    /// A test in the guest failed: exit status 3.
    pub fn test(message: impl fmt::Display) -> Self {
        Self { status: TEST_FAILED, message: message.to_string() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Tells the user something in one line on standard error: a control character
/// in it, such as a line break in the name of a file, is shown escaped. Nobody
/// may be reading, which is no reason to panic as `eprintln!` does.
pub fn tell(message: impl fmt::Display) {
    let line = format!("neap: {}\n", one_line(&message.to_string()));
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Prints the result of a command on standard output.
///
/// # Errors
/// It cannot be written, and so is lost.
pub fn print(result: impl fmt::Display) -> Result<(), Failure> {
    io::stdout()
        .write_all(result.to_string().as_bytes())
        .map_err(|error| Failure::usage(format_args!("standard output: {error}")))
}

fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for character in message.chars() {
        if character.is_control() {
            line.extend(character.escape_debug());
        } else {
            line.push(character);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_quotes() {
        assert_eq!(one_line("a\nb \u{1b}[31m \u{e9}"), "a\\nb \\u{1b}[31m \u{e9}");
    }
}
