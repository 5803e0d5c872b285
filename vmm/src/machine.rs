//! A built machine: starting, pausing, resuming and stopping its vCPUs. The
//! main thread owns it.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use neap_devices::serial::SerialPort;
use neap_memory::poison;
use neap_memory::tiers::{Met, Tiers};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::control::desk::Owner;
use crate::kvm::exit::NAMES;
use crate::kvm::gate::Wanted;
use crate::kvm::vcpu::{self, Shared};
use crate::kvm::{kick, vm::Vm};
use crate::lifecycle::{Event, State, StopReason};
use crate::reporter::Reporter;
use crate::{fd, memory_failure};

/// How long vCPUs get to leave the guest. A kick takes microseconds; this is
/// for a host that swaps, or a device that waits for a full pipe.
pub const PARK_LIMIT: Duration = Duration::from_secs(10);
/// The same at the end, where nobody needs the guest any more.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// A virtual machine with its vCPU threads.
pub struct Machine {
    shared: Arc<Shared>,
    waiting: Vec<VcpuFd>,
    threads: Vec<JoinHandle<()>>,
    serial: Arc<Mutex<SerialPort>>,
    state: State,
    /// Written when memory fails that nobody has touched yet.
    failures_ahead: Option<EventFd>,
    // After the vCPU threads, which may wait for a granule; before the memory
    // that they move.
    tiers: Option<Arc<Tiers>>,
    // Dropped last of all: vCPUs run in its memory.
    vm: Vm,
}

/// vCPUs that did not leave the guest in time.
#[derive(Debug, thiserror::Error)]
#[error("a vCPU did not stop within {} s", PARK_LIMIT.as_secs())]
pub struct NotParked;

impl Machine {
    pub(crate) fn new(
        vm: Vm,
        tiers: Option<Arc<Tiers>>,
        shared: Arc<Shared>,
        vcpus: Vec<VcpuFd>,
        serial: Arc<Mutex<SerialPort>>,
    ) -> Self {
        let (waiting, threads, state) = (vcpus, Vec::new(), State::Running);
        Self { shared, waiting, threads, serial, state, failures_ahead: None, tiers, vm }
    }

    /// Starts the vCPU threads.
    ///
    /// # Errors
    /// No thread could be had.
    pub fn start(&mut self) -> io::Result<()> {
        kick::install()?;
        memory_failure::install()?;
        let ahead = EventFd::new(EFD_NONBLOCK)?;
        poison::announce(fd::of_event(&ahead).try_clone_to_owned()?)?;
        self.failures_ahead = Some(ahead);
        for (index, fd) in self.waiting.drain(..).enumerate() {
            self.threads.push(vcpu::spawn(index, fd, Arc::clone(&self.shared))?);
        }
        Ok(())
    }

    /// Parks every vCPU outside the guest.
    ///
    /// # Errors
    /// One did not come; the machine is still on its way to being paused.
    pub fn pause(&mut self) -> Result<(), NotParked> {
        self.begin_pause();
        if self.shared.gate.wait_parked(PARK_LIMIT) { Ok(()) } else { Err(NotParked) }
    }

    /// Has every vCPU park outside the guest; does not wait for them.
    pub fn begin_pause(&mut self) {
        self.advance(Event::Pause);
    }

    /// Whether every vCPU is parked outside the guest.
    pub fn is_parked(&self) -> bool {
        self.shared.gate.wait_parked(Duration::ZERO)
    }

    /// Lets the vCPUs go on.
    pub fn resume(&mut self) {
        self.advance(Event::Resume);
    }

    /// Ends the vCPU threads and returns why the machine is over: `reason`, or
    /// the one that was there before. A thread that does not end in time is
    /// left to the end of the process.
    pub fn stop(&mut self, reason: StopReason) -> StopReason {
        self.advance(Event::Stop(reason.clone()));
        self.shared.gate.wait_ended(STOP_LIMIT);
        match &self.state {
            State::Stopped(first) => first.clone(),
            State::Running | State::Paused => reason,
        }
    }

    /// State of the machine.
    pub fn state(&self) -> &State {
        &self.state
    }

    fn advance(&mut self, event: Event) {
        self.state = self.state.clone().after(event);
        self.want(match self.state {
            State::Running => Wanted::Run,
            State::Paused => Wanted::Pause,
            State::Stopped(_) => Wanted::Stop,
        });
    }

    fn want(&self, wanted: Wanted) {
        self.shared.gate.want(wanted);
        self.threads.iter().for_each(kick::kick);
    }

    /// Where the machine says that it is over.
    pub fn reporter(&self) -> &Reporter {
        &self.shared.reporter
    }

    /// Readable when memory has failed that nobody has touched yet; then
    /// [`Machine::note_failures`] is due.
    pub fn failures_ahead(&self) -> Option<&EventFd> {
        self.failures_ahead.as_ref()
    }

    /// Notes memory that has failed before anybody touched it. The guest hears
    /// of it when it does.
    pub fn note_failures(&self) {
        if let Some(ahead) = &self.failures_ahead {
            // It only says that there is something to ask for.
            let _ = ahead.read();
        }
        for lost in poison::announced() {
            self.shared.failures.met(lost, Met::Ahead);
        }
    }

    /// The first serial port.
    pub fn serial(&self) -> &Arc<Mutex<SerialPort>> {
        &self.serial
    }

    /// The tiers of the guest's memory, if it moves.
    pub fn tiers(&self) -> Option<&Arc<Tiers>> {
        self.tiers.as_ref()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &neap_memory::GuestMemory {
        self.vm.memory()
    }

    /// Exits so far, of each vCPU in order, named as in [`NAMES`].
    pub fn exits(&self) -> Vec<[u64; NAMES.len()]> {
        self.shared.counters.iter().map(|counters| counters.read()).collect()
    }
}

impl Owner for Machine {
    fn is_running(&self) -> bool {
        self.state == State::Running
    }

    fn begin_pause(&mut self) {
        Self::begin_pause(self);
    }

    fn is_parked(&self) -> bool {
        Self::is_parked(self)
    }

    fn resume(&mut self) {
        Self::resume(self);
    }

    fn vcpus(&self) -> usize {
        self.shared.counters.len()
    }

    fn exits(&self) -> Vec<(&'static str, u64)> {
        let mut sums = NAMES.map(|name| (name, 0));
        for counts in Self::exits(self) {
            sums.iter_mut().zip(counts).for_each(|((_, sum), count)| *sum += count);
        }
        sums.to_vec()
    }

    fn memory_bytes(&self) -> u64 {
        self.memory().slots().iter().map(|slot| slot.range.size()).sum()
    }
}

impl Drop for Machine {
    /// Threads run in the machine's memory, so they end before it goes.
    fn drop(&mut self) {
        self.want(Wanted::Stop);
        for thread in self.threads.drain(..) {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("vcpus", &self.shared.counters.len())
            .finish_non_exhaustive()
    }
}
