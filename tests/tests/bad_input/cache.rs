//! Cache folders that `neap` can make nothing of: none of these may start to
//! build a kernel.

use std::fs::File;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use neap_tests::refusal::names;
use rustix::fs::{FlockOperation, flock};

use super::*;

/// `neap ARGS` with a cache folder of its own, as one would type it.
fn neap(cache: &Path, args: &str) -> Neap {
    Neap::new(args.split_whitespace()).env("NEAP_CACHE", cache)
}

/// A cache that this process builds in: its lock is held as long as the
/// file is open.
fn busy(folder: &Folder) -> (PathBuf, File) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let owner = format!("{} {}", std::process::id(), now - 90);
    let path = folder.file("cache/lock", owner.as_bytes());
    let lock = File::open(path).unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    (folder.path("cache"), lock)
}

/// The name of the manifest that this `neap` looks for.
fn manifest(cache: &Path) -> String {
    let ended = neap(cache, "setup --check").run().expect_status(1);
    let name = ended.stderr.split(['/', ' ']).find(|word| word.starts_with("images-"));
    name.unwrap_or_else(|| panic!("no manifest in {:?}", ended.stderr)).to_owned()
}

#[test]
fn that_somebody_builds_in() {
    let folder = Folder::new();
    let (cache, _lock) = busy(&folder);
    let before = fs::read(cache.join("lock")).unwrap();
    let pid = std::process::id();
    let parts = [&*format!("process {pid} "), &format!("kill {pid}"), "1 min 3"];
    for command in ["setup", "hmm-tests"] {
        refused(neap(&cache, command), &parts);
    }
    assert_eq!(fs::read(cache.join("lock")).unwrap(), before);
    assert_eq!(names(&cache), ["lock", "logs"]);
    assert_eq!(names(&cache.join("logs")), [""; 0]);
}

#[test]
fn that_is_a_file() {
    let folder = Folder::new();
    let cache = folder.file("cache", b"kept");
    let path = cache.to_str().unwrap();
    for command in ["setup", "hmm-tests"] {
        refused(neap(&cache, command), &[path, "NEAP_CACHE names another cache folder"]);
    }
    refused(neap(&cache, "setup --check"), &[path, "run `neap setup`"]);
    assert_eq!(fs::read(cache).unwrap(), b"kept");
}

#[test]
fn with_a_manifest_that_is_half_written_or_names_what_is_gone() {
    let folder = Folder::new();
    let cache = folder.path("cache");
    let name = manifest(&cache);
    let whole = fs::read(manifest_in_use(&name)).unwrap();
    let text = String::from_utf8(whole.clone()).unwrap();
    let gone = text.replace("/kernel-", "/gone-");
    assert_ne!(gone, text);
    for (content, problem) in [
        (&b"{\"source_version\": \"6"[..], "EOF"),
        (b"\x7fELF, garbage", "expected value"),
        (b"", "EOF"),
        (&whole[..whole.len() / 2], "EOF"),
        (gone.as_bytes(), "is gone"),
    ] {
        folder.file(&format!("cache/{name}"), content);
        for command in ["setup --check", "lab -- doctor"] {
            let parts = ["not built", problem, "run `neap setup`"];
            refused(neap(&cache, command), &parts);
        }
    }
    assert_eq!(names(&cache), [name]);
}

/// The manifest of the images that the other tests use.
fn manifest_in_use(name: &str) -> PathBuf {
    let images = neap_vmm::images::locate().unwrap();
    images.initramfs.with_file_name(name)
}

#[test]
fn with_a_bad_manifest_is_not_mended_beside_another_builder() {
    let folder = Folder::new();
    let name = manifest(&folder.path("cache"));
    let (cache, _lock) = busy(&folder);
    folder.file(&format!("cache/{name}"), b"{\"source_version\": ");
    for command in ["setup", "hmm-tests"] {
        refused(neap(&cache, command), &[&format!("process {} ", std::process::id())]);
    }
    assert_eq!(names(&cache), [name, "lock".to_owned(), "logs".to_owned()]);
}
