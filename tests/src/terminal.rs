//! A terminal that a test sits at: a pseudo-terminal pair.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

/// A pseudo-terminal: the person's side and the program's.
#[derive(Debug)]
pub struct Terminal {
    person: File,
    program: File,
    seen: String,
}

impl Default for Terminal {
    fn default() -> Self {
        Self::new()
    }
}

impl Terminal {
    /// A new terminal in cooked mode.
    pub fn new() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let person = openpt(flags).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let program: OwnedFd = ioctl_tiocgptpeer(&person, flags).unwrap();
        Self { person: person.into(), program: program.into(), seen: String::new() }
    }

    /// The program's side, for its standard input and output.
    pub fn program(&self) -> File {
        self.program.try_clone().unwrap()
    }

    /// Types.
    pub fn enter(&mut self, text: &str) {
        self.person.write_all(text.as_bytes()).unwrap();
    }

    /// Whether the terminal edits lines, as it does when no program has made
    /// it raw.
    pub fn is_cooked(&self) -> bool {
        tcgetattr(&self.program).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    /// Waits until the screen shows `text`, and forgets everything up to it.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(Instant::now() < end, "no {text:?} within {limit:?} in:\n{}", self.seen);
            let wait = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            let mut fds = [PollFd::new(&self.person, PollFlags::IN)];
            if poll(&mut fds, Some(&wait)).unwrap() > 0 {
                let mut chunk = [0; 4096];
                let length = self.person.read(&mut chunk).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&chunk[..length]));
            }
        }
    }
}
