//! Another copy of this program, for what ends a process.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use neap_memory::Backing;
use neap_memory::granule::GranuleSize;

use crate::ends;

/// Says which part the copy plays, and with what.
const PART: &str = "NEAP_PROOF_CHILD";

/// The part of this process, if it is such a copy.
pub(crate) fn part() -> Option<String> {
    env::var(PART).ok()
}

/// Plays `NAME BACKING GRANULE`.
pub(crate) fn play(part: &str) -> ExitCode {
    let words: Vec<_> = part.split(' ').collect();
    let [name, backing, granule] = words[..] else { return ExitCode::from(99) };
    let (backing, granule): (Backing, GranuleSize) =
        (backing.parse().unwrap(), granule.parse().unwrap());
    ends::play(name, backing, granule)
}

/// A copy at work. Killed when it is dropped.
pub(crate) struct Copy {
    child: Child,
    lines: Receiver<(Instant, String)>,
}

/// The longest wait for a line of a copy.
const PATIENCE: Duration = Duration::from_secs(60);

impl Copy {
    /// Starts one in an empty folder.
    pub(crate) fn start(
        name: &str,
        backing: Backing,
        granule: GranuleSize,
        folder: &std::path::Path,
    ) -> Self {
        let mut child = Command::new(env::current_exe().unwrap())
            .env(PART, format!("{name} {backing} {granule}"))
            .env("TMPDIR", folder)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// Its next line and when it came; `None` once it has ended.
    pub(crate) fn line(&self) -> Option<(Instant, String)> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("the copy says nothing"),
        }
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// How it ended, once its output has.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
