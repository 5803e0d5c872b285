//! The agent: first process of the lab, started by guest-images/lab-init in
//! the host's root.
//!
//! It says hello, is told what to run, runs that and pumps its streams, and
//! ends the lab. It is single-threaded and waits in one place ([`pump`]); it
//! never blocks on a stream. What goes wrong before the program runs is sent
//! to the host; what goes wrong with the port itself is printed on the
//! console and ends the lab, which the host notices and reports.

mod child;
mod port;
mod pump;

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, finit_module, reboot};
use thiserror::Error;

use self::child::Program;
use self::port::Port;
use super::machine::SHARE_TAG;
use super::wire::{Frame, Start, VERSION, WireError};

/// How long the last frame may take to be fetched before the lab ends anyhow.
const FAREWELL: Duration = Duration::from_secs(30);
/// Open files a program may have: guests and their devices need many, and
/// the kernel's own default is 1024.
const OPEN_FILES: u64 = 1 << 20;

/// Why the agent cannot do its work.
#[derive(Debug, Error)]
pub enum AgentError {
    /// Somebody started it outside of a lab.
    #[error("`neap lab-agent` is started by the lab's kernel only")]
    NotInit,
    /// The port is missing or fails.
    #[error("cannot {what} the lab's port: {source}")]
    Port {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The host side is gone.
    #[error("the host side has closed the lab's port")]
    HungUp,
    /// The host side sent what it must not.
    #[error("the host side sent {0}")]
    Wire(#[from] WireError),
    /// The host side sent a frame that has no place there.
    #[error("the host side sent a frame out of place")]
    OutOfPlace,
    /// Waiting for events or children fails.
    #[error("cannot wait for the program: {0}")]
    Wait(io::Error),
}

/// Runs the agent; in a lab this does not return.
///
/// # Errors
/// This process is not the first of a lab.
pub fn main() -> Result<(), AgentError> {
    if rustix::process::getpid() != rustix::process::Pid::INIT {
        return Err(AgentError::NotInit);
    }
    if let Err(error) = serve() {
        eprintln!("lab-agent: {error}");
    }
    rustix::fs::sync();
    // QEMU ends instead of rebooting. Where even that fails, the kernel
    // panics because its first process ends, with the same effect.
    let _ = reboot(RebootCommand::Restart);
    Ok(())
}

fn serve() -> Result<(), AgentError> {
    let mut port = Port::open()?;
    port.send(&Frame::Hello(VERSION));
    let start = port.first_frame()?;
    let Frame::Start(start) = start else { return Err(AgentError::OutOfPlace) };
    let last = match prepare(&start).and_then(|()| Program::spawn(&start)) {
        Ok((program, streams)) => Frame::Exit(pump::run(&mut port, program, streams)?),
        Err(message) => Frame::Failed(message),
    };
    // With the last frame the host ends the machine: what was written to the
    // working folder has to be there by then.
    rustix::fs::sync();
    port.send(&last);
    port.flush(FAREWELL)?;
    // Ending the machine at once could cut off what QEMU has not forwarded.
    thread::sleep(FAREWELL);
    Ok(())
}

/// Makes the surroundings that the program expects. The result says what is
/// missing, for the user.
fn prepare(start: &Start) -> Result<(), String> {
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, limit)
        .map_err(|error| format!("cannot raise the number of open files: {error}"))?;
    for module in &start.modules {
        let load = || finit_module(fs::File::open(module)?, c"", 0).map_err(io::Error::from);
        load().map_err(|error| format!("cannot load {}: {error}", module.display()))?;
    }
    if !start.modules.is_empty() {
        bind_dax().map_err(|error| format!("cannot make a /dev/dax usable: {error}"))?;
    }
    if start.share {
        let folder = Path::new(&start.folder);
        // A folder below the lab's own /run or /dev/shm is not there yet;
        // everywhere else this finds the host's.
        fs::create_dir_all(folder).and_then(|()| mount_share(folder.as_os_str())).map_err(
            |error| format!("cannot mount the working folder {}: {error}", folder.display()),
        )?;
    }
    Ok(())
}

/// Soft-reserved memory is kmem's by default where the kernel has that driver
/// (`dax_match_type` in drivers/dax/bus.c); here it is to be a device.
fn bind_dax() -> io::Result<()> {
    for device in fs::read_dir("/sys/bus/dax/devices")? {
        let device = device?;
        if !device.path().join("driver").exists() {
            fs::write("/sys/bus/dax/drivers/device_dax/new_id", device.file_name().as_bytes())?;
        }
    }
    Ok(())
}

/// Pages are kept only while mapped, names and attributes not at all: the
/// host and the lab see each other's changes at once.
fn mount_share(folder: &OsStr) -> io::Result<()> {
    let options = c"trans=virtio,version=9p2000.L,msize=512000,cache=mmap";
    Ok(mount(SHARE_TAG, folder, "9p", MountFlags::empty(), options)?)
}
