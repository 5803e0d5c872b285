//! The one place that wires the parts of a machine together.

use std::io;
use std::sync::{Arc, Mutex};

use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use neap_devices::pci::{ConfigPorts, Ecam, HostBridge, PciAddress, PciRootBuilder, SlotTaken};
use neap_devices::reset::{AcpiPower, KeyboardController};
use neap_devices::serial::{Output, SerialPort};
use neap_devices::{BusBuilder, BusError, EventFdTrigger};
use neap_memory::guest::{GuestMemoryError, RangeSpec};
use neap_memory::tiers::TiersError;
use neap_memory::{GpaRange, GuestMemory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::load::{self, BootError};
use crate::config::VmConfig;
use crate::kvm::cpuid::{self, CpuTopology};
use crate::kvm::exit::{Buses, ExitCounters};
use crate::kvm::gate::{Gate, Holder, Wanted};
use crate::kvm::mce::MachineCheck;
use crate::kvm::state::{self, Entry};
use crate::kvm::vcpu::Shared;
use crate::kvm::vm::Vm;
use crate::kvm::{self, KvmError, OpenError};
use crate::machine::Machine;
use crate::memory_failure::MemoryFailures;
use crate::reporter::Reporter;
use crate::{platform, tiers};

/// Why a machine could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No KVM.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A KVM call failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Nothing to boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// No memory.
    #[error("{option}: {source}")]
    Memory {
        /// The option that asked for it.
        option: &'static str,
        /// Why.
        #[source]
        source: GuestMemoryError,
    },
    /// Memory beyond what KVM's page tables reach.
    #[error("{option}: {range} is beyond the {bits} address bits that this KVM maps for guests")]
    Reach {
        /// The option that asked for it.
        option: &'static str,
        /// The range.
        range: GpaRange,
        /// Address bits.
        bits: u8,
    },
    /// Memory that cannot move as it was asked to.
    #[error("memory that moves (--api-socket, --policy, pool= of --device-memory): {0}")]
    Tiers(#[from] TiersError),
    /// Two devices at one place.
    #[error("devices: {0}")]
    Bus(#[from] BusError),
    /// Two PCI functions at one place.
    #[error("devices: {0}")]
    Pci(#[from] SlotTaken),
    /// No descriptor could be had.
    #[error("event descriptor: {0}")]
    Io(#[from] io::Error),
}

impl BuildError {
    /// Whether whoever gave the options can do something about it.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Open(_)
                | Self::Boot(_)
                | Self::Memory { .. }
                | Self::Reach { .. }
                | Self::Tiers(_)
        )
    }
}

/// A machine that has not started, and what its owner needs to know of it.
#[derive(Debug)]
pub struct Built {
    /// The machine.
    pub machine: Machine,
    /// Written when the serial port has room for input again; see
    /// [`SerialPort::new`].
    pub room: EventFd,
    /// Whether it boots a Linux kernel, rather than some other program.
    pub linux: bool,
}

/// Builds the machine of `config`, with its console on `output`.
///
/// # Errors
/// The first part that could not be had.
pub fn build(config: &VmConfig, output: Output) -> Result<Built, BuildError> {
    let (image, protocol) = load::open_kernel(config)?;
    let linux = image.is_linux();
    let kvm = kvm::open()?;
    let supported = kvm::supported_cpuid(&kvm)?;
    check_reach(config, cpuid::address_bits(&supported))?;
    let memory = GuestMemory::new(&config.ranges()).map_err(|source| {
        let option = match &source {
            GuestMemoryError::Backing { index, .. } => config.option_of_range(*index),
            _ => "--memory",
        };
        BuildError::Memory { option, source }
    })?;
    // Slots before contents: the first slot waits some milliseconds for a grace
    // period in the kernel, and the sooner that begins the sooner it ends.
    let vm = Vm::new(&kvm, memory)?;
    let entry = load::fill(vm.memory().view(), config, image, protocol)?;
    // After the contents, which are not to wait for first touches.
    let gate = Arc::new(Gate::new(config.topology.cpus.len(), Wanted::Run));
    let park = Arc::new(Holder(Arc::clone(&gate)));
    let tiers = tiers::build(config, vm.memory(), park)?.map(Arc::new);
    if let (Some(tiers), Some(pages)) = (&tiers, vm.mapped_pages()) {
        tiers.mapped_by(Arc::new(pages));
    }
    let reporter = Reporter::new(Arc::clone(&gate), EventFd::new(EFD_NONBLOCK)?);
    let room = EventFd::new(EFD_NONBLOCK)?;
    let serial = serial_port(&vm, output, room.try_clone()?)?;
    let buses = buses(&serial, &reporter)?;
    let machine_check = MachineCheck::of(&kvm, cpuid::is_amd(&supported));
    let vcpus = vcpus(&supported, &vm, config, entry, machine_check)?;
    let failures = MemoryFailures::new(vm.memory(), tiers.clone());
    let counters = vcpus.iter().map(|_| ExitCounters::default()).collect();
    let shared = Arc::new(Shared { gate, buses, counters, reporter, failures, machine_check });
    Ok(Built { machine: Machine::new(vm, tiers, shared, vcpus, serial), room, linux })
}

/// The configuration was made for the processor's own address bits; KVM may
/// map fewer for guests.
fn check_reach(config: &VmConfig, bits: u8) -> Result<(), BuildError> {
    let beyond = |spec: &RangeSpec| u128::from(spec.range.end().0) > 1u128 << bits;
    match config.ranges().iter().enumerate().find(|(_, spec)| beyond(spec)) {
        None => Ok(()),
        Some((index, spec)) => Err(BuildError::Reach {
            option: config.option_of_range(index),
            range: spec.range,
            bits,
        }),
    }
}

fn serial_port(
    vm: &Vm,
    output: Output,
    room: EventFd,
) -> Result<Arc<Mutex<SerialPort>>, BuildError> {
    let interrupt = EventFd::new(EFD_NONBLOCK)?;
    vm.connect_irq(&interrupt, platform::SERIAL_IRQ)?;
    Ok(Arc::new(Mutex::new(SerialPort::new(EventFdTrigger(interrupt), output, room))))
}

fn buses(serial: &Arc<Mutex<SerialPort>>, reporter: &Reporter) -> Result<Buses, BuildError> {
    let mut functions = PciRootBuilder::new();
    functions.insert(PciAddress::HOST_BRIDGE, Arc::new(Mutex::new(HostBridge::new())))?;
    let root = Arc::new(functions.build());
    let sink = Arc::new(reporter.clone());
    let power = AcpiPower::new(platform::ACPI_S5, platform::ACPI_RESET_VALUE, sink.clone());
    let mut ports = BusBuilder::new();
    ports.insert(u64::from(platform::SERIAL_PORT), SerialPort::SIZE, serial.clone())?;
    ports.insert(
        u64::from(platform::I8042_COMMAND),
        KeyboardController::SIZE,
        Arc::new(Mutex::new(KeyboardController::new(sink))),
    )?;
    ports.insert(
        u64::from(platform::PCI_CONFIG_PORT),
        ConfigPorts::SIZE,
        Arc::new(Mutex::new(ConfigPorts::new(Arc::clone(&root)))),
    )?;
    ports.insert(
        u64::from(platform::ACPI_SLEEP_CONTROL),
        AcpiPower::SIZE,
        Arc::new(Mutex::new(power)),
    )?;
    let mut mmio = BusBuilder::new();
    let ecam = Arc::new(Mutex::new(Ecam::new(root)));
    mmio.insert(platform::ECAM_BASE.0, platform::ECAM_SIZE, ecam)?;
    Ok(Buses { ports: ports.build(), mmio: mmio.build() })
}

fn vcpus(
    supported: &CpuId,
    vm: &Vm,
    config: &VmConfig,
    entry: Entry,
    machine_check: Option<MachineCheck>,
) -> Result<Vec<VcpuFd>, KvmError> {
    let cpus = &config.topology.cpus;
    let core_bits = config.topology.core_bits;
    let mut vcpus = Vec::with_capacity(cpus.len());
    for cpu in cpus {
        let vcpu = vm.create_vcpu(cpu.apic_id)?;
        let (apic_id, cpus) = (cpu.apic_id, cpus.len() as u32);
        let topology = CpuTopology { apic_id, core_bits, cpus };
        vcpu.set_cpuid2(&cpuid::adapt(supported, topology))
            .map_err(kvm::named("KVM_SET_CPUID2"))?;
        if let Some(check) = machine_check {
            check.set_up(&vcpu)?;
        }
        state::set_reset_state(&vcpu)?;
        if machine_check.is_some_and(MachineCheck::is_local) {
            state::allow_local_machine_checks(&vcpu)?;
        }
        vcpus.push(vcpu);
    }
    // KVM makes the vCPU with id 0 the boot processor; the others wait for
    // their start-up IPI.
    if let Some(boot) = vcpus.first() {
        state::set_boot_state(boot, entry)?;
    }
    Ok(vcpus)
}
