//! One guest that runs hmm-tests, as a child process `neap run` whose
//! console is read line by line.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use neap_memory::Gpa;

use crate::images::guarded::{self, Guarded, Interrupts};

/// The two windows that test_hmm gets: above any RAM that a guest of this
/// command has, and below 2^39, which every processor with nested paging can
/// address.
pub(super) const WINDOWS: [Gpa; 2] = [Gpa(0x10_0000_0000), Gpa(0x10_1000_0000)];
/// Size of each window; test_hmm takes memory in chunks of this.
pub(super) const WINDOW_SIZE: &str = "256M";
/// Kernel command line. A panic resets the machine, which ends the run; the
/// console is kept free of the kernel's messages, because they would cut the
/// lines of the tests in two.
pub(super) const CMDLINE: &str = "console=ttyS0 quiet loglevel=1 panic=-1";

/// Between two looks at whether a signal arrived.
const POLL: Duration = Duration::from_millis(100);
/// How long the machine may take to go down after its console closed.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// Why the lines of a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The console closed.
    Closed,
    /// The time limit passed.
    TimedOut,
    /// This process was asked to stop.
    Interrupted,
}

/// How the guest's process ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its status, unless it had to be killed.
    pub status: Option<ExitStatus>,
    /// What it wrote to stderr.
    pub stderr: String,
}

/// What a `neap run` that failed says in `stderr`: its last line of its own,
/// or else the first line of all.
pub(crate) fn last_words(stderr: &str) -> Option<String> {
    let mut lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let own = lines.clone().rev().find_map(|line| line.strip_prefix("neap: "));
    own.or_else(|| lines.next()).map(str::to_owned)
}

/// The arguments of `neap run`.
pub(super) fn arguments(kernel: &Path, initrd: &Path, cpus: u32, memory: &str) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["run".into(), "--kernel".into(), kernel.into()];
    arguments.extend(["--initrd".into(), initrd.into()]);
    arguments.extend(["--cmdline".into(), CMDLINE.into()]);
    arguments.extend(["--cpus".into(), cpus.to_string().into()]);
    arguments.extend(["--memory".into(), memory.into()]);
    for window in WINDOWS {
        arguments.push("--device-memory".into());
        arguments.push(format!("size={WINDOW_SIZE},addr={window}").into());
    }
    arguments
}

/// A running guest.
pub(super) struct Guest {
    child: Guarded,
    lines: Receiver<(Instant, String)>,
    stderr: Receiver<String>,
    /// When its process was started.
    pub started: Instant,
}

impl Guest {
    /// Starts `program`, this very binary, with the arguments of `neap run`.
    pub(super) fn start(program: &Path, arguments: &[OsString]) -> std::io::Result<Self> {
        let mut command = guarded::command(program);
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = Guarded::spawn(&mut command)?;
        let (line_sender, lines) = channel();
        let (stderr_sender, stderr) = channel();
        // Both threads end when the child's ends of the pipes are closed,
        // which the end of its process group makes certain.
        if let Some(pipe) = child.child().stdout.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n') {
                    let Ok(line) = line else { break };
                    let line = String::from_utf8_lossy(&line).into_owned();
                    if line_sender.send((Instant::now(), line)).is_err() {
                        break;
                    }
                }
            });
        }
        if let Some(mut pipe) = child.child().stderr.take() {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = pipe.read_to_end(&mut bytes);
                let _ = stderr_sender.send(String::from_utf8_lossy(&bytes).into_owned());
            });
        }
        Ok(Self { child, lines, stderr, started })
    }

    /// Hands each line of the console with its time of arrival to `see`,
    /// until there are no more, `deadline` passes or a signal arrives.
    pub(super) fn follow(
        &mut self,
        deadline: Instant,
        interrupts: &Interrupts,
        mut see: impl FnMut(Instant, &str),
    ) -> End {
        loop {
            if interrupts.seen() {
                return End::Interrupted;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return End::TimedOut;
            }
            match self.lines.recv_timeout(left.min(POLL)) {
                Ok((at, line)) => see(at, &line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return End::Closed,
            }
        }
    }

    /// Waits a short time for the end of the process and then makes sure of
    /// it.
    pub(super) fn finish(mut self, end: &End) -> Ended {
        let patience = if *end == End::Closed { LAST_WORDS } else { Duration::ZERO };
        let status = self.child.wait_until(Instant::now() + patience).ok().flatten();
        self.child.stop();
        let stderr = self.stderr.recv_timeout(LAST_WORDS).unwrap_or_default();
        Ended { status, stderr }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Guest {
        Guest::start(Path::new("/bin/sh"), &["-c".into(), script.into()]).unwrap()
    }

    fn soon(seconds: u64) -> Instant {
        Instant::now() + Duration::from_secs(seconds)
    }

    #[test]
    fn lines_status_and_errors_of_a_guest_arrive() {
        let mut guest = shell("printf 'one\\r\\ntwo'; echo bad >&2; exit 2");
        let mut lines = Vec::new();
        let interrupts = Interrupts::watch().unwrap();
        let end = guest.follow(soon(20), &interrupts, |_, line| lines.push(line.to_owned()));
        assert_eq!(end, End::Closed);
        assert_eq!(lines, ["one\r", "two"]);
        let ended = guest.finish(&end);
        assert_eq!(ended.status.unwrap().code(), Some(2));
        assert_eq!(ended.stderr, "bad\n");
    }

    #[test]
    fn the_line_that_says_why_is_found_in_stderr() {
        let usage = "error: unexpected argument '--x'\n\nUsage: neap run\n";
        assert_eq!(last_words(usage).unwrap(), "error: unexpected argument '--x'");
        let noisy = "neap: no KVM\nneap: --memory 1X: bad\nTerminated\n";
        assert_eq!(last_words(noisy).unwrap(), "--memory 1X: bad");
        assert_eq!(last_words(" \n"), None);
    }

    #[test]
    fn a_guest_that_hangs_is_stopped_at_its_deadline() {
        let mut guest = shell("trap '' TERM; echo up; while :; do sleep 1; done");
        let interrupts = Interrupts::watch().unwrap();
        let end = guest.follow(soon(1), &interrupts, |_, _| {});
        assert_eq!(end, End::TimedOut);
        assert!(guest.finish(&end).status.is_none());
    }

    #[test]
    fn the_guest_gets_two_windows_at_the_addresses_that_the_job_names() {
        let arguments = arguments(Path::new("k"), Path::new("i"), 2, "1G");
        let text = arguments.join(" ".as_ref()).into_string().unwrap();
        assert!(text.starts_with("run --kernel k --initrd i --cmdline "), "{text}");
        assert!(text.ends_with(
            "--cpus 2 --memory 1G --device-memory size=256M,addr=0x1000000000 \
             --device-memory size=256M,addr=0x1010000000"
        ));
    }
}
