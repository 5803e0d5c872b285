//! CPUID of each vCPU: what KVM supports, with the topology of this guest.
//!
//! One package holds the vCPUs of one NUMA node, one thread a core; the
//! local APIC ids of [`crate::topology::Cpu`] have the package above
//! `core_bits` bits of core number.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The topology that CPUID tells a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    /// Local APIC id.
    pub apic_id: u32,
    /// Bits of the APIC id that number cores within a package.
    pub core_bits: u32,
    /// vCPUs in the guest.
    pub cpus: u32,
}

impl CpuTopology {
    /// Cores in a package, rounded up to a power of two as CPUID has it.
    fn cores(self) -> u32 {
        1 << self.core_bits
    }
}

/// Physical address bits of a processor that does not say (Intel SDM volume
/// 2A, CPUID).
const DEFAULT_ADDRESS_BITS: u8 = 36;

/// Physical address bits that a guest can use (leaf 0x8000_0008 of what KVM
/// supports): EAX bits 23:16 where KVM sets them, because its second-level page
/// tables reach less far than the processor, otherwise bits 7:0.
pub fn address_bits(cpuid: &CpuId) -> u8 {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    match leaf.map(|entry| [(entry.eax >> 16) as u8, entry.eax as u8]) {
        None => DEFAULT_ADDRESS_BITS,
        Some([0, bits]) => bits,
        Some([guest, bits]) => guest.min(bits),
    }
}

/// Whether the processor is one of AMD's, or Hygon's, which has its machine
/// checks.
pub fn is_amd(cpuid: &CpuId) -> bool {
    let leaf = cpuid.as_slice().iter().find(|entry| entry.function == 0);
    let name = leaf.map(|entry| [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes).concat());
    name.is_some_and(|name| name == b"AuthenticAMD" || name == b"HygonGenuine")
}

/// Physical address bits of the host; needs no KVM.
pub fn host_address_bits() -> u8 {
    use std::arch::x86_64::__cpuid;
    match __cpuid(0x8000_0000).eax {
        0x8000_0008.. => (__cpuid(0x8000_0008).eax & 0xff) as u8,
        _ => DEFAULT_ADDRESS_BITS,
    }
}

/// Adapts `supported` to one vCPU.
pub fn adapt(supported: &CpuId, topology: CpuTopology) -> CpuId {
    let mut cpuid = supported.clone();
    // Leaves 0x1f and 0x8000_0026 repeat 0xb in finer steps and hold the
    // host's numbers; without them Linux uses 0xb.
    cpuid.retain(|entry| !matches!(entry.function, 0xb | 0x1f | 0x8000_0026));
    let amd = is_amd(&cpuid);
    for entry in cpuid.as_mut_slice() {
        adapt_entry(entry, topology);
        // Machine checks that the guest can recover from (MCA overflow recovery,
        // SUCCOR): without them its kernel panics at any.
        if amd && entry.function == 0x8000_0007 {
            entry.ebx |= 0b11;
        }
    }
    for entry in extended_topology(topology) {
        // There is room: KVM's list is far from its limit of 256.
        let _ = cpuid.push(entry);
    }
    cpuid
}

/// Leaf 0xb: level 0 is threads of a core, level 1 cores of a package, level 2
/// ends the list. KVM itself offers level 0 only, and empty.
fn extended_topology(topology: CpuTopology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift, count, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: topology.apic_id,
        ..Default::default()
    };
    const NONE: u32 = 0;
    const THREAD: u32 = 1;
    const CORE: u32 = 2;
    let cores = topology.cpus.min(topology.cores());
    [level(0, 0, 1, THREAD), level(1, topology.core_bits, cores, CORE), level(2, 0, 0, NONE)]
}

fn set_bits(register: &mut u32, low: u32, width: u32, value: u32) {
    let mask = ((1u64 << width) - 1) as u32;
    *register = (*register & !(mask << low)) | ((value & mask) << low);
}

fn adapt_entry(entry: &mut kvm_cpuid_entry2, topology: CpuTopology) {
    let cores = topology.cores();
    match entry.function {
        0x1 => {
            set_bits(&mut entry.ebx, 8, 8, 8); // CLFLUSH: 64 bytes
            set_bits(&mut entry.ebx, 16, 8, cores);
            set_bits(&mut entry.ebx, 24, 8, topology.apic_id);
            // No virtualisation in the guest: nothing here needs it, and
            // Linux spends a tenth of a second of a boot on it in the lab.
            set_bits(&mut entry.ecx, 5, 1, 0);
            // KVM's local APIC has the TSC-deadline timer on every host, and
            // one exit arms it instead of three.
            set_bits(&mut entry.ecx, 24, 1, 1);
            set_bits(&mut entry.ecx, 31, 1, 1); // a hypervisor is present
            set_bits(&mut entry.edx, 28, 1, u32::from(cores > 1));
        }
        // Deterministic cache parameters, Intel and AMD.
        0x4 | 0x8000_001d if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level >= 3 { cores } else { 1 };
            set_bits(&mut entry.eax, 14, 12, sharing - 1);
            if entry.function == 0x4 {
                set_bits(&mut entry.eax, 26, 6, cores - 1);
            }
        }
        0x8000_0001 => {
            set_bits(&mut entry.ecx, 1, 1, u32::from(cores > 1)); // CmpLegacy
            set_bits(&mut entry.ecx, 2, 1, 0); // SVM, as VMX above
        }
        0x8000_0008 => {
            set_bits(&mut entry.ecx, 0, 8, cores - 1);
            set_bits(&mut entry.ecx, 12, 4, topology.core_bits);
        }
        0x8000_001e => {
            entry.eax = topology.apic_id;
            entry.ebx = topology.apic_id & (cores - 1);
            entry.ecx = topology.apic_id >> topology.core_bits;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, eax: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| (entry.function, entry.index) == (function, index))
            .unwrap()
    }

    #[test]
    fn every_leaf_tells_the_same_topology() {
        let l3 = 3 << 5 | 3;
        let l1 = 1 << 5 | 1 | 0x3f << 14;
        let supported = CpuId::from_entries(&[
            entry(1, 0, 0),
            entry(4, 0, l1),
            entry(4, 3, l3),
            entry(0xb, 0, 7),
            entry(0x1f, 0, 7),
            entry(0x8000_0008, 0, 46),
            entry(0x8000_001e, 0, 9),
        ])
        .unwrap();
        let topology = CpuTopology { apic_id: 6, core_bits: 2, cpus: 8 };
        let cpuid = adapt(&supported, topology);
        assert_eq!(find(&cpuid, 1, 0).ebx, 6 << 24 | 4 << 16 | 8 << 8);
        assert_ne!(find(&cpuid, 1, 0).edx & 1 << 28, 0);
        assert_ne!(find(&cpuid, 1, 0).ecx & 1 << 24, 0);
        assert_eq!(find(&cpuid, 4, 0).eax >> 14 & 0xfff, 0);
        assert_eq!(find(&cpuid, 4, 3).eax >> 14 & 0xfff, 3);
        assert_eq!(find(&cpuid, 4, 3).eax >> 26, 3);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 4, 0x201, 6));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 2 << 12 | 3);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).ecx, 1);
        assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0x1f));
        assert_eq!(address_bits(&cpuid), 46);
        let narrower = CpuId::from_entries(&[entry(0x8000_0008, 0, 48 << 16 | 52)]).unwrap();
        assert_eq!(address_bits(&narrower), 48);
    }

    #[test]
    fn a_single_vcpu_is_a_package_of_one() {
        let supported = CpuId::from_entries(&[entry(1, 0, 0), entry(4, 3, 3 << 5 | 3)]).unwrap();
        let cpuid = adapt(&supported, CpuTopology { apic_id: 0, core_bits: 0, cpus: 1 });
        assert_eq!(find(&cpuid, 1, 0).edx & 1 << 28, 0);
        assert_eq!(find(&cpuid, 4, 3).eax >> 14, 0);
    }
}
