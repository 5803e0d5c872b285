//! The program that a lab is for, and its streams.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, WaitStatus, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::super::process;
use super::super::wire::{Notice, Start, Window};

/// The running program.
#[derive(Debug)]
pub(super) struct Program {
    /// Its process, leader of a session and process group of its own.
    pub pid: Pid,
    /// The master of its terminal. Closing this and the copies in
    /// [`Streams`] hangs the terminal up.
    pub terminal: Option<OwnedFd>,
}

/// The agent's ends of the program's streams, all non-blocking. Closing one
/// tells the program, so nobody else may hold a copy.
#[derive(Debug)]
pub(super) struct Streams {
    /// Where its input goes: a pipe, or the terminal's master.
    pub stdin: OwnedFd,
    /// Where its output comes from: a pipe, or the terminal's master.
    pub stdout: OwnedFd,
    /// Where its errors come from; `None`: the terminal too.
    pub stderr: Option<OwnedFd>,
}

impl Program {
    /// Starts the program.
    ///
    /// # Errors
    /// A line for the user: what could not be done, and why.
    pub(super) fn spawn(start: &Start) -> Result<(Self, Streams), String> {
        let mut command = Command::new(&start.program);
        command
            .args(&start.arguments)
            .env_clear()
            .envs(start.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&start.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let terminal = match start.terminal {
            Some(window) => {
                let (master, slave) = open_terminal(window)
                    .map_err(|error| format!("cannot make a terminal: {error}"))?;
                let copy = || slave.try_clone().map_err(|error| error.to_string());
                command.stdin(copy()?).stdout(copy()?);
                if start.stderr_on_terminal {
                    command.stderr(copy()?);
                }
                Some(master)
            }
            None => None,
        };
        process::lead_session(&mut command, terminal.is_some());
        let mut child = command.spawn().map_err(|error| describe(&error, start))?;
        let streams = (|| {
            let copy = || terminal.as_ref().map(OwnedFd::try_clone).transpose();
            Ok((
                child.stdin.take().map(OwnedFd::from).map_or_else(copy, |fd| Ok(Some(fd)))?,
                child.stdout.take().map(OwnedFd::from).map_or_else(copy, |fd| Ok(Some(fd)))?,
                child.stderr.take().map(OwnedFd::from),
            ))
        })();
        let lost = |error: io::Error| format!("cannot keep the program's streams: {error}");
        let (Some(stdin), Some(stdout), stderr) = streams.map_err(lost)? else {
            return Err(lost(io::ErrorKind::BrokenPipe.into()));
        };
        for stream in [Some(&stdin), Some(&stdout), stderr.as_ref()].into_iter().flatten() {
            set_nonblocking(stream).map_err(lost)?;
        }
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or("the program has no process number")?;
        Ok((Self { pid, terminal }, Streams { stdin, stdout, stderr }))
    }

    /// Hands a signal to the program's process group.
    pub(super) fn notify(&self, notice: Notice) {
        let signal = match notice {
            Notice::Interrupt => Signal::INT,
            Notice::Terminate => Signal::TERM,
            Notice::HangUp => Signal::HUP,
            Notice::Quit => Signal::QUIT,
        };
        // A group that has just ended needs no signal.
        let _ = kill_process_group(self.pid, signal);
    }

    /// Gives the terminal a new size.
    pub(super) fn resize(&self, window: Window) {
        if let Some(terminal) = &self.terminal {
            // The terminal is there as long as its master is open.
            let _ = tcsetwinsize(terminal, winsize(window));
        }
    }
}

/// Exit status as a shell gives it: 128 + n for a signal n.
pub(super) fn exit_status(status: WaitStatus) -> u8 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => (128 + signal) as u8,
        (None, None) => u8::MAX,
    }
}

/// A new terminal: its master and its slave.
fn open_terminal(window: Window) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    tcsetwinsize(&master, winsize(window))?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    Ok((master, slave))
}

fn winsize(window: Window) -> Winsize {
    Winsize {
        ws_row: window.rows,
        ws_col: window.columns,
        ws_xpixel: window.width,
        ws_ypixel: window.height,
    }
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?)
}

/// The same error number can mean the program or its working folder.
fn describe(error: &io::Error, start: &Start) -> String {
    let folder = std::path::Path::new(&start.folder);
    if folder.is_dir() {
        error.to_string()
    } else {
        format!("the lab does not see the working folder {}", folder.display())
    }
}
