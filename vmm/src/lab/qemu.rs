//! The QEMU process of a lab: started so that it ends with this one, its
//! console read all the while, killed on drop.

use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use super::machine::Machine;
use super::mended::Mended;
use super::{LabError, process};
use crate::failure::tell;

const PROGRAM: &str = "qemu-system-x86_64";
/// Lines of the console kept for the report of a failure.
const KEPT_LINES: usize = 30;
/// Longest line kept, in bytes.
const KEPT_BYTES: usize = 300;

/// A running lab machine.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    console: Arc<Mutex<Tail>>,
    readers: Vec<JoinHandle<()>>,
}

impl Qemu {
    /// Starts the machine. `port` is the socket that `machine` names; this
    /// process's copy of it is closed, so that the other end sees QEMU's end.
    ///
    /// # Errors
    /// QEMU is not installed or cannot be started.
    pub(super) fn start(machine: &Machine<'_>, port: OwnedFd) -> Result<Self, LabError> {
        let program = find()?;
        // One that cannot be read may still run.
        let mended = Mended::of(&program).ok().flatten();
        let mut command =
            Command::new(mended.as_ref().map_or_else(|| program.clone(), Mended::program));
        if let Some(mended) = &mended {
            for folder in mended.share() {
                command.arg("-L").arg(folder);
            }
            if let Some(modules) = mended.modules() {
                command.env("QEMU_MODULE_DIR", modules);
            }
        } else if machine.verbose {
            tell(format_args!(
                "this QEMU is not the one whose fault is known: guests may fail now and then"
            ));
        }
        command
            .args(machine.arguments()?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Not in the terminal's foreground: keys and hang-ups are for
            // neap, which decides when the lab ends.
            .process_group(0);
        process::tie_to_parent(&mut command, port.as_raw_fd());
        let mut child =
            command.spawn().map_err(|source| LabError::QemuStart { program, source })?;
        drop(port);
        let console = Arc::new(Mutex::new(Tail::default()));
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(follow(stdout, Arc::clone(&console), machine.verbose));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(follow(stderr, Arc::clone(&console), machine.verbose));
        }
        Ok(Self { child, console, readers })
    }

    /// Ends QEMU and waits for it. Then the console is complete.
    ///
    /// Returns how it ended if it had ended by itself.
    pub(super) fn end(&mut self) -> Option<String> {
        // Killing what has ended already does nothing; what has not ended
        // cannot refuse.
        let _ = self.child.kill();
        let status = self.child.wait().ok();
        for reader in self.readers.drain(..) {
            // The pipes' other ends closed with QEMU.
            let _ = reader.join();
        }
        match status {
            Some(status) if status.signal() != Some(9) => Some(status.to_string()),
            _ => None,
        }
    }

    /// The last lines of the console.
    pub(super) fn console(&self) -> Vec<String> {
        let tail = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        tail.lines()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.end();
    }
}

/// Looks for QEMU in `PATH`.
fn find() -> Result<PathBuf, LabError> {
    let folders = env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    env::split_paths(&folders)
        .map(|folder| folder.join(PROGRAM))
        .find(|path| {
            fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
        })
        .ok_or(LabError::QemuMissing)
}

fn follow(
    mut pipe: impl Read + Send + 'static,
    console: Arc<Mutex<Tail>>,
    verbose: bool,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        loop {
            let n = match pipe.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            console.lock().unwrap_or_else(PoisonError::into_inner).push(&buffer[..n]);
            if verbose {
                // Nothing can be done about a stderr that nobody reads.
                let _ = io::stderr().write_all(&buffer[..n]);
            }
        }
    })
}

/// The last lines of what was pushed.
#[derive(Debug, Default)]
struct Tail {
    whole: VecDeque<String>,
    partial: Vec<u8>,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = text(&self.partial);
                self.partial.clear();
                if !is_noise(&line) {
                    self.whole.push_back(line);
                }
                if self.whole.len() > KEPT_LINES {
                    self.whole.pop_front();
                }
            } else if self.partial.len() < KEPT_BYTES {
                self.partial.push(byte);
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let partial = Some(text(&self.partial)).filter(|line| !line.is_empty());
        self.whole.iter().cloned().chain(partial).collect()
    }
}

/// A line for a terminal: control characters could do anything to it.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect()
}

/// What every lab prints.
fn is_noise(line: &str) -> bool {
    line.trim().is_empty() || line.contains("warning: TCG doesn't support requested feature")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded_and_clean() {
        let mut tail = Tail::default();
        for n in 0..1000 {
            tail.push(format!("\x1b[31mline {n}\r\n").as_bytes());
        }
        tail.push(&[b'x'; 10_000]);
        let lines = tail.lines();
        assert_eq!(lines.len(), KEPT_LINES + 1);
        assert_eq!(lines[KEPT_LINES - 1], "[31mline 999");
        assert_eq!(lines[KEPT_LINES].len(), KEPT_BYTES);
    }

    #[test]
    fn what_every_lab_prints_is_left_out() {
        let mut tail = Tail::default();
        tail.push(b"\r\nqemu: warning: TCG doesn't support requested feature: X\nreal\n");
        assert_eq!(tail.lines(), ["real"]);
    }
}
