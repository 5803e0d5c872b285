//! What can go wrong with the guest images, each in one line that says what
//! would do.

use std::io;
use std::path::{Path, PathBuf};

use crate::failure::Failure;

/// Why there are no guest images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Neither `NEAP_CACHE`, `XDG_CACHE_HOME` nor `HOME` says where to keep
    /// what is built.
    #[error("no place for the guest images: set NEAP_CACHE to a folder with 4 GiB of room")]
    NoCacheFolder,
    /// A file operation in the cache failed.
    #[error("cannot {action} {}: {source}; NEAP_CACHE names another cache folder", .path.display())]
    Cache {
        /// What was tried: "create", "read", …
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Too little room for the kernel tree.
    #[error(
        "{} has {free_mib} MiB free and building the guest kernel takes {needed_mib}: make room, or set NEAP_CACHE to another folder", .path.display()
    )]
    NoRoom {
        /// The cache folder.
        path: PathBuf,
        /// Room there is, in MiB.
        free_mib: u64,
        /// Room it takes, in MiB.
        needed_mib: u64,
    },
    /// Somebody else holds the cache's lock.
    #[error(
        "process {pid} has been building the guest images in {} for {elapsed}: wait until it ends, or stop it with `kill {pid}`", .path.display()
    )]
    Busy {
        /// The cache folder.
        path: PathBuf,
        /// Who builds.
        pid: String,
        /// For how long, in words.
        elapsed: String,
    },
    /// Nothing was built yet, or for other recipes.
    #[error("the guest images are not built ({reason}): run `neap setup`")]
    NotBuilt {
        /// What is missing.
        reason: String,
    },
    /// Packages are missing and this process may not install them.
    #[error(
        "missing on this machine: {missing}; run `apt-get install --no-install-recommends {packages}` as root, or `neap setup` as root"
    )]
    MissingPackages {
        /// The tools and files that were looked for.
        missing: String,
        /// The Debian packages that hold them.
        packages: String,
    },
    /// Packages are missing and there is no apt-get.
    #[error(
        "missing on this machine: {missing}; there is no apt-get here to install them with (Debian's packages are {packages})"
    )]
    NoPackageManager {
        /// The tools and files that were looked for.
        missing: String,
        /// The Debian packages that hold them.
        packages: String,
    },
    /// An installation said it worked, yet something is still not there.
    #[error("{missing} still missing after installing {packages}: see {}", .log.display())]
    StillMissing {
        /// The tools and files that were looked for.
        missing: String,
        /// The packages that were installed.
        packages: String,
        /// apt-get's output.
        log: PathBuf,
    },
    /// A step of a build ended with an error.
    #[error("{step} failed ({status}): {tail}; the whole log is {}", .log.display())]
    Step {
        /// Name of the step.
        step: String,
        /// How its process ended.
        status: String,
        /// The last lines of its output, on one line.
        tail: String,
        /// Where all of its output is.
        log: PathBuf,
    },
    /// SIGINT, SIGTERM or SIGHUP arrived.
    #[error("{step} was stopped by a signal; nothing half-built was left behind")]
    Interrupted {
        /// Name of the step.
        step: String,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A kernel tree given by the user does not serve.
    #[error("--kernel-tree {}: {problem}", .path.display())]
    KernelTree {
        /// The tree.
        path: PathBuf,
        /// What is wrong and what would do.
        problem: String,
    },
}

impl ImageError {
    /// For `map_err` on file operations: names the action and the file.
    pub(crate) fn cache<'a>(
        action: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Cache { action, path: path.to_owned(), source }
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::usage(error)
    }
}
