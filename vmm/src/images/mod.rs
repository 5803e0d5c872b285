//! Guest images: the kernel, its modules, hmm-tests and the initramfs of
//! guests and of the lab host, built on this machine from the recipes in
//! `guest-images/` and kept in a cache folder.
//!
//! [`ensure`] does whatever set-up is missing; [`locate`] only looks.

mod archive;
pub(crate) mod build;
pub(crate) mod cache;
mod error;
pub(crate) mod guarded;
mod job;
pub(crate) mod packages;
pub(crate) mod progress;
pub(crate) mod recipes;
mod task;

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::ImageError;
pub use job::{InheritedFile, Job};

use crate::lab;
use cache::Cache;
use guarded::Interrupts;
use packages::{Missing, Need};

/// Everything that guests and the lab boot from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestImages {
    /// What the kernel calls itself, such as `6.12.117`.
    pub kernel_version: String,
    /// Compressed kernel (Linux boot protocol).
    pub bzimage: PathBuf,
    /// Uncompressed kernel, an ELF file with a PVH note, without symbols.
    pub vmlinux: PathBuf,
    /// The kernel's configuration.
    pub kernel_config: PathBuf,
    /// Folder with test_hmm.ko, device_dax.ko, kmem.ko and dax_hmem.ko.
    pub modules: PathBuf,
    /// The kernel's hmm-tests, static.
    pub hmm_tests: PathBuf,
    /// Initramfs of guests; [`Job::initrd`] puts a job into it.
    pub initramfs: PathBuf,
    /// Initramfs of the lab host.
    pub lab_initramfs: PathBuf,
}

/// A built kernel.
#[derive(Clone, Debug)]
struct Kernel {
    folder: PathBuf,
    version: String,
}

impl Kernel {
    /// The kernel in `folder`, if it is there.
    fn at(folder: PathBuf) -> Result<Self, ImageError> {
        let path = folder.join("version");
        let version = fs::read_to_string(&path).map_err(ImageError::cache("read", &path))?;
        Ok(Self { folder, version: version.trim().to_owned() })
    }

    fn module(&self, name: &str) -> PathBuf {
        self.folder.join("modules").join(format!("{name}.ko"))
    }
}

/// What the last set-up with these recipes made, so that finding it takes
/// one file.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    source_version: String,
    images: GuestImages,
}

impl Manifest {
    fn name() -> String {
        format!("images-{}.json", recipes::all_key())
    }

    /// Reads the manifest and checks that what it names is there.
    fn read(cache: &Cache) -> Result<Self, ImageError> {
        let path = cache.artifact(&Self::name());
        let not_built = |reason: String| ImageError::NotBuilt { reason };
        let text =
            fs::read(&path).map_err(|_| not_built(format!("{} does not exist", path.display())))?;
        let manifest: Self = serde_json::from_slice(&text)
            .map_err(|error| not_built(format!("{}: {error}", path.display())))?;
        if let Some(gone) = manifest.images.files().into_iter().find(|file| !file.exists()) {
            return Err(not_built(format!("{} is gone", gone.display())));
        }
        Ok(manifest)
    }
}

impl GuestImages {
    fn files(&self) -> [&Path; 7] {
        [
            &self.bzimage,
            &self.vmlinux,
            &self.kernel_config,
            &self.modules,
            &self.hmm_tests,
            &self.initramfs,
            &self.lab_initramfs,
        ]
    }
}

/// The images, if they are built; nothing is changed.
pub fn locate() -> Result<GuestImages, ImageError> {
    Ok(Manifest::read(&Cache::from_env()?)?.images)
}

/// What [`ensure`] would have to do, in words; empty if nothing.
pub fn missing() -> Result<Vec<String>, ImageError> {
    let built = locate();
    let need = if built.is_ok() { Need::Run } else { Need::Everything };
    let mut missing: Vec<String> = built.err().map(|error| error.to_string()).into_iter().collect();
    let packages = Missing::find(need);
    if !packages.is_empty() {
        missing.push(packages.error().to_string());
    }
    Ok(missing)
}

/// The images; installs packages and builds whatever is missing first, which
/// takes minutes and shows its progress on stderr.
///
/// While it builds, SIGINT, SIGTERM and SIGHUP end the build and come back as
/// [`ImageError::Interrupted`]; see [`Interrupts`] for what they do later.
pub fn ensure() -> Result<GuestImages, ImageError> {
    let cache = Cache::from_env()?;
    // There the cache is read-only and complete.
    if lab::inside() {
        return Ok(Manifest::read(&cache)?.images);
    }
    if let Some(images) = up_to_date(&cache)
        && Missing::find(Need::Run).is_empty()
    {
        return Ok(images);
    }
    // Before anything is created: what this user cannot mend here.
    let need = if locate().is_ok() { Need::Run } else { Need::Everything };
    packages::require_means(need)?;
    let lock = cache.lock()?;
    let interrupts = Interrupts::watch()
        .map_err(|source| ImageError::Spawn { program: "a signal handler".to_owned(), source })?;
    // Whoever held the lock until now may have built everything.
    if let Some(images) = up_to_date(&cache) {
        packages::ensure(Need::Run, &lock, &interrupts)?;
        return Ok(images);
    }
    packages::ensure(Need::Everything, &lock, &interrupts)?;
    let Some(source) = packages::kernel_source() else {
        return Err(Missing::find(Need::Everything).error());
    };
    let kernel = build::kernel(&source, &lock, &interrupts)?;
    let modules = build::MODULES.map(|name| kernel.module(name));
    let hmm_tests = kernel.folder.join("hmm-tests");
    let initramfs = build::initramfs(&hmm_tests, &modules, &lock)?;
    let images = GuestImages {
        bzimage: kernel.folder.join("bzImage"),
        vmlinux: kernel.folder.join("vmlinux"),
        kernel_config: kernel.folder.join("config"),
        modules: kernel.folder.join("modules"),
        hmm_tests,
        initramfs,
        lab_initramfs: build::lab_initramfs(&lock)?,
        kernel_version: kernel.version,
    };
    let manifest = Manifest { source_version: source.version, images };
    let path = cache.artifact(&Manifest::name());
    let text = serde_json::to_vec_pretty(&manifest)
        .map_err(|error| ImageError::cache("write", &path)(error.into()))?;
    lock.publish_bytes(&text, &Manifest::name())?;
    Ok(manifest.images)
}

/// The images, unless a newer kernel source has been installed since they
/// were built.
fn up_to_date(cache: &Cache) -> Option<GuestImages> {
    let manifest = Manifest::read(cache).ok()?;
    let installed = packages::kernel_source();
    let current = installed.is_none_or(|source| source.version == manifest.source_version);
    current.then_some(manifest.images)
}
