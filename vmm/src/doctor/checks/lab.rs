//! What the lab needs of this machine.

use std::path::{Path, PathBuf};

use crate::doctor::{Check, Host};
use crate::lab::mended::can_be_mended;

const QEMU: &str = "lab.qemu";
const PROGRAM: &str = "qemu-system-x86_64";

pub(in crate::doctor) fn all(host: &Host) -> Vec<Check> {
    vec![qemu(host, std::env::var_os("PATH").unwrap_or_default().as_os_str())]
}

fn qemu(host: &Host, path: &std::ffi::OsStr) -> Check {
    match find(host, path) {
        Some(program) => match can_be_mended(&host.path(relative(&program))) {
            Ok(true) => Check::ok(
                QEMU,
                program.display().to_string(),
                "the lab can run: Linux guests on real nested paging, in software emulation",
            ),
            _ => Check::limited(
                QEMU,
                format!("{}, another build than is known", program.display()),
                "the lab can run, but where this QEMU has the fault of 7.2 (an interrupt may be \
                 delivered twice) a guest fails now and then",
                "Debian 12's package qemu-system-x86 is one that neap mends as it starts it",
            ),
        },
        None => Check::missing(
            QEMU,
            format!("no {PROGRAM} on PATH"),
            "the lab cannot run, and neither can the comparison of neap bench boot",
            "install it (Debian: apt-get install qemu-system-x86); neap setup does",
        ),
    }
}

/// The program in the first folder of `path` that has it.
fn find(host: &Host, path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|folder| folder.join(PROGRAM))
        .find(|program| host.path(relative(program)).is_file())
}

/// For a path below a root of the test's own.
fn relative(program: &Path) -> &Path {
    program.strip_prefix("/").unwrap_or(program)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use crate::doctor::host::fixture::host;

    #[test]
    fn the_first_folder_of_the_path_wins() {
        let (_guard, host) =
            host(&[("opt/bin/qemu-system-x86_64", ""), ("usr/bin/qemu-system-x86_64", "")]);
        let check = qemu(&host, "/bin:/usr/bin:/opt/bin".as_ref());
        let value = "/usr/bin/qemu-system-x86_64, another build than is known";
        assert_eq!((check.state, check.value.as_str()), (State::Limited, value));
        assert_eq!(qemu(&host, "/bin".as_ref()).state, State::Missing);
    }
}
