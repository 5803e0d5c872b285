//! What a `neap run` leaves when it is refused or killed: no process and no
//! file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use neap_tests::Neap;
use neap_tests::refusal::{Folder, names, refused};
use neap_tests::terminal::Terminal;
use neap_vmm::payload;
use rustix::process::Signal;

/// Where a run may leave things: its folder for temporary files and the one
/// it was started in.
struct Places(Folder);

impl Places {
    fn new() -> Self {
        let folder = Folder::new();
        for name in ["tmp", "cwd"] {
            fs::create_dir(folder.path(name)).unwrap();
        }
        Self(folder)
    }

    fn run(&self, options: &str) -> Neap {
        let mut neap = self.0.run(options).env("TMPDIR", self.0.path("tmp"));
        neap.command().current_dir(self.0.path("cwd"));
        neap
    }

    #[track_caller]
    fn assert_empty(&self) {
        for name in ["tmp", "cwd"] {
            assert_eq!(names(&self.0.path(name)), [""; 0], "{name}");
        }
        assert_eq!(processes_with(&self.0.path("tmp")), [""; 0]);
    }
}

/// Command lines of the processes that have `folder` in their environment,
/// as everything that a run starts has.
fn processes_with(folder: &Path) -> Vec<String> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let process = entry.unwrap().path();
        // Gone meanwhile, somebody else's, or no process.
        let Ok(environment) = fs::read(process.join("environ")) else { continue };
        if environment.windows(needle.len()).any(|window| window == needle) {
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            found.push(String::from_utf8_lossy(&line).replace('\0', " "));
        }
    }
    found
}

#[test]
fn by_a_run_that_is_refused() {
    let places = Places::new();
    for (options, part) in [
        ("--cpus 0", "--cpus"),
        ("--initrd /nonexistent/initrd", "--initrd"),
        ("--device-memory size=4T,backing=hugetlb", "--device-memory"),
        ("--exit-stats /nonexistent/x", "--exit-stats"),
        ("--exit-stats stats.json --initrd /nonexistent/initrd", "--initrd"),
        (
            "--policy heat --device-memory size=0,pool=2M --heat-trace seen \
             --exit-stats /nonexistent/x",
            "--exit-stats",
        ),
        (
            "--policy heat --device-memory size=0,pool=2M --heat-trace seen \
             --api-socket /nonexistent/x",
            "--api-socket",
        ),
    ] {
        refused(places.run(options), &[part]);
        places.assert_empty();
    }
}

#[test]
fn by_a_run_that_is_killed() {
    let places = Places::new();
    places.0.file("kernel", &payload::stay_elf());
    let mut neap = places.run("--cpus 4 --memory 64M --device-memory size=64M,backing=memfd");
    let mut terminal = Terminal::new();
    neap.command().stdout(terminal.program());
    let guest = neap.start();
    terminal.wait_for("N", Duration::from_secs(10));
    // What is asserted to be gone is there now.
    assert_eq!(processes_with(&places.0.path("tmp")).len(), 1);
    guest.signal(Signal::KILL);
    assert_eq!(guest.wait().status, None);
    places.assert_empty();
}
