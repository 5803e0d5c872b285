//! What `neap run` says where KVM is missing, foreign, forbidden or slow.
//!
//! The first three get a `/dev` of their own in a private mount namespace,
//! which ends with the process in it. A case that cannot be made here counts
//! as ignored, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use neap_tests::refusal::{Folder, refused};
use neap_tests::terminal::Terminal;
use neap_tests::{Neap, neap};
use neap_vmm::doctor::{GuestMode, guest_mode};
use neap_vmm::{images, lab, payload};
use rustix::process::Signal;

fn main() -> ExitCode {
    let trials = vec![
        Trial::ignorable_test("device::that_is_not_there", || {
            in_private_dev("true", "", &["/dev/kvm is not there", "neap lab"])
        }),
        Trial::ignorable_test("device::that_is_not_kvm", || {
            // The null device by another name.
            in_private_dev("mknod /dev/kvm c 1 3", "", &["/dev/kvm is no KVM device"])
        }),
        Trial::ignorable_test("device::that_this_user_may_not_use", || {
            in_private_dev(
                "mknod -m 600 /dev/kvm c 10 232",
                "setpriv --reuid 65534 --regid 65534 --clear-groups",
                &["/dev/kvm is there, but this user may not use it", "group"],
            )
        }),
        Trial::ignorable_test("speed::a_slow_kvm_is_named_and_the_guest_goes_on", slow_kvm),
        Trial::ignorable_test("speed::a_payload_that_is_no_linux_gets_no_such_line", payload),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

type Outcome = Result<Completion, Failed>;

/// Runs `neap run` as `user` (words before its command line) on a `/dev` that
/// holds what `make` puts there, and asserts the refusal.
fn in_private_dev(make: &str, user: &str, parts: &[&str]) -> Outcome {
    let script = format!("mount -t tmpfs none /dev && {make} && exec {user} \"$@\"");
    let arguments = ["--mount", "sh", "-c", &script, "sh"];
    let possible =
        Command::new("unshare").args(arguments).arg("true").stdin(Stdio::null()).output();
    match possible {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
            return Ok(Completion::ignored_with(format!("no private /dev here: {why}")));
        }
        Err(error) => return Ok(Completion::ignored_with(format!("no unshare(1): {error}"))),
    }
    // Where any user can read it.
    let folder = Folder::new();
    let program = folder.path("neap");
    fs::copy(neap(), &program).unwrap();
    for (path, mode) in
        [(folder.path("."), 0o755), (program.clone(), 0o755), (folder.path("kernel"), 0o644)]
    {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let command = Neap::of_program("unshare", arguments)
        .args([&program])
        .args(["run", "--kernel"])
        .args([folder.path("kernel")]);
    refused(command, parts);
    Ok(Completion::Completed)
}

/// Long enough for the line to come on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn slow_kvm() -> Outcome {
    if let Some(reason) = why_not_slow() {
        return Ok(Completion::ignored_with(reason));
    }
    let images = images::locate().unwrap();
    let mut person = Terminal::new();
    let mut command = Neap::new(["run", "--cmdline", "console=ttyS0 panic=-1", "--kernel"])
        .args([images.vmlinux])
        .stdin(person.program())
        .deadline(LIMIT * 2);
    command.command().stderr(person.program());
    let guest = command.start();
    person.wait_for("neap: this KVM interprets guest kernel mode (", LIMIT);
    assert!(!person.is_cooked());
    let rest = "MIPS): a Linux guest takes minutes; `neap lab -- run ...` is faster\r\n";
    person.wait_for(rest, LIMIT);
    guest.signal(Signal::TERM);
    guest.wait().expect_status(143);
    Ok(Completion::Completed)
}

fn payload() -> Outcome {
    if let Some(reason) = why_not_slow() {
        return Ok(Completion::ignored_with(reason));
    }
    let folder = Folder::new();
    folder.file("kernel", &payload::stay_elf());
    let guest = folder.run("--memory 64M").start();
    // The measurement begins after one second and takes at most one.
    thread::sleep(Duration::from_millis(2500));
    guest.signal(Signal::TERM);
    let ended = guest.wait().expect_status(143);
    assert_eq!(ended.stderr, "neap: stopped by signal 15\n");
    Ok(Completion::Completed)
}

fn why_not_slow() -> Option<String> {
    if lab::inside() {
        return Some("in the lab, where guests are as quick as they get".to_owned());
    }
    match guest_mode() {
        GuestMode::Interpreted { .. } => None,
        GuestMode::Native => Some("KVM runs guest kernel mode natively here".to_owned()),
        GuestMode::NoKvm(why) => Some(format!("no KVM: {why}")),
    }
}
