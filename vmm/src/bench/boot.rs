//! `neap bench boot`: from nothing to a guest's first process, beside QEMU's
//! microvm machine with the same kernel, initramfs, memory and command line.
//!
//! Each side boots once untimed, so that its files are in the page cache, and
//! once more with all of the kernel's messages, to say where the time goes.
//! Then both boot in turn. The clock starts just before the process is made
//! and stops when the line [`MARKER`] has come out of the guest's console.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::child::{Child, Subject};
use super::table::Table;
use super::{BenchError, Figure, Samples};

/// What the first process of the guest image prints first.
pub const MARKER: &str = "neap-guest: up";

/// Limit of each boot.
const LIMIT: Duration = Duration::from_secs(120);
/// Time for a machine that was told to end.
const GRACE: Duration = Duration::from_secs(10);
/// The kernel starts the first process.
const INIT_LINE: &str = "Run /init as init process";

/// Kernel command line of the timed boots.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=t";
/// Kernel command line of the boot that tells where the time goes.
const VERBOSE_CMDLINE: &str = "console=ttyS0 printk.time=1 panic=-1 reboot=t";

/// What both sides boot.
#[derive(Clone, Debug)]
pub struct BootImages {
    /// Kernel: vmlinux (ELF with a PVH note) or bzImage.
    pub kernel: PathBuf,
    /// Initramfs whose first process prints [`MARKER`].
    pub initramfs: PathBuf,
}

/// How to start one side with a given kernel command line.
#[derive(Clone, Debug)]
pub enum Side {
    /// `neap run` of this program.
    Neap(PathBuf),
    /// QEMU, by name or path.
    QemuMicrovm(PathBuf),
}

impl Side {
    /// The command that boots `images` with 512 MiB and one vCPU.
    pub fn subject(&self, images: &BootImages, cmdline: &str) -> Subject {
        let kernel = images.kernel.clone().into_os_string();
        let initramfs = images.initramfs.clone().into_os_string();
        match self {
            Self::Neap(program) => Subject {
                name: "neap".into(),
                program: program.clone(),
                arguments: ["run", "--memory", "512M", "--cpus", "1", "--kernel"]
                    .map(Into::into)
                    .into_iter()
                    .chain([kernel, "--initrd".into(), initramfs])
                    .chain(["--cmdline", cmdline].map(Into::into))
                    .collect(),
            },
            // No device but the console; the timer and the interrupt
            // controller of old PCs stay out, as KVM's own are there.
            Self::QemuMicrovm(program) => Subject {
                name: "QEMU microvm".into(),
                program: program.clone(),
                arguments: [
                    "-M",
                    QEMU_MACHINE,
                    "-accel",
                    "kvm",
                    "-cpu",
                    "host",
                    "-m",
                    "512",
                    "-smp",
                    "1",
                    "-nodefaults",
                    "-no-user-config",
                    "-display",
                    "none",
                    "-serial",
                    "stdio",
                    "-no-reboot",
                    "-kernel",
                ]
                .map(Into::into)
                .into_iter()
                .chain([kernel, "-initrd".into(), initramfs])
                .chain(["-append", cmdline].map(Into::into))
                .collect(),
            },
        }
    }
}

const QEMU_MACHINE: &str = "microvm,pit=off,pic=off,rtc=off,x-option-roms=off";

/// Where the time of one boot went, in milliseconds from its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Stages {
    /// The kernel's first message: the machine is made, the kernel is read,
    /// unpacked and has found its console.
    pub first_message: f64,
    /// The kernel starts the first process.
    pub init: f64,
    /// The kernel's own clock at that moment, which starts with the kernel.
    pub kernel_clock: Option<f64>,
    /// The first process speaks.
    pub marker: f64,
}

/// What the bench found.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Milliseconds to the marker.
    pub ours_ms: Samples,
    /// The same of QEMU.
    pub qemu_ms: Samples,
    /// `boot.vs_qemu_microvm`.
    pub figure: Figure,
    /// Neap's stages.
    pub ours_stages: Stages,
    /// QEMU's stages.
    pub qemu_stages: Stages,
    /// Neap's exits from guest mode by kind, most frequent first.
    pub exits: Vec<(String, u64)>,
    /// The exact commands.
    pub commands: [String; 2],
}

/// Boots both sides `runs` times in turn. `name` is the figure's name.
///
/// # Errors
/// A machine does not come up within its limit, or a file cannot be read.
pub fn measure(
    neap: &Path,
    qemu: &Path,
    images: &BootImages,
    name: &str,
    runs: usize,
) -> Result<Boot, BenchError> {
    if runs == 0 {
        return Err(BenchError::NoRuns(runs));
    }
    let ours = Side::Neap(neap.to_owned());
    let theirs = Side::QemuMicrovm(qemu.to_owned());
    let timed = [&ours, &theirs].map(|side| side.subject(images, CMDLINE));
    let [ours_timed, theirs_timed] = &timed;

    let exits = exits(ours_timed)?;
    boot(theirs_timed)?;
    let ours_stages = stages(&ours.subject(images, VERBOSE_CMDLINE))?;
    let qemu_stages = stages(&theirs.subject(images, VERBOSE_CMDLINE))?;

    let (mut ours_ms, mut qemu_ms) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        ours_ms.push(boot(ours_timed)?);
        qemu_ms.push(boot(theirs_timed)?);
    }
    let samples = |values| {
        Samples::new(values).ok_or_else(|| BenchError::Unexpected("a boot gave no time".into()))
    };
    let (ours_ms, qemu_ms) = (samples(ours_ms)?, samples(qemu_ms)?);
    let figure = Figure::ratio(name, &ours_ms, &qemu_ms)
        .ok_or_else(|| BenchError::Unexpected("a boot took no time".into()))?
        .at_most(0.5);
    Ok(Boot {
        ours_ms,
        qemu_ms,
        figure,
        ours_stages,
        qemu_stages,
        exits,
        commands: timed.each_ref().map(Subject::command_line),
    })
}

/// Milliseconds to the marker.
fn boot(subject: &Subject) -> Result<f64, BenchError> {
    let mut child = Child::spawn(subject, LIMIT)?;
    let up = child.wait_for_text(MARKER)?;
    child.terminate(GRACE)?;
    Ok(ms(up))
}

/// Boots Neap once and reads the exits that it counted up to its end.
fn exits(subject: &Subject) -> Result<Vec<(String, u64)>, BenchError> {
    let folder = tempfile::tempdir().map_err(|source| BenchError::File {
        what: "cannot make a temporary folder; set TMPDIR to a writable one".into(),
        source,
    })?;
    let file = folder.path().join("exits.json");
    let mut subject = subject.clone();
    subject.arguments.extend(["--exit-stats".into(), file.clone().into_os_string()]);
    boot(&subject)?;
    let text = fs::read(&file)
        .map_err(|source| BenchError::File { what: file.display().to_string(), source })?;
    totals(&text)
        .ok_or_else(|| BenchError::Unexpected(format!("{} has no total of exits", file.display())))
}

/// The counts under `total`, most frequent first.
fn totals(json: &[u8]) -> Option<Vec<(String, u64)>> {
    let stats: serde_json::Value = serde_json::from_slice(json).ok()?;
    let total = stats.get("total")?.as_object()?;
    let mut counts: Vec<(String, u64)> = total
        .iter()
        .filter_map(|(kind, count)| Some((kind.clone(), count.as_u64()?)))
        .filter(|(_, count)| *count > 0)
        .collect();
    counts.sort_by(|one, other| other.1.cmp(&one.1).then_with(|| one.0.cmp(&other.0)));
    Some(counts)
}

fn stages(subject: &Subject) -> Result<Stages, BenchError> {
    let mut child = Child::spawn(subject, LIMIT)?;
    let first_message = ms(child.wait_for_output()?);
    let init = ms(child.wait_for_text(INIT_LINE)?);
    let marker = ms(child.wait_for_text(MARKER)?);
    let kernel_clock = kernel_clock(&String::from_utf8_lossy(child.output()));
    child.terminate(GRACE)?;
    Ok(Stages { first_message, init, kernel_clock, marker })
}

/// Milliseconds in front of [`INIT_LINE`]: `[    0.512345] Run /init ...`.
fn kernel_clock(log: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.contains(INIT_LINE))?;
    let (_, rest) = line.split_once('[')?;
    let (seconds, _) = rest.split_once(']')?;
    Some(seconds.trim().parse::<f64>().ok()? * 1e3)
}

impl Boot {
    /// Both sides and the figure, for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new("512 MiB, 1 vCPU", "neap", "QEMU microvm");
        table.row("boot to init", "ms", &self.ours_ms, Some(&self.qemu_ms), &self.figure);
        table
    }

    /// Where the time goes, in lines.
    pub fn explanation(&self) -> String {
        let mut text = String::from("one boot with all kernel messages, ms from its start:\n");
        for (name, stages) in [("neap", &self.ours_stages), ("QEMU microvm", &self.qemu_stages)] {
            text.push_str(&format!("  {name:<12}  {stages}\n"));
        }
        let exits: Vec<String> =
            self.exits.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        text.push_str(&format!("neap's exits of one quiet boot: {}\n", exits.join(", ")));
        text
    }
}

impl std::fmt::Display for Stages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first_message, init, kernel_clock, marker } = self;
        write!(f, "first kernel message {first_message:.0}, kernel starts init {init:.0}")?;
        if let Some(clock) = kernel_clock {
            write!(f, " (by the kernel's own clock {clock:.0})")?;
        }
        write!(f, ", init is up {marker:.0}")
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_sorted_and_zeros_left_out() {
        let json = br#"{"total":{"port_in":3,"port_out":70,"other":0,"mmio_read":3},"vcpus":[]}"#;
        let expected =
            [("port_out", 70), ("mmio_read", 3), ("port_in", 3)].map(|(k, n)| (k.to_owned(), n));
        assert_eq!(totals(json).unwrap(), expected);
        assert!(totals(b"{}").is_none());
    }

    #[test]
    fn the_kernels_clock_is_read_from_the_line_of_init() {
        let log = "[    0.000000] Linux\r\n[    1.250000] Run /init as init process\r\n";
        assert_eq!(kernel_clock(log), Some(1250.0));
        assert_eq!(kernel_clock("Run /init as init process"), None);
    }

    #[test]
    fn both_sides_get_the_same_images_and_command_line() {
        let images = BootImages { kernel: "/k".into(), initramfs: "/i".into() };
        for side in [Side::Neap("neap".into()), Side::QemuMicrovm("qemu".into())] {
            let line = side.subject(&images, "a b").command_line();
            for part in ["/k", "/i", "'a b'", "512", " 1 "] {
                assert!(line.contains(part), "{line}");
            }
        }
    }
}
