//! First state of a vCPU: registers as the boot protocol wants them, MSRs,
//! floating point, local APIC.

use kvm_bindings::{Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use neap_memory::Gpa;

use super::{KvmError, named};
use crate::platform;

/// Where and in which mode the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit boot protocol: long mode, identity-mapped page tables, RSI at
    /// the zero page (Documentation/arch/x86/boot.rst, "64-bit boot
    /// protocol").
    Linux64 {
        /// First instruction.
        rip: Gpa,
    },
    /// PVH: 32-bit protected mode without paging, EBX at the start info
    /// (Xen's docs/misc/pvh.pandoc).
    Pvh {
        /// First instruction.
        rip: Gpa,
    },
}

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS bit 1 is always one.
const RFLAGS_FIXED: u64 = 2;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_IA32_FEAT_CTL: u32 = 0x3a;
const FEAT_CTL_LOCKED: u64 = 1;
const FEAT_CTL_LMCE: u64 = 1 << 20;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, default write-back, fixed ranges off.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Offsets of the local interrupt registers in the local APIC, and the
/// delivery modes that the MultiProcessor Specification (section 3.6.2) wants
/// at start: LINT0 external interrupts, LINT1 NMI.
const APIC_LVT0: usize = 0x350;
const APIC_LVT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// Segments of the boot processor in the order of the GDT; the boot protocol
/// fixes selectors 0x10 and 0x18.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x20;
const GDT_ENTRIES: usize = 5;

/// Segment types (Intel SDM volume 3A, section 3.4.5.1): execute/read
/// accessed, read/write accessed, busy 32-bit TSS.
const TYPE_CODE: u8 = 0xb;
const TYPE_DATA: u8 = 0x3;
const TYPE_TSS: u8 = 0xb;

fn segment(selector: u16, type_: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

fn code(entry: Entry) -> kvm_segment {
    segment(CODE_SELECTOR, TYPE_CODE, matches!(entry, Entry::Linux64 { .. }))
}

fn task() -> kvm_segment {
    kvm_segment { limit: 0x67, s: 0, g: 0, db: 0, ..segment(TSS_SELECTOR, TYPE_TSS, false) }
}

/// A segment as the eight bytes of a descriptor (Intel SDM volume 3A,
/// section 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// The GDT that goes to [`platform::GDT`].
pub fn gdt(entry: Entry) -> [u64; GDT_ENTRIES] {
    let code = descriptor(&code(entry));
    let data = descriptor(&segment(DATA_SELECTOR, TYPE_DATA, false));
    [0, 0, code, data, descriptor(&task())]
}

/// Gives the boot processor its first registers.
///
/// # Errors
/// The ioctl that failed.
pub fn set_boot_state(vcpu: &VcpuFd, entry: Entry) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().map_err(named("KVM_GET_SREGS"))?;
    let data = segment(DATA_SELECTOR, TYPE_DATA, false);
    sregs.cs = code(entry);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task();
    sregs.gdt.base = platform::GDT.0;
    sregs.gdt.limit = (GDT_ENTRIES * 8 - 1) as u16;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE;
    let mut regs = kvm_regs { rflags: RFLAGS_FIXED, ..Default::default() };
    match entry {
        Entry::Linux64 { rip } => {
            sregs.cr0 |= CR0_PG;
            sregs.cr3 = platform::PAGE_TABLES.0;
            sregs.cr4 |= CR4_PAE;
            sregs.efer |= EFER_LME | EFER_LMA;
            regs.rip = rip.0;
            regs.rsi = platform::ZERO_PAGE.0;
            regs.rsp = platform::BOOT_STACK.0;
        }
        Entry::Pvh { rip } => {
            regs.rip = rip.0;
            regs.rbx = platform::PVH_START_INFO.0;
        }
    }
    vcpu.set_sregs(&sregs).map_err(named("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(named("KVM_SET_REGS"))
}

/// Gives any vCPU the state that a firmware would: MSRs, floating point,
/// local interrupts.
///
/// # Errors
/// The ioctl that failed.
pub fn set_reset_state(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let fpu = kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() };
    vcpu.set_fpu(&fpu).map_err(named("KVM_SET_FPU"))?;
    set_msr(vcpu, MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING)?;
    set_msr(vcpu, MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)?;
    let mut lapic = vcpu.get_lapic().map_err(named("KVM_GET_LAPIC"))?;
    for (register, mode) in [(APIC_LVT0, DELIVERY_EXTINT), (APIC_LVT1, DELIVERY_NMI)] {
        for (byte, value) in lapic.regs[register..].iter_mut().zip(mode.to_le_bytes()) {
            *byte = value as _;
        }
    }
    vcpu.set_lapic(&lapic).map_err(named("KVM_SET_LAPIC"))
}

/// Lets the guest's kernel have machine checks for one processor alone, as a
/// firmware does.
///
/// # Errors
/// The ioctl that failed.
pub fn allow_local_machine_checks(vcpu: &VcpuFd) -> Result<(), KvmError> {
    set_msr(vcpu, MSR_IA32_FEAT_CTL, FEAT_CTL_LOCKED | FEAT_CTL_LMCE)
}

/// KVM ignores an MSR that this processor does not have (it stops counting
/// there); both of these are hints that a guest can do without.
fn set_msr(vcpu: &VcpuFd, index: u32, data: u64) -> Result<(), KvmError> {
    let entries = [kvm_msr_entry { index, data, ..Default::default() }];
    let Ok(msrs) = Msrs::from_entries(&entries) else { return Ok(()) };
    vcpu.set_msrs(&msrs).map(|_| ()).map_err(named("KVM_SET_MSRS"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_the_flat_ones() {
        let long = gdt(Entry::Linux64 { rip: Gpa(0) });
        assert_eq!(
            long,
            [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]
        );
        let protected = gdt(Entry::Pvh { rip: Gpa(0) });
        assert_eq!(protected[2], 0x00cf_9b00_0000_ffff);
    }
}
