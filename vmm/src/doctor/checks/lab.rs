//! What the lab needs of this machine.

use std::path::PathBuf;

use crate::doctor::{Check, Host};

const QEMU: &str = "lab.qemu";
const PROGRAM: &str = "qemu-system-x86_64";

pub(in crate::doctor) fn all(host: &Host) -> Vec<Check> {
    vec![qemu(host, std::env::var_os("PATH").unwrap_or_default().as_os_str())]
}

fn qemu(host: &Host, path: &std::ffi::OsStr) -> Check {
    match find(host, path) {
        Some(program) => Check::ok(
            QEMU,
            program.display().to_string(),
            "the lab can run: Linux guests on real nested paging, in software emulation",
        ),
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
        .find(|program| host.path(program.strip_prefix("/").unwrap_or(program)).is_file())
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
        assert_eq!((check.state, check.value.as_str()), (State::Ok, "/usr/bin/qemu-system-x86_64"));
        assert_eq!(qemu(&host, "/bin".as_ref()).state, State::Missing);
    }
}
