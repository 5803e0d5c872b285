//! Child processes that cannot outlive this process.
//!
//! A child runs in a process group of its own under a small shell that also
//! holds the read end of a pipe whose write end is here. When this process
//! ends, in whatever way, the pipe closes and the shell kills the group.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// `read` returns when the pipe closes; `kill 0` means the own group. The
/// program gets /dev/null as its stdin and does not inherit the pipe. The
/// shell itself outlasts a SIGTERM to the group, to report how the program
/// took it; a trap, other than an ignored signal, is not inherited.
const WRAPPER: &str = "trap : HUP INT TERM
exec 3<&0 </dev/null
( read -r _ <&3; kill -KILL 0 ) >/dev/null 2>&1 &
guard=$!
\"$@\" 3<&-
status=$?
kill -KILL $guard
exit $status";

/// How long a group may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A running child and the group it leads.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
    /// Open as long as the child may live.
    _lifeline: Option<ChildStdin>,
    ended: bool,
}

/// A command that runs `program` under the guard; add arguments, environment,
/// stdout and stderr to it, then call [`Guarded::spawn`].
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(WRAPPER).arg("sh").arg(program).process_group(0).stdin(Stdio::piped());
    command
}

impl Guarded {
    /// Starts a command made by [`command`].
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let lifeline = child.stdin.take();
        Ok(Self { child, _lifeline: lifeline, ended: false })
    }

    /// The child, for its pipes.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// How the child ended, or `None` while it runs.
    pub(crate) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        self.ended = status.is_some();
        Ok(status)
    }

    /// Waits for the end of the child until `deadline`.
    pub(crate) fn wait_until(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the whole group: asks first, and kills what is left after five
    /// seconds.
    pub(crate) fn stop(&mut self) {
        if self.ended {
            return;
        }
        self.signal(Signal::TERM);
        if !matches!(self.wait_until(Instant::now() + GRACE), Ok(Some(_))) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
            self.ended = true;
        }
        // The leader is gone; a grandchild that ignored SIGTERM may not be.
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // Nobody left to signal is what is wanted.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Whether somebody asked this process to end (SIGINT, SIGTERM, SIGHUP).
///
/// While a value lives these signals are only noted. After its drop they are
/// *ignored* until something else handles them, because the default action
/// cannot be brought back without `unsafe`: use it where the process is about
/// to end anyway, or where the next step handles signals itself.
#[derive(Debug)]
pub(crate) struct Interrupts {
    seen: Arc<AtomicBool>,
    registered: Vec<signal_hook::SigId>,
}

impl Interrupts {
    /// Begins to note signals.
    pub(crate) fn watch() -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let mut interrupts = Self { seen: Arc::default(), registered: Vec::new() };
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let seen = Arc::clone(&interrupts.seen);
            interrupts.registered.push(signal_hook::flag::register(signal, seen)?);
        }
        Ok(interrupts)
    }

    /// Whether one arrived.
    pub(crate) fn seen(&self) -> bool {
        self.seen.load(Ordering::Relaxed)
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        for id in self.registered.drain(..) {
            signal_hook::low_level::unregister(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    fn gone(pid: i32) -> bool {
        let deadline = Instant::now() + Duration::from_secs(5);
        let pid = Pid::from_raw(pid).unwrap();
        while rustix::process::test_kill_process(pid).is_ok() {
            // A zombie that nobody has reaped yet still answers.
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
            if stat.is_ok_and(|stat| stat.contains(") Z ")) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    fn start_with_grandchild() -> (Guarded, i32) {
        let mut command = command("/bin/sh");
        command.args(["-c", "sleep 600 & echo $!; wait"]).stdout(Stdio::piped());
        let mut guarded = Guarded::spawn(&mut command).unwrap();
        let mut line = String::new();
        let stdout = guarded.child().stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        (guarded, line.trim().parse().unwrap())
    }

    #[test]
    fn the_exit_status_comes_through() {
        let mut guarded = Guarded::spawn(command("/bin/sh").args(["-c", "exit 7"])).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        assert_eq!(guarded.wait_until(deadline).unwrap().unwrap().code(), Some(7));
    }

    #[test]
    fn stopping_ends_grandchildren_too() {
        let (mut guarded, grandchild) = start_with_grandchild();
        guarded.stop();
        assert!(gone(grandchild));
    }

    #[test]
    fn the_group_dies_when_the_lifeline_closes() {
        let (mut guarded, grandchild) = start_with_grandchild();
        guarded._lifeline = None;
        assert!(gone(grandchild));
    }
}
