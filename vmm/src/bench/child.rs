//! Child processes on a clock: when a byte or a line of output came, when the
//! process ended, what it cost.
//!
//! Every wait has a limit. A child that is dropped before its end was seen is
//! killed, so nothing is left behind whatever happens to its bench.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{self, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A program with its arguments, to be run many times.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Name in tables and messages.
    pub name: String,
    /// Program file, or a name to look for on PATH.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

impl Subject {
    /// The command as a shell would take it.
    pub fn command_line(&self) -> String {
        let words = std::iter::once(self.program.as_os_str())
            .chain(self.arguments.iter().map(OsString::as_os_str));
        words.map(|word| quoted(&word.to_string_lossy())).collect::<Vec<_>>().join(" ")
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Why a child gave no figure.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// Program file.
        program: String,
        /// What the system answered.
        source: io::Error,
    },
    /// A system call about it failed.
    #[error("{name}: {call}: {source}")]
    System {
        /// Name of the subject.
        name: String,
        /// What was called.
        call: &'static str,
        /// What the system answered.
        source: io::Error,
    },
    /// It took longer than its limit and was killed.
    #[error("{name} did not come to {what} within {} s; it was ended{said}", limit.as_secs_f64())]
    Deadline {
        /// Name of the subject.
        name: String,
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
        /// Last line of its stderr.
        said: String,
    },
    /// It ended before it did what was waited for.
    #[error("{name} ended before {what}{said}")]
    Early {
        /// Name of the subject.
        name: String,
        /// What was waited for.
        what: String,
        /// Last line of its stderr.
        said: String,
    },
    /// It ended with a failure.
    #[error("{name} failed: {status}{said}")]
    Failed {
        /// Name of the subject.
        name: String,
        /// How it ended.
        status: ExitStatus,
        /// Last line of its stderr.
        said: String,
    },
}

/// A child that has ended by itself.
#[derive(Debug)]
pub struct Ended {
    /// From start to end.
    pub after: Duration,
    /// User and system time of the process.
    pub cpu: Duration,
    /// All of its output.
    pub output: Vec<u8>,
}

/// A running child. Its stdin is empty.
#[derive(Debug)]
pub struct Child {
    name: String,
    process: process::Child,
    pidfd: OwnedFd,
    stdout: Option<ChildStdout>,
    stderr: File,
    output: Vec<u8>,
    started: Instant,
    limit: Duration,
    reaped: bool,
}

impl Child {
    /// Starts `subject` and its clock; all that it does has to be done within
    /// `limit`.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn spawn(subject: &Subject, limit: Duration) -> Result<Self, ChildError> {
        let failed = |source: io::Error| ChildError::Spawn {
            program: subject.program.display().to_string(),
            source,
        };
        // Memory, not a pipe: nobody has to empty it while the clock runs.
        let stderr = memfd_create("stderr", MemfdFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
        let for_child = stderr.try_clone().map_err(failed)?;
        let mut command = Command::new(&subject.program);
        command
            .args(&subject.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(for_child);
        let started = Instant::now();
        let mut process = command.spawn().map_err(failed)?;
        let pidfd = Pid::from_raw(process.id() as i32)
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
        let pidfd = match pidfd {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = process.kill();
                let _ = process.wait();
                return Err(failed(error.into()));
            }
        };
        Ok(Self {
            name: subject.name.clone(),
            stdout: process.stdout.take(),
            process,
            pidfd,
            stderr: stderr.into(),
            output: Vec::new(),
            started,
            limit,
            reaped: false,
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Output so far.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// Waits for the first output; answers the time from the start to it.
    ///
    /// # Errors
    /// None came before the limit or the end.
    pub fn wait_for_output(&mut self) -> Result<Duration, ChildError> {
        self.wait_until("its first output", |output| !output.is_empty())
    }

    /// Waits until `text` is in the output; answers the time from the start.
    ///
    /// # Errors
    /// It did not come before the limit or the end.
    pub fn wait_for_text(&mut self, text: &str) -> Result<Duration, ChildError> {
        let needle = text.as_bytes();
        self.wait_until(&format!("'{text}'"), |output| {
            output.windows(needle.len()).any(|window| window == needle)
        })
    }

    fn wait_until(
        &mut self,
        what: &str,
        done: impl Fn(&[u8]) -> bool,
    ) -> Result<Duration, ChildError> {
        while !done(&self.output) {
            if self.stdout.is_none() {
                return Err(ChildError::Early {
                    name: self.name.clone(),
                    what: what.to_owned(),
                    said: self.last_words(),
                });
            }
            self.step(what)?;
        }
        Ok(self.started.elapsed())
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// It did not come before the limit, or was not a success.
    pub fn finish(mut self) -> Result<Ended, ChildError> {
        let after = loop {
            if self.step("its end")? {
                break self.started.elapsed();
            }
        };
        let (status, cpu) = self.reap()?;
        // What it wrote before its end is in the pipe. Somebody else may hold
        // the other side, so only what is there is taken.
        while self.stdout.is_some() && self.ready(Duration::ZERO)?.0 {
            self.read()?;
        }
        if !status.success() {
            let said = self.last_words();
            return Err(ChildError::Failed { name: self.name.clone(), status, said });
        }
        Ok(Ended { after, cpu, output: std::mem::take(&mut self.output) })
    }

    /// Asks the child to end, and kills it if it has not within `grace`.
    /// Answers whether it ended by itself.
    ///
    /// # Errors
    /// A system call failed.
    pub fn terminate(mut self, grace: Duration) -> Result<bool, ChildError> {
        let sent = pidfd_send_signal(&self.pidfd, Signal::TERM);
        sent.map_err(|error| self.system("pidfd_send_signal", error.into()))?;
        let end = Instant::now() + grace;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (output, ended) = self.ready(left)?;
            if output {
                self.read()?;
            }
            if ended {
                self.reap()?;
                return Ok(true);
            }
            if left.is_zero() {
                // Dropping it kills it.
                return Ok(false);
            }
        }
    }

    /// Waits for output or the end and takes the output. Answers whether the
    /// child has ended.
    fn step(&mut self, what: &str) -> Result<bool, ChildError> {
        let left = self.limit.saturating_sub(self.started.elapsed());
        let (output, ended) = self.ready(left)?;
        if !output && !ended {
            return Err(ChildError::Deadline {
                name: self.name.clone(),
                what: what.to_owned(),
                limit: self.limit,
                said: self.last_words(),
            });
        }
        if output {
            self.read()?;
        }
        Ok(ended)
    }

    /// Whether there is output to read, and whether the child has ended, after
    /// at most `timeout`.
    fn ready(&self, timeout: Duration) -> Result<(bool, bool), ChildError> {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timespec =
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = vec![PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            if let Some(stdout) = &self.stdout {
                fds.push(PollFd::from_borrowed_fd(stdout.as_fd(), PollFlags::IN));
            }
            match poll(&mut fds, Some(&timespec)) {
                Ok(_) => {
                    let output = fds.get(1).is_some_and(|fd| !fd.revents().is_empty());
                    return Ok((output, !fds[0].revents().is_empty()));
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(self.system("poll", error.into())),
            }
        }
    }

    /// Takes what is in the pipe; forgets the pipe at its end.
    fn read(&mut self) -> Result<(), ChildError> {
        let Some(stdout) = &mut self.stdout else { return Ok(()) };
        let mut buffer = [0; 4096];
        match stdout.read(&mut buffer) {
            Ok(0) => self.stdout = None,
            Ok(length) => self.output.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(self.system("read", error)),
        }
        Ok(())
    }

    /// Takes the status and the CPU time of the child, which has ended or is
    /// about to.
    fn reap(&mut self) -> Result<(ExitStatus, Duration), ChildError> {
        let (status, cpu) =
            wait4(self.process.id()).map_err(|error| self.system("wait4", error))?;
        self.reaped = true;
        Ok((status, cpu))
    }

    fn system(&self, call: &'static str, source: io::Error) -> ChildError {
        ChildError::System { name: self.name.clone(), call, source }
    }

    /// `: ` and the last line of stderr, or nothing.
    fn last_words(&mut self) -> String {
        let mut text = Vec::new();
        let read =
            self.stderr.seek(SeekFrom::Start(0)).and_then(|_| self.stderr.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        match (read, text.trim_end().lines().last()) {
            (Ok(_), Some(line)) if !line.is_empty() => format!(": {line}"),
            _ => String::new(),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // It has ended already, or ends now; either way it is collected.
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// Collects a child with its CPU time, which `std` does not tell.
#[allow(unsafe_code)]
fn wait4(pid: u32) -> io::Result<(ExitStatus, Duration)> {
    let mut status = 0;
    // SAFETY: an all-zero `rusage` is a valid value of its integers.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to values of the right type on this stack.
        let result = unsafe { libc::wait4(pid as libc::pid_t, &mut status, 0, &mut usage) };
        if result != -1 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    Ok((ExitStatus::from_raw(status), time(usage.ru_utime) + time(usage.ru_stime)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Subject {
        Subject {
            name: "script".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
        }
    }

    #[test]
    fn output_is_timed_and_kept() {
        let mut child = Child::spawn(&shell("echo one; echo two"), LIMIT).unwrap();
        let first = child.wait_for_output().unwrap();
        let second = child.wait_for_text("two\n").unwrap();
        let ended = child.finish().unwrap();
        assert!(first <= second && second <= ended.after);
        assert_eq!(ended.output, b"one\ntwo\n");
    }

    #[test]
    fn a_failure_comes_with_the_last_line_of_stderr() {
        let child = Child::spawn(&shell("echo why >&2; exit 3"), LIMIT).unwrap();
        let error = child.finish().unwrap_err().to_string();
        assert_eq!(error, "script failed: exit status: 3: why");
    }

    #[test]
    fn a_child_that_never_ends_is_killed_at_its_limit() {
        let limit = Duration::from_millis(100);
        let mut child = Child::spawn(&shell("echo up; exec sleep 1000"), limit).unwrap();
        let pid = child.id();
        assert!(matches!(child.wait_for_text("never"), Err(ChildError::Deadline { .. })));
        drop(child);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn an_end_before_the_text_is_told() {
        let mut child = Child::spawn(&shell("echo no"), LIMIT).unwrap();
        assert!(matches!(child.wait_for_text("yes"), Err(ChildError::Early { .. })));
    }

    #[test]
    fn a_polite_child_ends_by_itself_and_a_stubborn_one_is_killed() {
        let mut child = Child::spawn(&shell("echo up; exec sleep 1000"), LIMIT).unwrap();
        child.wait_for_output().unwrap();
        assert!(child.terminate(LIMIT).unwrap());
        let script = "trap '' TERM; echo up; exec sleep 1000";
        let mut child = Child::spawn(&shell(script), LIMIT).unwrap();
        child.wait_for_output().unwrap();
        assert!(!child.terminate(Duration::from_millis(50)).unwrap());
    }

    #[test]
    fn cpu_time_is_that_of_the_child() {
        let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done";
        let ended = Child::spawn(&shell(script), LIMIT).unwrap().finish().unwrap();
        assert!(ended.cpu > Duration::ZERO && ended.cpu <= ended.after * 2, "{ended:?}");
    }

    #[test]
    fn command_lines_are_quoted_as_a_shell_needs() {
        let mut subject = shell("a b");
        subject.arguments.push("it's".into());
        assert_eq!(subject.command_line(), r"/bin/sh -c 'a b' 'it'\''s'");
    }
}
