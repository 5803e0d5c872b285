//! The cache folder: where built images live.
//!
//! Invariants:
//! - Whatever has its final name is complete: it was built under `tmp/`,
//!   written out to the disk and renamed.
//! - Only the holder of the lock writes, so everything under `tmp/` that a
//!   new holder finds is left over from a process that died, and is removed.
//! - Names of artifacts contain a digest of everything they are made from,
//!   so nothing is ever changed in place.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, flock, statvfs};
use sha2::{Digest, Sha256};

use super::error::ImageError;
use super::progress::display_seconds;

/// The cache folder.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    /// The folder that the environment names; nothing is created.
    pub(crate) fn from_env() -> Result<Self, ImageError> {
        let path = |name: &str| {
            // An empty or relative value is as good as none (XDG Base
            // Directory Specification).
            std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
        };
        let root = path("NEAP_CACHE")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("neap")))
            .or_else(|| path("HOME").map(|home| home.join(".cache/neap")))
            .ok_or(ImageError::NoCacheFolder)?;
        Ok(Self { root })
    }

    /// Final place of the artifact called `name`.
    pub(crate) fn artifact(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where the output of the step called `name` is kept.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.root.join("logs").join(format!("{name}.log"))
    }

    /// Becomes the only process that writes to the cache, or says at once
    /// who is.
    pub(crate) fn lock(&self) -> Result<CacheLock, ImageError> {
        for folder in [self.root.clone(), self.root.join("logs")] {
            fs::create_dir_all(&folder).map_err(ImageError::cache("create", &folder))?;
        }
        let path = self.root.join("lock");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(ImageError::cache("open", &path))?;
        if let Err(errno) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if errno != rustix::io::Errno::WOULDBLOCK {
                return Err(ImageError::cache("lock", &path)(errno.into()));
            }
            return Err(self.busy(&mut file));
        }
        let write_owner = |file: &mut File| {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            write!(file, "{} {}", std::process::id(), seconds_since_epoch())
        };
        write_owner(&mut file).map_err(ImageError::cache("write", &path))?;
        let lock = CacheLock { cache: self.clone(), _file: file };
        lock.sweep()?;
        Ok(lock)
    }

    fn busy(&self, file: &mut File) -> ImageError {
        let mut owner = String::new();
        // Empty for the instant between its lock and its write.
        let _ = file.read_to_string(&mut owner);
        let mut words = owner.split_whitespace();
        let pid = words.next().unwrap_or("(starting)").to_owned();
        let since = words.next().and_then(|word| word.parse::<u64>().ok());
        let elapsed = since.map_or(0, |since| seconds_since_epoch().saturating_sub(since));
        ImageError::Busy { path: self.root.clone(), pid, elapsed: display_seconds(elapsed) }
    }
}

fn seconds_since_epoch() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// The right to write to the cache; it ends with the process at the latest.
#[derive(Debug)]
pub(crate) struct CacheLock {
    cache: Cache,
    _file: File,
}

impl CacheLock {
    /// The cache that is locked.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    fn scratch_root(&self) -> PathBuf {
        self.cache.root.join("tmp")
    }

    /// Removes what processes that died left under `tmp/`.
    fn sweep(&self) -> Result<(), ImageError> {
        let root = self.scratch_root();
        if root.exists() {
            fs::remove_dir_all(&root).map_err(ImageError::cache("remove", &root))?;
        }
        fs::create_dir_all(&root).map_err(ImageError::cache("create", &root))
    }

    /// A fresh folder to build in; removed when dropped.
    pub(crate) fn scratch(&self) -> Result<Scratch, ImageError> {
        let root = self.scratch_root();
        tempfile::TempDir::with_prefix_in("build-", &root)
            .map(|folder| Scratch { folder })
            .map_err(ImageError::cache("create a folder in", &root))
    }

    /// Fails if the file system of the cache has less than `needed` MiB free.
    pub(crate) fn require_room(&self, needed_mib: u64) -> Result<(), ImageError> {
        let root = &self.cache.root;
        let stat = statvfs(root).map_err(|errno| ImageError::cache("ask", root)(errno.into()))?;
        let free_mib = (stat.f_bavail.saturating_mul(stat.f_frsize)) >> 20;
        if free_mib < needed_mib {
            return Err(ImageError::NoRoom { path: root.clone(), free_mib, needed_mib });
        }
        Ok(())
    }

    /// Gives `built`, a file or folder in a scratch folder, its final name.
    /// After a crash there is either all of it under that name or nothing.
    pub(crate) fn publish(&self, built: &Path, name: &str) -> Result<PathBuf, ImageError> {
        sync_tree(built)?;
        let target = self.cache.artifact(name);
        // A folder cannot be renamed over one that is not empty; one of this
        // name that failed its check on being found is of no use.
        if target.is_dir() {
            fs::remove_dir_all(&target).map_err(ImageError::cache("remove", &target))?;
        }
        fs::rename(built, &target).map_err(ImageError::cache("create", &target))?;
        sync(&self.cache.root)?;
        Ok(target)
    }

    /// Publishes `content` as the file called `name`.
    pub(crate) fn publish_bytes(&self, content: &[u8], name: &str) -> Result<PathBuf, ImageError> {
        let scratch = self.scratch()?;
        let path = scratch.path().join("file");
        fs::write(&path, content).map_err(ImageError::cache("write", &path))?;
        self.publish(&path, name)
    }
}

/// A folder under `tmp/` that is removed when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: tempfile::TempDir,
}

impl Scratch {
    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a folder inside it.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, ImageError> {
        let path = self.path().join(name);
        fs::create_dir(&path).map_err(ImageError::cache("create", &path))?;
        Ok(path)
    }
}

fn sync(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::cache("write out", path))
}

fn sync_tree(path: &Path) -> Result<(), ImageError> {
    if path.is_dir() {
        for entry in fs::read_dir(path).map_err(ImageError::cache("read", path))? {
            sync_tree(&entry.map_err(ImageError::cache("read", path))?.path())?;
        }
    }
    sync(path)
}

/// Digest of `parts` as 16 hexadecimal digits. Each part is preceded by its
/// length, so that no two lists of parts run together.
pub(crate) fn key(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache() -> (tempfile::TempDir, Cache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache { root: folder.path().join("neap") };
        (folder, cache)
    }

    #[test]
    fn a_second_writer_is_told_who_the_first_is() {
        let (_folder, cache) = cache();
        let lock = cache.lock().unwrap();
        let message = cache.lock().unwrap_err().to_string();
        assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
        assert!(!message.contains('\n'));
        drop(lock);
        cache.lock().unwrap();
    }

    #[test]
    fn left_over_scratch_folders_are_swept_by_the_next_writer() {
        let (_folder, cache) = cache();
        let lock = cache.lock().unwrap();
        let stale = lock.scratch_root().join("build-dead/tree");
        fs::create_dir_all(&stale).unwrap();
        drop(lock);
        let lock = cache.lock().unwrap();
        assert!(!stale.exists());
        assert!(lock.scratch_root().exists());
    }

    #[test]
    fn an_unpublished_build_leaves_nothing() {
        let (_folder, cache) = cache();
        let lock = cache.lock().unwrap();
        let scratch = lock.scratch().unwrap();
        fs::write(scratch.path().join("half"), b"x").unwrap();
        drop(scratch);
        assert_eq!(fs::read_dir(lock.scratch_root()).unwrap().count(), 0);
    }

    #[test]
    fn publishing_replaces_an_older_folder_whole() {
        let (_folder, cache) = cache();
        let lock = cache.lock().unwrap();
        fs::create_dir(cache.artifact("kernel-1")).unwrap();
        fs::write(cache.artifact("kernel-1/old"), b"x").unwrap();
        let scratch = lock.scratch().unwrap();
        let out = scratch.folder("out").unwrap();
        fs::write(out.join("bzImage"), b"new").unwrap();
        let target = lock.publish(&out, "kernel-1").unwrap();
        assert_eq!(fs::read(target.join("bzImage")).unwrap(), b"new");
        assert!(!target.join("old").exists());
    }

    #[test]
    fn keys_differ_when_the_boundary_between_parts_moves() {
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert_eq!(key(&[b"ab"]).len(), 16);
    }

    #[test]
    fn a_build_that_would_not_fit_is_refused() {
        let (_folder, cache) = cache();
        let lock = cache.lock().unwrap();
        lock.require_room(0).unwrap();
        assert!(matches!(lock.require_room(u64::MAX), Err(ImageError::NoRoom { .. })));
    }
}
