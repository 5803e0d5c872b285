//! The lab's machine as a QEMU command line, composed here and nowhere else.
//!
//! What the choices are for:
//! - speed: no firmware device that nobody uses, and no `-bios` beyond the
//!   default; a `vmlinux` as kernel saves its decompression under emulation;
//! - a clock that is right: the lab's kernel is told how fast the time stamp
//!   counter runs (`clock`), which it would measure against an emulated timer;
//! - steadiness on a loaded machine: an emulated CPU may stand still for a
//!   second, which timer checks, the TSC watchdog and the RCU stall detector
//!   would take for a fault; and a thread of its own for each emulated CPU,
//!   which uses as many of the host's;
//! - an end that is certain: a panic or oops of the lab's kernel reboots,
//!   and QEMU ends instead of rebooting.

use std::ffi::{OsStr, OsString};
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use neap_memory::addr::MIB;

use super::{LabError, LabImages, host_tiers};

/// Name of the port through which the host side and the agent speak.
pub const PORT_NAME: &str = "neap.lab";
/// Mount tag of the working folder's writable share.
pub const SHARE_TAG: &str = "work";
/// Mount tag of the host's root (see guest-images/lab-init).
const ROOT_TAG: &str = "root";
/// An AMD processor with nested paging. Without XSAVE: the emulation does not
/// tell KVM of a guest's XSETBV, and CPUID would contradict the guest's state
/// (Linux warns of an "XSAVE consistency problem").
const CPU: &str =
    "EPYC,+svm,+npt,phys-bits=48,-xsave,-xsaveopt,-xsavec,-xgetbv1,-avx,-avx2,-fma,-f16c";
/// How far, in millionths, the TSC rate that KVM took first may be from the
/// one that the lab's kernel finds later. Emulation makes the first estimate
/// rough. Beyond the usual 250 KVM wants to scale, cannot, and leaves a scale
/// of zero: each deadline timer of a guest then fires late by as long as the
/// lab has been up (arch/x86/kvm/x86.c, `set_tsc_khz`). The kernel refuses a
/// second estimate that is off by more than 10000, so this is enough.
const TSC_TOLERANCE_PPM: u32 = 50_000;
/// Longest kernel command line without its final NUL, in bytes
/// (`COMMAND_LINE_SIZE`, arch/x86/include/asm/setup.h).
const CMDLINE_MAX: usize = 2047;

/// One lab machine.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// What it boots.
    pub images: &'a LabImages,
    /// RAM in bytes.
    pub memory: u64,
    /// Emulated CPUs.
    pub cpus: u32,
    /// `neap` on the host, absolute: the agent.
    pub agent: &'a Path,
    /// Folder of the host that the lab may write to.
    pub share: Option<&'a Path>,
    /// A connected socket that QEMU inherits: the other end of the port.
    pub port: RawFd,
    /// Let the kernel print all its messages, not only errors.
    pub verbose: bool,
    /// How fast the time stamp counter runs, in kilohertz, if that is known.
    pub tsc_khz: Option<u64>,
    /// Nodes and soft-reserved memory ([`host_tiers`]).
    pub host_tiers: bool,
}

impl Machine<'_> {
    /// The arguments for `qemu-system-x86_64`.
    ///
    /// # Errors
    /// The path of the agent is too long for the kernel's command line.
    pub fn arguments(&self) -> Result<Vec<OsString>, LabError> {
        let mut line = CommandLine::default();
        let hmat = if self.host_tiers { ",hmat=on" } else { "" };
        line.put("-name", "neap-lab")
            .flag("-nodefaults")
            .flag("-no-user-config")
            .put("-machine", format!("q35,smbus=off,sata=off,i8042=off,vmport=off{hmat}"))
            .put("-accel", "tcg,thread=multi")
            .put("-cpu", CPU)
            .put("-smp", self.cpus.to_string())
            .put("-m", format!("{}M", self.memory / MIB))
            .put("-display", "none")
            .flag("-no-reboot");
        if self.host_tiers {
            for (name, value) in host_tiers::arguments(self.memory, self.cpus) {
                line.put(name, value);
            }
        }
        line.put("-chardev", "stdio,id=console,signal=off").put("-serial", "chardev:console");
        line.put("-chardev", format!("socket,id=port,fd={}", self.port))
            .put("-device", "virtio-serial-pci,max_ports=2")
            .put("-device", format!("virtserialport,chardev=port,name={PORT_NAME}"));
        line.share(ROOT_TAG, Path::new("/"), true);
        if let Some(folder) = self.share {
            line.share(SHARE_TAG, folder, false);
        }
        line.put("-kernel", &self.images.kernel)
            .put("-initrd", &self.images.initramfs)
            .put("-append", self.kernel_command_line()?);
        Ok(line.0)
    }

    fn kernel_command_line(&self) -> Result<String, LabError> {
        let messages = if self.verbose { "loglevel=7" } else { "quiet" };
        let agent = escape(self.agent.as_os_str());
        let tiers = match self.host_tiers {
            true => format!(" {}", host_tiers::kernel_command_line(self.memory)),
            false => String::new(),
        };
        let clock = self.tsc_khz.map_or(String::new(), |khz| format!("tsc_early_khz={khz} "));
        let line = format!(
            "console=ttyS0 {messages} panic=-1 oops=panic no_timer_check tsc=reliable \
             rcupdate.rcu_cpu_stall_suppress=1 random.trust_cpu=on \
             {clock}kvm.tsc_tolerance_ppm={TSC_TOLERANCE_PPM} lab_agent={agent}{tiers}"
        );
        if line.len() > CMDLINE_MAX {
            return Err(LabError::AgentPath { path: self.agent.into() });
        }
        Ok(line)
    }
}

#[derive(Default)]
struct CommandLine(Vec<OsString>);

impl CommandLine {
    fn flag(&mut self, name: &str) -> &mut Self {
        self.0.push(name.into());
        self
    }

    fn put(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.0.push(name.into());
        self.0.push(value.as_ref().into());
        self
    }

    /// A folder of the host, with whatever is mounted in it, as a 9p share.
    fn share(&mut self, tag: &str, folder: &Path, read_only: bool) {
        let mut device = format!("local,id={tag},security_model=none,multidevs=remap").into_bytes();
        if read_only {
            device.extend(b",readonly=on");
        }
        device.extend(b",path=");
        for &byte in folder.as_os_str().as_bytes() {
            // QEMU's options end at a comma; two stand for one in a value.
            device.extend(std::iter::repeat_n(byte, if byte == b',' { 2 } else { 1 }));
        }
        self.put("-fsdev", OsString::from_vec(device))
            .put("-device", format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"));
    }
}

/// A path for the kernel's command line, which splits at spaces and has
/// quotes: all but plain characters become `\0NNN`, as `printf %b` reads it.
fn escape(path: &OsStr) -> String {
    let mut out = String::with_capacity(path.len());
    for &byte in path.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-+".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("\\0{byte:03o}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arguments(agent: &str, share: Option<&str>) -> Result<Vec<String>, LabError> {
        let images = LabImages { kernel: "/k".into(), initramfs: "/i".into() };
        let machine = Machine {
            images: &images,
            memory: 6144 * MIB,
            cpus: 2,
            agent: Path::new(agent),
            share: share.map(Path::new),
            port: 7,
            verbose: false,
            tsc_khz: Some(2_100_000),
            host_tiers: false,
        };
        Ok(machine.arguments()?.into_iter().map(|a| a.into_string().unwrap()).collect())
    }

    fn values<'a>(arguments: &'a [String], name: &str) -> Vec<&'a str> {
        arguments.windows(2).filter(|pair| pair[0] == name).map(|pair| pair[1].as_str()).collect()
    }

    #[test]
    fn the_root_is_never_writable() {
        let line = arguments("/neap", Some("/work")).unwrap();
        let shares = values(&line, "-fsdev");
        assert_eq!(shares.len(), 2);
        for share in shares {
            assert_eq!(share.contains("readonly=on"), share.ends_with(",path=/"), "{share}");
        }
    }

    #[test]
    fn without_a_share_only_the_root_is_there() {
        assert_eq!(values(&arguments("/neap", None).unwrap(), "-fsdev").len(), 1);
    }

    #[test]
    fn the_port_is_the_inherited_socket() {
        let line = arguments("/neap", None).unwrap();
        assert!(values(&line, "-chardev").contains(&"socket,id=port,fd=7"));
    }

    #[test]
    fn commas_do_not_end_a_share() {
        let line = arguments("/neap", Some("/a,readonly=on,b")).unwrap();
        assert!(values(&line, "-fsdev")[1].ends_with(",path=/a,,readonly=on,,b"));
    }

    #[test]
    fn an_agent_path_that_does_not_fit_is_refused() {
        let path = format!("/{}", "x".repeat(CMDLINE_MAX));
        assert!(matches!(arguments(&path, None), Err(LabError::AgentPath { .. })));
    }

    proptest! {
        #[test]
        fn escaped_paths_are_one_word_and_come_back(bytes in proptest::collection::vec(1..=255u8, 0..60)) {
            let escaped = escape(OsStr::from_bytes(&bytes));
            prop_assert!(escaped.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'='));
            // What `printf %b` does.
            let mut back = Vec::new();
            let mut rest = escaped.as_bytes();
            while let Some((&byte, tail)) = rest.split_first() {
                rest = tail;
                if byte == b'\\' {
                    let (digits, tail) = rest.split_at(4);
                    rest = tail;
                    back.push(digits.iter().fold(0u16, |n, d| n * 8 + u16::from(d - b'0')) as u8);
                } else {
                    back.push(byte);
                }
            }
            prop_assert_eq!(back, bytes);
        }
    }
}
