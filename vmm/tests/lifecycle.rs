//! Pausing, resuming and ending machines whose guest never leaves the
//! processor by itself: every kick must arrive. Runs on any KVM, also one that
//! interprets guest kernel mode.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, Write};
use std::time::{Duration, Instant};

use neap_vmm::builder::{self, Built};
use neap_vmm::config::{VmOptions, resolve};
use neap_vmm::kvm::cpuid;
use neap_vmm::lifecycle::StopReason;
use neap_vmm::machine::Machine;
use neap_vmm::payload;
use vm_memory::{Bytes, GuestAddress};

const LIMIT: Duration = Duration::from_secs(20);

fn machine(elf: &[u8], cpus: u32) -> Machine {
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(elf).unwrap();
    let options = VmOptions {
        kernel: Some(kernel.path().to_owned()),
        cpus: Some(cpus),
        memory: Some("64M".parse().unwrap()),
        ..VmOptions::default()
    };
    let config = resolve::resolve(options, cpuid::host_address_bits()).unwrap();
    let Built { mut machine, .. } = builder::build(&config, Box::new(io::sink())).unwrap();
    machine.start().unwrap();
    machine
}

fn counter(machine: &Machine) -> u32 {
    machine.memory().view().read_obj(GuestAddress(payload::COUNTER.0)).unwrap()
}

#[track_caller]
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "{what} did not happen within {LIMIT:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_after() {
    let mut machine = machine(&payload::count_elf(), 1);
    for _ in 0..20 {
        let before = counter(&machine);
        wait_until("counting", || counter(&machine) != before);
        machine.pause().unwrap();
        let paused = counter(&machine);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(counter(&machine), paused);
        machine.resume();
    }
    assert_eq!(machine.stop(StopReason::Console), StopReason::Console);
}

#[test]
fn no_kick_is_lost_in_a_storm() {
    // Kicks meet the vCPU at every place of its loop; one lost kick would
    // hold `pause` until its limit. The other three vCPUs wait for their
    // start-up IPI, which is another place to be kicked out of.
    let mut machine = machine(&payload::count_elf(), 4);
    for _ in 0..2000 {
        machine.pause().unwrap();
        machine.resume();
    }
    let before = counter(&machine);
    wait_until("counting", || counter(&machine) != before);
    assert_eq!(machine.stop(StopReason::Console), StopReason::Console);
}

#[test]
fn a_machine_can_be_stopped_while_it_is_paused() {
    let mut machine = machine(&payload::count_elf(), 2);
    machine.pause().unwrap();
    assert_eq!(machine.stop(StopReason::Console), StopReason::Console);
}

#[test]
fn a_machine_that_is_dropped_takes_its_threads_along() {
    let machine = machine(&payload::count_elf(), 3);
    let memory = machine.memory().slots()[0].hva;
    drop(machine);
    // Had a thread gone on, the unmapped memory would have killed this
    // process; and the range is free again.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(&format!("{memory:x}-")), "{maps}");
}

#[test]
fn every_end_of_the_guest_has_its_reason() {
    for (elf, reason) in [
        (payload::hello_elf(), StopReason::Shutdown),
        (payload::triple_fault_elf(), StopReason::TripleFault),
    ] {
        let mut machine = machine(&elf, 1);
        wait_until("an end", || machine.reporter().reason().is_some());
        assert_eq!(machine.reporter().reason(), Some(&reason));
        assert_eq!(machine.stop(reason.clone()), reason);
        // The first reason stands, and nothing starts it again.
        machine.resume();
        assert_eq!(machine.stop(StopReason::Console), reason);
    }
}
