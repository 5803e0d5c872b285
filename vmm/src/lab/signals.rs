//! Signals of the host side as events.

use std::fs;
use std::io;
use std::sync::mpsc::Sender;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGWINCH};
use signal_hook::iterator::{Handle, Signals};

use super::session::Event;
use super::wire::Notice;

/// Signals become events as long as this lives; afterwards they are ignored.
pub(super) struct Forwarding(Handle);

/// Starts to turn signals into events.
///
/// A signal that is ignored stays so: `nohup` and a shell's background jobs
/// rely on it.
///
/// # Errors
/// The handlers or their thread cannot be set up.
pub(super) fn forward(events: &Sender<Event>) -> io::Result<Forwarding> {
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGQUIT]
        .into_iter()
        .filter(|&signal| ignored & (1 << (signal - 1)) == 0);
    let mut signals = Signals::new(wanted.chain([SIGWINCH]))?;
    let handle = signals.handle();
    let events = events.clone();
    thread::Builder::new().name("lab-signals".into()).spawn(move || {
        for signal in signals.forever() {
            let event = match signal {
                SIGINT => Event::Signal(signal, Notice::Interrupt),
                SIGTERM => Event::Signal(signal, Notice::Terminate),
                SIGHUP => Event::Signal(signal, Notice::HangUp),
                SIGQUIT => Event::Signal(signal, Notice::Quit),
                _ => Event::Resized,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    })?;
    Ok(Forwarding(handle))
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The set of signals that this process ignores, bit n - 1 for signal n
/// (proc_pid_status(5), SigIgn).
fn ignored() -> u64 {
    fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        })
        .unwrap_or(0)
}
