//! `neap run`: runs one guest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use clap::Args;
use neap_memory::addr::{GIB, display_size};
use neap_memory::numa::{hugepages, nodes};
use neap_memory::policy::PolicyName;
use neap_memory::{GpaRange, backing, dax};
use serde_json::json;

use crate::builder::{self, BuildError, Built};
use crate::config::{ConfigError, VmConfig, VmOptions, file, resolve};
use crate::console::{self, ConsoleOutput, RawTerminal};
use crate::control::Memory;
use crate::control::desk::Desk;
use crate::control::server::Server;
use crate::control::socket::ListeningSocket;
use crate::doctor::{GuestMode, guest_mode};
use crate::event_loop::{self, ConsoleInput, InputSource, Signals};
use crate::failure::{Failure, Outcome, tell};
use crate::kvm::cpuid;
use crate::kvm::exit::NAMES;
use crate::lab;
use crate::lifecycle::StopReason;
use crate::machine::Machine;
use crate::reporter::Reporter;
use crate::tiers;

/// A Linux guest at hardware speed has booted by then, undisturbed by a
/// second machine that is measured.
const SPEED_CHECK_AFTER: Duration = Duration::from_secs(1);

/// Runs a guest
///
/// The guest's first serial port (console=ttyS0) is this terminal; Ctrl-A x ends the guest.
/// Exit status: 0 the guest powered off or asked for a reset, 1 a mistake in the options,
/// 2 the machine failed (a triple fault too), 128 plus the number for a signal.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  neap run --kernel vmlinux --initrd initramfs.cpio.gz --memory 1G --cpus 2
  neap run --kernel bzImage --device-memory size=512M --device-memory size=512M,addr=0x200000000
  neap run --kernel vmlinux --cpus 2 --numa node=0,cpus=0-1,memory=1G \\
           --device-memory size=1G,node=1 --numa-distance 0:1=30 \\
           --hmat 0:1,read-latency=300,write-latency=350,bandwidth=25G
  neap run --kernel vmlinux --memory 4G --device-memory size=0,pool=2G --api-socket vm.sock
  neap run --config vm.toml")]
pub struct RunArgs {
    #[command(flatten)]
    vm: VmOptions,

    /// Read options from a file; those given here win, and lists are joined
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Memory that takes some seconds to fill.
const SLOW_TO_FILL: u64 = 4 * GIB;

/// Carries the command out.
///
/// # Errors
/// A mistake in the options, or a machine that could not be built.
pub fn execute(args: RunArgs) -> Outcome {
    let config = tiers::suited_to_host(&configure(args.vm, args.config.as_deref())?);
    // All of them together, before the first is taken.
    for (node, huge, bytes, option) in config.nodes() {
        let there = match huge {
            true => hugepages::check(node, bytes),
            false => nodes::check(node, bytes).map_err(Into::into),
        };
        there.map_err(|e| Failure::usage(ConfigError::new(option, e)))?;
    }
    if let Some((bytes, option)) = config.hugetlb() {
        backing::check_huge_pages(bytes)
            .map_err(|e| Failure::usage(ConfigError::new(option, e)))?;
    }
    for (path, bytes) in config.dax() {
        dax::open_device(path, bytes)
            .map_err(|e| Failure::usage(ConfigError::new("--device-memory", e)))?;
    }
    let ram: u64 = config.layout.ram().iter().map(GpaRange::size).sum();
    if config.ram.prefault && ram >= SLOW_TO_FILL {
        tell(format_args!("filling {} of guest memory (prefault=on)", display_size(ram)));
    }
    let output = ConsoleOutput::stdout().map_err(|e| Failure::vm(format!("stdout: {e}")))?;
    let built = builder::build(&config, Box::new(output)).map_err(build_failure)?;
    // After everything that refuses the options: a refusal is one line and
    // leaves no file.
    let stats = config.exit_stats.as_deref().map(create_stats).transpose()?;
    let trace = config
        .heat_trace
        .as_deref()
        .filter(|_| config.tiers.as_ref().is_some_and(|tiers| tiers.policy == PolicyName::Heat));
    trace.map(|path| record_heat(path, &built.machine)).transpose()?;
    // Last: a socket that nobody listens on is taken over by this.
    let socket = config.api_socket.as_deref().map(make_socket).transpose();
    let socket = socket.inspect_err(|_| trace.into_iter().for_each(remove))?;
    for warning in &config.warnings {
        tell(format_args!("warning: {warning}"));
    }
    // Only now: until there is a terminal to restore, a signal's default action
    // is the quickest end, also of a build that fills much memory.
    let signals = Signals::install().map_err(|e| Failure::vm(format!("signal handlers: {e}")))?;
    let (machine, reason) = run(built, &signals, socket)?;
    if let Some(file) = stats {
        write_stats(file, &machine).map_err(|e| Failure::vm(format!("--exit-stats: {e}")))?;
    }
    // Not `lock`: a vCPU that waits for a reader of the output still holds it.
    if let Ok(serial) = machine.serial().try_lock()
        && serial.lost_output() > 0
    {
        let lost = serial.lost_output();
        tell(format_args!("stdout took no more: {lost} bytes of the guest's output are lost"));
    }
    if reason != StopReason::Shutdown {
        tell(&reason);
    }
    // Not dropped: the kernel takes a whole process apart faster than this
    // process could take itself apart piece by piece.
    std::process::exit(i32::from(reason.exit_status()));
}

fn configure(options: VmOptions, path: Option<&Path>) -> Result<VmConfig, Failure> {
    let options = match path {
        None => options,
        Some(path) => options.over(file::load(path).map_err(Failure::usage)?),
    };
    resolve::resolve(options, cpuid::host_address_bits()).map_err(Failure::usage)
}

fn build_failure(error: BuildError) -> Failure {
    if error.is_usage() { Failure::usage(error) } else { Failure::vm(error) }
}

fn run(
    built: Built,
    signals: &Signals,
    socket: Option<ListeningSocket>,
) -> Result<(Machine, StopReason), Failure> {
    let Built { mut machine, room, linux } = built;
    console::restore_on_panic();
    let terminal =
        RawTerminal::enter().map_err(|e| Failure::vm(format!("terminal settings: {e}")))?;
    let source = match (&terminal, console::in_background()) {
        (Some(_), _) => InputSource::Terminal,
        (None, true) => InputSource::Nothing,
        (None, false) => InputSource::File,
    };
    let mut input = ConsoleInput::new(machine.serial().clone(), room, source);
    machine.start().map_err(|e| Failure::vm(format!("vCPU threads: {e}")))?;
    if linux && !lab::inside() {
        warn_if_slow(machine.reporter().clone(), terminal.is_some());
    }
    let (server, mut desk) = match socket.map(|socket| serve(socket, &machine)).transpose()? {
        Some((server, desk)) => (Some(server), Some(desk)),
        None => (None, None),
    };
    let over = event_loop::run(&mut machine, signals, &mut input, desk.as_mut())
        .map_err(|e| Failure::vm(format!("poll: {e}")))?;
    let reason = machine.stop(over);
    // Requests at work end with the desk; then the last answers go out.
    drop(desk);
    if let Some(server) = server {
        server.stop();
    }
    drop(terminal);
    Ok((machine, reason))
}

fn make_socket(path: &Path) -> Result<ListeningSocket, Failure> {
    ListeningSocket::bind(path).map_err(|e| Failure::usage(ConfigError::new("--api-socket", e)))
}

fn serve(socket: ListeningSocket, machine: &Machine) -> Result<(Server, Desk), Failure> {
    let (server, calls) =
        Server::start(socket).map_err(|e| Failure::vm(format!("control thread: {e}")))?;
    let memory = machine.tiers().map(|tiers| Arc::clone(tiers) as Arc<dyn Memory>);
    Ok((server, Desk::new(calls, memory)))
}

/// Measures beside the guest how this KVM runs guest kernel mode and says so
/// where it is slow, unless the guest is over by then. `raw`: the terminal
/// does not return the carriage by itself.
fn warn_if_slow(reporter: Reporter, raw: bool) {
    let check = move || {
        thread::sleep(SPEED_CHECK_AFTER);
        if let GuestMode::Interpreted { mips } = guest_mode()
            && reporter.reason().is_none()
        {
            let end = if raw { "\r\n" } else { "\n" };
            let line = format!(
                "neap: this KVM interprets guest kernel mode ({mips}): a Linux guest takes \
                 minutes; `neap lab -- run ...` is faster{end}"
            );
            // Nobody may be reading, which is no reason to panic.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    };
    // Advice that the guest does not depend on.
    let _ = thread::Builder::new().name("speed-check".into()).spawn(check);
}

/// Created before the guest runs, so that a path that cannot be is known
/// early.
fn create_stats(path: &Path) -> Result<File, Failure> {
    File::create(path).map_err(|e| Failure::usage(format!("--exit-stats: {}: {e}", path.display())))
}

/// Has what policy `heat` sees written to a new file, for its owner alone: it
/// says what the guest uses.
fn record_heat(path: &Path, machine: &Machine) -> Result<(), Failure> {
    let Some(tiers) = machine.tiers() else { return Ok(()) };
    let failed = |error: io::Error, what| {
        Failure::usage(format!("--heat-trace {}: {error}{what}", path.display()))
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|error| failed(error, ": give a new file"))?;
    tiers.record_heat(file).map_err(|error| {
        remove(path);
        failed(error, "")
    })
}

/// Removes a file that this run has made and that is of no use.
fn remove(path: &Path) {
    // It may be gone, which is what is wanted.
    let _ = fs::remove_file(path);
}

fn write_stats(file: File, machine: &Machine) -> io::Result<()> {
    let named = |counts: &[u64; NAMES.len()]| -> serde_json::Map<String, serde_json::Value> {
        NAMES.iter().zip(counts).map(|(name, count)| ((*name).to_owned(), json!(count))).collect()
    };
    let vcpus = machine.exits();
    let total = vcpus.iter().fold([0; NAMES.len()], |mut sum, counts| {
        sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        sum
    });
    let vcpus: Vec<_> = vcpus.iter().map(named).collect();
    serde_json::to_writer_pretty(file, &json!({ "total": named(&total), "vcpus": vcpus }))?;
    Ok(())
}
