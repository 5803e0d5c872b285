//! Kernel trees that `neap hmm-tests --kernel-tree` can make nothing of.

use super::*;

const SYMBOL: &str = "CONFIG_TEST_HMM=m\n";

/// A folder that looks like a configured source tree.
fn tree(config: &str) -> Folder {
    let folder = Folder::new();
    for name in ["Kbuild", "Kconfig", "tools/testing/selftests/mm/hmm-tests.c"] {
        folder.file(&format!("tree/{name}"), b"");
    }
    folder.file("tree/.config", config.as_bytes());
    folder
}

/// Asserts the refusal, and that no cache was made for it.
#[track_caller]
fn tree_refused(folder: &Folder, tree: &Path, parts: &[&str]) {
    let neap = Neap::new(["hmm-tests", "--kernel-tree"])
        .args([tree])
        .env("NEAP_CACHE", folder.path("cache"));
    refused(neap, &[&["--kernel-tree", tree.to_str().unwrap()], parts].concat());
    assert!(!folder.path("cache").exists());
}

/// The configuration that the guest kernel here was built with.
fn config() -> String {
    let images = neap_vmm::images::locate().unwrap();
    fs::read_to_string(images.kernel_config).unwrap()
}

#[test]
fn that_is_none() {
    let folder = Folder::new();
    tree_refused(&folder, Path::new("/nonexistent/linux"), &["No such file"]);
    tree_refused(&folder, Path::new("/tmp"), &["no kernel source tree"]);
    tree_refused(&folder, &folder.path("kernel"), &["no kernel source tree"]);
}

#[test]
fn that_is_not_configured_or_not_built() {
    let folder = tree(&config());
    tree_refused(&folder, &folder.path("tree"), &["not built", "make bzImage modules"]);
    fs::remove_file(folder.path("tree/.config")).unwrap();
    tree_refused(&folder, &folder.path("tree"), &["not configured", ".config"]);
}

#[test]
fn that_lacks_the_module_under_test() {
    let config = config();
    assert!(config.contains(SYMBOL));
    let without = config.replace(SYMBOL, "# CONFIG_TEST_HMM is not set\n");
    let folder = tree(&without);
    tree_refused(&folder, &folder.path("tree"), &["CONFIG_TEST_HMM is not set", "to m"]);
    let folder = tree(&config.replace(SYMBOL, "CONFIG_TEST_HMM=y\n"));
    tree_refused(&folder, &folder.path("tree"), &["CONFIG_TEST_HMM is built in"]);
}
