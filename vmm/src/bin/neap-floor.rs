//! `neap-floor [stay]`: the least that any VMM must do to run the tiny
//! payload of `neap bench start`, which compares `neap run` with it.
//!
//! The bare sequence of KVM calls for the same machine that `neap run`
//! builds: in-kernel interrupt controllers and PIT, one memory slot of
//! 512 MiB, one vCPU with the host's CPUID in the state of PVH entry. There
//! are no devices, tables, threads, options or errors worth reading here: the
//! byte for the serial port goes to stdout at once, and the write to the ACPI
//! sleep control register ends the process without taking anything down.
//! With `stay` the payload halts instead, so that the process can be looked
//! at from outside.

use std::convert::Infallible;
use std::process::ExitCode;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config, kvm_regs, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use neap_memory::addr::MIB;
use neap_vmm::{payload, platform};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Guest memory in bytes, as in `neap run --memory 512M`.
const MEMORY: u64 = 512 * MIB;

fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("neap-floor: {error}");
    ExitCode::FAILURE
}

/// Returns only when something failed; success ends the process.
fn run() -> anyhow::Result<Infallible> {
    let code = match std::env::args().nth(1).as_deref() {
        None => payload::hello(),
        Some("stay") => payload::stay(),
        Some(other) => anyhow::bail!("unknown argument '{other}'; use none, or 'stay'"),
    };

    let kvm = Kvm::new()?;
    let vm = kvm.create_vm()?;
    vm.set_tss_address(platform::KVM_TSS.0 as usize)?;
    vm.set_identity_map_address(platform::KVM_IDENTITY_MAP.0)?;
    vm.create_irq_chip()?;
    vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })?;

    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
    memory.write_slice(&code, GuestAddress(payload::LOAD.0))?;
    add_memory(&vm, &memory)?;

    let mut vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    enter_protected_mode(&vcpu)?;

    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(platform::SERIAL_PORT, byte) => {
                rustix::io::write(rustix::stdio::stdout(), byte)?;
            }
            VcpuExit::IoOut(platform::ACPI_SLEEP_CONTROL, &[payload::POWER_OFF]) => exit_now(),
            exit => anyhow::bail!("unexpected exit of the vCPU: {exit:?}"),
        }
    }
}

#[allow(unsafe_code)]
fn add_memory(vm: &kvm_ioctls::VmFd, memory: &GuestMemoryMmap<()>) -> anyhow::Result<()> {
    let slot = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: MEMORY,
        userspace_addr: memory.get_host_address(GuestAddress(0))? as u64,
        flags: 0,
    };
    // SAFETY: the slot is exactly the mapping that `memory` owns, and `memory`
    // lives in `main` until the process ends.
    unsafe { vm.set_user_memory_region(slot)? };
    Ok(())
}

/// The state that PVH prescribes at entry: protected mode, no paging, flat
/// segments (Xen's docs/misc/pvh.pandoc).
fn enter_protected_mode(vcpu: &VcpuFd) -> anyhow::Result<()> {
    let flat = kvm_segment {
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        db: 1,
        g: 1,
        selector: 0x10,
        type_: 3,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    sregs.cs = kvm_segment { selector: 0x08, type_: 11, ..flat };
    for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        *register = flat;
    }
    sregs.tr =
        kvm_segment { limit: 0x67, present: 1, selector: 0x18, type_: 11, ..Default::default() };
    sregs.cr0 = 1 << 4 | 1;
    sregs.cr4 = 0;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs { rip: payload::LOAD.0, rflags: 1 << 1, ..Default::default() })?;
    Ok(())
}

#[allow(unsafe_code)]
fn exit_now() -> ! {
    // SAFETY: `_exit` ends the process whatever its state; nothing here needs
    // to be flushed or removed.
    unsafe { libc::_exit(0) }
}
