//! Builds the images, each under a name that contains a digest of what it is
//! made from; what is there already is left alone.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::archive::Archive;
use super::cache::{CacheLock, key};
use super::error::ImageError;
use super::guarded::{self, Interrupts};
use super::packages::{self, KernelSource};
use super::{Kernel, recipes, task};

/// Room that unpacking and building the kernel takes, in MiB, with a reserve.
const KERNEL_ROOM_MIB: u64 = 3 * 1024;
/// Objects that the kernel is compiled from, counted in a build of 6.12.117.
const KERNEL_OBJECTS: u64 = 1500;
/// Modules of the guest profiles, each in `modules/` of a built kernel.
pub(super) const MODULES: [&str; 4] = ["test_hmm", "device_dax", "kmem", "dax_hmem"];

/// Builds the kernel and hmm-tests from `source`; minutes.
pub(super) fn kernel(
    source: &KernelSource,
    lock: &CacheLock,
    interrupts: &Interrupts,
) -> Result<Kernel, ImageError> {
    let name = format!("kernel-{}", recipes::kernel_key(&source.version));
    let built = Kernel::at(lock.cache().artifact(&name));
    if let Ok(kernel) = built {
        return Ok(kernel);
    }
    lock.require_room(KERNEL_ROOM_MIB)?;
    let scratch = lock.scratch()?;
    let recipe_folder = scratch.folder("recipes")?;
    for (name, content) in [
        ("kernel.sh", recipes::KERNEL_SCRIPT),
        ("hmm-tests.sh", recipes::HMM_TESTS_SCRIPT),
        ("kernel.config", recipes::KERNEL_CONFIG),
    ] {
        let path = recipe_folder.join(name);
        fs::write(&path, content).map_err(ImageError::cache("write", &path))?;
    }
    let (work, out) = (scratch.folder("work")?, scratch.folder("out")?);
    let script = recipe_folder.join("kernel.sh");
    let args: [&OsStr; 5] = [
        script.as_ref(),
        source.tarball.as_ref(),
        recipe_folder.as_ref(),
        work.as_ref(),
        out.as_ref(),
    ];
    let mut command = guarded::command("/bin/sh");
    command.args(args);
    let (objects, log) = (Some(KERNEL_OBJECTS), lock.cache().log("kernel"));
    task::run("building the guest kernel", objects, &mut command, &log, interrupts)?;
    Kernel::at(lock.publish(&out, &name)?)
}

/// Builds hmm-tests from somebody's kernel tree; half a minute. `key` is the
/// digest of the sources that go into it.
pub(crate) fn hmm_tests(
    tree: &Path,
    key: &str,
    lock: &CacheLock,
    interrupts: &Interrupts,
) -> Result<PathBuf, ImageError> {
    let name = format!("hmm-tests-{key}");
    let target = lock.cache().artifact(&name);
    if target.is_file() {
        return Ok(target);
    }
    let scratch = lock.scratch()?;
    let script = scratch.path().join("hmm-tests.sh");
    fs::write(&script, recipes::HMM_TESTS_SCRIPT).map_err(ImageError::cache("write", &script))?;
    let (work, out) = (scratch.folder("work")?, scratch.path().join("hmm-tests"));
    let args: [&OsStr; 4] = [script.as_ref(), tree.as_ref(), work.as_ref(), out.as_ref()];
    let mut command = guarded::command("/bin/sh");
    command.args(args);
    let log = lock.cache().log("hmm-tests");
    task::run("building hmm-tests", None, &mut command, &log, interrupts)?;
    lock.publish(&out, &name)
}

/// Makes the guest's initramfs: busybox, `/init`, hmm-tests, and those of
/// `modules` that exist.
pub(crate) fn initramfs(
    hmm_tests: &Path,
    modules: &[PathBuf],
    lock: &CacheLock,
) -> Result<PathBuf, ImageError> {
    let mut content = Vec::new();
    for path in modules {
        let bytes = fs::read(path).map_err(ImageError::cache("read", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        content.push((format!("lib/modules/{name}"), 0o644, bytes));
    }
    let bytes = fs::read(hmm_tests).map_err(ImageError::cache("read", hmm_tests))?;
    content.push(("bin/hmm-tests".to_owned(), 0o755, bytes));
    publish_archive("initramfs", recipes::INIT, content, lock)
}

/// Makes the lab host's initramfs: busybox and the lab's own `/init`.
pub(super) fn lab_initramfs(lock: &CacheLock) -> Result<PathBuf, ImageError> {
    publish_archive("lab-initramfs", recipes::LAB_INIT, Vec::new(), lock)
}

/// The archive is left uncompressed: copying it costs a guest less than
/// unpacking would.
fn publish_archive(
    name: &str,
    init: &str,
    files: Vec<(String, u32, Vec<u8>)>,
    lock: &CacheLock,
) -> Result<PathBuf, ImageError> {
    let busybox = packages::busybox();
    let shell = fs::read(busybox).map_err(ImageError::cache("read", busybox))?;
    let archive = pack(init, &shell, &files)
        .map_err(ImageError::cache("pack", &lock.cache().artifact(name)))?;
    let name = format!("{name}-{}.cpio", key(&[&archive]));
    let target = lock.cache().artifact(&name);
    if target.is_file() {
        return Ok(target);
    }
    lock.publish_bytes(&archive, &name)
}

fn pack(init: &str, busybox: &[u8], files: &[(String, u32, Vec<u8>)]) -> io::Result<Vec<u8>> {
    let mut archive = Archive::new();
    for folder in ["bin", "dev", "lib", "lib/modules", "proc", "root", "run", "sys", "tmp"] {
        archive.folder(folder)?;
    }
    // The kernel opens it for the first process, before devtmpfs is mounted.
    archive.device("dev/console", 0o600, (5, 1))?;
    archive.file("init", 0o755, init.as_bytes())?;
    archive.file("bin/busybox", 0o755, busybox)?;
    archive.symlink("bin/sh", "busybox")?;
    for (path, mode, content) in files {
        archive.file(path, *mode, content)?;
    }
    archive.finish()
}
