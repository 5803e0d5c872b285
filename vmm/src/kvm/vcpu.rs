//! The loop of a vCPU thread: look at the gate, run the guest, handle the
//! exit.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use neap_memory::poison::{self, Lost};
use neap_memory::tiers::Met;

use super::exit::{self, Buses, ExitCounters, ExitKind, Next};
use super::gate::{Gate, Pass, Wanted};
use super::kick::Kickable;
use super::mce::MachineCheck;
use crate::lifecycle::StopReason;
use crate::memory_failure::MemoryFailures;
use crate::reporter::Reporter;

/// What the vCPU threads of a machine share.
#[derive(Debug)]
pub struct Shared {
    /// What is wanted of the threads.
    pub gate: Arc<Gate>,
    /// Devices.
    pub buses: Buses,
    /// Exits of each vCPU.
    pub counters: Vec<ExitCounters>,
    /// Where a vCPU says that the machine is over.
    pub reporter: Reporter,
    /// Who hears of memory that has failed.
    pub failures: MemoryFailures,
    /// How a guest hears of it, if this KVM can tell it.
    pub machine_check: Option<MachineCheck>,
}

/// Starts the thread of vCPU `index`.
///
/// # Errors
/// No thread could be had.
pub fn spawn(index: usize, fd: VcpuFd, shared: Arc<Shared>) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(format!("vcpu{index}")).spawn(move || run(index, fd, &shared))
}

/// Reports a thread that panics, so that the machine does not go on without
/// one of its processors.
struct PanicReport<'a>(&'a Reporter);

impl Drop for PanicReport<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.report(StopReason::Failed("a vCPU thread panicked".to_owned()));
        }
    }
}

fn run(index: usize, mut fd: VcpuFd, shared: &Shared) {
    let _pass = Pass::new(&shared.gate);
    let _report = PanicReport(&shared.reporter);
    let Some(counters) = shared.counters.get(index) else { return };
    let mut kickable = Kickable::new(&mut fd);
    // Since when memory has been out of reach.
    let mut unreachable: Option<Instant> = None;
    loop {
        kickable.rearm();
        match shared.gate.wanted() {
            Wanted::Run => {}
            Wanted::Pause => {
                // Tells the guest's soft-lockup watchdog that time stood
                // still; guests without kvmclock answer EINVAL. Not for holds:
                // they are too short for a watchdog, and so many that it would
                // never bark.
                if shared.gate.is_paused() {
                    let _ = kickable.vcpu().kvmclock_ctrl();
                }
                shared.gate.park();
                continue;
            }
            Wanted::Stop => return,
        }
        let (next, lost) = enter(kickable.vcpu(), &shared.buses, counters);
        let next = match lost {
            Some(lost) => after_failure(lost, next, kickable.vcpu(), shared),
            None => next,
        };
        let next = match next {
            Next::Unreachable
                if unreachable.get_or_insert_with(Instant::now).elapsed() < UNREACHABLE_MOST
                    && shared.failures.unreachable() =>
            {
                thread::sleep(UNREACHABLE_AGAIN);
                continue;
            }
            Next::Unreachable => Next::Fail("KVM_RUN: it cannot reach guest memory".to_owned()),
            next => next,
        };
        unreachable = None;
        match next {
            Next::Resume | Next::Unreachable => {}
            Next::TripleFault => return shared.reporter.report(StopReason::TripleFault),
            Next::Fail(why) => {
                let place = kickable.vcpu().get_regs().map(|regs| regs.rip);
                let place = place.map_or(String::new(), |rip| format!(" at RIP {rip:#x}"));
                let why = format!("vCPU {index}{place}: {why}");
                return shared.reporter.report(StopReason::Failed(why));
            }
        }
    }
}

/// How long memory may be out of reach while another thread marks what is lost
/// of it, which takes some tens of microseconds a granule, and how soon it is
/// tried again.
const UNREACHABLE_MOST: Duration = Duration::from_secs(60);
const UNREACHABLE_AGAIN: Duration = Duration::from_millis(1);

/// Tells the guest of memory that it met and that has failed.
fn after_failure(lost: Lost, next: Next, vcpu: &VcpuFd, shared: &Shared) -> Next {
    if !matches!(next, Next::Resume) {
        return next;
    }
    let Some(gpa) = shared.failures.met(lost, Met::Vcpu) else {
        return Next::Fail("host memory that KVM needs has failed".to_owned());
    };
    match shared.machine_check.map(|check| check.raise(vcpu, gpa)) {
        Some(Ok(())) => next,
        Some(Err(error)) => Next::Fail(error.to_string()),
        None => Next::Fail(format!(
            "host memory at {gpa} has failed, and this KVM has no machine checks for guests"
        )),
    }
}

fn enter(vcpu: &mut VcpuFd, buses: &Buses, counters: &ExitCounters) -> (Next, Option<Lost>) {
    let (result, lost) = poison::in_guest(|| vcpu.run());
    let next = match result {
        Ok(exit) => exit::handle(exit, buses, counters),
        // EAGAIN: a processor that waits for its start-up IPI was kicked.
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
            counters.count(ExitKind::Interrupted);
            Next::Resume
        }
        Err(error) if error.errno() == libc::EFAULT => Next::Unreachable,
        Err(error) => {
            Next::Fail(format!("KVM_RUN: {}", io::Error::from_raw_os_error(error.errno())))
        }
    };
    (next, lost)
}
