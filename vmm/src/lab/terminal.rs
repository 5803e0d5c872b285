//! The host's terminal while the program has it: raw, so that every key
//! reaches the program's own terminal, and restored in the end.

use std::io;

use rustix::stdio::{stderr, stdin, stdout};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

use super::wire::Window;

/// Whether stdin and stdout are a terminal, and its size.
pub(super) fn size() -> Option<Window> {
    if !isatty(stdin()) || !isatty(stdout()) {
        return None;
    }
    let size = tcgetwinsize(stdout()).ok()?;
    Some(Window {
        rows: size.ws_row,
        columns: size.ws_col,
        width: size.ws_xpixel,
        height: size.ws_ypixel,
    })
}

/// Whether stderr is a terminal.
pub(super) fn stderr_is_terminal() -> bool {
    isatty(stderr())
}

/// Keeps the terminal of stdin raw; dropping it, also by a panic's unwinding,
/// restores the mode that was there before.
#[derive(Debug)]
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Makes the terminal raw.
    ///
    /// # Errors
    /// Stdin is no terminal, or it refuses the mode.
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}
