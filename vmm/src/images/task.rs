//! Runs one long child process of the set-up: output to a log file, progress
//! on the terminal, an end on signals, and the log's last lines when it fails.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::error::ImageError;
use super::guarded::{Guarded, Interrupts};
use super::progress::Progress;

/// Between two looks at the child and its log.
const POLL: Duration = Duration::from_millis(100);
/// Lines of the log that an error quotes.
const TAIL_LINES: usize = 3;
/// Scripts begin a new step with this, followed by its name.
const STEP_MARK: &str = "neap-step: ";

/// Runs `command` (made by [`super::guarded::command`]) to its end. `step`
/// names it until its output does; `objects` is how many compilations the
/// progress is measured against, if any.
pub(super) fn run(
    step: &str,
    objects: Option<u64>,
    command: &mut Command,
    log: &Path,
    interrupts: &Interrupts,
) -> Result<(), ImageError> {
    let output = File::create(log).map_err(ImageError::cache("create", log))?;
    let errors = output.try_clone().map_err(ImageError::cache("open", log))?;
    let mut reader = LogReader::open(log)?;
    let mut progress = Progress::new(step);
    let program = command.get_args().nth(3).unwrap_or_default().to_string_lossy().into_owned();
    let mut child = Guarded::spawn(command.stdout(Stdio::from(output)).stderr(Stdio::from(errors)))
        .map_err(|source| ImageError::Spawn { program: program.clone(), source })?;
    loop {
        let ended = child
            .try_wait()
            .map_err(|source| ImageError::Spawn { program: program.clone(), source })?;
        reader.follow(&mut progress);
        if let Some(status) = ended {
            if status.success() {
                progress.done();
                return Ok(());
            }
            progress.abandon();
            return Err(ImageError::Step {
                step: progress.name().to_owned(),
                status: status.to_string(),
                tail: tail(log),
                log: log.to_owned(),
            });
        }
        if interrupts.seen() {
            child.stop();
            progress.abandon();
            return Err(ImageError::Interrupted { step: progress.name().to_owned() });
        }
        progress.tick(&detail(reader.compiled, objects));
        std::thread::sleep(POLL);
    }
}

/// Follows a growing log.
struct LogReader {
    file: File,
    unfinished: Vec<u8>,
    /// Objects compiled in the present step.
    compiled: u64,
}

impl LogReader {
    fn open(log: &Path) -> Result<Self, ImageError> {
        let file = File::open(log).map_err(ImageError::cache("read", log))?;
        Ok(Self { file, unfinished: Vec::new(), compiled: 0 })
    }

    fn follow(&mut self, progress: &mut Progress) {
        // A log that cannot be read costs the progress, not the build.
        let _ = self.file.read_to_end(&mut self.unfinished);
        while let Some(end) = self.unfinished.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.unfinished.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if let Some(name) = line.strip_prefix(STEP_MARK) {
                progress.next(name);
                self.compiled = 0;
            } else if is_object(line) {
                self.compiled += 1;
            }
        }
    }
}

fn detail(compiled: u64, expected: Option<u64>) -> String {
    match expected {
        Some(expected) if compiled > 0 => format!("{compiled} of about {expected} objects"),
        _ => String::new(),
    }
}

/// Whether kbuild says that it compiles one object: `  CC      mm/hmm.o`.
fn is_object(line: &str) -> bool {
    line.starts_with("  CC ") && line.ends_with(".o")
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let first = lines.len().saturating_sub(TAIL_LINES);
    if lines.is_empty() { "no output".to_owned() } else { lines[first..].join(" | ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::guarded;

    fn shell(script: &str, log: &Path) -> Result<(), ImageError> {
        let interrupts = Interrupts::watch().unwrap();
        run("testing", None, guarded::command("/bin/sh").args(["-c", script]), log, &interrupts)
    }

    #[test]
    fn a_failed_step_is_named_with_its_last_lines_and_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("x.log");
        let script = "echo 'neap-step: frying eggs'; echo one; echo two >&2; exit 4";
        let message = shell(script, &log).unwrap_err().to_string();
        assert!(message.starts_with("frying eggs failed (exit status: 4)"), "{message}");
        assert!(message.contains("one | two") && message.contains("x.log"), "{message}");
        assert!(!message.contains('\n'));
        shell("true", &log).unwrap();
    }

    #[test]
    fn compilations_are_counted_and_nothing_else() {
        assert!(is_object("  CC      mm/hmm.o"));
        assert!(is_object("  CC [M]  lib/test_hmm.o"));
        assert!(!is_object("  AR      mm/built-in.a"));
        assert!(!is_object("  CCFLAGS are fine.o no"));
    }
}
