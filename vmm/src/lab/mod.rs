//! The lab: a machine in software emulation (QEMU, AMD SVM with nested
//! paging) whose root is the host's, read-only, so that any program of the
//! host runs in it beside a `/dev/kvm` that works.
//!
//! The *host side* ([`run`]) starts QEMU and speaks with the *agent*
//! ([`agent`]), which is the lab's first process, over one virtio-serial port
//! ([`wire`]). The program's streams, terminal, signals and exit status pass
//! through; the working folder is a second, writable share.
//!
//! Invariants:
//! - Every stream has a window of bytes under way and no more; frames about
//!   anything else pass beside it, so that Ctrl-C reaches a program that does
//!   not read and a host whose stdout is stuck.
//! - QEMU never outlives the host side, whatever ends that.
//! - The exit status comes after all output.
//!
//! Known holes: input that the program does not read is lost, because it was
//! taken from stdin ahead of it (as `ssh` does); a file outside the working
//! folder that changes while the lab runs may be seen as it was.

use crate::failure::tell;
use crate::images::GuestImages;

pub mod agent;
mod clock;
mod environment;
mod flow;
pub mod host_tiers;
pub mod machine;
pub mod mended;
mod process;
mod qemu;
mod session;
mod signals;
mod terminal;
pub mod wire;

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neap_memory::addr::{GIB, MIB};
use thiserror::Error;

use self::machine::Machine;
use self::qemu::Qemu;

/// Set to `1` in the environment of everything that runs in the lab.
pub const INSIDE: &str = "NEAP_IN_LAB";
/// RAM of a lab where the host has enough of it, in bytes.
pub const MEMORY: u64 = 6 * GIB;
/// Least RAM of a lab, in bytes.
pub const MEMORY_MIN: u64 = 512 * MIB;
/// CPUs of a lab unless somebody says otherwise.
pub const CPUS: u32 = 2;
/// Most CPUs of a lab: without x2APIC an id has 8 bits, of which QEMU's q35
/// uses no more than this.
pub const CPUS_MAX: u32 = 64;

/// What a lab boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabImages {
    /// Kernel: a bzImage, or better a vmlinux, which boots a second sooner.
    pub kernel: PathBuf,
    /// Initramfs: busybox as `/bin/busybox`, guest-images/lab-init as `/init`.
    pub initramfs: PathBuf,
}

impl From<&GuestImages> for LabImages {
    fn from(images: &GuestImages) -> Self {
        Self { kernel: images.vmlinux.clone(), initramfs: images.lab_initramfs.clone() }
    }
}

/// A program to run in a lab, and the lab.
#[derive(Clone, Debug)]
pub struct LabRequest {
    /// Absolute path on the host.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Absolute path of `neap` on the host, which is the lab's agent.
    pub agent: PathBuf,
    /// What the lab boots.
    pub images: LabImages,
    /// RAM in bytes; [`default_memory`] fits most machines.
    pub memory: u64,
    /// Emulated CPUs, 1 to [`CPUS_MAX`].
    pub cpus: u32,
    /// End the lab after this time, counted from the start of QEMU.
    pub time_limit: Option<Duration>,
    /// Copy the lab's console to stderr.
    pub verbose: bool,
    /// Folder with the kernel's modules, for a lab with nodes and a /dev/dax
    /// ([`host_tiers`]).
    pub host_tiers: Option<PathBuf>,
}

/// Why a lab did not run its program to the end.
#[derive(Debug, Error)]
pub enum LabError {
    /// No QEMU in `PATH`.
    #[error(
        "the lab needs qemu-system-x86_64, which is not in PATH; install the package qemu-system-x86"
    )]
    QemuMissing,
    /// QEMU is there but cannot be started.
    #[error("cannot start {program}: {source}")]
    QemuStart {
        /// QEMU's path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An image cannot be read.
    #[error("cannot read the lab's {what} {path}: {source}; `neap setup` builds it")]
    Image {
        /// Which one.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The agent's path does not fit the kernel's command line.
    #[error("the path of neap is too long for the lab's kernel: {path}; move it to a shorter one")]
    AgentPath {
        /// The path.
        path: PathBuf,
    },
    /// Arguments and environment are larger than a frame.
    #[error("arguments and environment of the program take {0} bytes; the lab passes at most {max}", max = wire::MAX_PAYLOAD)]
    TooLarge(usize),
    /// A number that makes no lab.
    #[error("--cpus {0}: a lab has 1 to {CPUS_MAX} CPUs")]
    Cpus(u32),
    /// Too little memory for a lab.
    #[error("--memory {}: a lab needs at least {}", neap_memory::addr::display_size(*.0), neap_memory::addr::display_size(MEMORY_MIN))]
    Memory(u64),
    /// Too little memory for a lab with tiers.
    #[error("--memory {}: a lab with --host-tiers needs at least {}", neap_memory::addr::display_size(*.0), neap_memory::addr::display_size(host_tiers::MEMORY_MIN))]
    TiersMemory(u64),
    /// The agent did not answer in time.
    #[error("the lab did not come up within {} s", .0.as_secs())]
    NoHello(Duration),
    /// The agent fell silent.
    #[error("the lab gave no sign of life for {} s and was ended", .0.as_secs())]
    Hung(Duration),
    /// QEMU ended, or the lab's kernel did, before the program.
    #[error("the lab ended before its program{}", .0.as_deref().map(|how| format!(" (QEMU: {how})")).unwrap_or_default())]
    Died(Option<String>),
    /// The agent sent something that makes no sense.
    #[error("the lab's agent sent {0}")]
    Protocol(String),
    /// The agent could not start the program.
    #[error("the lab cannot run {program}: {message}")]
    Program {
        /// The program.
        program: PathBuf,
        /// Why.
        message: String,
    },
    /// The time is over.
    #[error("the lab ran for {} s, which is its --time-limit, and was ended", .0.as_secs_f64())]
    TimeLimit(Duration),
    /// The terminal refuses raw mode, a pipe or thread cannot be made.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Whether this process runs in the lab.
pub fn inside() -> bool {
    env::var_os(INSIDE).is_some_and(|value| value == "1")
}

/// RAM for a lab on this machine in bytes: [`MEMORY`], or three quarters of
/// what is available if that is less.
pub fn default_memory() -> u64 {
    memory_up_to(MEMORY, MEMORY_MIN)
}

/// The same for a lab with tiers.
pub fn default_memory_with_tiers() -> u64 {
    memory_up_to(host_tiers::MEMORY, host_tiers::MEMORY_MIN)
}

fn memory_up_to(most: u64, least: u64) -> u64 {
    let available = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    match available {
        Some(kib) => (kib / 4 * 3 / 1024 * MIB).clamp(least, most),
        None => most,
    }
}

/// Runs a program in a lab of its own and returns its exit status, or 128 + n
/// if signal n ended it or the lab.
///
/// Stdin, stdout and stderr of this process are the program's. SIGINT,
/// SIGTERM, SIGHUP and SIGQUIT are handed to it; the second one ends the lab,
/// and so does any before the lab is up. QEMU dies with the calling thread.
///
/// # Errors
/// The lab could not be started or ended too soon; then the last lines of its
/// console have been written to stderr.
pub fn run(request: &LabRequest) -> Result<u8, LabError> {
    check(request)?;
    let folder = env::current_dir()
        .map_err(|source| LabError::System { what: "find the working folder", source })?;
    let share = environment::may_share(&folder).then_some(folder.as_path());
    let (ours, theirs) = UnixStream::pair()
        .map_err(|source| LabError::System { what: "make a socket for the lab's port", source })?;
    let theirs = OwnedFd::from(theirs);
    let machine = Machine {
        images: &request.images,
        memory: request.memory,
        cpus: request.cpus,
        agent: &request.agent,
        share,
        port: theirs.as_raw_fd(),
        verbose: request.verbose,
        tsc_khz: clock::tsc_khz(),
        host_tiers: request.host_tiers.is_some(),
    };
    // Before QEMU starts, so that no signal falls between: one that came
    // during the start is waiting in the channel.
    let (events, inbox) = session::channel();
    let _signals = signals::forward(&events)
        .map_err(|source| LabError::System { what: "watch for signals", source })?;
    let mut qemu = Qemu::start(&machine, theirs)?;
    if share.is_none() {
        tell(format_args!(
            "{} cannot be shared with the lab: no file can be written there",
            folder.display()
        ));
    }
    let start = environment::start(request, &folder, share.is_some());
    let outcome = session::converse(ours, start, request, events, &inbox);
    let ended = qemu.end();
    match outcome {
        Err(
            error @ (LabError::Died(_)
            | LabError::NoHello(_)
            | LabError::Hung(_)
            | LabError::Protocol(_)),
        ) => {
            if !request.verbose {
                for line in qemu.console() {
                    tell(format_args!("lab: {line}"));
                }
            }
            Err(if let LabError::Died(_) = error { LabError::Died(ended) } else { error })
        }
        outcome => outcome,
    }
}

/// What can be refused without starting anything.
fn check(request: &LabRequest) -> Result<(), LabError> {
    if !(1..=CPUS_MAX).contains(&request.cpus) {
        return Err(LabError::Cpus(request.cpus));
    }
    if request.memory < MEMORY_MIN {
        return Err(LabError::Memory(request.memory));
    }
    if request.host_tiers.is_some() && request.memory < host_tiers::MEMORY_MIN {
        return Err(LabError::TiersMemory(request.memory));
    }
    readable("kernel", &request.images.kernel)?;
    readable("initramfs", &request.images.initramfs)
}

fn readable(what: &'static str, path: &Path) -> Result<(), LabError> {
    match std::fs::File::open(path) {
        Ok(_) => Ok(()),
        Err(source) => Err(LabError::Image { what, path: path.into(), source }),
    }
}
