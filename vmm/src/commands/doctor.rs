//! `neap doctor`: says what this machine can do, and why not.

use clap::Args;

use crate::doctor::{self, Check};
use crate::failure::{Failure, Outcome, SUCCESS, print};
use crate::images;

/// Says what this machine can do for Neap, and why not.
///
/// Each line names a check, how good the news is (ok, limited, missing), what
/// was found, what it means and what to do. The exit status is 0 whatever was
/// found.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap doctor
  neap doctor --json
  neap lab -- doctor")]
pub struct DoctorArgs {
    /// Print JSON: {"guest_mode", "guest_speed", "checks": [{"name", "state",
    /// "value", "meaning", "advice"}]}.
    #[arg(long)]
    json: bool,
}

/// Width of the text where the terminal's is not known.
const DEFAULT_WIDTH: usize = 100;
/// Wider lines are hard to read.
const MAX_WIDTH: usize = 120;

/// Carries the command out.
pub fn execute(args: DoctorArgs) -> Outcome {
    let mut report = doctor::examine();
    report.push(guest_images());
    let text = if args.json {
        report.json().map_err(|error| Failure::usage(format_args!("--json: {error}")))?
    } else {
        report.text(width())
    };
    print(text)?;
    Ok(SUCCESS)
}

fn guest_images() -> Check {
    const NAME: &str = "images.guest";
    match images::locate() {
        Ok(images) => Check::ok(
            NAME,
            format!("kernel {}, built", images.kernel_version),
            "guests and the lab can boot without set-up",
        ),
        Err(error) => Check::missing(
            NAME,
            error.to_string(),
            "the lab and neap hmm-tests have nothing to boot yet",
            "neap setup, which takes some minutes; make run does it by itself",
        ),
    }
}

fn width() -> usize {
    rustix::termios::tcgetwinsize(rustix::stdio::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|columns| *columns >= 40)
        .map_or(DEFAULT_WIDTH, |columns| columns.min(MAX_WIDTH))
}
