//! Whole `neap run` processes with bare payloads: they need a KVM that makes
//! machines, and no Linux guest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write;
use std::time::{Duration, Instant};

use neap_memory::Gpa;
use neap_memory::addr::{GIB, MIB, TIB};
use neap_tests::Neap;
use neap_tests::terminal::Terminal;
use neap_vmm::kvm::cpuid;
use neap_vmm::payload;
use rustix::process::Signal;
use tempfile::NamedTempFile;

fn file(elf: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(elf).unwrap();
    file
}

fn run(kernel: &NamedTempFile, options: &str) -> Neap {
    Neap::new(["run", "--kernel"]).args([kernel.path()]).args(options.split_whitespace())
}

#[test]
fn a_payload_greets_and_powers_off() {
    let ended = run(&file(&payload::hello_elf()), "").run().expect_status(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("N", ""));
}

#[test]
fn a_triple_fault_is_a_failure_with_one_line() {
    let ended = run(&file(&payload::triple_fault_elf()), "").run().expect_status(2);
    assert_eq!(ended.stderr, "neap: the guest triple-faulted\n");
}

/// What a payload that starts `expected` vCPUs says on a machine of `cpus`.
#[track_caller]
fn processors(expected: u32, cpus: u32) -> u8 {
    let kernel = file(&payload::smp_elf(expected));
    let ended = run(&kernel, &format!("--memory 64M --cpus {cpus}")).run().expect_status(0);
    assert_eq!((ended.stdout.len(), ended.stderr.as_str()), (1, ""), "{}", ended.stdout);
    ended.stdout.as_bytes()[0]
}

#[test]
fn every_processor_comes_up() {
    for cpus in [1, 2, 16, 64] {
        assert_eq!(processors(cpus, cpus), payload::probe::GOOD, "{cpus} vCPUs");
    }
}

#[test]
fn the_first_processor_boots_from_any_node() {
    let kernel = file(&payload::smp_elf(2));
    let nodes = "--numa node=0,cpus=1 --numa node=1,cpus=0";
    let ended = run(&kernel, &format!("--memory 64M --cpus 2 {nodes}")).run().expect_status(0);
    assert_eq!(ended.stdout.as_bytes(), [payload::probe::GOOD], "{}", ended.stderr);
}

#[test]
fn a_processor_that_does_not_come_is_missed() {
    assert_eq!(processors(3, 2), payload::probe::BAD);
}

#[test]
fn words_above_a_tebibyte_are_memory_of_their_own() {
    if cpuid::host_address_bits() <= 41 {
        // Not a pass by default: the other half of the test still runs.
        eprintln!("this processor has no address above 2T; RAM up to its limit is probed");
    }
    let top = (1u64 << cpuid::host_address_bits()).min(4 * TIB) - 2 * GIB;
    let spm = (top - GIB) & !(2 * MIB - 1);
    let ram = (1u64 << cpuid::host_address_bits()).min(2 * TIB) / 2;
    // RAM goes on above the 32-bit hole, so it ends 1 GiB after its size.
    let words =
        [2 * MIB, 3 * GIB - 8, 4 * GIB, ram / 2, ram, ram + GIB - 8, spm, spm + GIB - 8].map(Gpa);
    let kernel = file(&payload::memory_probe(&words).unwrap());
    let options = format!("--memory {ram} --device-memory size=1G,addr={spm:#x}");
    let ended = run(&kernel, &options).run().expect_status(0);
    assert_eq!(
        ended.stdout.trim_end(),
        (payload::probe::GOOD as char).to_string().repeat(words.len()),
        "{}",
        ended.stderr
    );
}

#[test]
fn signals_end_a_guest_at_any_moment() {
    let kernel = file(&payload::count_elf());
    for delay in 0..24u64 {
        let signal = [Signal::TERM, Signal::INT, Signal::HUP][delay as usize % 3];
        let guest = run(&kernel, "--cpus 2 --memory 64M").start();
        std::thread::sleep(Duration::from_millis(delay * 2));
        guest.signal(signal);
        let ended = guest.wait();
        let number = signal.as_raw();
        // Before the handlers are there the signal's default action ends it.
        match ended.status {
            None => assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", "")),
            status => assert_eq!(status, Some(128 + number), "{}", ended.stderr),
        }
    }
}

#[test]
fn a_signal_restores_the_terminal() {
    let mut terminal = Terminal::new();
    let kernel = file(&payload::stay_elf());
    let mut neap = run(&kernel, "").stdin(terminal.program());
    neap.command().stdout(terminal.program());
    let guest = neap.start();
    terminal.wait_for("N", Duration::from_secs(10));
    assert!(!terminal.is_cooked());
    guest.signal(Signal::TERM);
    guest.wait().expect_status(143);
    assert!(terminal.is_cooked());
}

#[test]
fn the_escape_reaches_neap_past_a_guest_that_takes_no_input() {
    let mut terminal = Terminal::new();
    let kernel = file(&payload::stay_elf());
    let mut neap = run(&kernel, "--memory 64M").stdin(terminal.program());
    neap.command().stdout(terminal.program());
    let guest = neap.deadline(Duration::from_secs(10)).start();
    terminal.wait_for("N", Duration::from_secs(10));
    // More than the serial port's FIFO holds.
    terminal.enter(&"x".repeat(1000));
    terminal.enter("\u{1}x");
    guest.wait().expect_status(0);
    assert!(terminal.is_cooked());
}

#[test]
fn a_console_that_nobody_reads_is_no_end() {
    // /dev/full refuses every byte.
    let kernel = file(&payload::hello_elf());
    let mut neap = run(&kernel, "");
    neap.command().stdout(std::fs::File::create("/dev/full").unwrap());
    let ended = neap.run().expect_status(0);
    assert_eq!(ended.stderr, "neap: stdout took no more: 1 bytes of the guest's output are lost\n");
}

#[test]
fn a_console_that_is_not_read_holds_up_no_signal() {
    let kernel = file(&payload::stay_elf());
    let (reader, writer) = std::io::pipe().unwrap();
    let full = vec![b'x'; rustix::pipe::fcntl_getpipe_size(&writer).unwrap()];
    (&writer).write_all(&full).unwrap();
    let (input, mut person) = std::io::pipe().unwrap();
    let mut neap = run(&kernel, "--memory 64M").deadline(Duration::from_secs(10));
    neap.command().stdout(writer).stdin(input);
    let guest = neap.start();
    // The vCPU waits in its write by now, and holds the serial port.
    std::thread::sleep(Duration::from_millis(300));
    person.write_all(b"anybody there?").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    guest.signal(Signal::TERM);
    guest.wait().expect_status(143);
    drop(reader);
}

#[test]
fn a_standard_error_that_takes_nothing_changes_no_status() {
    let kernel = file(&payload::triple_fault_elf());
    let mut neap = run(&kernel, "");
    neap.command().stderr(std::fs::File::create("/dev/full").unwrap());
    neap.run().expect_status(2);
}

#[test]
fn the_end_is_quick() {
    let kernel = file(&payload::count_elf());
    let guest = run(&kernel, "--cpus 4").start();
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    guest.signal(Signal::TERM);
    guest.wait().expect_status(143);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
