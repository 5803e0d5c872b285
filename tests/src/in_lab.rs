//! A test program of guests that runs once more in the lab, where KVM does
//! not run guest kernel mode at hardware speed here.

use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

/// Exit status of a lab that failed; that of failed tests is another.
const LAB_FAILED: i32 = 2;

/// Runs this same program in a lab of `options`, with the same arguments. A
/// lab that itself fails gets one more try, which is said.
pub fn run_again(options: &[&str], limit: Duration) -> ExitCode {
    let mut status = run(options, limit);
    if status.code() == Some(LAB_FAILED) {
        eprintln!("the lab failed, not a test; once more");
        status = run(options, limit);
    }
    ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1))
}

fn run(options: &[&str], limit: Duration) -> ExitStatus {
    Command::new(crate::neap())
        .args(["lab", "--time-limit", &limit.as_secs().to_string()])
        .args(options)
        .arg("--program")
        .arg(std::env::current_exe().unwrap())
        .arg("--")
        .args(std::env::args_os().skip(1))
        .status()
        .unwrap()
}
