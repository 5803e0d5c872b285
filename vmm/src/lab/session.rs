//! The host side of one conversation with the agent.
//!
//! One thread reads the port, one writes each of stdout and stderr, one reads
//! stdin; each may wait for its own stream as long as that takes. The calling
//! thread waits for events only, with a deadline, and so can always end the
//! lab. Threads that are still waiting for a stuck stream then are left
//! behind: they hold nothing but that stream.

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::failure::tell;

use super::flow::{Allowance, Outlet};
use super::wire::{CHUNK, Decoder, Frame, MAX_PAYLOAD, Notice, Start, Stream, VERSION};
use super::{LabError, LabRequest, terminal};

/// How long a lab may take to come up. An idle machine needs 3 s; emulation
/// on a busy one many times that.
const HELLO_DEADLINE: Duration = Duration::from_secs(120);
/// How long the agent may be silent, twice, before the lab counts as hung; it
/// sends a beat every [`super::wire::BEAT`]. Twice, because after a pause of
/// this process (SIGSTOP) the first wait ends before the beats that have come
/// are read.
const SILENCE: Duration = Duration::from_secs(60);

/// What the calling thread waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// The agent is ready.
    Hello,
    /// The agent lives.
    Beat,
    /// The program ended; its output is with the outlets.
    Exit(u8),
    /// The agent could not run the program.
    Failed(String),
    /// The port ended: QEMU did.
    PortEnd,
    /// The agent sent what it must not.
    Nonsense(String),
    /// An output stream has been written to its end.
    Written,
    /// A signal of this number came.
    Signal(i32, Notice),
    /// The terminal's size changed.
    Resized,
}

/// A channel for events.
pub(super) fn channel() -> (Sender<Event>, Receiver<Event>) {
    mpsc::channel()
}

/// Runs the program of `start` over the port and returns its exit status.
///
/// # Errors
/// See [`super::run`].
pub(super) fn converse(
    port: UnixStream,
    start: Start,
    request: &LabRequest,
    events: Sender<Event>,
    inbox: &Receiver<Event>,
) -> Result<u8, LabError> {
    let threads = |source| LabError::System { what: "start a thread for the lab", source };
    let began = Instant::now();
    let on_terminal = start.terminal.is_some();
    let size = Frame::Start(start.clone()).encode().len();
    if size > MAX_PAYLOAD {
        return Err(LabError::TooLarge(size));
    }
    let link = Link::new(&port, events).map_err(threads)?;
    link.spawn_port_reader(port).map_err(threads)?;
    link.spawn_writer(Stream::Stdout).map_err(threads)?;
    link.spawn_writer(Stream::Stderr).map_err(threads)?;

    let mut state = State::Booting;
    let mut start = Some(start);
    let mut unwritten = 2;
    let mut silences = 0;
    // Restored when this function returns, before anything else is printed.
    let mut _raw = None;
    loop {
        let patience = match state {
            State::Booting => HELLO_DEADLINE.saturating_sub(began.elapsed()),
            _ => SILENCE,
        };
        let left = request.time_limit.map(|limit| limit.saturating_sub(began.elapsed()));
        let event = inbox.recv_timeout(left.map_or(patience, |left| left.min(patience)));
        if event.is_ok() {
            silences = 0;
        }
        match event {
            Ok(Event::Beat) => {}
            Ok(Event::Hello) => {
                if request.verbose {
                    tell(format_args!(
                        "the lab is up after {:.1} s",
                        began.elapsed().as_secs_f64()
                    ));
                }
                let Some(start) = start.take() else {
                    return Err(LabError::Protocol("a second hello".into()));
                };
                link.send(&Frame::Start(start));
                if on_terminal {
                    let raw = terminal::Raw::enter().map_err(|source| LabError::System {
                        what: "put the terminal into raw mode",
                        source,
                    })?;
                    _raw = Some(raw);
                }
                link.spawn_stdin_reader().map_err(threads)?;
                state = State::Running { warned: false };
            }
            Ok(Event::Exit(status)) => {
                state = State::Ended(status);
                if unwritten == 0 {
                    return Ok(status);
                }
            }
            Ok(Event::Written) => {
                unwritten -= 1;
                if let (State::Ended(status), 0) = (&state, unwritten) {
                    return Ok(*status);
                }
            }
            Ok(Event::Failed(message)) => {
                return Err(LabError::Program { program: request.program.clone(), message });
            }
            // After the exit status the port may end; the outlets may not.
            Ok(Event::PortEnd) if matches!(state, State::Ended(_)) => {}
            Ok(Event::PortEnd) | Err(RecvTimeoutError::Disconnected) => {
                return Err(LabError::Died(None));
            }
            Ok(Event::Nonsense(what)) => return Err(LabError::Protocol(what)),
            Ok(Event::Signal(number, notice)) => match state {
                State::Running { warned: false } => {
                    link.send(&Frame::Signal(notice));
                    state = State::Running { warned: true };
                }
                _ => return Ok(128 + number as u8),
            },
            Ok(Event::Resized) => {
                if let (State::Running { .. }, true, Some(size)) =
                    (&state, on_terminal, terminal::size())
                {
                    link.send(&Frame::Resize(size));
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(limit) = request.time_limit.filter(|l| began.elapsed() >= *l) {
                    return Err(LabError::TimeLimit(limit));
                }
                match state {
                    State::Booting => return Err(LabError::NoHello(HELLO_DEADLINE)),
                    State::Running { .. } if silences > 0 => {
                        return Err(LabError::Hung(SILENCE * 2));
                    }
                    State::Running { .. } => silences += 1,
                    // The agent has nothing left to say; stdout may be slow.
                    State::Ended(_) => {}
                }
            }
        }
    }
}

enum State {
    /// The agent has not said hello.
    Booting,
    /// The program runs; `warned`: a signal has been handed to it.
    Running { warned: bool },
    /// The program ended with this status; its output is being written.
    Ended(u8),
}

/// What the threads share. Dropping it ends the reading of stdin.
struct Link {
    port: Arc<Mutex<UnixStream>>,
    events: Sender<Event>,
    input: Arc<Allowance>,
    stop: Arc<OwnedFd>,
    stdout: Arc<Outlet>,
    stderr: Arc<Outlet>,
}

impl Link {
    fn new(port: &UnixStream, events: Sender<Event>) -> io::Result<Self> {
        Ok(Self {
            port: Arc::new(Mutex::new(port.try_clone()?)),
            events,
            input: Arc::default(),
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?),
            stdout: Arc::default(),
            stderr: Arc::default(),
        })
    }

    fn send(&self, frame: &Frame) {
        send(&self.port, frame);
    }

    fn spawn_port_reader(&self, mut port: UnixStream) -> io::Result<()> {
        let mut inlet = Inlet {
            stdout: Arc::clone(&self.stdout),
            stderr: Arc::clone(&self.stderr),
            input: Arc::clone(&self.input),
            stop: Arc::clone(&self.stop),
            events: self.events.clone(),
            decoder: Decoder::default(),
        };
        thread::Builder::new().name("lab-port".into()).spawn(move || {
            let last = inlet.read(&mut port);
            inlet.stdout.end();
            inlet.stderr.end();
            inlet.input.close();
            // Nobody listens any more when the lab was ended.
            let _ = inlet.events.send(last);
        })?;
        Ok(())
    }

    fn spawn_writer(&self, stream: Stream) -> io::Result<()> {
        let outlet = Arc::clone(if stream == Stream::Stdout { &self.stdout } else { &self.stderr });
        let port = Arc::clone(&self.port);
        let events = self.events.clone();
        thread::Builder::new().name("lab-output".into()).spawn(move || {
            let mut open = true;
            while let Some(bytes) = outlet.take() {
                if open && write_all(output(stream), &bytes).is_err() {
                    open = false;
                    send(&port, &Frame::Closed(stream));
                }
                send(&port, &Frame::Credit(stream, bytes.len() as u32));
            }
            let _ = events.send(Event::Written);
        })?;
        Ok(())
    }

    fn spawn_stdin_reader(&self) -> io::Result<()> {
        let input = Arc::clone(&self.input);
        let port = Arc::clone(&self.port);
        let stop = Arc::clone(&self.stop);
        thread::Builder::new().name("lab-input".into()).spawn(move || {
            let mut buffer = vec![0; CHUNK];
            while let Some(allowed) = input.wait() {
                let room = allowed.min(CHUNK);
                match read_unless(rustix::stdio::stdin(), &stop, &mut buffer[..room]) {
                    Ok(None) => return,
                    // An input that cannot be read has nothing to give.
                    Ok(Some(0)) | Err(_) => {
                        send(&port, &Frame::End(Stream::Stdin));
                        return;
                    }
                    Ok(Some(n)) => {
                        input.spend(n);
                        send(&port, &Frame::Data(Stream::Stdin, buffer[..n].to_vec()));
                    }
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.input.close();
        raise(&self.stop);
    }
}

/// Makes an eventfd readable for good.
fn raise(stop: &OwnedFd) {
    // Its counter is far from full, and it is readable in any case then.
    let _ = rustix::io::write(stop, &1u64.to_ne_bytes());
}

/// What the thread at the port does with frames.
struct Inlet {
    stdout: Arc<Outlet>,
    stderr: Arc<Outlet>,
    input: Arc<Allowance>,
    stop: Arc<OwnedFd>,
    events: Sender<Event>,
    decoder: Decoder,
}

impl Inlet {
    /// Reads frames until the last one and returns what that means.
    fn read(&mut self, port: &mut UnixStream) -> Event {
        let mut buffer = vec![0; CHUNK];
        loop {
            loop {
                match self.decoder.next_frame() {
                    Ok(Some(frame)) => {
                        if let Some(last) = self.take(frame) {
                            return last;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Event::Nonsense(error.to_string()),
                }
            }
            match port.read(&mut buffer) {
                Ok(0) => return Event::PortEnd,
                Ok(n) => self.decoder.push(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Event::PortEnd,
            }
        }
    }

    /// Handles one frame; the result is set if it is the last.
    fn take(&mut self, frame: Frame) -> Option<Event> {
        let honest = match frame {
            Frame::Hello(VERSION) => {
                let _ = self.events.send(Event::Hello);
                true
            }
            Frame::Beat => {
                let _ = self.events.send(Event::Beat);
                true
            }
            Frame::Data(Stream::Stdout, bytes) => self.stdout.push(&bytes),
            Frame::Data(Stream::Stderr, bytes) => self.stderr.push(&bytes),
            Frame::Credit(Stream::Stdin, bytes) => self.input.add(bytes),
            Frame::Closed(Stream::Stdin) => {
                self.input.close();
                raise(&self.stop);
                true
            }
            Frame::Exit(status) => return Some(Event::Exit(status)),
            Frame::Failed(message) => return Some(Event::Failed(message)),
            _ => false,
        };
        (!honest).then(|| Event::Nonsense("a frame out of place".into()))
    }
}

/// Sends a frame whole. A port that is gone is noticed by its reader.
fn send(port: &Mutex<UnixStream>, frame: &Frame) {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    let _ = port.write_all(&frame.encode());
}

fn output(stream: Stream) -> BorrowedFd<'static> {
    if stream == Stream::Stdout { rustix::stdio::stdout() } else { rustix::stdio::stderr() }
}

/// Writes all bytes, also to a descriptor that somebody made non-blocking.
fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&mut [PollFd::from_borrowed_fd(to, PollFlags::OUT)])?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads some bytes, `Some(0)` at the end, or `None` once `stop` is readable.
fn read_unless(
    from: BorrowedFd<'_>,
    stop: &OwnedFd,
    buffer: &mut [u8],
) -> rustix::io::Result<Option<usize>> {
    loop {
        let mut set = [PollFd::new(stop, PollFlags::IN), PollFd::new(&from, PollFlags::IN)];
        wait_for(&mut set)?;
        if !set[0].revents().is_empty() {
            return Ok(None);
        }
        match rustix::io::read(from, &mut *buffer) {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error),
        }
    }
}

fn wait_for(set: &mut [PollFd<'_>]) -> rustix::io::Result<()> {
    loop {
        match poll(set, None) {
            Err(Errno::INTR) => {}
            result => return result.map(drop),
        }
    }
}
