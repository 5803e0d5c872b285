//! A /dev/dax that is taken from its driver while it is in use: what was in it
//! is lost and says so, everything else lives on, and nobody waits.

use std::fs::{self, File};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use neap_memory::addr::MIB;
use neap_memory::dax::DaxPath;
use neap_memory::granule::{GranuleSize, Kind, PoolId};
use neap_memory::guest::RangeSpec;
use neap_memory::migrate::{MigrateRequest, Outcome, Report, Select, Target};
use neap_memory::table::Place;
use neap_memory::tiers::{PlugMemory, RegionConfig, Tiers, TiersConfig};
use neap_memory::{Backing, Gpa, GpaRange, GuestMemory};
use neap_tests::{Guest, connect};
use neap_vmm::bare::{self, Writer};
use neap_vmm::control::api::{Request, Status};
use neap_vmm::images::Job;
use neap_vmm::kvm::gate::{Gate, Holder, Wanted};
use neap_vmm::memory_failure;
use vm_memory::{Bytes, GuestAddress};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("gone::a_guest_loses_what_was_in_the_device_and_goes_on", linux),
        trial("gone::what_is_at_home_lives_on_and_moves_are_told", at_rest),
        trial("gone::while_granules_move_each_is_whole_or_lost", in_motion),
    ]
}

const DEVICE: &str = "dax0.0";
const DRIVER: &str = "/sys/bus/dax/drivers/device_dax";
const PATIENCE: Duration = Duration::from_secs(60);
const RAM: u64 = 64 * MIB;
const GRANULE: u64 = 2 * MIB;
const PAGE: u64 = 4096;
const POOL: Target = Target::Pool(PoolId(0));

/// The device without its driver, which gets it back.
struct Unbound;

impl Unbound {
    fn now() -> Self {
        fs::write(Path::new(DRIVER).join("unbind"), DEVICE).unwrap();
        Self
    }
}

impl Drop for Unbound {
    fn drop(&mut self) {
        // A second panic would end all tests.
        if let Err(error) = fs::write(Path::new(DRIVER).join("bind"), DEVICE) {
            eprintln!("{DEVICE} cannot be bound again: {error}");
            assert!(thread::panicking(), "{error}");
        }
    }
}

/// Makes the device one that can be opened again. If it was bound while somebody
/// still had it open, their last close takes the character device away
/// (`cdev_init` in drivers/dax/device.c finds it in use), until it is bound anew.
fn anew() {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = File::open(Path::new("/dev").join(DEVICE)) {
        assert!(Instant::now() < deadline, "{error}");
        drop(Unbound::now());
    }
}

/// The guest's program, for any Linux.
fn program(folder: &Path) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/lose_a_page.c");
    let binary = folder.join("lose-a-page");
    let compiler = Command::new("gcc")
        .args(["-O1", "-static", "-o"])
        .args([&binary, &source])
        .env("TMPDIR", folder)
        .output()
        .expect("gcc, which `neap setup` installs");
    assert!(compiler.status.success(), "{}", String::from_utf8_lossy(&compiler.stderr));
    fs::read(binary).unwrap()
}

fn linux() {
    const WINDOW: u64 = 0x10_0000_0000;
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    let script = "insmod /lib/modules/dax_hmem.ko\ninsmod /lib/modules/device_dax.ko\n\
                  echo dax0.0 > /sys/bus/dax/drivers/device_dax/new_id\n\
                  /bin/lose-a-page /dev/dax0.0\necho neap-job: program $?\n\
                  ls / >/dev/null && echo neap-job: the kernel goes on\n";
    let job = Job::script(script).file("/bin/lose-a-page", program(folder.path()));
    let booted = Guest::with_job(job)
        .options("--memory 512M,backing=memfd --granule 2M --numa node=0,cpus=0,memory=512M")
        .options(&format!(
            "--device-memory size=128M,pool=64M,node=1,addr={WINDOW:#x},backing=dax:/dev/{DEVICE}"
        ))
        .options(&format!("--api-socket {}", socket.display()))
        .boot();
    booted.running().wait_for("lose-a-page: in use", PATIENCE);
    let mut client = connect(&socket);
    let unbound = Unbound::now();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = client.ask::<Status>(&Request::Status { verify: false }).unwrap();
        let region = &status.tiers.unwrap().regions[0];
        if region.gone {
            assert_eq!((region.free, region.used), (0, 64));
            break;
        }
        assert!(Instant::now() < deadline, "{region:?}");
    }
    let ended = booted.wait().expect_status(0);
    drop(unbound);
    anew();
    // BUS_MCEERR_AR: a machine check in the guest.
    let signal = ended.expect_line("lose-a-page: SIGBUS");
    assert!(signal.starts_with("lose-a-page: SIGBUS code 4, "), "{signal}");
    // All of them, not one.
    ended.expect_line("lose-a-page: another page is lost");
    assert_eq!(ended.expect_line("neap-job: program"), "neap-job: program 6");
    ended.expect_line("neap-job: the kernel goes on");
    let said = "device region 0 is gone, and 128M of guest memory with it";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
}

fn fatal(message: &str) -> ! {
    eprintln!("fatal: {message}");
    std::process::abort()
}

fn range(base: u64, size: u64) -> GpaRange {
    GpaRange::new(Gpa(base), size).unwrap()
}

fn mark(page: u64) -> u64 {
    page ^ 0x5a5a_0000_1234_5678
}

/// RAM with a mark in every page, and tiers with a pool in the device as large.
fn rig(gate: &Arc<Gate>) -> (Arc<GuestMemory>, Tiers) {
    memory_failure::install().unwrap();
    let spec = RangeSpec { range: range(0, RAM), backing: Backing::Memfd, prefault: true };
    let memory = Arc::new(GuestMemory::new(&[spec]).unwrap());
    for page in (0..RAM).step_by(PAGE as usize) {
        memory.view().write_obj(mark(page), GuestAddress(page)).unwrap();
    }
    let device = DaxPath::new(&format!("/dev/{DEVICE}")).unwrap();
    let backing = Backing::Dax(device);
    let region = RegionConfig { window: None, pool: RAM, kind: Kind::Public, backing };
    let config = TiersConfig {
        ram: Backing::Memfd,
        regions: vec![region],
        park: Some(Arc::new(Holder(Arc::clone(gate)))),
        copy_threads: 2,
        ..TiersConfig::new(GranuleSize::M2, fatal)
    };
    let tiers = Tiers::new(&memory, config).unwrap();
    (memory, tiers)
}

fn send(tiers: &Tiers, range: GpaRange, to: Target) -> Report {
    let ranges = vec![range];
    let request = MigrateRequest { ranges, to, select: Select::ALL, from_pool: None, limit: None };
    tiers.migrate(&request, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// A word of guest memory as the kernel reads it for others, which gives an
/// error and no signal where it is lost.
fn peek(memory: &GuestMemory, gpa: u64) -> std::io::Result<u64> {
    let mut word = [0; 8];
    File::open("/proc/self/mem")?.read_exact_at(&mut word, memory.slots()[0].hva + gpa)?;
    Ok(u64::from_ne_bytes(word))
}

/// Every page of `range` is lost, or whole.
fn check(memory: &GuestMemory, range: GpaRange, whole: bool) {
    for page in (range.base().0..range.end().0).step_by(PAGE as usize) {
        match peek(memory, page) {
            Ok(word) => assert!(whole && word == mark(page), "{page:#x} reads as {word:#x}"),
            Err(error) => assert!(!whole, "{page:#x}: {error}"),
        }
    }
}

fn at_rest() {
    let gate = Arc::new(Gate::new(0, Wanted::Run));
    let (memory, tiers) = rig(&gate);
    let (away, home) = (range(0, RAM / 2), range(RAM / 2, RAM / 2));
    let mut guest = bare::Guest::at_gate(Arc::clone(&memory), 1, gate).unwrap();
    guest.load_writer(0, &Writer::over(home)).unwrap();
    guest.start().unwrap();
    assert_eq!(send(&tiers, away, POOL).moved.bytes, RAM / 2);
    // There and back, so that the guest's half has been in the device too.
    assert_eq!(send(&tiers, home, POOL).moved.bytes, RAM / 2);
    let deadline = Instant::now() + PATIENCE;
    while tiers.status().pools[0].stats.used > 16 {
        send(&tiers, home, Target::Home);
        assert!(Instant::now() < deadline, "{:?}", tiers.status());
    }
    let unbound = Unbound::now();
    let report = send(&tiers, away, Target::Home);
    assert_eq!(report.moved.bytes, 0, "{report:?}");
    assert_eq!(report.count(Outcome::Poisoned), RAM / 2 / GRANULE, "{report:?}");
    let pool = tiers.status().pools[0];
    assert!(pool.gone, "{pool:?}");
    assert_eq!((pool.stats.used, pool.stats.free), (16, 0), "{pool:?}");
    check(&memory, away, false);
    // Home has its own life, and no way out.
    assert_eq!(send(&tiers, home, POOL).count(Outcome::NoFrame), RAM / 2 / GRANULE);
    guest.wait_passes(2, PATIENCE).unwrap();
    guest.stop(PATIENCE).unwrap();
    assert_eq!(guest.counters(0).errors, 0, "{:?}", guest.wrong_words(0));
    let found = tiers.verify().unwrap();
    assert_eq!(found.mismatches, []);
    let gone = "the device of region 0 is gone";
    let unplugged = tiers.unplug(0, &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(unplugged.to_string().starts_with(gone), "{unplugged}");
    assert!(tiers.plug(0, PlugMemory::default()).unwrap_err().to_string().starts_with(gone));
    // It comes back: what was lost stays lost.
    drop(unbound);
    assert_eq!(send(&tiers, away, Target::Home).moved.bytes, 0);
    check(&memory, away, false);
    // For another machine it is as good as new.
    drop((guest, tiers, memory));
    anew();
    let (memory, tiers) = rig(&Arc::new(Gate::new(0, Wanted::Run)));
    assert_eq!(send(&tiers, range(0, RAM), POOL).moved.bytes, RAM);
    assert_eq!(send(&tiers, range(0, RAM), Target::Home).moved.bytes, RAM);
    check(&memory, range(0, RAM), true);
}

fn in_motion() {
    // Until both ways were cut off, each some times.
    let mut cut_on_the_way_out = false;
    for round in 0u64.. {
        if round >= 6 && cut_on_the_way_out {
            return;
        }
        assert!(round < 24, "no way out was ever cut off");
        let (memory, tiers) = rig(&Arc::new(Gate::new(0, Wanted::Run)));
        let all = range(0, RAM);
        if round % 2 == 0 {
            assert_eq!(send(&tiers, all, POOL).moved.bytes, RAM);
        }
        let unbound = thread::scope(|scope| {
            let mover = scope.spawn(|| {
                let deadline = Instant::now() + PATIENCE;
                let mut cut = false;
                while !tiers.status().pools[0].gone {
                    send(&tiers, all, Target::Home);
                    let out = send(&tiers, all, POOL);
                    cut |= out.count(Outcome::BadFrame) + out.count(Outcome::Busy) > 0;
                    assert!(Instant::now() < deadline, "{:?}", tiers.status());
                }
                cut
            });
            // Somewhere in the middle of a way home, or out.
            let (seen, limit) = (Instant::now(), Duration::from_millis(7 * (round / 2 + 1)));
            while seen.elapsed() < limit && !mover.is_finished() {
                thread::yield_now();
            }
            let unbound = Unbound::now();
            cut_on_the_way_out |= mover.join().unwrap();
            unbound
        });
        let runs = tiers.residency();
        for run in &runs {
            assert!(!run.moving, "{run:?}");
            check(&memory, run.range, run.place == Place::Home);
        }
        eprintln!("round {round}: {} runs", runs.len());
        assert_eq!(tiers.verify().unwrap().mismatches, []);
        drop((tiers, memory, unbound));
        anew();
    }
}
