//! A line that says what goes on while a long step runs: rewritten in place
//! on a terminal, otherwise repeated every half minute. It goes to stderr,
//! so that it never mixes with what a command prints as its result.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Steps shorter than this say nothing.
const SILENT: Duration = Duration::from_secs(2);
/// Between two lines when stderr is no terminal.
const REPEAT: Duration = Duration::from_secs(30);

/// A step under way.
#[derive(Debug)]
pub(crate) struct Progress {
    name: String,
    start: Instant,
    /// When the last line was printed.
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// Begins the step called `name`, a phrase such as "building the kernel".
    pub(crate) fn new(name: &str) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { name: name.to_owned(), start: Instant::now(), shown: None, terminal }
    }

    /// The step's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Ends this step and begins the next.
    pub(crate) fn next(&mut self, name: &str) {
        self.done();
        *self = Self::new(name);
    }

    /// To be called a few times a second; `detail` is how far the step is,
    /// and may be empty.
    pub(crate) fn tick(&mut self, detail: &str) {
        let elapsed = self.start.elapsed();
        let due = match self.shown {
            None => elapsed >= SILENT,
            Some(shown) => self.terminal || shown.elapsed() >= REPEAT,
        };
        if due {
            self.shown = Some(Instant::now());
            self.print(&line(&self.name, elapsed, detail), false);
        }
    }

    /// The step ended well.
    pub(crate) fn done(&mut self) {
        if self.shown.take().is_some() {
            self.print(&line(&self.name, self.start.elapsed(), "done"), true);
        }
    }

    /// The step ended otherwise; the caller says how. Takes an unfinished
    /// line off the terminal.
    pub(crate) fn abandon(&mut self) {
        if self.shown.take().is_some() && self.terminal {
            self.write("\r\x1b[K");
        }
    }

    fn print(&self, text: &str, last: bool) {
        if !self.terminal {
            self.write(&format!("neap: {text}\n"));
            return;
        }
        // A line longer than the terminal is wide could not be rewritten.
        let width = rustix::termios::tcgetwinsize(std::io::stderr())
            .map_or(80, |size| usize::from(size.ws_col))
            .max(20);
        let clipped: String = format!("neap: {text}").chars().take(width - 1).collect();
        self.write(&format!("\r\x1b[K{clipped}{}", if last { "\n" } else { "" }));
    }

    /// Progress that cannot be shown is no reason to stop a build.
    fn write(&self, text: &str) {
        let mut stderr = std::io::stderr().lock();
        let _ = stderr.write_all(text.as_bytes());
        let _ = stderr.flush();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.abandon();
    }
}

fn line(name: &str, elapsed: Duration, detail: &str) -> String {
    let elapsed = display_seconds(elapsed.as_secs());
    if detail.is_empty() {
        format!("{name} ({elapsed})")
    } else {
        format!("{name} ({elapsed}): {detail}")
    }
}

/// A duration in words: `52 s`, `3 min 04 s`, `2 h 05 min`.
pub(crate) fn display_seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        assert_eq!(display_seconds(0), "0 s");
        assert_eq!(display_seconds(59), "59 s");
        assert_eq!(display_seconds(184), "3 min 04 s");
        assert_eq!(display_seconds(7500), "2 h 05 min");
    }

    #[test]
    fn the_line_has_name_time_and_detail() {
        let elapsed = Duration::from_secs(61);
        assert_eq!(line("building", elapsed, ""), "building (1 min 01 s)");
        assert_eq!(line("building", elapsed, "3 of 9"), "building (1 min 01 s): 3 of 9");
    }
}
