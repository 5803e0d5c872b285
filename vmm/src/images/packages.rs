//! The Debian packages that building and running needs: which are missing,
//! by looking for the very file each is needed for, and how they get here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::cache::CacheLock;
use super::error::ImageError;
use super::guarded::{self, Interrupts};
use super::task;

/// Oldest kernel series that the configuration and the tests are for.
const OLDEST_SERIES: u32 = 12;
/// Where Debian's kernel source packages put their tarballs.
const SOURCE_FOLDER: &str = "/usr/src";

/// What a package is recognised by.
#[derive(Clone, Copy, Debug)]
enum Probe {
    /// A program on the search path.
    Program(&'static str),
    /// A file.
    File(&'static str),
    /// busybox that runs without shared libraries.
    StaticBusybox,
}

const BUSYBOX: &str = "/bin/busybox";

/// Needed to build: probe and package.
const BUILD: &[(Probe, &str)] = &[
    (Probe::Program("make"), "make"),
    (Probe::Program("gcc"), "gcc"),
    (Probe::Program("ld"), "binutils"),
    (Probe::File("/usr/lib/x86_64-linux-gnu/libc.a"), "libc6-dev"),
    (Probe::File("/usr/include/gelf.h"), "libelf-dev"),
    (Probe::Program("flex"), "flex"),
    (Probe::Program("bison"), "bison"),
    (Probe::Program("bc"), "bc"),
    (Probe::Program("perl"), "perl"),
    (Probe::Program("lz4"), "lz4"),
    (Probe::Program("xz"), "xz-utils"),
    (Probe::StaticBusybox, "busybox-static"),
];

/// Needed to run the lab, to check ACPI tables, to check a guest's memory
/// from inside while it moves, and to try the README's examples of HTTP.
const RUN: &[(Probe, &str)] = &[
    (Probe::Program("qemu-system-x86_64"), "qemu-system-x86"),
    (Probe::Program("iasl"), "acpica-tools"),
    (Probe::Program("memtester"), "memtester"),
    (Probe::Program("curl"), "curl"),
];

impl Probe {
    fn found(self) -> bool {
        match self {
            Self::Program(name) => program(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
            Self::StaticBusybox => std::fs::read(BUSYBOX).is_ok_and(|elf| is_static(&elf)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Program(name) | Self::File(name) => name,
            Self::StaticBusybox => "a static busybox",
        }
    }
}

/// Where the program called `name` is, searched as a shell would, and in the
/// system folders that the search path of an ordinary user lacks.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// The static busybox, once [`Missing`] says that it is there.
pub(crate) fn busybox() -> &'static Path {
    Path::new(BUSYBOX)
}

/// Whether an ELF executable asks for no dynamic loader: it has no PT_INTERP
/// program header (ELF-64 object file format, figures 1 and 6).
fn is_static(elf: &[u8]) -> bool {
    const PT_INTERP: u64 = 3;
    let field = |offset: usize, len: usize| {
        let bytes = elf.get(offset..offset.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte)))
    };
    let interpreter = || {
        let (table, size, count) = (field(32, 8)?, field(54, 2)?, field(56, 2)?);
        let kinds = (0..count).map(|index| {
            let header = table.checked_add(index.checked_mul(size)?)?;
            field(usize::try_from(header).ok()?, 4)
        });
        Some(kinds.collect::<Option<Vec<_>>>()?.contains(&PT_INTERP))
    };
    elf.starts_with(b"\x7fELF") && interpreter() == Some(false)
}

/// Debian's kernel source package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelSource {
    /// Name of the package, such as `linux-source-6.12`.
    pub package: String,
    /// Its version, such as `6.12.117-1`.
    pub version: String,
    /// The tarball inside.
    pub tarball: PathBuf,
}

/// The minor number of the series that `linux-source-6.N` holds.
fn series(package: &str) -> Option<u32> {
    package.strip_prefix("linux-source-6.")?.parse().ok()
}

/// The newest installed kernel source package that is new enough.
pub(crate) fn kernel_source() -> Option<KernelSource> {
    let entries = std::fs::read_dir(SOURCE_FOLDER).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let package = names
        .filter_map(|name| name.strip_suffix(".tar.xz").map(str::to_owned))
        .filter(|name| series(name).is_some_and(|minor| minor >= OLDEST_SERIES))
        .max_by_key(|name| series(name))?;
    let version = output("dpkg-query", &["--showformat=${Version}", "--show", &package])?;
    let tarball = Path::new(SOURCE_FOLDER).join(format!("{package}.tar.xz"));
    Some(KernelSource { package, version: version.trim().to_owned(), tarball })
}

/// The newest kernel source package that apt knows of.
fn offered_kernel_source() -> Option<String> {
    let names = output("apt-cache", &["search", "--names-only", "^linux-source-6[.][0-9]+$"])?;
    names
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| series(name).is_some_and(|minor| minor >= OLDEST_SERIES))
        .max_by_key(|name| series(name))
        .map(str::to_owned)
}

/// Standard output of a short command, if it exists and succeeds.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a set-up needs packages for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// To run what is built.
    Run,
    /// To compile from somebody's own sources, and to run.
    Compile,
    /// To build the guest kernel, and to run.
    Everything,
}

/// What is not on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Programs and files that were looked for.
    pub what: Vec<String>,
    /// Packages that hold them.
    pub packages: Vec<String>,
}

impl Missing {
    /// Looks for everything that `need` takes.
    pub(crate) fn find(need: Need) -> Self {
        let build = if need == Need::Run { &[] } else { BUILD };
        let mut missing = Self::default();
        for (probe, package) in build.iter().chain(RUN) {
            if !probe.found() {
                missing.what.push(probe.name().to_owned());
                missing.packages.push((*package).to_owned());
            }
        }
        if need == Need::Everything && kernel_source().is_none() {
            missing.what.push("the kernel's source".to_owned());
            let package = offered_kernel_source();
            missing
                .packages
                .push(package.unwrap_or_else(|| format!("linux-source-6.{OLDEST_SERIES}")));
        }
        missing
    }

    /// Whether nothing is missing.
    pub(crate) fn is_empty(&self) -> bool {
        self.packages.is_empty()
    }

    /// The error that says what to install.
    pub(crate) fn error(&self) -> ImageError {
        let (missing, packages) = (self.what.join(", "), self.packages.join(" "));
        if program("apt-get").is_some() {
            ImageError::MissingPackages { missing, packages }
        } else {
            ImageError::NoPackageManager { missing, packages }
        }
    }
}

/// Fails if something that `need` takes is missing and this process may not
/// install it.
pub(crate) fn require_means(need: Need) -> Result<(), ImageError> {
    let missing = Missing::find(need);
    let able = rustix::process::geteuid().is_root() && program("apt-get").is_some();
    if missing.is_empty() || able { Ok(()) } else { Err(missing.error()) }
}

/// Installs what `need` lacks, if this process may.
pub(crate) fn ensure(
    need: Need,
    lock: &CacheLock,
    interrupts: &Interrupts,
) -> Result<(), ImageError> {
    let missing = Missing::find(need);
    if missing.is_empty() {
        return Ok(());
    }
    require_means(need)?;
    let log = lock.cache().log("packages");
    let apt = |step: &str, args: &[&str]| {
        let mut command = guarded::command("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-y"]).args(args);
        // Another apt-get at work, as on a machine that just started.
        command.args(["-o", "DPkg::Lock::Timeout=120"]);
        task::run(step, None, &mut command, &log, interrupts)
    };
    apt("updating the package lists", &["update"])?;
    // The lists may now offer a newer kernel source.
    let missing = Missing::find(need);
    let mut args = vec!["install", "--no-install-recommends"];
    args.extend(missing.packages.iter().map(String::as_str));
    apt(&format!("installing {}", missing.packages.join(" ")), &args)?;
    let left = Missing::find(need);
    if left.is_empty() {
        return Ok(());
    }
    Err(ImageError::StillMissing {
        missing: left.what.join(", "),
        packages: left.packages.join(" "),
        log,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_source_packages_are_ordered_by_number_not_by_letter() {
        assert_eq!(series("linux-source-6.12"), Some(12));
        assert!(series("linux-source-6.12") > series("linux-source-6.9"));
        assert_eq!(series("linux-source-5.10"), None);
        assert_eq!(series("linux-source-6.12-rt"), None);
    }

    #[test]
    fn a_program_that_needs_a_loader_is_not_static() {
        let dynamic = std::fs::read("/bin/sh").unwrap();
        assert!(!is_static(&dynamic));
        assert!(!is_static(b"#!/bin/sh\n"));
        assert!(!is_static(&dynamic[..40]));
        // The same file with its loader request taken out.
        let mut elf = dynamic.clone();
        let table = usize::try_from(u64::from_le_bytes(elf[32..40].try_into().unwrap())).unwrap();
        let count = usize::from(u16::from_le_bytes(elf[56..58].try_into().unwrap()));
        for index in 0..count {
            let kind = table + index * 56;
            if elf[kind] == 3 {
                elf[kind] = 0;
            }
        }
        assert!(is_static(&elf));
    }

    #[test]
    fn the_error_names_what_was_looked_for_and_what_to_install() {
        let missing = Missing {
            what: vec!["flex".into(), "bc".into()],
            packages: vec!["flex".into(), "bc".into()],
        };
        let message = missing.error().to_string();
        assert!(message.contains("flex, bc") && message.contains("flex bc"), "{message}");
        assert!(!message.contains('\n'));
    }
}
