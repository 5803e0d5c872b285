//! What every refusal has in common, and a folder to be refused in.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neap_vmm::payload;
use tempfile::TempDir;

use crate::command::Neap;

/// For a refusal; no kernel is built in this time.
const DEADLINE: Duration = Duration::from_secs(20);

/// A folder with a kernel that starts, and other files as a test makes them.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

impl Folder {
    /// A new folder; removed when dropped.
    pub fn new() -> Self {
        let folder = Self(TempDir::new().unwrap());
        folder.file("kernel", &payload::hello_elf());
        folder
    }

    /// Path of something in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Makes a file, and the folders on the way to it.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::File::create(&path).unwrap().write_all(bytes).unwrap();
        path
    }

    /// `neap run` with the good kernel and more options, given as one would
    /// type them.
    pub fn run(&self, options: &str) -> Neap {
        Neap::new(["run", "--kernel"]).args([self.path("kernel")]).args(options.split_whitespace())
    }
}

/// Asserts the refusal: status 1 and one line that has every part.
#[track_caller]
pub fn refused(neap: Neap, parts: &[&str]) {
    let ended = neap.deadline(DEADLINE).run().expect_status(1);
    assert_eq!(ended.stdout, "");
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 1, "{:?}", ended.stderr);
    for part in parts {
        assert!(lines[0].contains(part), "no {part:?} in {:?}", lines[0]);
    }
}

/// The names in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
