//! How far a long migration is, on stderr: a bar on a terminal, a line every
//! few seconds elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use neap_memory::addr::display_size;

use crate::control::api::Progress;

/// Migrations shorter than this show nothing.
const SILENT: Duration = Duration::from_millis(500);
/// Between two lines where stderr is no terminal.
const REPEAT: Duration = Duration::from_secs(5);
/// Characters of a whole bar.
const WIDTH: u64 = 30;

/// A migration under way.
pub(super) struct Bar {
    start: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Bar {
    pub(super) fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { start: Instant::now(), shown: None, terminal }
    }

    /// To be called with every piece of news.
    pub(super) fn tell(&mut self, progress: &Progress) {
        let due = match self.shown {
            None => self.start.elapsed() >= if self.terminal { SILENT } else { REPEAT },
            Some(shown) => self.terminal || shown.elapsed() >= REPEAT,
        };
        if !due {
            return;
        }
        self.shown = Some(Instant::now());
        if self.terminal {
            write(&format!("\r\x1b[K{} {}", bar(progress), line(progress)));
        } else {
            write(&format!("neap: {}\n", line(progress)));
        }
    }
}

impl Drop for Bar {
    /// Takes the bar off the terminal.
    fn drop(&mut self) {
        if self.terminal && self.shown.is_some() {
            write("\r\x1b[K");
        }
    }
}

/// Progress that cannot be shown is no reason to stop.
fn write(text: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes());
    let _ = stderr.flush();
}

/// Of `whole`, in parts of `of`; nothing of nothing is all of it.
fn share(progress: &Progress, of: u64) -> u64 {
    let (done, total) = (u128::from(progress.done), u128::from(progress.total));
    let share = (done.min(total) * u128::from(of)).checked_div(total);
    share.and_then(|share| u64::try_from(share).ok()).unwrap_or(of)
}

fn bar(progress: &Progress) -> String {
    let filled = share(progress, WIDTH);
    (0..WIDTH).map(|index| if index < filled { '#' } else { '.' }).collect()
}

fn line(progress: &Progress) -> String {
    format!(
        "{:3}%  {} of {} granules, {} moved",
        share(progress, 100),
        progress.done,
        progress.total,
        display_size(progress.moved.bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::Amount;

    #[test]
    fn the_bar_fills_from_left_to_right() {
        let at = |done, total| Progress {
            done,
            total,
            moved: Amount { granules: done, bytes: done << 21 },
        };
        assert_eq!(bar(&at(0, 60)), ".".repeat(30));
        assert_eq!(bar(&at(31, 60)), format!("{}{}", "#".repeat(15), ".".repeat(15)));
        assert_eq!(bar(&at(60, 60)), "#".repeat(30));
        assert_eq!(line(&at(30, 60)), " 50%  30 of 60 granules, 60M moved");
        // What nobody should send is no reason to panic.
        assert_eq!(share(&at(1, 0), 100), 100);
        assert_eq!(share(&at(u64::MAX >> 21, u64::MAX >> 30), 100), 100);
    }
}
