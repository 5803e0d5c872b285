//! What a guest is to do: a script with variables and arguments, carried by
//! a small archive that is appended to the guest's initramfs. Nothing of it
//! depends on the kernel's command line.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use neap_memory::Gpa;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use super::archive::{Archive, pad};
use super::recipes;

/// A job for a guest's `/init`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    script: String,
    variables: Vec<(&'static str, String)>,
    arguments: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
}

impl Job {
    /// Runs any script of busybox's sh.
    pub fn script(script: impl Into<String>) -> Self {
        Self { script: script.into(), ..Self::default() }
    }

    /// Runs hmm-tests with `arguments` on two windows of 256 MiB or more at
    /// `windows`; without windows there are private devices only.
    pub fn hmm(windows: Option<[Gpa; 2]>, arguments: Vec<String>) -> Self {
        let address = |index: usize| {
            windows.map_or_else(String::new, |windows| format!("{:#x}", windows[index].0))
        };
        let variables = vec![("SPM0", address(0)), ("SPM1", address(1))];
        Self { variables, arguments, ..Self::script(recipes::HMM_JOB) }
    }

    /// Makes a DAX device of each window and prints them.
    pub fn dax() -> Self {
        Self::script(recipes::DAX_JOB)
    }

    /// Puts each window online as a memory-only node and prints the nodes.
    pub fn node() -> Self {
        Self::script(recipes::NODE_JOB)
    }

    /// Brings a file along: `path` in the guest, from its root, executable.
    pub fn file(mut self, path: &str, content: Vec<u8>) -> Self {
        self.files.push((path.trim_start_matches('/').to_owned(), content));
        self
    }

    /// Shell text that exports the variables and sets the arguments.
    fn environment(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.variables {
            text.push_str(&format!("export {name}={}\n", quote(value)));
        }
        text.push_str("set --");
        for argument in &self.arguments {
            text.push(' ');
            text.push_str(&quote(argument));
        }
        text.push('\n');
        text
    }

    /// The archive that brings the job into the guest.
    pub fn archive(&self) -> io::Result<Vec<u8>> {
        let mut archive = Archive::new();
        archive.folder("neap")?;
        archive.file("neap/job", 0o755, self.script.as_bytes())?;
        archive.file("neap/env", 0o644, self.environment().as_bytes())?;
        for (path, content) in &self.files {
            // A folder that is there already stays as it is.
            for (end, _) in path.match_indices('/') {
                archive.folder(&path[..end])?;
            }
            archive.file(path, 0o755, content)?;
        }
        archive.finish()
    }

    /// The initramfs at `base` with this job in it.
    pub fn initrd(&self, base: &Path) -> io::Result<Vec<u8>> {
        let mut initrd = std::fs::read(base)?;
        pad(&mut initrd);
        initrd.extend(self.archive()?);
        Ok(initrd)
    }
}

/// Quotes a word for a shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Lowest descriptor of an [`InheritedFile`].
const FIRST_INHERITED: i32 = 64;

/// A file in memory that child processes inherit, so that nothing has to be
/// removed however this process ends.
#[derive(Debug)]
pub struct InheritedFile {
    file: File,
}

impl InheritedFile {
    /// A file with `content`; `name` shows up under /proc only.
    pub fn new(name: &str, content: &[u8]) -> io::Result<Self> {
        let mut file = File::from(memfd_create(name, MemfdFlags::CLOEXEC)?);
        file.write_all(content)?;
        // Shell scripts on the way to the child use the one-digit
        // descriptors for themselves.
        let file = File::from(fcntl_dupfd_cloexec(&file, FIRST_INHERITED)?);
        fcntl_setfd(&file, FdFlags::empty())?;
        Ok(Self { file })
    }

    /// The path by which a child of this process opens the file.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// What the guest's shell makes of the job's variables and arguments.
    fn evaluate(job: &Job) -> String {
        let script = format!("{}printf '%s|' \"$SPM0\" \"$SPM1\" \"$@\"", job.environment());
        let output = Command::new("/bin/sh").arg("-c").arg(script).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn variables_and_arguments_reach_the_job_whole() {
        let windows = [Gpa(0x10_0000_0000), Gpa(0x10_1000_0000)];
        let arguments = vec!["-t".to_owned(), "it's $HOME; `x`".to_owned(), String::new()];
        let job = Job::hmm(Some(windows), arguments);
        assert_eq!(evaluate(&job), "0x1000000000|0x1010000000|-t|it's $HOME; `x`||");
    }

    #[test]
    fn without_windows_the_module_gets_no_addresses() {
        assert_eq!(evaluate(&Job::hmm(None, Vec::new())), "||");
    }

    #[test]
    fn a_child_can_read_the_inherited_file() {
        let file = InheritedFile::new("test", b"hello").unwrap();
        // Through a guard as well, which has descriptors of its own.
        let mut command = crate::images::guarded::command("cat");
        let mut child = command.arg(file.path()).stdout(Stdio::piped()).spawn().unwrap();
        let lifeline = child.stdin.take();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.stdout, b"hello");
        drop(lifeline);
    }
}
