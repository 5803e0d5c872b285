//! Somebody's own kernel tree: whether it serves, which kernel and modules
//! it has, and hmm-tests built from it without writing into it.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::images::cache::Cache;
use crate::images::guarded::Interrupts;
use crate::images::{ImageError, build, packages, recipes};

/// What the guest needs to boot, to show its console and to run the tests.
const NEEDED: &[&str] = &[
    "ACPI",
    "BINFMT_ELF",
    "BINFMT_SCRIPT",
    "BLK_DEV_INITRD",
    "DEBUG_FS",
    "DEVICE_PRIVATE",
    "DEVTMPFS",
    "GUP_TEST",
    "HUGETLBFS",
    "MODULES",
    "PCI",
    "PROC_FS",
    "PROC_SYSCTL",
    "SERIAL_8250_CONSOLE",
    "SYSFS",
    "TMPFS",
    "TTY",
    "ZONE_DEVICE",
];

/// What hmm-tests is compiled from: files and folders of the source tree, as
/// far as they are there.
const SOURCES: &[&str] = &[
    "Makefile",
    "arch/x86/entry/syscalls",
    "arch/x86/include/uapi",
    "include/uapi",
    "lib/test_hmm_uapi.h",
    "mm/gup_test.h",
    "tools/include/uapi",
    "tools/testing/selftests/kselftest.h",
    "tools/testing/selftests/kselftest_harness.h",
    "tools/testing/selftests/mm/hmm-tests.c",
    "tools/testing/selftests/mm/thp_settings.c",
    "tools/testing/selftests/mm/thp_settings.h",
    "tools/testing/selftests/mm/vm_util.c",
    "tools/testing/selftests/mm/vm_util.h",
];

/// Places of modules for the guest in a tree; only the first is a must.
const MODULES: &[&str] = &[
    "lib/test_hmm.ko",
    "drivers/dax/device_dax.ko",
    "drivers/dax/hmem/dax_hmem.ko",
    "drivers/dax/kmem.ko",
];

/// A built kernel tree that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    /// Where the sources are; differs from the build's folder after `make O=`.
    source: PathBuf,
    /// The kernel to boot.
    pub kernel: PathBuf,
    modules: Vec<PathBuf>,
}

impl Tree {
    /// Looks at the tree built in `folder`.
    pub(super) fn open(folder: &Path) -> Result<Self, ImageError> {
        let wrong = |problem: String| ImageError::KernelTree { path: folder.to_owned(), problem };
        let folder = fs::canonicalize(folder).map_err(|error| wrong(error.to_string()))?;
        let source = Some(folder.join("source")).filter(|link| link.is_dir());
        let source = source.unwrap_or_else(|| folder.clone());
        let tests = source.join("tools/testing/selftests/mm/hmm-tests.c");
        if !source.join("Kbuild").is_file() || !source.join("Kconfig").is_file() {
            return Err(wrong("this is no kernel source tree: it has no Kbuild".to_owned()));
        }
        if !tests.is_file() {
            return Err(wrong(
                "it has no tools/testing/selftests/mm/hmm-tests.c: take Linux 6.2 or later"
                    .to_owned(),
            ));
        }
        let config = fs::read_to_string(folder.join(".config")).map_err(|_| {
            wrong("it is not configured: it has no .config; build it first".to_owned())
        })?;
        if let Some(problem) = config_problem(&config) {
            return Err(wrong(problem));
        }
        let kernel = ["arch/x86/boot/bzImage", "vmlinux"]
            .map(|name| folder.join(name))
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| wrong("it is not built: run `make bzImage modules` in it".to_owned()))?;
        let modules: Vec<PathBuf> = MODULES.iter().map(|name| folder.join(name)).collect();
        if !modules[0].is_file() {
            return Err(wrong("it has no lib/test_hmm.ko: run `make modules` in it".to_owned()));
        }
        let modules = modules.into_iter().filter(|path| path.is_file()).collect();
        Ok(Self { source, kernel, modules })
    }

    /// Builds hmm-tests from the tree, unless that was done for the same
    /// sources, and makes an initramfs with the tree's modules.
    pub(super) fn initramfs(&self) -> Result<PathBuf, ImageError> {
        let key = self.sources_key()?;
        packages::require_means(packages::Need::Compile)?;
        let lock = Cache::from_env()?.lock()?;
        let interrupts = Interrupts::watch()
            .map_err(|source| ImageError::Spawn { program: "a signal handler".into(), source })?;
        packages::ensure(packages::Need::Compile, &lock, &interrupts)?;
        let program = build::hmm_tests(&self.source, &key, &lock, &interrupts)?;
        build::initramfs(&program, &self.modules, &lock)
    }

    fn sources_key(&self) -> Result<String, ImageError> {
        let mut digest = Sha256::new();
        digest.update(recipes::HMM_TESTS_SCRIPT);
        for name in SOURCES {
            digest_path(&self.source, &self.source.join(name), &mut digest)?;
        }
        Ok(digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Adds the names and contents of everything at `path` in a fixed order.
fn digest_path(root: &Path, path: &Path, digest: &mut Sha256) -> Result<(), ImageError> {
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(ImageError::cache("read", path))?;
        let mut paths: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        return paths.iter().try_for_each(|path| digest_path(root, path, digest));
    }
    // What a build leaves among the headers (`.foo.h.cmd`) is no source.
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    if hidden || !path.is_file() {
        return Ok(());
    }
    let content = fs::read(path).map_err(ImageError::cache("read", path))?;
    let name = path.strip_prefix(root).unwrap_or(path).as_os_str().as_encoded_bytes();
    for part in [name, &content] {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    Ok(())
}

/// What a kernel configuration lacks for the tests, in one line.
fn config_problem(config: &str) -> Option<String> {
    let value = |symbol: &str| {
        config
            .lines()
            .find_map(|line| line.strip_prefix("CONFIG_")?.strip_prefix(symbol)?.strip_prefix('='))
    };
    match value("TEST_HMM") {
        Some("m") => {}
        Some(_) => {
            return Some("CONFIG_TEST_HMM is built in: make it a module (=m)".to_owned());
        }
        None => {
            return Some("CONFIG_TEST_HMM is not set: set it to m and build again".to_owned());
        }
    }
    let lacking: Vec<String> = NEEDED
        .iter()
        .filter(|symbol| value(symbol) != Some("y"))
        .map(|symbol| format!("CONFIG_{symbol}=y"))
        .collect();
    (!lacking.is_empty()).then(|| {
        format!("its configuration lacks {}: set them and build again", lacking.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(changes: &[(&str, &str)]) -> String {
        let mut config = String::from("CONFIG_TEST_HMM=m\n# CONFIG_FOO is not set\n");
        for symbol in NEEDED {
            config.push_str(&format!("CONFIG_{symbol}=y\n"));
        }
        for (from, to) in changes {
            config = config.replace(from, to);
        }
        config
    }

    #[test]
    fn a_configuration_that_lacks_something_is_told_what() {
        assert_eq!(config_problem(&config(&[])), None);
        let module = config(&[("CONFIG_GUP_TEST=y", "CONFIG_GUP_TEST=m")]);
        assert!(config_problem(&module).unwrap().contains("lacks CONFIG_GUP_TEST=y"));
        let none = config(&[("CONFIG_TEST_HMM=m", "# CONFIG_TEST_HMM is not set")]);
        assert!(config_problem(&none).unwrap().contains("CONFIG_TEST_HMM is not set"));
        let built_in = config(&[("CONFIG_TEST_HMM=m", "CONFIG_TEST_HMM=y")]);
        assert!(config_problem(&built_in).unwrap().contains("built in"));
    }

    #[test]
    fn the_configuration_that_our_own_kernel_is_built_with_serves() {
        assert_eq!(config_problem(recipes::KERNEL_CONFIG), None);
    }

    #[test]
    fn folders_that_are_no_built_tree_are_refused_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let refused = |message: &str| {
            let error = Tree::open(root).unwrap_err().to_string();
            assert!(error.contains("--kernel-tree") && error.contains(message), "{error}");
        };
        let write = |name: &str, content: &str| {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        assert!(Tree::open(&root.join("none")).is_err());
        refused("no kernel source tree");
        write("Kbuild", "");
        write("Kconfig", "");
        refused("no tools/testing");
        write("tools/testing/selftests/mm/hmm-tests.c", "");
        refused("not configured");
        write(".config", &config(&[]));
        refused("not built");
        write("vmlinux", "");
        refused("no lib/test_hmm.ko");
        write("lib/test_hmm.ko", "");
        let tree = Tree::open(root).unwrap();
        assert!(tree.kernel.ends_with("vmlinux"));
        write("arch/x86/boot/bzImage", "");
        assert!(Tree::open(root).unwrap().kernel.ends_with("bzImage"));

        let key = tree.sources_key().unwrap();
        write("lib/unrelated.c", "");
        assert_eq!(tree.sources_key().unwrap(), key);
        write("tools/testing/selftests/mm/hmm-tests.c", "changed");
        assert_ne!(tree.sources_key().unwrap(), key);
    }
}
