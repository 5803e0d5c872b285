//! KVM: is it there, how does it run guest code, and which of its newer
//! abilities does it have.

use kvm_bindings::{KVM_CAP_MEMORY_FAULT_INFO, KVM_CAP_PRE_FAULT_MEMORY};
use kvm_ioctls::Kvm;

use crate::doctor::guest_mode::{GuestMode, MeasureError, Speeds, figure, verdict};
use crate::doctor::{Check, Host};

const DEVICE: &str = "kvm.device";
const KERNEL_MODE: &str = "kvm.guest_kernel_mode";
const PAGING: &str = "kvm.second_level_paging";

pub(in crate::doctor) fn all(host: &Host, measured: &Result<Speeds, MeasureError>) -> Vec<Check> {
    let kvm = Kvm::new();
    vec![
        device(&kvm),
        kernel_mode(measured),
        second_level_paging(host),
        capability(
            &kvm,
            "kvm.memory_fault_info",
            KVM_CAP_MEMORY_FAULT_INFO,
            "a guest access that the host cannot serve is reported with its address",
            "such an access ends the guest with no address in the message; Linux 6.8 has it",
        ),
        capability(
            &kvm,
            "kvm.pre_fault_memory",
            KVM_CAP_PRE_FAULT_MEMORY,
            "second-level page tables can be refilled after a move, before the guest faults",
            "the guest faults on each page after a move; Linux 6.11 with EPT or NPT has it",
        ),
    ]
}

fn device(kvm: &Result<Kvm, kvm_ioctls::Error>) -> Check {
    const MEANING: &str = "no guest runs on this kernel; the lab has a KVM of its own";
    match kvm {
        Ok(kvm) => Check::ok(
            DEVICE,
            format!(
                "/dev/kvm, API version {}, at most {} vCPUs",
                kvm.get_api_version(),
                kvm.get_max_vcpus()
            ),
            "virtual machines can be made here",
        ),
        Err(error) if error.errno() == libc::ENOENT => Check::missing(
            DEVICE,
            "no /dev/kvm",
            MEANING,
            "load kvm_intel or kvm_amd, switch virtualization on in the firmware, or use the lab",
        ),
        Err(error) if error.errno() == libc::EACCES || error.errno() == libc::EPERM => {
            Check::missing(
                DEVICE,
                "/dev/kvm may not be opened by this user",
                MEANING,
                "add the user to the group that owns /dev/kvm and log in again",
            )
        }
        Err(error) => Check::missing(
            DEVICE,
            format!("/dev/kvm: {error}"),
            MEANING,
            "see the kernel log for why kvm_intel or kvm_amd does not work, or use the lab",
        ),
    }
}

fn kernel_mode(measured: &Result<Speeds, MeasureError>) -> Check {
    const ADVICE: &str = "nothing: commands that need a Linux guest go to the lab by themselves";
    let figures = match measured {
        Ok(speeds) => format!(
            "{} million instructions a second, {} in guest user mode (measured)",
            figure(speeds.kernel_mips),
            figure(speeds.user_mips)
        ),
        Err(error) => error.to_string(),
    };
    match verdict(measured) {
        GuestMode::Native => Check::ok(
            KERNEL_MODE,
            format!("native: {figures}"),
            "Linux guests run directly on this KVM",
        ),
        GuestMode::Interpreted { .. } => Check::limited(
            KERNEL_MODE,
            format!("interpreted: {figures}"),
            "payloads in guest user mode are fast, but a Linux guest would take many minutes",
            ADVICE,
        ),
        GuestMode::NoKvm(reason) => {
            Check::missing(KERNEL_MODE, reason, "Linux guests run in the lab", ADVICE)
        }
    }
}

fn second_level_paging(host: &Host) -> Check {
    let found =
        [("kvm_intel", "ept"), ("kvm_amd", "npt")].into_iter().find_map(|(module, name)| {
            let value = host.text(format!("sys/module/{module}/parameters/{name}"))?;
            Some((module, name, value == "Y" || value == "1"))
        });
    let meaning = "KVM keeps shadow page tables: each move and each guest page-table change \
                   costs more";
    match found {
        Some((module, name, true)) => Check::ok(
            PAGING,
            format!("{} by {module}{}", name.to_uppercase(), tdp_mmu(host)),
            "a remap under a guest costs no more than dropping second-level entries",
        ),
        Some((module, name, false)) => Check::limited(
            PAGING,
            format!("{module} has {name}=N"),
            meaning,
            format!("load {module} with {name}=1, if the processor has it"),
        ),
        None => {
            let modules: Vec<String> = host
                .names("sys/module")
                .into_iter()
                .filter(|name| name.starts_with("kvm_"))
                .collect();
            let value = if modules.is_empty() {
                "neither kvm_intel nor kvm_amd is loaded".to_owned()
            } else {
                format!("neither kvm_intel nor kvm_amd, but {}", modules.join(", "))
            };
            Check::missing(
                PAGING,
                value,
                meaning,
                "use a machine with EPT or NPT, or the lab, for figures of a real second level",
            )
        }
    }
}

fn tdp_mmu(host: &Host) -> &'static str {
    match host.text("sys/module/kvm/parameters/tdp_mmu").as_deref() {
        Some("Y" | "1") => ", with the TDP MMU",
        _ => "",
    }
}

fn capability(
    kvm: &Result<Kvm, kvm_ioctls::Error>,
    name: &'static str,
    number: u32,
    with: &'static str,
    without: &'static str,
) -> Check {
    match kvm {
        Ok(kvm) if kvm.check_extension_raw(number.into()) > 0 => Check::ok(name, "yes", with),
        Ok(_) => Check::missing(
            name,
            "not offered by this KVM",
            without,
            "nothing is lost but what the line above says; a newer kernel may offer it",
        ),
        Err(_) => Check::missing(name, "no KVM to ask", without, "see kvm.device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use crate::doctor::host::fixture::host;

    #[test]
    fn ept_npt_and_neither_are_told_apart() {
        let (_guard, intel) = host(&[
            ("sys/module/kvm_intel/parameters/ept", "Y\n"),
            ("sys/module/kvm/parameters/tdp_mmu", "Y\n"),
        ]);
        let check = second_level_paging(&intel);
        assert_eq!(check.state, State::Ok);
        assert_eq!(check.value, "EPT by kvm_intel, with the TDP MMU");

        let (_guard, amd) = host(&[("sys/module/kvm_amd/parameters/npt", "0\n")]);
        assert_eq!(second_level_paging(&amd).state, State::Limited);

        let (_guard, other) = host(&[("sys/module/kvm_soft/parameters/x", "1\n")]);
        let check = second_level_paging(&other);
        assert_eq!(check.state, State::Missing);
        assert!(check.value.ends_with("kvm_soft"), "{}", check.value);
    }

    #[test]
    fn slow_kernel_mode_is_limited_and_shows_both_speeds() {
        let check = kernel_mode(&Ok(Speeds { kernel_mips: 1.52, user_mips: 4200.4 }));
        assert_eq!(check.state, State::Limited);
        assert!(check.value.starts_with("interpreted: 1.5 million"), "{}", check.value);
        assert!(check.value.contains("4200 in guest user mode"), "{}", check.value);
        let check = kernel_mode(&Ok(Speeds { kernel_mips: 4000.0, user_mips: 4200.0 }));
        assert_eq!(check.state, State::Ok);
    }
}
