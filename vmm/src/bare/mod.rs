//! A bare guest: no kernel, no devices, only memory slots that somebody else
//! owns and vCPUs that run the programs of [`crate::payload::bare`] in CPL 3,
//! which is native even on a KVM that interprets guest kernel mode.
//!
//! It serves the proofs that memory that moves under a running guest loses
//! nothing, and the benches of the same. It works over any host mapping
//! (anonymous, memfd, hugetlb), also while ranges of it are registered with
//! userfaultfd, mapped anew or moved: it never touches them from the host.
//!
//! ```no_run
//! # use std::{sync::Arc, time::Duration};
//! # use neap_memory::{Backing, Gpa, GpaRange, GuestMemory, guest::RangeSpec};
//! # use neap_vmm::bare::{Guest, Writer};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let range = GpaRange::new(Gpa(0), 256 << 20).ok_or("empty")?;
//! let spec = RangeSpec { range, backing: Backing::Anon, prefault: true };
//! let memory = Arc::new(GuestMemory::new(&[spec])?);
//! let mut guest = Guest::new(memory, 2)?;
//! for cpu in 0..2 {
//!     guest.load_writer(cpu, &Writer::over(range).interleaved(cpu, 2))?;
//! }
//! guest.start()?;
//! guest.wait_passes(20, Duration::from_secs(10))?; // move granules meanwhile
//! guest.stop(Duration::from_secs(1))?;
//! assert_eq!(guest.counters(0).errors, 0, "{:?}", guest.wrong_words(0));
//! # Ok(())
//! # }
//! ```
//!
//! Every wait has a deadline. A vCPU that cannot be got out of the kernel (a
//! fault that nobody resolves and that no signal interrupts) is an error,
//! [`BareError::Stuck`]; its thread and the memory it uses are left alone.

mod control;
mod cpu;
mod program;
mod readout;

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use neap_memory::guest::Slot;
use neap_memory::{Gpa, GpaRange, GuestMemory};

use crate::kvm::gate::Gate;
use crate::kvm::stats::MappedPages;
use crate::kvm::{self, KvmError, OpenError, kick, named};
use crate::memory_failure;
use crate::payload::long_mode::{self, Privilege};
use control::ControlMemory;
use cpu::{Cpu, Status};

pub use crate::payload::bare::{Stall, WrongWord};
pub use program::{Access, Toucher, Writer};
pub use readout::Counters;

/// Why a bare guest cannot do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BareError {
    /// `/dev/kvm` cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A KVM call failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What for.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Memory or a program that does not fit.
    #[error("{0}")]
    Refused(String),
    /// A vCPU left the guest in a way that its program never does.
    #[error("vCPU {cpu}: {why}")]
    Failed {
        /// Which.
        cpu: usize,
        /// How, and where it was.
        why: String,
    },
    /// A vCPU that was told to leave the guest did not.
    #[error("vCPU {cpu} is still in the guest after {} ms", limit.as_millis())]
    Stuck {
        /// Which.
        cpu: usize,
        /// How long it had.
        limit: Duration,
    },
    /// The guest had not done what it was waited for.
    #[error("the guest did not come to {what} within {} ms", limit.as_millis())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
}

/// Time for vCPUs to leave the guest when it is dropped.
const LAST_STOP: Duration = Duration::from_secs(2);

/// A machine of memory slots and vCPUs in CPL 3.
#[derive(Debug)]
pub struct Guest {
    cpus: Vec<Cpu>,
    // In order: the machine before the memory that it maps.
    vm: Arc<VmFd>,
    control: Arc<ControlMemory>,
    keep: Arc<dyn Any + Send + Sync>,
    tsc_khz: u64,
}

impl Guest {
    /// A guest of `cpus` vCPUs that sees all of `memory`.
    ///
    /// # Errors
    /// No usable KVM, or memory that leaves no room for the control block.
    #[allow(unsafe_code)]
    pub fn new(memory: Arc<GuestMemory>, cpus: usize) -> Result<Self, BareError> {
        let slots = memory.slots().to_vec();
        // SAFETY: the slots are those of `memory`, which is kept.
        unsafe { Self::over(&slots, memory, cpus, None) }
    }

    /// The same, whose vCPUs stay out of the guest while somebody holds `gate`,
    /// which was made for no threads.
    ///
    /// # Errors
    /// As [`Guest::new`].
    #[allow(unsafe_code)]
    pub fn at_gate(
        memory: Arc<GuestMemory>,
        cpus: usize,
        gate: Arc<Gate>,
    ) -> Result<Self, BareError> {
        let slots = memory.slots().to_vec();
        // SAFETY: the slots are those of `memory`, which is kept.
        unsafe { Self::over(&slots, memory, cpus, Some(gate)) }
    }

    /// A guest that sees `slots`, which `keep` keeps mapped.
    ///
    /// # Safety
    /// Each slot must be an address range of this process that stays mapped,
    /// with memory that no Rust reference points to, until `keep` is dropped.
    /// What is mapped there may change meanwhile.
    ///
    /// # Errors
    /// As [`Guest::new`].
    #[allow(unsafe_code)]
    pub unsafe fn over(
        slots: &[Slot],
        keep: Arc<dyn Any + Send + Sync>,
        cpus: usize,
        gate: Option<Arc<Gate>>,
    ) -> Result<Self, BareError> {
        kick::install().map_err(|source| BareError::System { what: "kick handler", source })?;
        memory_failure::install()
            .map_err(|source| BareError::System { what: "SIGBUS handler", source })?;
        let kvm = kvm::open()?;
        let vm = kvm.create_vm().map_err(named("KVM_CREATE_VM"))?;
        let ranges: Vec<GpaRange> = slots.iter().map(|slot| slot.range).collect();
        let control = Arc::new(ControlMemory::beside(&ranges, cpus)?);
        for (number, slot) in (0u32..).zip(slots.iter().chain([&control.slot()])) {
            let region = kvm_userspace_memory_region {
                slot: number,
                flags: 0,
                guest_phys_addr: slot.range.base().0,
                memory_size: slot.range.size(),
                userspace_addr: slot.hva,
            };
            // SAFETY: the caller answers for the slots, which `keep` keeps;
            // the last one is the mapping that `control` owns. The machine is
            // dropped before both.
            unsafe { vm.set_user_memory_region(region) }
                .map_err(named("KVM_SET_USER_MEMORY_REGION"))?;
        }
        let mut tsc_khz = 0;
        let mut threads = Vec::with_capacity(cpus);
        for index in 0..cpus {
            let fd = make_vcpu(&kvm, &vm, index, control.page_tables())?;
            tsc_khz = fd.get_tsc_khz().map_err(named("KVM_GET_TSC_KHZ"))?.into();
            threads.push(Cpu::spawn(index, fd, gate.clone())?);
        }
        if cpus == 0 || tsc_khz == 0 {
            return Err(BareError::Refused(
                "a guest needs a vCPU with a time stamp counter".into(),
            ));
        }
        Ok(Self { cpus: threads, vm: Arc::new(vm), control, keep, tsc_khz })
    }

    /// How many vCPUs there are.
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }

    /// The pages that its memory is mapped with, where KVM tells.
    pub fn mapped_pages(&self) -> Option<MappedPages> {
        MappedPages::of(&self.vm)
    }

    /// Lets vCPU `cpu` run on processor `host_cpu` only.
    ///
    /// # Errors
    /// No such vCPU or processor.
    pub fn pin(&self, cpu: usize, host_cpu: usize) -> Result<(), BareError> {
        self.cpu(cpu)?.pin(host_cpu)
    }

    /// Gives vCPU `cpu` a writer to run from its beginning; its counters start
    /// at zero. The vCPU must be out of the guest.
    ///
    /// # Errors
    /// No such vCPU, or a writer that leaves the guest's memory.
    pub fn load_writer(&mut self, cpu: usize, writer: &Writer) -> Result<(), BareError> {
        self.check_out(cpu)?;
        let entry = program::load_writer(&self.control, cpu, writer, self.tsc_khz)?;
        self.enter_at(cpu, entry)
    }

    /// Gives vCPU `cpu` a toucher, as [`Guest::load_writer`].
    ///
    /// # Errors
    /// The same; or a list that is too long.
    pub fn load_toucher(&mut self, cpu: usize, toucher: &Toucher) -> Result<(), BareError> {
        self.check_out(cpu)?;
        let entry = program::load_toucher(&self.control, cpu, toucher, self.tsc_khz)?;
        self.enter_at(cpu, entry)
    }

    /// Lets a writer that is stopped or done go on to `passes` complete passes
    /// in all; its counters and values go on as well.
    ///
    /// # Errors
    /// No such vCPU, or one that is in the guest.
    pub fn extend_writer(&mut self, cpu: usize, passes: u64) -> Result<(), BareError> {
        self.check_out(cpu)?;
        program::extend_writer(&self.control, cpu, passes);
        Ok(())
    }

    /// Runs every vCPU that has a program, from where it is.
    ///
    /// # Errors
    /// A vCPU that has failed before.
    pub fn start(&mut self) -> Result<(), BareError> {
        self.check_failed()?;
        self.cpus.iter().filter(|cpu| cpu.loaded()).for_each(Cpu::start);
        Ok(())
    }

    /// Takes every vCPU out of the guest, wherever it is.
    ///
    /// # Errors
    /// One did not leave within `limit`, or had failed.
    pub fn stop(&mut self, limit: Duration) -> Result<(), BareError> {
        self.cpus.iter().for_each(Cpu::tell_out);
        let deadline = Instant::now() + limit;
        for (index, cpu) in self.cpus.iter().enumerate() {
            if !cpu.wait(deadline, |status| *status != Status::In) {
                return Err(BareError::Stuck { cpu: index, limit });
            }
        }
        self.check_failed()
    }

    /// Waits until every vCPU that runs is done with its program.
    ///
    /// # Errors
    /// One is not within `limit`, or failed.
    pub fn wait_done(&self, limit: Duration) -> Result<(), BareError> {
        let deadline = Instant::now() + limit;
        for (index, cpu) in self.cpus.iter().enumerate() {
            if !cpu.wait(deadline, |status| *status != Status::In) {
                return Err(BareError::Late { what: format!("the end of vCPU {index}"), limit });
            }
        }
        self.check_failed()
    }

    /// Waits until every loaded vCPU has completed `passes` passes more than
    /// now. The guest does not tell of a pass, so its counters are read about
    /// twice a millisecond.
    ///
    /// # Errors
    /// One has not within `limit`, or failed, or is not running.
    pub fn wait_passes(&self, passes: u64, limit: Duration) -> Result<(), BareError> {
        const LOOK: Duration = Duration::from_micros(500);
        let deadline = Instant::now() + limit;
        for (index, cpu) in self.cpus.iter().enumerate().filter(|(_, cpu)| cpu.loaded()) {
            let wanted = self.counters(index).passes.saturating_add(passes);
            while self.counters(index).passes < wanted {
                let what = || format!("{wanted} passes of vCPU {index}");
                // Wakes early if the vCPU leaves the guest.
                let look = (Instant::now() + LOOK).min(deadline);
                let left = cpu.wait(look, |status| *status != Status::In);
                if left && self.counters(index).passes < wanted {
                    self.check_failed()?;
                    return Err(BareError::Late { what: what(), limit: Duration::ZERO });
                }
                if Instant::now() >= deadline {
                    return Err(BareError::Late { what: what(), limit });
                }
            }
        }
        Ok(())
    }

    /// Ticks of the guest's time stamp counter as a time.
    pub fn duration(&self, ticks: u64) -> Duration {
        let nanos = u128::from(ticks) * 1_000_000 / u128::from(self.tsc_khz);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn cpu(&self, index: usize) -> Result<&Cpu, BareError> {
        self.cpus.get(index).ok_or_else(|| BareError::Refused(format!("there is no vCPU {index}")))
    }

    fn check_out(&self, index: usize) -> Result<(), BareError> {
        if self.cpu(index)?.is(&Status::In) {
            return Err(BareError::Refused(format!("vCPU {index} is in the guest")));
        }
        Ok(())
    }

    fn check_failed(&self) -> Result<(), BareError> {
        let failed =
            self.cpus.iter().enumerate().find_map(|(cpu, thread)| {
                thread.failure().map(|why| BareError::Failed { cpu, why })
            });
        failed.map_or(Ok(()), Err)
    }

    fn enter_at(&self, cpu: usize, entry: Gpa) -> Result<(), BareError> {
        let mut registers = long_mode::registers(entry);
        registers.rdi = self.control.block(cpu).0;
        self.cpu(cpu)?.load(registers);
        Ok(())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.cpus.iter().for_each(Cpu::tell_end);
        let deadline = Instant::now() + LAST_STOP;
        if !self.cpus.iter_mut().all(|cpu| cpu.join(deadline)) {
            // A thread is in the kernel with these; they must outlive it.
            std::mem::forget((Arc::clone(&self.control), Arc::clone(&self.keep)));
        }
    }
}

fn make_vcpu(kvm: &Kvm, vm: &VmFd, index: usize, tables: Gpa) -> Result<VcpuFd, KvmError> {
    let vcpu = vm.create_vcpu(index as u64).map_err(named("KVM_CREATE_VCPU"))?;
    vcpu.set_cpuid2(&kvm::supported_cpuid(kvm)?).map_err(named("KVM_SET_CPUID2"))?;
    let mut sregs = vcpu.get_sregs().map_err(named("KVM_GET_SREGS"))?;
    long_mode::enter(&mut sregs, tables, Privilege::User);
    vcpu.set_sregs(&sregs).map_err(named("KVM_SET_SREGS"))?;
    Ok(vcpu)
}
