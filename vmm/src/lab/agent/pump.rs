//! The agent's one loop: between the port, the program's streams and its end.

use std::io;
use std::io::PipeReader;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};
use signal_hook::consts::SIGCHLD;

use super::super::process::kill_all_others;
use super::super::wire::{BEAT, CHUNK, Frame, Stream, WINDOW};
use super::AgentError;
use super::child::{Program, Streams, exit_status};
use super::port::Port;

/// End of file as a terminal's line discipline takes it.
const TERMINAL_EOF: u8 = 4;

/// Pumps until the program has ended and all its output is in the port's
/// queue; returns its exit status. Whatever it left running is killed.
///
/// # Errors
/// The port fails or the host side is gone.
pub(super) fn run(port: &mut Port, program: Program, streams: Streams) -> Result<u8, AgentError> {
    let mut pump = Pump::new(program, streams).map_err(AgentError::Wait)?;
    loop {
        while let Some(frame) = port.next_frame()? {
            pump.take(frame)?;
        }
        if let Some(status) = pump.finished() {
            return Ok(status);
        }
        if pump.last_beat.elapsed() >= BEAT {
            port.send(&Frame::Beat);
            pump.last_beat = Instant::now();
        }
        let ready = pump.wait(port)?;
        if ready.port_out {
            port.write()?;
        }
        if ready.port_in {
            port.read()?;
        }
        if ready.child {
            pump.reap()?;
        }
        pump.stdin.write(port);
        for source in &mut pump.sources {
            source.read(port);
        }
    }
}

struct Pump {
    program: Program,
    stdin: Sink,
    sources: [Source; 2],
    /// Readable after SIGCHLD.
    children: PipeReader,
    /// Set once the program has ended.
    status: Option<u8>,
    last_beat: Instant,
}

/// What [`Pump::wait`] found. Streams are tried without asking: their
/// descriptors do not block.
struct Ready {
    port_in: bool,
    port_out: bool,
    child: bool,
}

impl Pump {
    fn new(program: Program, streams: Streams) -> io::Result<Self> {
        let (children, notifier) = io::pipe()?;
        rustix::io::ioctl_fionbio(&children, true)?;
        signal_hook::low_level::pipe::register(SIGCHLD, OwnedFd::from(notifier))?;
        let stdin = Sink {
            fd: Some(streams.stdin),
            pending: Vec::new(),
            ends: false,
            is_terminal: program.terminal.is_some(),
        };
        let stdout = Source::new(Stream::Stdout, Some(streams.stdout));
        let stderr = Source::new(Stream::Stderr, streams.stderr);
        let mut pump = Self {
            program,
            stdin,
            sources: [stdout, stderr],
            children,
            status: None,
            last_beat: Instant::now(),
        };
        // It may have ended before the handler was there.
        pump.reap().map_err(io::Error::other)?;
        Ok(pump)
    }

    /// Acts on a frame of the host.
    fn take(&mut self, frame: Frame) -> Result<(), AgentError> {
        match frame {
            Frame::Data(Stream::Stdin, bytes) => self.stdin.push(&bytes),
            Frame::End(Stream::Stdin) => self.stdin.end(),
            Frame::Credit(stream, bytes) => self.source(stream)?.credit += bytes as usize,
            Frame::Closed(stream) => {
                self.source(stream)?.fd = None;
                if stream == Stream::Stdout && self.stdin.is_terminal {
                    // A terminal is gone as a whole.
                    self.stdin.fd = None;
                    self.program.terminal = None;
                }
            }
            Frame::Resize(window) => self.program.resize(window),
            Frame::Signal(notice) if self.status.is_none() => self.program.notify(notice),
            Frame::Signal(_) => {}
            _ => return Err(AgentError::OutOfPlace),
        }
        Ok(())
    }

    fn source(&mut self, stream: Stream) -> Result<&mut Source, AgentError> {
        self.sources.iter_mut().find(|source| source.stream == stream).ok_or(AgentError::OutOfPlace)
    }

    /// The exit status, once the program has ended and its output is read.
    fn finished(&self) -> Option<u8> {
        let drained = self.sources.iter().all(|source| source.fd.is_none());
        self.status.filter(|_| drained)
    }

    /// Waits for whatever can go on, and no longer than to the next beat.
    fn wait(&self, port: &Port) -> Result<Ready, AgentError> {
        let output = if port.is_busy() { PollFlags::OUT } else { PollFlags::empty() };
        let mut set = vec![
            PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN | output),
            PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN),
        ];
        set.extend(self.stdin.interest());
        set.extend(self.sources.iter().filter_map(Source::interest));
        let timeout = Timespec::try_from(BEAT.saturating_sub(self.last_beat.elapsed())).ok();
        match poll(&mut set, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(AgentError::Wait(error.into())),
        }
        Ok(Ready {
            port_in: set[0].revents().intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR),
            port_out: set[0].revents().contains(PollFlags::OUT),
            child: !set[1].revents().is_empty(),
        })
    }

    /// Collects every child that has ended: the program, and what it left to
    /// the first process.
    fn reap(&mut self) -> Result<(), AgentError> {
        let mut buffer = [0; 64];
        while matches!(rustix::io::read(&self.children, &mut buffer), Ok(1..)) {}
        loop {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) if pid == self.program.pid => {
                    self.status = Some(exit_status(status));
                    // Its output ends when nobody holds the other end, and
                    // nothing that it started has a terminal to go on with.
                    kill_all_others();
                    self.stdin.fd = None;
                }
                Ok(Some(_)) | Err(Errno::INTR) => {}
                Ok(None) | Err(Errno::CHILD) => return Ok(()),
                Err(error) => return Err(AgentError::Wait(error.into())),
            }
        }
    }
}

/// Input on its way to the program.
struct Sink {
    fd: Option<OwnedFd>,
    /// At most a window: the host has no credit for more.
    pending: Vec<u8>,
    ends: bool,
    is_terminal: bool,
}

impl Sink {
    fn push(&mut self, bytes: &[u8]) {
        if self.fd.is_some() && self.pending.len() + bytes.len() <= WINDOW {
            self.pending.extend_from_slice(bytes);
        }
    }

    fn end(&mut self) {
        if self.is_terminal {
            self.push(&[TERMINAL_EOF]);
        } else {
            self.ends = true;
        }
    }

    /// Room, if there is something to write; else only that the program has
    /// closed its end.
    fn interest(&self) -> Option<PollFd<'_>> {
        let flags = if self.pending.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
        self.fd.as_ref().map(|fd| PollFd::new(fd, flags))
    }

    /// Writes what can be written now and gives credit for it.
    fn write(&mut self, port: &mut Port) {
        let Some(fd) = &self.fd else { return };
        let mut written = 0;
        let closed = loop {
            let rest = &self.pending[written..];
            if rest.is_empty() {
                break self.ends || !self.is_terminal && is_broken(fd.as_fd());
            }
            match rustix::io::write(fd, &rest[..rest.len().min(CHUNK)]) {
                Ok(n) => written += n,
                Err(Errno::AGAIN) => break false,
                Err(Errno::INTR) => {}
                Err(_) => break true,
            }
        };
        if written > 0 {
            self.pending.drain(..written);
            port.send(&Frame::Credit(Stream::Stdin, written as u32));
        }
        if closed {
            self.fd = None;
            self.pending = Vec::new();
            port.send(&Frame::Closed(Stream::Stdin));
        }
    }
}

/// Whether nobody reads from this pipe any more.
fn is_broken(pipe: BorrowedFd<'_>) -> bool {
    let mut set = [PollFd::from_borrowed_fd(pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut set, Some(&now)), Ok(1)) && set[0].revents().contains(PollFlags::ERR)
}

/// Output on its way from the program.
struct Source {
    stream: Stream,
    /// `None` after its end.
    fd: Option<OwnedFd>,
    credit: usize,
}

impl Source {
    fn new(stream: Stream, fd: Option<OwnedFd>) -> Self {
        Self { stream, fd, credit: WINDOW }
    }

    fn interest(&self) -> Option<PollFd<'_>> {
        let fd = self.fd.as_ref().filter(|_| self.credit > 0)?;
        Some(PollFd::new(fd, PollFlags::IN))
    }

    /// Sends on what has come, as far as the credit goes.
    fn read(&mut self, port: &mut Port) {
        let mut buffer = [0; CHUNK];
        while let Some(fd) = self.fd.as_ref().filter(|_| self.credit > 0) {
            let room = self.credit.min(CHUNK);
            match rustix::io::read(fd, &mut buffer[..room]) {
                // A terminal whose slave is closed everywhere says EIO.
                Ok(0) | Err(Errno::IO) => self.fd = None,
                Ok(n) => {
                    self.credit -= n;
                    port.send(&Frame::Data(self.stream, buffer[..n].to_vec()));
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(_) => self.fd = None,
            }
        }
    }
}
