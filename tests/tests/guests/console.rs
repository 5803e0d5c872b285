//! The serial console on a terminal: a shell in the guest, typed at.

use std::time::Duration;

use libtest_mimic::Trial;
use neap_tests::Neap;
use neap_tests::terminal::Terminal;
use neap_vmm::images;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("console::a_shell_is_typed_at_and_the_terminal_restored", shell),
        trial("console::ctrl_a_x_ends_the_guest", escape),
    ]
}

const LIMIT: Duration = Duration::from_secs(60);

fn boot(terminal: &Terminal) -> Neap {
    let images = images::locate().unwrap();
    let mut neap = Neap::new(["run", "--cmdline", "console=ttyS0 panic=-1 quiet loglevel=1"])
        .args([&"--kernel".into(), &images.vmlinux, &"--initrd".into(), &images.initramfs])
        .stdin(terminal.program())
        .deadline(LIMIT * 2);
    neap.command().stdout(terminal.program());
    neap
}

fn shell() {
    let mut terminal = Terminal::new();
    let guest = boot(&terminal).start();
    terminal.wait_for("neap-guest: up", LIMIT);
    assert!(!terminal.is_cooked());
    terminal.wait_for("# ", LIMIT);
    // Longer than the FIFO of a 16550, so that input has to wait for room.
    let long = "x".repeat(300);
    terminal.enter(&format!("echo {long} | wc -c; sleep 30\n"));
    terminal.wait_for("301", LIMIT);
    // Ctrl-C is the guest's.
    terminal.enter("\x03");
    terminal.wait_for("# ", LIMIT);
    terminal.enter("exit\n");
    guest.wait().expect_status(0);
    assert!(terminal.is_cooked());
}

fn escape() {
    let mut terminal = Terminal::new();
    let guest = boot(&terminal).start();
    terminal.wait_for("neap-guest: up", LIMIT);
    terminal.enter("\x01x");
    let ended = guest.wait().expect_status(0);
    assert!(ended.stderr.contains("ended from the console"), "{}", ended.stderr);
    assert!(terminal.is_cooked());
}
