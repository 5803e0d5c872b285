//! The memory cgroups of this process, of both versions: what they hold, what
//! they may hold, and how much more this process can have before the kernel
//! ends somebody for it.
//!
//! Past a limit the kernel first takes back what it can (file pages), and then
//! kills a process of the cgroup, also when the charge is a system call's
//! (`mem_cgroup_oom`, mm/memcontrol.c). So whoever wants to be told *no* has to
//! look before.
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst,
//! proc_pid_cgroup(5), proc_pid_mountinfo(5).
//!
//! Known holes: `memory.high`, which slows and never kills, is no limit here.
//! Huge pages of hugetlb are charged to cgroups of their own (or, with the mount
//! option `memory_hugetlb_accounting`, to these), which nobody looks at.

use std::fs;
use std::path::{Path, PathBuf};

use super::number_of;
use crate::addr::MIB;

/// Where the kernel tells of this process's cgroups.
const OWN: &str = "/proc/self/cgroup";
/// Where it tells of their file systems.
const MOUNTS: &str = "/proc/self/mountinfo";
/// Version 1 has no word for "no limit": it is the most that its counters hold,
/// some pages less than 2^63 bytes.
const NO_LIMIT: u64 = 1 << 62;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// Names of the files of one version.
struct Names {
    limit: &'static str,
    usage: &'static str,
    /// Prefix of sums over the cgroup and its descendants in `memory.stat`.
    sums: &'static str,
}

impl Version {
    fn names(self) -> Names {
        match self {
            Self::V1 => Names {
                limit: "memory.limit_in_bytes",
                usage: "memory.usage_in_bytes",
                sums: "total_",
            },
            Self::V2 => Names { limit: "memory.max", usage: "memory.current", sums: "" },
        }
    }
}

/// A cgroup of this process or one above it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Level {
    folder: PathBuf,
    version: Version,
}

/// What a cgroup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Its folder.
    pub folder: PathBuf,
    /// Bytes that are charged to it.
    pub current: u64,
    /// Bytes that it may have; `None`: as many as there are.
    pub limit: Option<u64>,
    /// Of `current`, file pages that the kernel can take back at once.
    pub reclaimable: u64,
    /// Of `current`, private memory of processes.
    pub anonymous: u64,
    /// Of `current`, files in memory.
    pub shared: u64,
}

impl Usage {
    /// Bytes of the limit that are kept for others of the cgroup, for page
    /// tables, and for what is charged ahead on each processor.
    fn margin(limit: u64) -> u64 {
        (limit / 16).clamp(16 * MIB, 256 * MIB)
    }

    /// Bytes that one process may still take; `None`: no limit.
    fn room(&self) -> Option<u64> {
        let limit = self.limit?;
        let held = self.current.saturating_sub(self.reclaimable);
        Some(limit.saturating_sub(held).saturating_sub(Self::margin(limit)))
    }
}

/// The cgroups of this process, its own first, then those above it.
#[derive(Clone, Debug, Default)]
pub struct Cgroups {
    /// Where to read instead of /proc/self, for tests.
    files: Option<(PathBuf, PathBuf)>,
    /// What `levels` was made from.
    own: String,
    levels: Vec<Level>,
}

impl Cgroups {
    /// Those of this process, whichever they are at each look.
    pub fn of_this_process() -> Self {
        Self::default()
    }

    /// Those that the files `own` and `mounts` tell of, in the formats of
    /// /proc/self/cgroup and /proc/self/mountinfo.
    #[doc(hidden)]
    pub fn told_by(own: PathBuf, mounts: PathBuf) -> Self {
        Self { files: Some((own, mounts)), ..Self::default() }
    }

    /// Bytes that this process may still take before the kernel ends somebody,
    /// less a margin; `None`: no cgroup of it has a limit.
    pub fn room(&mut self) -> Option<u64> {
        self.look();
        self.levels.iter().filter_map(|level| level.usage(true)?.room()).min()
    }

    /// What each of them holds; those that do not say are left out, as the root
    /// is.
    pub fn usage(&mut self) -> Vec<Usage> {
        self.look();
        self.levels.iter().filter_map(|level| level.usage(false)).collect()
    }

    /// Finds them anew if this process is in others by now.
    fn look(&mut self) {
        let (own, mounts) = match &self.files {
            Some((own, mounts)) => (own.as_path(), mounts.as_path()),
            None => (Path::new(OWN), Path::new(MOUNTS)),
        };
        let own = fs::read_to_string(own).unwrap_or_default();
        if own != self.own {
            let mounts = fs::read_to_string(mounts).unwrap_or_default();
            self.levels = levels(&own, &mounts);
            self.own = own;
        }
    }
}

impl Level {
    /// `limited`: only if it has a limit, the rest is not read then.
    fn usage(&self, limited: bool) -> Option<Usage> {
        let names = self.version.names();
        let read = |name: &str| fs::read_to_string(self.folder.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        // "max" is no number.
        let limit = number(names.limit).filter(|limit| *limit < NO_LIMIT);
        if limited && limit.is_none() {
            return None;
        }
        let current = number(names.usage)?;
        let stat = read("memory.stat").unwrap_or_default();
        let sum = |key: &str| number_of(&stat, &format!("{}{key}", names.sums)).unwrap_or(0);
        // Pages that were used lately are taken back late, those that are to be
        // written not at once.
        let files = sum("inactive_file") + sum("active_file") / 2;
        let (dirty, writing, anonymous) = match self.version {
            Version::V1 => (sum("dirty"), sum("writeback"), sum("rss")),
            Version::V2 => (sum("file_dirty"), sum("file_writeback"), sum("anon")),
        };
        Some(Usage {
            folder: self.folder.clone(),
            current,
            limit,
            reclaimable: files.saturating_sub(dirty + writing),
            anonymous,
            shared: sum("shmem"),
        })
    }
}

/// The memory cgroups that `own` names, where `mounts` has them.
fn levels(own: &str, mounts: &str) -> Vec<Level> {
    let mut found = Vec::new();
    for line in own.lines() {
        // `HIERARCHY:CONTROLLERS:PATH`; version 2 has no controllers there.
        let mut fields = line.splitn(3, ':');
        let (Some(hierarchy), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let version = match controllers {
            "" if hierarchy == "0" => Version::V2,
            named if named.split(',').any(|name| name == "memory") => Version::V1,
            _ => continue,
        };
        let Some((root, top)) = mounts.lines().find_map(|line| mount(line, version)) else {
            continue;
        };
        // A path that begins with ".." is out of this namespace's sight.
        let Ok(below) = Path::new(path).strip_prefix(&root) else { continue };
        // Not `join`, which ends in a slash if nothing is below.
        let own: PathBuf = top.components().chain(below.components()).collect();
        let up = own.ancestors().take_while(|folder| folder.starts_with(&top));
        found.extend(up.map(|folder| Level { folder: folder.to_path_buf(), version }));
    }
    found
}

/// Root and mount point of a line of mountinfo, if it is the file system of
/// memory cgroups of that version.
fn mount(line: &str, version: Version) -> Option<(PathBuf, PathBuf)> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (unescaped(left.next()?), unescaped(left.next()?));
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1).unwrap_or_default());
    let fits = match version {
        Version::V2 => kind == "cgroup2",
        Version::V1 => kind == "cgroup" && options.split(',').any(|option| option == "memory"),
    };
    fits.then_some((root, point))
}

/// A path as mountinfo has it: blanks and the like in octal.
fn unescaped(text: &str) -> PathBuf {
    let mut path = text.to_owned();
    for (escaped, plain) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        path = path.replace(escaped, plain);
    }
    path.into()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    const MOUNTS_V1: &str = "\
        23 1 0:20 / / rw - ext4 /dev/root rw\n\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu rw shared:4 - cgroup cgroup rw,cpu\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn folders(own: &str, mounts: &str) -> Vec<String> {
        levels(own, mounts).iter().map(|level| level.folder.display().to_string()).collect()
    }

    #[test]
    fn own_cgroups_and_those_above_are_found_in_both_versions() {
        let own = "5:cpuset:/x\n4:memory:/a/b\n0::/\n";
        let found = folders(own, MOUNTS_V1);
        let memory = "/sys/fs/cgroup/memory";
        let expected = [&format!("{memory}/a/b"), &format!("{memory}/a"), memory];
        assert_eq!(found[..3], expected);
        assert_eq!(found[3..], ["/sys/fs/cgroup/unified"]);
        // A container that sees a part of the tree, at a place with a blank.
        let mounts = "35 31 0:32 /pod/c /my\\040cgroup rw - cgroup2 cgroup rw\n";
        assert_eq!(folders("0::/pod/c/d\n", mounts), ["/my cgroup/d", "/my cgroup"]);
        assert_eq!(folders("0::/../other\n", mounts), [""; 0]);
        assert_eq!(folders("", mounts), [""; 0]);
        assert_eq!(folders("nonsense\n1:memory:/\n", mounts), [""; 0]);
    }

    struct Tree {
        folder: TempDir,
        cgroups: Cgroups,
    }

    fn tree() -> Tree {
        let folder = TempDir::new().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mounts = format!("1 0 0:1 / {} rw - cgroup2 none rw\n", at("fs").display());
        fs::create_dir_all(at("fs/outer/inner")).unwrap();
        fs::write(at("mounts"), mounts).unwrap();
        fs::write(at("own"), "0::/outer/inner\n").unwrap();
        let cgroups = Cgroups::told_by(at("own"), at("mounts"));
        Tree { folder, cgroups }
    }

    impl Tree {
        fn set(&self, cgroup: &str, limit: &str, current: u64, stat: &str) {
            let folder = self.folder.path().join("fs").join(cgroup);
            fs::write(folder.join("memory.max"), limit).unwrap();
            fs::write(folder.join("memory.current"), format!("{current}\n")).unwrap();
            fs::write(folder.join("memory.stat"), stat).unwrap();
        }
    }

    #[test]
    fn the_tightest_limit_counts_and_file_pages_do_not() {
        let mut tree = tree();
        assert_eq!(tree.cgroups.room(), None);
        tree.set("outer/inner", "max\n", 100 * MIB, "");
        assert_eq!(tree.cgroups.room(), None);
        tree.set("outer", &format!("{}\n", 512 * MIB), 300 * MIB, "anon 5\nshmem 7\n");
        // A sixteenth is the margin.
        assert_eq!(tree.cgroups.room(), Some((512 - 32 - 300) * MIB));
        let stat = format!("inactive_file {}\nactive_file {}\n", 60 * MIB, 40 * MIB);
        tree.set("outer", &format!("{}\n", 512 * MIB), 300 * MIB, &stat);
        assert_eq!(tree.cgroups.room(), Some((512 - 32 - 300 + 80) * MIB));
        tree.set("outer/inner", &format!("{}\n", 110 * MIB), 100 * MIB, "");
        assert_eq!(tree.cgroups.room(), Some(0));
        let usage = tree.cgroups.usage();
        assert_eq!(usage.len(), 2);
        assert_eq!((usage[0].limit, usage[0].current), (Some(110 * MIB), 100 * MIB));
    }

    #[test]
    fn a_process_that_is_put_elsewhere_is_found_there() {
        let mut tree = tree();
        tree.set("outer/inner", &format!("{}\n", 1024 * MIB), 0, "");
        assert_eq!(tree.cgroups.room(), Some((1024 - 64) * MIB));
        fs::write(tree.folder.path().join("own"), "0::/outer\n").unwrap();
        assert_eq!(tree.cgroups.room(), None);
    }

    #[test]
    fn this_process_has_cgroups_or_none() {
        for usage in Cgroups::of_this_process().usage() {
            assert!(usage.limit.is_none_or(|limit| limit < NO_LIMIT), "{usage:?}");
        }
    }
}
