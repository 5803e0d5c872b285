//! How this machine's KVM executes guest kernel mode: measured by running it.
//!
//! Capability bits do not tell: there are KVMs that run guest user mode on
//! the processor and interpret guest kernel mode a thousand times slower. So
//! a machine of one page counts down a number in CPL 0 and in CPL 3, and the
//! two speeds are compared.
//!
//! It ends in any case. The instruction count is small and grows only while
//! the guest proves to be fast; the run has a deadline, after which the vCPU
//! thread is signalled, again and again, until it has left `KVM_RUN` and seen
//! that it should stop. Should KVM not let go of it at all, it is left alone.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use neap_memory::Gpa;
use neap_memory::addr::HUGE_PAGE_SIZE;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::payload::long_mode::{self, Privilege};
use crate::payload::speed::{COUNTING_LOOP, INSTRUCTIONS_PER_COUNT, PORT};

/// How guest kernel mode runs here; decides between KVM and the lab.
#[derive(Clone, Debug, PartialEq)]
pub enum GuestMode {
    /// On the processor: Linux guests run directly.
    Native,
    /// Instruction by instruction in software: Linux guests need the lab.
    Interpreted {
        /// Speed of guest kernel mode.
        mips: Mips,
    },
    /// Not at all: everything needs the lab. Holds the reason.
    NoKvm(String),
}

/// A speed in million instructions a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mips {
    /// As measured.
    Measured(f64),
    /// The measurement did not end in time; a higher speed would have.
    AtMost(f64),
}

impl fmt::Display for Mips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Measured(mips) => write!(f, "{} MIPS", figure(*mips)),
            Self::AtMost(mips) => write!(f, "at most {} MIPS", figure(*mips)),
        }
    }
}

/// Two significant digits below 10, none behind the point above.
pub(super) fn figure(mips: f64) -> String {
    if mips < 10.0 { format!("{mips:.1}") } else { format!("{mips:.0}") }
}

/// Speed of the counting loop in both modes, in million instructions a second.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Speeds {
    /// Guest kernel mode, CPL 0.
    pub kernel_mips: f64,
    /// Guest user mode, CPL 3.
    pub user_mips: f64,
}

/// Why the speeds could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// `/dev/kvm` cannot be opened.
    #[error("/dev/kvm: {0}")]
    Open(#[source] kvm_ioctls::Error),
    /// The one version of the interface that was ever released is 12.
    #[error("/dev/kvm speaks version {0} of its interface, not 12")]
    Version(i32),
    /// A step of building or running the machine failed.
    #[error("{step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What it answered.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The guest left in a way that the counting loop never does.
    #[error("the test guest stopped with {0}")]
    Exit(String),
    /// The guest had not counted to the end in [`DEADLINE`].
    #[error("the test guest did not finish within {} ms", DEADLINE.as_millis())]
    Deadline,
}

/// The only version of the KVM interface.
pub const KVM_API_VERSION: i32 = 12;
/// The time that both runs together may take. Some 20 ms are usual where
/// kernel mode is interpreted; a busy machine must not be mistaken for one
/// without KVM.
pub const DEADLINE: Duration = Duration::from_secs(1);
/// Between two signals to a vCPU thread that should stop.
const KICK_INTERVAL: Duration = Duration::from_millis(2);
/// Signals after which a thread is taken to be stuck in the kernel.
const KICKS: u32 = 50;

/// Where the page tables lie.
const TABLES: Gpa = Gpa(0x1000);
/// Where the loop lies, behind the page tables.
const CODE: Gpa = Gpa(TABLES.0 + long_mode::PAGE_TABLES_SIZE);

/// Counts of the successive rounds. The first takes 10 ms at 1.5 MIPS.
const ROUNDS: [u32; 4] = [8_000, 200_000, 2_000_000, 10_000_000];
/// A round this long outweighs the cost of its exit by far.
const LONG_ENOUGH: Duration = Duration::from_millis(2);
/// The slowest speed at which even the longest round is over within
/// [`DEADLINE`], if nothing else takes the processor.
const FINISHES_ABOVE: f64 = 20.0;
const _: () = assert!(
    ROUNDS[ROUNDS.len() - 1] as u64 * INSTRUCTIONS_PER_COUNT
        == FINISHES_ABOVE as u64 * 1_000_000 * DEADLINE.as_secs()
);
/// Interpreters are two to three orders of magnitude slower than the code
/// they interpret; no kind of hardware support comes near a tenth.
const INTERPRETED_BELOW: f64 = 0.1;

/// Finds out how guest kernel mode runs here. Takes some 20 ms, [`DEADLINE`]
/// and a little at the very most; never hangs.
pub fn guest_mode() -> GuestMode {
    verdict(&measure())
}

/// What an attempt to measure means. A guest that was still counting at the
/// deadline ran: there is KVM, but a slow one, or a machine so busy that a
/// Linux guest would be no faster.
pub fn verdict(measured: &Result<Speeds, MeasureError>) -> GuestMode {
    match measured {
        Ok(speeds) => classify(*speeds),
        Err(MeasureError::Deadline) => {
            GuestMode::Interpreted { mips: Mips::AtMost(FINISHES_ABOVE) }
        }
        Err(error) => GuestMode::NoKvm(error.to_string()),
    }
}

/// What the two speeds mean.
pub fn classify(speeds: Speeds) -> GuestMode {
    if speeds.kernel_mips < speeds.user_mips * INTERPRETED_BELOW {
        GuestMode::Interpreted { mips: Mips::Measured(speeds.kernel_mips) }
    } else {
        GuestMode::Native
    }
}

/// Measures both speeds.
///
/// # Errors
/// There is no usable KVM, or the guest does not do what it should.
pub fn measure() -> Result<Speeds, MeasureError> {
    let kvm = Kvm::new().map_err(MeasureError::Open)?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(MeasureError::Version(version));
    }
    register_signal_handler(kick_signal(), ignore_kick).map_err(step("setting the kick signal"))?;

    let stop = Arc::new(AtomicBool::new(false));
    let (sender, result) = mpsc::channel();
    let thread = {
        let stop = Arc::clone(&stop);
        thread::Builder::new()
            .name("speed".into())
            .spawn(move || {
                // Nobody listens any more after the deadline.
                let _ = sender.send(run_both(&kvm, &stop));
            })
            .map_err(step("starting a thread"))?
    };
    match result.recv_timeout(DEADLINE) {
        Ok(outcome) => {
            end(thread);
            outcome
        }
        Err(_) => {
            stop.store(true, Ordering::Release);
            kick_until_gone(thread, &result);
            Err(MeasureError::Deadline)
        }
    }
}

/// A real-time signal of its own: vCPU threads of guests use the first.
fn kick_signal() -> libc::c_int {
    SIGRTMIN() + 1
}

/// The signal's arrival alone makes `KVM_RUN` return.
extern "C" fn ignore_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// The thread looks at its stop flag before each `KVM_RUN`; a signal that
/// arrives between the look and the call is lost, so one is not enough.
fn kick_until_gone<T>(thread: JoinHandle<()>, result: &mpsc::Receiver<T>) {
    for _ in 0..KICKS {
        let _ = thread.kill(kick_signal());
        match result.recv_timeout(KICK_INTERVAL) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(_) | Err(mpsc::RecvTimeoutError::Disconnected) => return end(thread),
        }
    }
}

/// Joins a thread that has nothing left to do.
fn end(thread: JoinHandle<()>) {
    // Its result came by the channel; after a panic there is none, which the
    // receiver has seen.
    let _ = thread.join();
}

fn run_both(kvm: &Kvm, stop: &AtomicBool) -> Result<Speeds, MeasureError> {
    let memory = test_memory().map_err(step("making guest memory"))?;
    let vm = kvm.create_vm().map_err(step("KVM_CREATE_VM"))?;
    add_memory(&vm, &memory)?;
    // User mode first: it is the one that is quick everywhere.
    let user_mips = speed(&mut prepare(kvm, &vm, 0, Privilege::User)?, stop)?;
    let kernel_mips = speed(&mut prepare(kvm, &vm, 1, Privilege::Kernel)?, stop)?;
    // In this order: the slot must not outlive the mapping.
    drop(vm);
    drop(memory);
    Ok(Speeds { kernel_mips, user_mips })
}

type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// One huge page: page tables at its start, the loop behind them.
fn test_memory() -> Result<GuestMemoryMmap<()>, BoxedError> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), HUGE_PAGE_SIZE as usize)])?;
    let tables = long_mode::page_tables(TABLES, &[Gpa(0)]);
    memory.write_slice(&tables, GuestAddress(TABLES.0))?;
    memory.write_slice(&COUNTING_LOOP, GuestAddress(CODE.0))?;
    Ok(memory)
}

#[allow(unsafe_code)]
fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap<()>) -> Result<(), MeasureError> {
    let start = GuestAddress(0);
    let address = memory.get_host_address(start).map_err(step("finding guest memory"))?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: start.0,
        memory_size: HUGE_PAGE_SIZE,
        userspace_addr: address as u64,
        flags: 0,
    };
    // SAFETY: the slot is exactly the mapping that `memory` owns, and the only
    // caller drops the VM and its vCPUs before `memory`.
    unsafe { vm.set_user_memory_region(slot) }.map_err(step("KVM_SET_USER_MEMORY_REGION"))
}

fn prepare(kvm: &Kvm, vm: &VmFd, id: u64, privilege: Privilege) -> Result<VcpuFd, MeasureError> {
    let vcpu = vm.create_vcpu(id).map_err(step("KVM_CREATE_VCPU"))?;
    let cpuid =
        kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("KVM_GET_SUPPORTED_CPUID"))?;
    vcpu.set_cpuid2(&cpuid).map_err(step("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(step("KVM_GET_SREGS"))?;
    long_mode::enter(&mut sregs, TABLES, privilege);
    vcpu.set_sregs(&sregs).map_err(step("KVM_SET_SREGS"))?;
    let mut registers = long_mode::registers(CODE);
    registers.rdx = PORT.into();
    vcpu.set_regs(&registers).map_err(step("KVM_SET_REGS"))?;
    Ok(vcpu)
}

/// Speed of the loop in million instructions a second, from the first round
/// that is long enough.
fn speed(vcpu: &mut VcpuFd, stop: &AtomicBool) -> Result<f64, MeasureError> {
    run_to_request(vcpu, ROUNDS[0], stop)?;
    let mut mips = 0.0;
    for (round, count) in ROUNDS.into_iter().enumerate() {
        let next = ROUNDS.get(round + 1).copied().unwrap_or(1);
        let start = Instant::now();
        run_to_request(vcpu, next, stop)?;
        let elapsed = start.elapsed();
        let instructions = u64::from(count) * INSTRUCTIONS_PER_COUNT;
        mips = instructions as f64 / elapsed.as_secs_f64() / 1e6;
        if elapsed >= LONG_ENOUGH {
            break;
        }
    }
    Ok(mips)
}

/// Runs the guest until it asks for a count and answers with `next`, which it
/// counts down when it is run again.
fn run_to_request(vcpu: &mut VcpuFd, next: u32, stop: &AtomicBool) -> Result<(), MeasureError> {
    loop {
        if stop.load(Ordering::Acquire) {
            return Err(MeasureError::Deadline);
        }
        match vcpu.run() {
            Ok(VcpuExit::IoIn(PORT, data)) if data.len() == size_of_val(&next) => {
                data.copy_from_slice(&next.to_le_bytes());
                return Ok(());
            }
            Ok(exit) => return Err(MeasureError::Exit(format!("{exit:?}"))),
            Err(error) if error.errno() == libc::EINTR => {}
            Err(error) => return Err(step("KVM_RUN")(error)),
        }
    }
}

fn step<E: Into<BoxedError>>(step: &'static str) -> impl FnOnce(E) -> MeasureError {
    move |error| MeasureError::Step { step, source: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_a_thousand_times_slower_is_interpreted() {
        let interpreted = Speeds { kernel_mips: 1.5, user_mips: 4000.0 };
        assert_eq!(classify(interpreted), GuestMode::Interpreted { mips: Mips::Measured(1.5) });
    }

    #[test]
    fn a_slow_machine_is_native_when_both_modes_are_equally_slow() {
        let emulated = Speeds { kernel_mips: 90.0, user_mips: 110.0 };
        assert_eq!(classify(emulated), GuestMode::Native);
    }

    #[test]
    fn a_measurement_that_does_not_end_is_slow_and_not_absent() {
        let GuestMode::Interpreted { mips } = verdict(&Err(MeasureError::Deadline)) else {
            panic!("a guest that ran is no missing KVM");
        };
        assert_eq!(mips.to_string(), "at most 20 MIPS");
        assert!(matches!(verdict(&Err(MeasureError::Version(11))), GuestMode::NoKvm(_)));
    }

    #[test]
    fn the_measurement_ends_in_time_and_agrees_with_the_mode() {
        let start = Instant::now();
        let outcome = measure();
        let limit = DEADLINE + KICK_INTERVAL * KICKS + Duration::from_millis(500);
        assert!(start.elapsed() < limit, "took {:?}", start.elapsed());
        match outcome {
            Ok(speeds) => {
                assert!(speeds.kernel_mips > 0.0 && speeds.user_mips > 0.0, "{speeds:?}");
                assert!(!matches!(classify(speeds), GuestMode::NoKvm(_)));
            }
            Err(MeasureError::Open(_)) => eprintln!("skipped: no usable /dev/kvm here"),
            Err(MeasureError::Deadline) => eprintln!("this machine is too busy to measure"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_guest_that_never_asks_again_is_stopped() {
        let Ok(kvm) = Kvm::new() else {
            return eprintln!("skipped: no usable /dev/kvm here");
        };
        register_signal_handler(kick_signal(), ignore_kick).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (sender, result) = mpsc::channel();
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let memory = test_memory().unwrap();
            let vm = kvm.create_vm().unwrap();
            add_memory(&vm, &memory).unwrap();
            let mut vcpu = prepare(&kvm, &vm, 0, Privilege::User).unwrap();
            // A count of 0 is 2^32 rounds: seconds, natively.
            run_to_request(&mut vcpu, 0, &flag).unwrap();
            sender.send(None).unwrap();
            let outcome = run_to_request(&mut vcpu, 0, &flag);
            drop((vcpu, vm, memory));
            let _ = sender.send(Some(outcome));
        });
        assert!(result.recv_timeout(Duration::from_secs(5)).unwrap().is_none());
        let start = Instant::now();
        stop.store(true, Ordering::Release);
        kick_until_gone(thread, &result);
        assert!(start.elapsed() < KICK_INTERVAL * KICKS, "took {:?}", start.elapsed());
    }
}
