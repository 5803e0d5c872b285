//! What a program in the lab finds around it: environment, working folder,
//! terminal.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::wire::Start;
use super::{INSIDE, LabRequest, host_tiers, terminal};

/// Variables that pass into the lab. Others may name sockets, displays or
/// folders that it does not have.
const PASSED: &[&str] =
    &["TERM", "COLORTERM", "NO_COLOR", "HOME", "USER", "PATH", "LANG", "TZ", "XDG_CACHE_HOME"];
/// Beginnings of names that pass into the lab.
const PASSED_PREFIXES: &[&str] = &["LC_", "RUST_", "PROPTEST_", "NEAP_", "CARGO_"];
/// Mount points of the lab itself: nothing of the host can be put over them.
const OWN: &[&str] = &["/proc", "/sys", "/dev"];

/// Whether the lab can have `folder` as its writable share: not the root,
/// which would make all of the host writable, and no folder of the lab's own.
pub(super) fn may_share(folder: &Path) -> bool {
    folder != Path::new("/")
        && (folder.starts_with("/dev/shm") || !OWN.iter().any(|own| folder.starts_with(own)))
}

/// The program with everything around it, as the agent shall start it.
pub(super) fn start(request: &LabRequest, folder: &Path, share: bool) -> Start {
    let terminal = terminal::size();
    Start {
        program: request.program.as_os_str().into(),
        arguments: request.arguments.clone(),
        environment: filtered(env::vars_os()),
        folder: folder.as_os_str().into(),
        share,
        stderr_on_terminal: terminal.is_some() && terminal::stderr_is_terminal(),
        terminal,
        modules: request
            .host_tiers
            .as_deref()
            .map_or_else(Vec::new, host_tiers::drivers)
            .into_iter()
            .map(OsString::from)
            .collect(),
    }
}

fn filtered(all: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
    let mut passed: Vec<_> = all.filter(|(name, _)| name != INSIDE && passes(name)).collect();
    passed.push((INSIDE.into(), "1".into()));
    // The host's folder for temporary files may not be writable in the lab.
    passed.push(("TMPDIR".into(), "/tmp".into()));
    if !passed.iter().any(|(name, _)| name == "PATH") {
        passed.push(("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()));
    }
    passed
}

fn passes(name: &OsStr) -> bool {
    PASSED.iter().any(|&passed| name == passed)
        || PASSED_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(all: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        filtered(all.iter().map(|(name, value)| (name.into(), value.into())))
    }

    #[test]
    fn only_what_means_something_in_the_lab_passes() {
        let passed = variables(&[
            ("HOME", "/root"),
            ("SSH_AUTH_SOCK", "/tmp/agent"),
            ("NEAP_X", "1"),
            ("TMPDIR", "/var/folders"),
        ]);
        let values = |name: &str| -> Vec<&OsString> {
            passed.iter().filter(|(n, _)| n == name).map(|(_, value)| value).collect()
        };
        assert_eq!(values("HOME"), ["/root"]);
        assert_eq!(values("NEAP_X"), ["1"]);
        assert_eq!(values("TMPDIR"), ["/tmp"]);
        assert!(values("SSH_AUTH_SOCK").is_empty());
    }

    #[test]
    fn a_lab_always_says_that_it_is_one() {
        for before in [&[][..], &[(INSIDE, "0")]] {
            let passed = variables(before);
            assert_eq!(passed.iter().filter(|(n, v)| n == INSIDE && v == "1").count(), 1);
            assert_eq!(passed.iter().filter(|(n, _)| n == INSIDE).count(), 1);
        }
    }

    #[test]
    fn the_root_and_the_lab_s_own_folders_are_not_shared() {
        for folder in ["/", "/proc/1", "/sys", "/dev", "/dev/pts"] {
            assert!(!may_share(Path::new(folder)), "{folder}");
        }
        for folder in ["/home", "/tmp/x", "/dev/shm/x", "/process", "/run/user/0"] {
            assert!(may_share(Path::new(folder)), "{folder}");
        }
    }
}
