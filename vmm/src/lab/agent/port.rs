//! The agent's end of the lab's port: a virtio-serial device, never blocking.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::super::machine::PORT_NAME;
use super::super::wire::{CHUNK, Decoder, Frame};
use super::AgentError;

const CLASS: &str = "/sys/class/virtio-ports";
/// How long the kernel may take to find the port, and the host to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks for something that the kernel does not announce.
const LOOK: Duration = Duration::from_millis(5);

/// The port with frames under way in both directions.
#[derive(Debug)]
pub(super) struct Port {
    file: OwnedFd,
    decoder: Decoder,
    /// Bounded by the credit of the streams: frames of other kinds are few.
    outgoing: Vec<u8>,
}

impl Port {
    /// Finds the port by its name and opens it.
    ///
    /// # Errors
    /// There is no such port, or it cannot be opened.
    pub(super) fn open() -> Result<Self, AgentError> {
        let failed = |source| AgentError::Port { what: "open", source };
        let path = find().map_err(failed)?;
        let file = open(&path, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| failed(error.into()))?;
        Ok(Self { file, decoder: Decoder::default(), outgoing: Vec::new() })
    }

    /// Queues a frame.
    pub(super) fn send(&mut self, frame: &Frame) {
        self.outgoing.extend(frame.encode());
    }

    /// Whether queued bytes wait for the host.
    pub(super) fn is_busy(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Writes what can be written now.
    ///
    /// # Errors
    /// The port fails.
    pub(super) fn write(&mut self) -> Result<(), AgentError> {
        while self.is_busy() {
            let piece = &self.outgoing[..self.outgoing.len().min(CHUNK)];
            match rustix::io::write(&self.file, piece) {
                Ok(n) => drop(self.outgoing.drain(..n)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(AgentError::Port { what: "write to", source: error.into() });
                }
            }
        }
        Ok(())
    }

    /// Reads what has come; [`Port::next_frame`] has it.
    ///
    /// # Errors
    /// The port fails or the host side is gone.
    pub(super) fn read(&mut self) -> Result<(), AgentError> {
        let mut buffer = [0; CHUNK];
        loop {
            match rustix::io::read(&self.file, &mut buffer) {
                Ok(0) => return Err(AgentError::HungUp),
                Ok(n) => {
                    self.decoder.push(&buffer[..n]);
                    return Ok(());
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => {
                    return Err(AgentError::Port { what: "read from", source: error.into() });
                }
            }
        }
    }

    /// The next frame that has come whole.
    ///
    /// # Errors
    /// The host side sent no frame.
    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, AgentError> {
        Ok(self.decoder.next_frame()?)
    }

    /// Writes the queue and waits for the host's first frame.
    ///
    /// The kernel learns from QEMU in its own time that a host side is
    /// there; until then the port looks hung up.
    ///
    /// # Errors
    /// None comes, or it is no frame.
    pub(super) fn first_frame(&mut self) -> Result<Frame, AgentError> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.write()?;
            match self.read() {
                Ok(()) | Err(AgentError::HungUp) => {}
                Err(error) => return Err(error),
            }
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            if Instant::now() >= end {
                let source = io::ErrorKind::TimedOut.into();
                return Err(AgentError::Port { what: "hear anything from", source });
            }
            self.wait(PollFlags::IN, LOOK)?;
            thread::sleep(LOOK);
        }
    }

    /// Writes the whole queue.
    ///
    /// # Errors
    /// The port fails or the host does not take it in time.
    pub(super) fn flush(&mut self, patience: Duration) -> Result<(), AgentError> {
        let end = Instant::now() + patience;
        self.write()?;
        while self.is_busy() && Instant::now() < end {
            self.wait(PollFlags::OUT, patience)?;
            self.write()?;
        }
        Ok(())
    }

    fn wait(&self, events: PollFlags, longest: Duration) -> Result<(), AgentError> {
        let timeout = Timespec::try_from(longest).ok();
        match poll(&mut [PollFd::new(&self.file, events)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(AgentError::Wait(error.into())),
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The device of the port of the lab's name. The kernel makes it while it
/// starts the first process, so it may come a little later.
fn find() -> io::Result<PathBuf> {
    let end = Instant::now() + PATIENCE;
    loop {
        for entry in fs::read_dir(CLASS).into_iter().flatten() {
            let entry = entry?;
            let device = PathBuf::from("/dev").join(entry.file_name());
            let named = fs::read_to_string(entry.path().join("name"))
                .is_ok_and(|name| name.trim_end() == PORT_NAME);
            if named && device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() >= end {
            return Err(io::ErrorKind::NotFound.into());
        }
        thread::sleep(LOOK);
    }
}
