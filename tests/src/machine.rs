//! A machine that counts and never exits, behind an API socket: it needs a KVM
//! that makes machines, and no Linux guest.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use neap_vmm::payload;
use rustix::process::Signal;
use serde_json::Value;

use crate::command::{Ended, Neap, Running};
use crate::refusal::{Folder, refused};

/// For a machine to be there.
const LIMIT: Duration = Duration::from_secs(20);
/// RAM, all of it there, and a pool of half its size; the guest counts and never exits.
pub const TIERS: &str = "--memory 64M,prefault=on --device-memory size=0,pool=32M";

/// A machine that counts, behind a socket.
#[derive(Debug)]
pub struct Machine {
    /// Where its kernel and its socket are.
    pub folder: Folder,
    /// Its process.
    pub running: Running,
}

impl Machine {
    /// Starts one in a folder of its own.
    pub fn start(options: &str) -> Self {
        Self::start_in(Folder::new(), options)
    }

    /// Starts one in this folder.
    pub fn start_in(folder: Folder, options: &str) -> Self {
        folder.file("kernel", &payload::count_elf());
        let socket = folder.path("vm.sock");
        let running = folder.run(options).args(["--api-socket"]).args([&socket]).start();
        wait_for(&socket);
        Self { folder, running }
    }

    /// `neap ctl` of this machine.
    pub fn ctl(&self, arguments: &str) -> Neap {
        ctl(&self.folder.path("vm.sock"), arguments)
    }

    /// What `ctl` prints; it must succeed.
    #[track_caller]
    pub fn tells(&self, arguments: &str) -> String {
        let ended = self.ctl(arguments).run().expect_status(0);
        assert_eq!(ended.stderr, "");
        ended.stdout
    }

    /// The same as JSON.
    #[track_caller]
    pub fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.tells(&format!("{arguments} --json"))).unwrap()
    }

    /// It must be refused, with these parts in the message.
    #[track_caller]
    pub fn refuses(&self, arguments: &str, parts: &[&str]) {
        refused(self.ctl(arguments), parts);
    }

    /// Ends it by a signal.
    pub fn end(self, signal: Signal) -> (Folder, Ended) {
        self.running.signal(signal);
        (self.folder, self.running.wait())
    }
}

/// Waits until somebody listens.
#[track_caller]
pub fn wait_for(socket: &Path) {
    let end = Instant::now() + LIMIT;
    while UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < end, "no socket within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `neap ctl` of the machine behind `socket`.
pub fn ctl(socket: &Path, arguments: &str) -> Neap {
    Neap::new(["ctl", "--socket"]).args([socket]).args(arguments.split_whitespace())
}
