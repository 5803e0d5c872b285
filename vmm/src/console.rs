//! The terminal that the guest's serial console is on: raw while the guest
//! runs, restored however the process ends.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

/// The terminal's settings before it was made raw. Process-wide, because a
/// panic on any thread must find them.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// A raw terminal on standard input; cooked again when dropped.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes standard input raw if it is a terminal and this process is in its
    /// foreground (a background process would be stopped for trying).
    ///
    /// # Errors
    /// What tcsetattr(3) says.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !isatty(&stdin) || in_background() {
            return Ok(None);
        }
        let cooked = tcgetattr(&stdin)?;
        let mut raw = cooked.clone();
        raw.make_raw();
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(cooked);
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

/// Whether standard input is a terminal that another job of its shell has the
/// use of: reading it or changing its settings would stop this process.
pub fn in_background() -> bool {
    tcgetpgrp(io::stdin()).is_ok_and(|group| group != getpgrp())
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back its settings, if they were changed.
pub fn restore() {
    // `try_lock`: a panic hook must not wait for the thread that panicked.
    if let Ok(mut saved) = SAVED.try_lock()
        && let Some(cooked) = saved.take()
    {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &cooked);
    }
}

/// Makes a panic restore the terminal before its message is printed.
pub fn restore_on_panic() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        default(info);
    }));
}

/// Standard output without a buffer, for the guest's bytes. Waits where a
/// non-blocking pipe is full, because a serial port has no way to.
#[derive(Debug)]
pub struct ConsoleOutput(File);

impl ConsoleOutput {
    /// # Errors
    /// No descriptor could be had.
    pub fn stdout() -> io::Result<Self> {
        Ok(Self(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
}

impl Write for ConsoleOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the person at the console typed, with the escape taken out: Ctrl-A x
/// ends the machine, Ctrl-A Ctrl-A sends one Ctrl-A.
#[derive(Debug, Default)]
pub struct EscapeFilter {
    escaped: bool,
}

const CTRL_A: u8 = 1;

impl EscapeFilter {
    /// Filters `input` into what the guest gets; true if the machine is to
    /// end.
    pub fn filter(&mut self, input: &[u8], guest: &mut Vec<u8>) -> bool {
        for &byte in input {
            match (std::mem::take(&mut self.escaped), byte) {
                (false, CTRL_A) => self.escaped = true,
                (true, b'x' | b'X') => return true,
                (true, CTRL_A) | (false, _) => guest.push(byte),
                (true, _) => guest.extend_from_slice(&[CTRL_A, byte]),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut filter, mut guest) = (EscapeFilter::default(), Vec::new());
        let quit = chunks.iter().any(|chunk| filter.filter(chunk, &mut guest));
        (guest, quit)
    }

    #[test]
    fn the_escape_ends_the_machine_even_when_split() {
        assert_eq!(filter(&[b"ls\n\x01x"]), (b"ls\n".to_vec(), true));
        assert_eq!(filter(&[b"\x01", b"x"]), (vec![], true));
    }

    #[test]
    fn everything_else_reaches_the_guest() {
        assert_eq!(filter(&[b"\x01\x01"]), (vec![1], false));
        assert_eq!(filter(&[b"\x01y\x03"]), (vec![1, b'y', 3], false));
    }
}
