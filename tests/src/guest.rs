//! A Linux guest that runs a job and powers off.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use neap_vmm::images::{self, GuestImages, InheritedFile, Job};
use neap_vmm::lab;

use crate::command::{Ended, Neap, Running};

/// For one guest in the lab on a busy machine; idle it takes 3 to 10 s.
const DEADLINE: Duration = Duration::from_secs(120);

/// Which image of the kernel boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Uncompressed ELF.
    Vmlinux,
    /// Compressed.
    BzImage,
}

/// What the guest prints when its job is over, with the job's exit status.
const JOB_ENDED: &str = "neap-guest: exit";

/// A guest about to boot.
#[derive(Clone, Debug)]
pub struct Guest {
    images: GuestImages,
    image: Image,
    cmdline: String,
    job: Job,
    options: Vec<String>,
    cgroup: Option<PathBuf>,
    input: Option<Arc<File>>,
    deadline: Duration,
}

/// A guest that boots or runs; the initrd lives as long.
#[derive(Debug)]
pub struct Booted {
    running: Running,
    _initrd: InheritedFile,
}

impl Guest {
    /// A guest that runs `job`.
    pub fn with_job(job: Job) -> Self {
        let images = images::locate().unwrap();
        let cmdline = "console=ttyS0 panic=-1 panic_on_warn=1 quiet loglevel=1".to_owned();
        Self {
            images,
            image: Image::Vmlinux,
            cmdline,
            job,
            options: Vec::new(),
            cgroup: None,
            input: None,
            deadline: DEADLINE,
        }
    }

    /// A guest that runs a shell script.
    pub fn script(script: &str) -> Self {
        Self::with_job(Job::script(script))
    }

    /// Boots another image of the kernel.
    pub fn image(mut self, image: Image) -> Self {
        self.image = image;
        self
    }

    /// Options of `neap run`, as one would type them.
    pub fn options(mut self, text: &str) -> Self {
        self.options.extend(text.split_whitespace().map(str::to_owned));
        self
    }

    /// Has `neap` run in this cgroup, given by its folder.
    pub fn within(mut self, cgroup: &Path) -> Self {
        self.cgroup = Some(cgroup.to_owned());
        self
    }

    /// What comes out of this is typed at the guest's console.
    pub fn input(mut self, input: File) -> Self {
        self.input = Some(Arc::new(input));
        self
    }

    /// Another limit for all of it.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// More kernel command line.
    pub fn cmdline(mut self, text: &str) -> Self {
        self.cmdline = format!("{} {text}", self.cmdline);
        self
    }

    /// Starts the guest.
    pub fn boot(self) -> Booted {
        let kernel = match self.image {
            Image::Vmlinux => &self.images.vmlinux,
            Image::BzImage => &self.images.bzimage,
        };
        let initrd = self.job.initrd(&self.images.initramfs).unwrap();
        let initrd = InheritedFile::new("initrd", &initrd).unwrap();
        let run = ["run", "--cmdline", &self.cmdline];
        let neap = match &self.cgroup {
            None => Neap::new(run),
            // It is in there before it takes any memory.
            Some(cgroup) => {
                let join = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
                Neap::of_program("sh", ["-c", join])
                    .args([cgroup.as_os_str()])
                    .args([crate::neap()])
                    .args(run)
            }
        };
        let neap = match &self.input {
            None => neap,
            Some(input) => neap.stdin(input.try_clone().unwrap()),
        };
        let neap = neap
            .args([&"--kernel".into(), kernel, &"--initrd".into(), &initrd.path()])
            .args(&self.options)
            .deadline(self.deadline);
        Booted { running: neap.start(), _initrd: initrd }
    }

    /// Boots the guest and waits for its power-off; the job must succeed.
    ///
    /// In the lab a guest that never reaches the end of its job gets one more
    /// try, which is said: emulation fails guests with several vCPUs now and
    /// then. A job that fails does not.
    #[track_caller]
    pub fn run(self) -> Ended {
        let again = self.clone();
        let mut ended = self.boot().wait();
        if !ended.stdout.contains(JOB_ENDED) && lab::inside() {
            eprintln!("the guest did not reach the end of its job in the lab; once more. It said:");
            eprintln!("{}{}", ended.stdout, ended.stderr);
            ended = again.boot().wait();
        }
        let ended = ended.expect_status(0);
        assert_eq!(ended.expect_line(JOB_ENDED), "neap-guest: exit 0", "{}", ended.stdout);
        ended
    }
}

impl Booted {
    /// The process.
    pub fn running(&self) -> &Running {
        &self.running
    }

    /// Waits for its end, however that comes.
    pub fn wait(self) -> Ended {
        self.running.wait()
    }
}
