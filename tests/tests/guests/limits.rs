//! A guest in a memory cgroup with a limit, while its memory moves to a region
//! whose frames have none yet: what would go past the limit stays, the process
//! lives, and every word is right.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::{Completion, Trial};
use neap_memory::addr::MIB;
use neap_tests::{Guest, connect};
use neap_vmm::control::api::{Evacuate, Event, Migrate, Migrated, Request, Status, To};
use neap_vmm::control::client::{Client, Events};
use neap_vmm::images::Job;
use neap_vmm::lab;

use super::moving::programs;

pub(crate) fn trials() -> Vec<Trial> {
    let name = "limits::what_would_go_past_a_cgroups_limit_stays_and_nobody_dies";
    vec![Trial::ignorable_test(name, || {
        Ok(match Cgroup::new() {
            Ok(cgroup) => {
                limited(&cgroup);
                Completion::Completed
            }
            Err(why) => Completion::ignored_with(why),
        })
    })]
}

const ROOT: &str = "/sys/fs/cgroup";
const PATIENCE: Duration = Duration::from_secs(100);
/// What there is to the limit; of that, a sixteenth of the limit is kept for others.
const ROOM: u64 = 96 * MIB;

/// A cgroup of version 2, removed when this is dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self, String> {
        if !lab::inside() {
            return Err("cgroups of this machine are others': it is tried in the lab".to_owned());
        }
        let controllers = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers"));
        if !controllers.is_ok_and(|names| names.split_whitespace().any(|name| name == "memory")) {
            return Err(format!("{ROOT} has no memory controller of version 2"));
        }
        fs::write(Path::new(ROOT).join("cgroup.subtree_control"), "+memory").unwrap();
        let folder = Path::new(ROOT).join("neap-limits");
        fs::create_dir(&folder).unwrap();
        Ok(Self(folder))
    }

    fn set_max(&self, max: &str) {
        fs::write(self.0.join("memory.max"), max).unwrap();
        // A limit that comes is seen a tenth of a second later.
        thread::sleep(Duration::from_millis(200));
    }

    fn number(&self, name: &str) -> u64 {
        fs::read_to_string(self.0.join(name)).unwrap().trim().parse().unwrap()
    }

    /// A number of a file of lines `KEY NUMBER`.
    fn count(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key} ")));
        line.unwrap_or_else(|| panic!("no {key} in {text}")).parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty once its last process has been waited for.
        let _ = fs::remove_dir(&self.0);
    }
}

fn to(client: &mut Client, to: To) -> Migrated {
    let since = Instant::now();
    loop {
        let (select, from_pool, limit) = (None, None, None);
        let request = Request::Migrate(Migrate {
            ranges: vec![],
            to,
            select,
            from_pool,
            limit,
            detach: false,
        });
        let answer = client.ask::<Migrated>(&request).unwrap();
        // Pages that somebody holds for a moment.
        if !answer.outcomes.contains_key("busy") || since.elapsed() > PATIENCE {
            return answer;
        }
    }
}

fn outcome(answer: &Migrated, name: &str) -> u64 {
    answer.outcomes.get(name).copied().unwrap_or(0)
}

/// Neap's books and the kernel's agree, and so does the cgroup's.
fn check(client: &mut Client, cgroup: &Cgroup) {
    let since = Instant::now();
    let accounts = loop {
        let status = client.ask::<Status>(&Request::Status { verify: true }).unwrap();
        let accounts = status.tiers.unwrap().accounts.unwrap();
        // The guest touches new memory now and then.
        if accounts.settled {
            break accounts;
        }
        assert!(since.elapsed() < PATIENCE, "{accounts:?}");
    };
    assert_eq!(accounts.differences, [""; 0], "{accounts:?}");
    let ours: u64 =
        accounts.tiers.iter().map(|tier| tier.kernel_bytes + tier.untouched_bytes).sum();
    let charged = cgroup.count("memory.stat", "anon");
    // The rest of the process is small; what is charged ahead, smaller.
    assert!((ours..ours + 16 * MIB).contains(&(charged + MIB)), "{charged}, {accounts:?}");
    let told = &accounts.cgroups[0];
    assert_eq!(told.folder, cgroup.0.display().to_string());
    assert!(told.current_bytes >= ours, "{accounts:?}");
}

fn limited(cgroup: &Cgroup) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let script = "export MEMTESTER_TEST_MASK=0x1803f\n/bin/memtester 32M 2 && \
                  echo neap-job: all right\n";
    let job = programs(Path::new("/usr/sbin/memtester"))
        .into_iter()
        .fold(Job::script(script), |job, (path, content)| job.file(&path, content));
    let booted = Guest::with_job(job)
        .within(&cgroup.0)
        .deadline(Duration::from_secs(300))
        .options("--memory 256M,prefault=on --granule 2M --device-memory size=0,pool=256M")
        .options(&format!("--api-socket {}", socket.display()))
        .boot();
    // It has its memory then.
    booted.running().wait_for("Loop 1/", PATIENCE);
    let mut client = connect(&socket);
    let events = thread::spawn({
        let mut events = Events::open(&socket).unwrap();
        move || std::iter::from_fn(|| events.next().ok().flatten()).collect::<Vec<_>>()
    });
    check(&mut client, cgroup);
    let limit = cgroup.number("memory.current") + ROOM;
    cgroup.set_max(&limit.to_string());
    let some = to(&mut client, To::Pool(0));
    let (moved, left) = (some.moved.granules, outcome(&some, "no-memory"));
    assert!(moved > 0 && moved < ROOM / (2 * MIB), "{some:?}");
    assert_eq!(moved + left, 128, "{some:?}");
    let charged = cgroup.number("memory.current");
    assert!(charged < limit, "{charged} of {limit}");
    // Each granule that did not move says why, and the next try moves no more.
    assert!(some.skipped.iter().all(|skipped| skipped.outcome == "no-memory"), "{some:?}");
    check(&mut client, cgroup);
    // What has memory on both sides moves to and fro at the limit.
    let home = client.ask::<Migrated>(&Request::Evacuate(Evacuate { region: 0, detach: false }));
    assert_eq!(home.unwrap().moved.granules, moved);
    cgroup.set_max("max");
    let rest = to(&mut client, To::Pool(0));
    assert_eq!((rest.moved.granules, outcome(&rest, "no-memory")), (128, 0), "{rest:?}");
    check(&mut client, cgroup);
    assert_eq!(cgroup.count("memory.events", "oom_kill"), 0);
    assert_eq!(cgroup.count("memory.events", "oom"), 0);
    let ended = booted.wait().expect_status(0);
    assert_eq!(ended.expect_line("neap-job: all right"), "neap-job: all right");
    let events = events.join().unwrap();
    let lacked = events.iter().filter(|event| matches!(event, Event::NoMemory(_)));
    let lacked: Vec<_> = lacked.collect();
    assert!(!lacked.is_empty(), "{events:?}");
    assert!(
        lacked.iter().any(|event| matches!(event, Event::NoMemory(no) if no.granules == left)),
        "{lacked:?}"
    );
}
