//! The thread of one vCPU: in the guest when it is told to, out of it when it
//! is told to or when its program is done.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use kvm_bindings::kvm_regs;
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::thread::{CpuSet, Pid, gettid, sched_setaffinity};

use super::BareError;
use crate::kvm::gate::{Gate, Pass, Wanted};
use crate::kvm::kick::{self, Kickable};
use crate::payload::bare::DONE;

/// Where a vCPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Out of the guest, because it was told to, or has not been in yet.
    Out,
    /// In the guest, or on its way.
    In,
    /// Out of the guest, because its program is done.
    Done,
    /// Out of the guest for a reason that no program has.
    Failed(String),
}

#[derive(Debug)]
struct State {
    status: Status,
    /// Registers to be set before it enters the guest next.
    registers: Option<kvm_regs>,
    /// Whether it ever had a program.
    loaded: bool,
    end: bool,
    thread: Option<Pid>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    /// Set before a kick; looked at after each [`Kickable::rearm`].
    out: AtomicBool,
}

impl Shared {
    /// Each critical section leaves the state whole, so a panic of a holder
    /// does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One vCPU and its thread.
#[derive(Debug)]
pub(super) struct Cpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Cpu {
    /// A vCPU that waits at `gate`, if there is one, while somebody holds it.
    pub(super) fn spawn(
        index: usize,
        fd: VcpuFd,
        gate: Option<Arc<Gate>>,
    ) -> Result<Self, BareError> {
        let state =
            State { status: Status::Out, registers: None, loaded: false, end: false, thread: None };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
            out: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name(format!("bare{index}"))
            .spawn(move || run(fd, &for_thread, gate.as_deref()))
            .map_err(|source| BareError::System { what: "a vCPU thread", source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Sets what it runs next.
    pub(super) fn load(&self, registers: kvm_regs) {
        let mut state = self.shared.lock();
        state.registers = Some(registers);
        state.loaded = true;
    }

    pub(super) fn loaded(&self) -> bool {
        self.shared.lock().loaded
    }

    pub(super) fn is(&self, status: &Status) -> bool {
        self.shared.lock().status == *status
    }

    pub(super) fn failure(&self) -> Option<String> {
        match &self.shared.lock().status {
            Status::Failed(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// Sends it into the guest.
    pub(super) fn start(&self) {
        let mut state = self.shared.lock();
        if state.status != Status::In {
            self.shared.out.store(false, Ordering::Release);
            state.status = Status::In;
            self.shared.changed.notify_all();
        }
    }

    /// Tells it to leave the guest.
    pub(super) fn tell_out(&self) {
        self.shared.out.store(true, Ordering::Release);
        if let Some(thread) = &self.thread {
            kick::kick(thread);
        }
    }

    /// Tells its thread to end.
    pub(super) fn tell_end(&self) {
        self.shared.lock().end = true;
        self.shared.changed.notify_all();
        self.tell_out();
    }

    /// Waits until `done` holds of its status; false if it does not by
    /// `deadline`.
    pub(super) fn wait(&self, deadline: Instant, done: impl Fn(&Status) -> bool) -> bool {
        let limit = deadline.saturating_duration_since(Instant::now());
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.shared.lock(), limit, |state| !done(&state.status));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Joins a thread that was told to end. False if it has not left the guest
    /// by `deadline`; it is left alone then.
    pub(super) fn join(&mut self, deadline: Instant) -> bool {
        if !self.wait(deadline, |status| *status != Status::In) {
            return false;
        }
        // Out of the guest and told to end: nothing can hold it up any more.
        self.thread.take().is_none_or(|thread| thread.join().is_ok())
    }

    pub(super) fn pin(&self, host_cpu: usize) -> Result<(), BareError> {
        let failed = |source| BareError::System { what: "sched_setaffinity", source };
        if host_cpu >= CpuSet::MAX_CPU {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let mut set = CpuSet::new();
        set.set(host_cpu);
        // The thread says who it is before anything else; until then it has
        // nothing to do.
        let state = self.shared.lock();
        let state = self.shared.changed.wait_while(state, |state| state.thread.is_none());
        let thread = state.unwrap_or_else(PoisonError::into_inner).thread;
        sched_setaffinity(thread, &set).map_err(|error| failed(error.into()))
    }
}

/// Says that the vCPU is out of the guest even if its thread panics.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.lock().status = Status::Failed("its thread panicked".to_owned());
            self.0.changed.notify_all();
        }
    }
}

fn run(mut fd: VcpuFd, shared: &Shared, gate: Option<&Gate>) {
    let _leave = Leave(shared);
    shared.lock().thread = Some(gettid());
    shared.changed.notify_all();
    let mut kickable = Kickable::new(&mut fd);
    loop {
        let idle = |state: &mut State| state.status != Status::In && !state.end;
        let state = shared.changed.wait_while(shared.lock(), idle);
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        if state.end {
            state.status = Status::Out;
            shared.changed.notify_all();
            return;
        }
        let registers = state.registers.take();
        drop(state);
        let status = match registers.map(|registers| kickable.vcpu().set_regs(&registers)) {
            Some(Err(error)) => Status::Failed(format!("KVM_SET_REGS: {error}")),
            _ => enter(&mut kickable, &shared.out, gate),
        };
        shared.lock().status = status;
        shared.changed.notify_all();
    }
}

/// Runs the guest until its program is done, or `out` is set.
fn enter(kickable: &mut Kickable<'_>, out: &AtomicBool, gate: Option<&Gate>) -> Status {
    let _pass = gate.map(Pass::joining);
    loop {
        kickable.rearm();
        if out.load(Ordering::Acquire) {
            return Status::Out;
        }
        if let Some(gate) = gate.filter(|gate| gate.wanted() == Wanted::Pause) {
            gate.park();
            continue;
        }
        let why = match kickable.vcpu().run() {
            Ok(VcpuExit::MmioWrite(_, data)) if data == DONE.to_le_bytes() => return Status::Done,
            Ok(VcpuExit::Intr) => continue,
            Ok(exit) => format!("the guest stopped with {exit:?}"),
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Err(error) => {
                format!("KVM_RUN: {}", io::Error::from_raw_os_error(error.errno()))
            }
        };
        let place = kickable.vcpu().get_regs();
        let place = place.map_or(String::new(), |registers| format!(", {registers:x?}"));
        return Status::Failed(why + &place);
    }
}
