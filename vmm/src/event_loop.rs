//! What the main thread does while the guest runs: wait for the machine's
//! end, for signals, for input to the console, and for requests.
//!
//! poll(2) rather than epoll(7): standard input may be a file or /dev/null,
//! which epoll refuses.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};

use neap_devices::serial::SerialPort;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use vmm_sys_util::eventfd::EventFd;

use crate::console::EscapeFilter;
use crate::control::desk::Desk;
use crate::fd;
use crate::lifecycle::StopReason;
use crate::machine::Machine;

/// Bytes read from standard input at once; the rest waits in the pipe until
/// the guest has taken these.
const INPUT_CHUNK: usize = 256;
/// Bytes that a person can type ahead of the guest; more is dropped, as a
/// terminal does (`N_TTY_BUF_SIZE` in Linux).
const TYPED_AHEAD: usize = 4096;
/// How soon input is offered again to a serial port that a vCPU is busy with,
/// and whether vCPUs are parked is looked at again.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// Signals that end the machine, turned into something to poll for.
#[derive(Debug)]
pub struct Signals {
    last: Arc<AtomicUsize>,
    wake: UnixStream,
}

impl Signals {
    /// Takes over SIGTERM, SIGINT, SIGHUP and SIGQUIT.
    ///
    /// # Errors
    /// No descriptor or handler could be had.
    pub fn install() -> io::Result<Self> {
        let (wake, write) = UnixStream::pair()?;
        let last = Arc::new(AtomicUsize::new(0));
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGQUIT] {
            // The number first, then the wake-up: handlers run in order.
            signal_hook::flag::register_usize(signal, Arc::clone(&last), signal as usize)?;
            signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self { last, wake })
    }
}

/// What standard input is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputSource {
    /// A terminal where a person sits. Only it has an escape.
    Terminal,
    /// A file or a pipe, which may hold any byte.
    File,
    /// A terminal that this process may not read.
    Nothing,
}

/// The guest's console input.
#[derive(Debug)]
pub struct ConsoleInput {
    serial: Arc<Mutex<SerialPort>>,
    room: EventFd,
    /// Set where a person sits at a terminal.
    escape: Option<EscapeFilter>,
    pending: Vec<u8>,
    /// Whether the port could not be asked if it takes what is pending.
    busy: bool,
    open: bool,
}

impl ConsoleInput {
    /// Input for `serial`, which writes `room` when it can take more.
    pub fn new(serial: Arc<Mutex<SerialPort>>, room: EventFd, source: InputSource) -> Self {
        let escape = (source == InputSource::Terminal).then(EscapeFilter::default);
        let open = source != InputSource::Nothing;
        Self { serial, room, escape, pending: Vec::new(), busy: false, open }
    }

    /// Reads a chunk; true if the machine is to end.
    fn read(&mut self) -> bool {
        let mut chunk = [0; INPUT_CHUNK];
        // Not `io::stdin()`: its buffer would hold bytes that poll cannot see.
        let input = match rustix::io::read(rustix::stdio::stdin(), &mut chunk) {
            Ok(0) => return self.close(),
            Ok(length) => &chunk[..length],
            Err(Errno::INTR | Errno::AGAIN) => return false,
            Err(_) => return self.close(),
        };
        let quit = match &mut self.escape {
            Some(escape) => {
                let quit = escape.filter(input, &mut self.pending);
                self.pending.truncate(TYPED_AHEAD);
                quit
            }
            None => {
                self.pending.extend_from_slice(input);
                false
            }
        };
        self.push();
        quit
    }

    /// Whether to read on. A person's escape must be seen also where the guest
    /// takes no input any more; a file can wait.
    fn wanted(&self) -> bool {
        self.open && (self.escape.is_some() || self.pending.is_empty())
    }

    /// A guest without input goes on.
    fn close(&mut self) -> bool {
        self.open = false;
        false
    }

    /// Gives the guest what it takes. Never waits for the port: a vCPU holds
    /// its lock for as long as nobody reads the guest's output, and signals
    /// must end the machine then too.
    fn push(&mut self) {
        self.busy = false;
        if self.pending.is_empty() {
            return;
        }
        let mut serial = match self.serial.try_lock() {
            Ok(serial) => serial,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                self.busy = true;
                return;
            }
        };
        let taken = serial.enqueue(&self.pending);
        self.pending.drain(..taken);
    }
}

/// Runs until the machine is over and says why. Requests arrive at `desk`.
///
/// # Errors
/// poll(2) failed.
pub fn run(
    machine: &mut Machine,
    signals: &Signals,
    input: &mut ConsoleInput,
    mut desk: Option<&mut Desk>,
) -> io::Result<StopReason> {
    loop {
        if let Some(reason) = machine.reporter().reason() {
            return Ok(reason.clone());
        }
        let ready = wait(machine, signals, input, desk.as_deref())?;
        if ready.signal {
            let signal = signals.last.load(Ordering::SeqCst);
            return Ok(StopReason::Signal(i32::try_from(signal).unwrap_or_default()));
        }
        if ready.failures {
            machine.note_failures();
        }
        if ready.room {
            let _ = input.room.read();
        }
        if ready.room || input.busy {
            input.push();
        }
        if ready.input && input.read() {
            return Ok(StopReason::Console);
        }
        if let Some(desk) = &mut desk
            && (ready.desk || desk.is_waiting())
        {
            desk.serve(machine);
        }
    }
}

/// What there is to do.
#[derive(Default)]
struct Ready {
    signal: bool,
    room: bool,
    input: bool,
    desk: bool,
    failures: bool,
}

fn wait(
    machine: &Machine,
    signals: &Signals,
    input: &ConsoleInput,
    desk: Option<&Desk>,
) -> io::Result<Ready> {
    let wants_input = input.wanted();
    let mut fds = vec![
        PollFd::new(&signals.wake, PollFlags::IN),
        PollFd::from_borrowed_fd(fd::of_event(machine.reporter().wake()), PollFlags::IN),
        PollFd::from_borrowed_fd(fd::of_event(&input.room), PollFlags::IN),
    ];
    if wants_input {
        fds.push(PollFd::from_borrowed_fd(rustix::stdio::stdin(), PollFlags::IN));
    }
    if let Some(desk) = desk {
        fds.push(PollFd::from_borrowed_fd(fd::of_event(desk.wake()), PollFlags::IN));
    }
    let failures_at = fds.len();
    if let Some(ahead) = machine.failures_ahead() {
        fds.push(PollFd::from_borrowed_fd(fd::of_event(ahead), PollFlags::IN));
    }
    let again = input.busy || desk.is_some_and(Desk::is_waiting);
    match poll(&mut fds, again.then_some(&LOOK_AGAIN)) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Ready::default()),
        Err(error) => return Err(error.into()),
    }
    let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
    Ok(Ready {
        signal: ready(0),
        room: ready(2),
        input: wants_input && ready(3),
        failures: ready(failures_at),
        desk: desk.is_some() && ready(3 + usize::from(wants_input)),
    })
}
