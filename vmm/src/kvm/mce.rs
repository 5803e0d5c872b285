//! Machine checks: how a guest hears that memory it uses has failed.
//!
//! KVM keeps the banks of each vCPU and raises #MC
//! (Documentation/virt/kvm/api.rst, sections 4.104 to 4.106). What is put into
//! them is what a processor would report of the load that met the failure:
//! Intel SDM volume 3B, section 17.9.3 (software recoverable, action
//! required), and AMD APM volume 2, section 9.3.2 (poison consumed).
#![allow(unsafe_code)]

use std::io;

use kvm_bindings::kvm_x86_mce;
use kvm_ioctls::{Kvm, VcpuFd};
use neap_memory::Gpa;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};

use super::KvmError;

/// Numbers of the calls (include/uapi/linux/kvm.h).
mod numbers {
    #![allow(missing_docs)]
    use kvm_bindings::{KVMIO, kvm_x86_mce};
    use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

    ioctl_iow_nr!(KVM_X86_SETUP_MCE, KVMIO, 0x9c, u64);
    ioctl_ior_nr!(KVM_X86_GET_MCE_CAP_SUPPORTED, KVMIO, 0x9d, u64);
    ioctl_iow_nr!(KVM_X86_SET_MCE, KVMIO, 0x9e, kvm_x86_mce);
}
use numbers::{KVM_X86_GET_MCE_CAP_SUPPORTED, KVM_X86_SET_MCE, KVM_X86_SETUP_MCE};

const _: () = assert!(size_of::<kvm_x86_mce>() == 64);

/// Banks of a vCPU: as many as QEMU's guests have.
const BANKS: u64 = 10;
/// The bank that reports; not 4, which is the northbridge's to AMD guests and
/// has other bits there.
const BANK: u8 = 9;

/// `IA32_MCG_CAP`: error reporting can be switched off, software error
/// recovery, and machine checks for one processor alone.
const MCG_CTL_P: u64 = 1 << 8;
const MCG_SER_P: u64 = 1 << 24;
const MCG_LMCE_P: u64 = 1 << 27;

/// `IA32_MCi_STATUS`: valid, uncorrected, enabled, with misc and address,
/// signalled, action required.
const STATUS_VAL: u64 = 1 << 63;
const STATUS_UC: u64 = 1 << 61;
const STATUS_EN: u64 = 1 << 60;
const STATUS_MISCV: u64 = 1 << 59;
const STATUS_ADDRV: u64 = 1 << 58;
const STATUS_S: u64 = 1 << 56;
const STATUS_AR: u64 = 1 << 55;
/// AMD only: poisoned data was consumed.
const STATUS_POISON: u64 = 1 << 43;
/// Data load error (Intel SDM volume 3B, table 17-18).
const CODE_DATA_LOAD: u64 = 0x134;
/// The address is physical, and good to a page.
const MISC_PHYSICAL_PAGE: u64 = 2 << 6 | 12;

/// `IA32_MCG_STATUS`: the instruction can be restarted, its address is the
/// error's, a machine check is in progress, for this processor alone.
const MCG_RIPV: u64 = 1;
const MCG_EIPV: u64 = 1 << 1;
const MCG_MCIP: u64 = 1 << 2;
const MCG_LMCES: u64 = 1 << 3;

/// How the vCPUs of a machine are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineCheck {
    capabilities: u64,
    amd: bool,
}

impl MachineCheck {
    /// What this KVM can do for guests whose processor is AMD's, or not; none
    /// if it knows no machine checks.
    pub fn of(kvm: &Kvm, amd: bool) -> Option<Self> {
        let mut supported = 0u64;
        // SAFETY: the kernel writes one u64 (`KVM_X86_GET_MCE_CAP_SUPPORTED`
        // is made with that size) to a variable that outlives the call.
        let result =
            unsafe { ioctl_with_mut_ref(kvm, KVM_X86_GET_MCE_CAP_SUPPORTED(), &mut supported) };
        let wanted = MCG_CTL_P | MCG_SER_P | if amd { 0 } else { MCG_LMCE_P };
        (result == 0).then_some(Self { capabilities: supported & wanted | BANKS, amd })
    }

    /// Whether a machine check can be for one vCPU alone.
    pub fn is_local(self) -> bool {
        self.capabilities & MCG_LMCE_P != 0
    }

    /// Gives a vCPU its banks. After its CPUID, before it runs.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn set_up(self, vcpu: &VcpuFd) -> Result<(), KvmError> {
        // SAFETY: the kernel reads one u64, as the number says.
        let result = unsafe { ioctl_with_ref(vcpu, KVM_X86_SETUP_MCE(), &self.capabilities) };
        checked("KVM_X86_SETUP_MCE", result)
    }

    /// Raises a machine check in `vcpu`, which met memory at `gpa` that has
    /// failed.
    ///
    /// # Errors
    /// The ioctl failed.
    pub fn raise(self, vcpu: &VcpuFd, gpa: Gpa) -> Result<(), KvmError> {
        let record = self.record(gpa);
        // SAFETY: the kernel reads one `kvm_x86_mce`, as the number says.
        let result = unsafe { ioctl_with_ref(vcpu, KVM_X86_SET_MCE(), &record) };
        checked("KVM_X86_SET_MCE", result)
    }

    fn record(self, gpa: Gpa) -> kvm_x86_mce {
        let common = STATUS_VAL | STATUS_UC | STATUS_EN | STATUS_MISCV | STATUS_ADDRV;
        let status = if self.amd {
            common | STATUS_POISON
        } else {
            common | STATUS_S | STATUS_AR | CODE_DATA_LOAD
        };
        let local = if self.is_local() { MCG_LMCES } else { 0 };
        kvm_x86_mce {
            status,
            addr: gpa.0,
            misc: MISC_PHYSICAL_PAGE,
            mcg_status: MCG_RIPV | MCG_EIPV | MCG_MCIP | local,
            bank: BANK,
            ..Default::default()
        }
    }
}

fn checked(call: &'static str, result: i32) -> Result<(), KvmError> {
    if result == 0 { Ok(()) } else { Err(KvmError { call, source: io::Error::last_os_error() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_the_page_and_is_recoverable() {
        for (amd, status) in [(false, 0xbd80_0000_0000_0134), (true, 0xbc00_0800_0000_0000)] {
            let check = MachineCheck { capabilities: MCG_CTL_P | MCG_SER_P | BANKS, amd };
            let record = check.record(Gpa(0x10_0000_3000));
            assert_eq!((record.status, record.addr), (status, 0x10_0000_3000));
            // Processor context corrupt would be the guest's end.
            assert_eq!(record.status & 1 << 57, 0);
            assert_eq!((record.mcg_status, record.misc), (7, 0x8c));
            assert!(u64::from(record.bank) < BANKS);
        }
    }
}
