//! A guest of which the host loses a page of special-purpose memory.

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use neap_tests::{Guest, connect};
use neap_vmm::control::api::{Event, Hex, MetBy, PageFailed, Request};
use neap_vmm::control::client::Events;
use neap_vmm::images::Job;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("memory_failure::costs_a_process_one_page_and_the_kernel_goes_on", lose_a_page)]
}

/// Where the guest's window is, and which page of it is lost.
const WINDOW: u64 = 0x10_0000_0000;
const VICTIM: u64 = WINDOW + 3 * 4096;
const PATIENCE: Duration = Duration::from_secs(100);

/// The guest's program, for any Linux.
fn program(folder: &Path) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/lose_a_page.c");
    let binary = folder.join("lose-a-page");
    let compiled = Command::new("gcc")
        .args(["-O2", "-static", "-Wall", "-o"])
        .args([&binary, &source])
        .output()
        .expect("gcc, which `neap setup` installs");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    std::fs::read(binary).unwrap()
}

fn lose_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("api");
    // Devices of dax_hmem are kmem's unless somebody says otherwise
    // (`dax_match_type`, drivers/dax/bus.c).
    let script = "insmod /lib/modules/dax_hmem.ko\ninsmod /lib/modules/device_dax.ko\n\
                  echo dax0.0 > /sys/bus/dax/drivers/device_dax/new_id\n\
                  /bin/lose-a-page /dev/dax0.0\necho neap-job: program $?\n\
                  dmesg | grep -c 'Memory failure' | sed 's/^/neap-job: failures /'\n\
                  ls / >/dev/null && echo neap-job: the kernel goes on\n";
    let job = Job::script(script).file("/bin/lose-a-page", program(folder.path()));
    let booted = Guest::with_job(job)
        .options("--numa node=0,cpus=0,memory=512M")
        .options(&format!("--device-memory size=128M,node=1,addr={WINDOW:#x}"))
        .options(&format!("--api-socket {}", socket.display()))
        .boot();
    booted.running().wait_for("lose-a-page: in use", PATIENCE);
    let mut client = connect(&socket);
    let events = thread::spawn({
        let mut events = Events::open(&socket).unwrap();
        move || std::iter::from_fn(|| events.next().ok().flatten()).collect::<Vec<_>>()
    });
    let failed = client.ask::<PageFailed>(&Request::FailPage { address: Hex(VICTIM) });
    let ended = booted.wait().expect_status(0);
    failed.unwrap();
    // Told when it was made to fail, and when the guest met it.
    let events = events.join().unwrap();
    let told: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::MemoryFailed(failed) => Some(failed),
            _ => None,
        })
        .collect();
    for failed in &told {
        let place = (failed.base, failed.size, failed.region, failed.frame, failed.retired);
        assert_eq!(place, (Hex(VICTIM), 4096, Some(0), Some(0), true), "{told:?}");
    }
    let met: Vec<_> = told.iter().map(|failed| (failed.met, failed.machine_check)).collect();
    assert!(met.contains(&(MetBy::Ahead, false)), "{told:?}");
    assert!(met.contains(&(MetBy::Vcpu, true)), "{told:?}");
    // BUS_MCEERR_AR, of the page that was lost.
    let signal = ended.expect_line("lose-a-page: SIGBUS");
    assert!(signal.starts_with("lose-a-page: SIGBUS code 4, "), "{signal}");
    assert!(signal.ends_with("where the page is"), "{signal}");
    ended.expect_line("lose-a-page: the others are whole");
    assert_eq!(ended.expect_line("neap-job: program"), "neap-job: program 0");
    ended.expect_line("neap-job: the kernel goes on");
    let failures = ended.expect_line("neap-job: failures ");
    assert_ne!(failures, "neap-job: failures 0", "{}", ended.stdout);
    assert!(
        ended
            .stderr
            .contains(&format!("host memory has failed: 4096 bytes of the guest's at {VICTIM:#x}")),
        "{}",
        ended.stderr
    );
}
