//! The virtual machine itself: interrupt chips, timer and memory slots.
#![allow(unsafe_code)]

use std::sync::Arc;

use kvm_bindings::{
    KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip,
    kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use neap_memory::GuestMemory;
use vmm_sys_util::eventfd::EventFd;

use super::stats::MappedPages;
use super::{KvmError, named};
use crate::platform;

/// A virtual machine and the memory that it keeps mapped.
#[derive(Debug)]
pub struct Vm {
    fd: Arc<VmFd>,
    // After `fd`: no vCPU, which keeps the machine itself alive, outlives its memory.
    memory: Arc<GuestMemory>,
}

impl Vm {
    /// Makes a machine with in-kernel interrupt chips, a PIT, and one slot for
    /// each range of `memory`.
    ///
    /// # Errors
    /// The ioctl that failed.
    pub fn new(kvm: &Kvm, memory: GuestMemory) -> Result<Self, KvmError> {
        let fd = kvm.create_vm().map_err(named("KVM_CREATE_VM"))?;
        // Intel needs both even where the guest never sees real mode
        // (Documentation/virt/kvm/api.rst, sections 4.46 and 4.52); AMD
        // accepts them.
        fd.set_identity_map_address(platform::KVM_IDENTITY_MAP.0)
            .map_err(named("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(platform::KVM_TSS.0 as usize).map_err(named("KVM_SET_TSS_ADDR"))?;
        fd.create_irq_chip().map_err(named("KVM_CREATE_IRQCHIP"))?;
        mask_pics(&fd)?;
        // Port 0x61 is answered in the kernel too, so that its reads do not
        // exit.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        fd.create_pit2(pit).map_err(named("KVM_CREATE_PIT2"))?;
        let vm = Self { fd: Arc::new(fd), memory: Arc::new(memory) };
        vm.set_slots()?;
        Ok(vm)
    }

    fn set_slots(&self) -> Result<(), KvmError> {
        for (slot, part) in (0u32..).zip(self.memory.slots()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: part.range.base().0,
                memory_size: part.range.size(),
                userspace_addr: part.hva,
            };
            // SAFETY: `hva` is the start of a live mapping of `size` bytes
            // that `self.memory` owns, and no vCPU outlives it.
            unsafe { self.fd.set_user_memory_region(region) }
                .map_err(named("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// The guest's memory.
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The pages that the guest's memory is mapped with, where KVM tells.
    pub fn mapped_pages(&self) -> Option<MappedPages> {
        MappedPages::of(&self.fd)
    }

    /// Makes the vCPU with local APIC id `apic_id`.
    ///
    /// # Errors
    /// The ioctl's.
    pub fn create_vcpu(&self, apic_id: u32) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(u64::from(apic_id)).map_err(named("KVM_CREATE_VCPU"))
    }

    /// Raises interrupt line `gsi` whenever `event` is written.
    ///
    /// # Errors
    /// The ioctl's.
    pub fn connect_irq(&self, event: &EventFd, gsi: u32) -> Result<(), KvmError> {
        self.fd.register_irqfd(event, gsi).map_err(named("KVM_IRQFD"))
    }
}

/// Masks every line of the two 8259 interrupt controllers, as a firmware
/// would. Linux never sets them up on a hardware-reduced machine, and an
/// interrupt from one that nobody set up comes as an exception: line 4, the
/// serial port's, as vector 4 (seen with `nosmp`, which brings no IOAPIC).
fn mask_pics(fd: &VmFd) -> Result<(), KvmError> {
    for chip_id in [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE] {
        let mut chip = kvm_irqchip { chip_id, ..Default::default() };
        fd.get_irqchip(&mut chip).map_err(named("KVM_GET_IRQCHIP"))?;
        chip.chip.pic.imr = 0xff;
        fd.set_irqchip(&chip).map_err(named("KVM_SET_IRQCHIP"))?;
    }
    Ok(())
}
