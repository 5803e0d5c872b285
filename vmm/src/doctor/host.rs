//! Reading `/proc` and `/sys` of a machine.

use std::fs;
use std::path::{Path, PathBuf};

/// A machine's root folder: this one's `/`, or in tests a tree of files that
/// holds what some other machine would show.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The machine that this program runs on.
    pub fn this_machine() -> Self {
        Self::at("/")
    }

    /// The machine whose files are under `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where `path`, relative to the root, is.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// The file's text without surrounding white space; `None` if there is no
    /// such file or it cannot be read.
    pub fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The file's text as a decimal number.
    pub fn number(&self, path: impl AsRef<Path>) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Names in the folder, in order; empty if there is no such folder.
    pub fn names(&self, path: impl AsRef<Path>) -> Vec<String> {
        let Ok(folder) = fs::read_dir(self.path(path)) else { return Vec::new() };
        let mut names: Vec<String> =
            folder.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The numbers after `prefix` of the names in the folder that consist of
    /// nothing else, in order: with `node`, 0 and 1 of `node0`, `node1`.
    pub fn numbered(&self, path: impl AsRef<Path>, prefix: &str) -> Vec<u32> {
        let mut numbers: Vec<u32> = self
            .names(path)
            .iter()
            .filter_map(|name| name.strip_prefix(prefix)?.parse().ok())
            .collect();
        numbers.sort_unstable();
        numbers
    }
}

#[cfg(test)]
pub(super) mod fixture {
    //! Trees of files as some machine would show them.

    use super::Host;

    /// A machine with these files. The folder lives as long as the guard.
    pub(in crate::doctor) fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let host = Host::at(folder.path());
        (folder, host)
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::host;

    #[test]
    fn numbers_in_names_sort_as_numbers() {
        let (_guard, host) = host(&[("n/node10/x", ""), ("n/node9/x", ""), ("n/nodes/x", "")]);
        assert_eq!(host.numbered("n", "node"), [9, 10]);
    }

    #[test]
    fn what_is_not_there_is_none() {
        let (_guard, host) = host(&[("word", "many\n"), ("count", " 12\n")]);
        assert_eq!(host.number("count"), Some(12));
        assert_eq!(host.number("word"), None);
        assert_eq!(host.number("nothing"), None);
        assert!(host.names("nothing").is_empty());
    }
}
