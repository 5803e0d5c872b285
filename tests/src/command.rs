//! A `neap` process with a deadline.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// For commands that boot no guest.
const DEADLINE: Duration = Duration::from_secs(30);

/// A `neap` command line about to run.
#[derive(Debug)]
pub struct Neap {
    command: Command,
    deadline: Duration,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// Exit status; `None` for a signal.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

/// A `neap` that runs.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    began: Instant,
    deadline: Duration,
}

impl Neap {
    /// `neap ARGS`, without input.
    pub fn new<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Self {
        Self::of_program(crate::neap(), args)
    }

    /// Another program that becomes `neap` in the end, such as unshare(1).
    pub fn of_program<S: AsRef<OsStr>>(
        program: impl AsRef<OsStr>,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self { command, deadline: DEADLINE }
    }

    /// More arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// An environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Input from a file.
    pub fn stdin(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Another deadline.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The command itself, for what is not wrapped here.
    pub fn command(&mut self) -> &mut Command {
        &mut self.command
    }

    /// Runs it to its end.
    pub fn run(self) -> Ended {
        self.start().wait()
    }

    /// Starts it.
    pub fn start(mut self) -> Running {
        let mut child = self.command.spawn().unwrap();
        let stdout = child.stdout.take().map(collect);
        let stderr = child.stderr.take().map(collect);
        Running { child, stdout, stderr, began: Instant::now(), deadline: self.deadline }
    }
}

/// What a stream brought so far, and who collects it.
#[derive(Debug)]
struct Stream {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Stream {
    fn so_far(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).replace('\r', "")
    }

    fn whole(self) -> String {
        let Self { bytes, reader } = self;
        reader.join().unwrap();
        String::from_utf8_lossy(&bytes.lock().unwrap()).replace('\r', "")
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Stream {
    let bytes = Arc::<Mutex<Vec<u8>>>::default();
    let reader = {
        let bytes = Arc::clone(&bytes);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(length) => bytes.lock().unwrap().extend_from_slice(&buffer[..length]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return,
                }
            }
        })
    };
    Stream { bytes, reader }
}

impl Running {
    /// Process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to it.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Whether its standard output has ended, as it does when it is over.
    pub fn is_over(&self) -> bool {
        self.stdout.as_ref().is_none_or(|stdout| stdout.reader.is_finished())
    }

    /// Waits until its standard output has `text`.
    ///
    /// # Panics
    /// It has not after `patience`.
    #[track_caller]
    pub fn wait_for(&self, text: &str, patience: Duration) {
        let began = Instant::now();
        let stdout = self.stdout.as_ref().expect("output that is collected");
        while !stdout.so_far().contains(text) {
            let so_far = || stdout.so_far();
            assert!(!stdout.reader.is_finished(), "over without {text:?}:\n{}", so_far());
            assert!(began.elapsed() < patience, "no {text:?} after {patience:?} in\n{}", so_far());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// The deadline passed; the process is killed first and its output shown.
    pub fn wait(mut self) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break Some(status);
            }
            if self.began.elapsed() > self.deadline {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                break None;
            }
            thread::sleep(Duration::from_millis(5));
        };
        let took = self.began.elapsed();
        let text = |stream: Option<Stream>| stream.map_or_else(String::new, Stream::whole);
        let (stdout, stderr) = (text(self.stdout.take()), text(self.stderr.take()));
        let Some(status) = status else {
            panic!("not over after {:?}\nstdout:\n{stdout}\nstderr:\n{stderr}", self.deadline);
        };
        Ended { status: status.code(), stdout, stderr, took }
    }
}

impl Drop for Running {
    /// A test that panics leaves nothing at work behind.
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Ended {
    /// Asserts the exit status, and shows the output if it is another.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    /// Asserts that standard output has a line that contains `part`.
    #[track_caller]
    pub fn expect_line(&self, part: &str) -> &str {
        self.stdout.lines().find(|line| line.contains(part)).unwrap_or_else(|| {
            panic!("no line with {part:?} in\n{}\nstderr:\n{}", self.stdout, self.stderr)
        })
    }
}
