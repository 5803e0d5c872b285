//! `neap ctl` against a `neap run` of a bare payload: they need a KVM that
//! makes machines, and no Linux guest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use neap_tests::Neap;
use neap_tests::machine::{Machine, TIERS, ctl, wait_for};
use neap_tests::refusal::{Folder, names, refused};
use neap_vmm::payload;
use rustix::process::Signal;
use serde_json::json;

/// For a machine to do something.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_machine_pauses_and_goes_on() {
    let machine = Machine::start("--memory 64M --cpus 2");
    let status = machine.json("status");
    assert_eq!((&status["state"], &status["vcpus"]), (&json!("running"), &json!(2)));
    assert_eq!(status["memory-bytes"], 64 << 20);
    machine.refuses("resume", &["resume: the machine is not paused"]);
    for _ in 0..20 {
        assert_eq!(machine.tells("pause"), "paused\n");
        assert_eq!(machine.tells("resume"), "running\n");
    }
    assert_eq!(machine.json("pause"), json!({"state": "paused"}));
    machine.refuses("pause", &["pause: the machine is paused already"]);
    let status = machine.tells("status");
    assert_eq!(status.split_whitespace().take(2).collect::<Vec<_>>(), ["state", "paused"]);
    // A signal ends a machine that is paused.
    let (folder, ended) = machine.end(Signal::TERM);
    ended.expect_status(143);
    assert_eq!(names(&folder.path(".")), ["kernel"]);
}

#[test]
fn a_pause_that_waits_for_a_vcpu_holds_up_neither_status_nor_signals() {
    let folder = Folder::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let full = vec![b'x'; rustix::pipe::fcntl_getpipe_size(&writer).unwrap()];
    (&writer).write_all(&full).unwrap();
    folder.file("kernel", &payload::stay_elf());
    let socket = folder.path("vm.sock");
    let mut neap = folder.run("--memory 64M").args(["--api-socket"]).args([&socket]);
    neap.command().stdout(writer);
    let running = neap.start();
    wait_for(&socket);
    // The vCPU waits in its write to the console, which nobody reads.
    let pause = ctl(&socket, "pause").start();
    let end = Instant::now() + LIMIT;
    while !ctl(&socket, "status").run().expect_status(0).stdout.contains("being paused") {
        assert!(Instant::now() < end);
    }
    refused(ctl(&socket, "pause"), &["pause: the machine is being paused already"]);
    refused(ctl(&socket, "resume"), &["resume: the machine is being paused: wait"]);
    let began = Instant::now();
    running.signal(Signal::TERM);
    running.wait().expect_status(143);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let ended = pause.wait().expect_status(2);
    assert_eq!(ended.stderr, "neap: pause: the machine is over\n");
    drop(reader);
}

#[test]
fn a_socket_is_left_by_a_kill_only_and_taken_over() {
    let (folder, ended) = Machine::start("--memory 64M").end(Signal::KILL);
    assert_eq!(ended.status, None);
    assert_eq!(names(&folder.path(".")), ["kernel", "vm.sock"]);
    let gone = ctl(&folder.path("vm.sock"), "status").run().expect_status(2);
    assert!(gone.stderr.contains("--socket: ") && gone.stderr.contains("is gone"));
    let machine = Machine::start_in(folder, "--memory 64M");
    machine.tells("status");
    // One that is in use is not.
    refused(
        machine.folder.run("--memory 64M --api-socket").args([machine.folder.path("vm.sock")]),
        &["--api-socket", "vm.sock", "another process listens"],
    );
    machine.tells("status");
    let (folder, ended) = machine.end(Signal::INT);
    ended.expect_status(130);
    assert_eq!(names(&folder.path(".")), ["kernel"]);
    let gone = ctl(&folder.path("vm.sock"), "status").run().expect_status(2);
    assert!(gone.stderr.contains("is the guest running?"), "{}", gone.stderr);
}

#[test]
fn memory_moves_and_comes_home() {
    let machine = Machine::start(TIERS);
    let status = machine.json("status");
    assert_eq!(status["tiers"]["regions"][0]["free"], 16);
    let moved = machine.json("migrate --to region:0 --range 0+16M");
    assert_eq!(moved["moved"], json!({"granules": 8, "bytes": 16 << 20}));
    let again = machine.json("migrate --to region:0 --range 0+16M");
    assert_eq!(again["outcomes"], json!({"already-there": 8}));
    let residency = machine.json("residency --verify");
    let run = &residency["runs"][0];
    assert_eq!((&run["place"], &run["region"]), (&json!("device"), &json!(0)));
    assert_eq!((&run["base"], &run["size"]), (&json!("0x0"), &json!(16 << 20)));
    assert_eq!(residency["verified"]["mismatches"], json!([]));
    assert_eq!(residency["verified"]["checked"], 8);
    let text = machine.tells("residency --verify");
    assert!(text.contains("region 0, frame") && text.contains("0 elsewhere"), "{text}");
    let accounts = &machine.json("status --verify")["tiers"]["accounts"];
    assert_eq!((&accounts["settled"], &accounts["differences"]), (&json!(true), &json!([])));
    let region = &accounts["tiers"][1];
    assert_eq!((&region["region"], &region["kernel-bytes"]), (&json!(0), &json!(16 << 20)));
    let text = machine.tells("status --verify");
    assert!(text.ends_with("the kernel agrees\n"), "{text}");
    let text = machine.tells("status");
    assert!(text.contains("8 to devices") && text.contains("32M"), "{text}");
    // More than the pool has: what fits moves, and the rest is told why not.
    let ended = machine.ctl("migrate --to region:0").run().expect_status(0);
    assert!(ended.stdout.contains("no-frame"), "{}", ended.stdout);
    let home = machine.tells("evacuate --region 0");
    assert!(home.starts_with("moved 16 granules, 32M in "), "{home}");
    assert_eq!(machine.json("status")["tiers"]["regions"][0]["free"], 16);
    machine.end(Signal::TERM).1.expect_status(143);
}

#[test]
fn an_older_host_moves_memory_in_its_own_way() {
    for (without, engine, door, warns) in [
        ("move", "remap", "userfaultfd(2)", true),
        ("syscall", "move", "/dev/userfaultfd", false),
        ("move,syscall", "remap", "/dev/userfaultfd", true),
    ] {
        let folder = Folder::new();
        folder.file("kernel", &payload::count_elf());
        let socket = folder.path("vm.sock");
        let neap = folder.run(TIERS).env("NEAP_WITHOUT", without);
        let running = neap.args(["--api-socket"]).args([&socket]).start();
        wait_for(&socket);
        let machine = Machine { folder, running };
        let tiers = &machine.json("status")["tiers"];
        assert_eq!(tiers["engine"], engine, "without {without}");
        assert_eq!(tiers["userfaultfd"], door, "without {without}");
        let moved = machine.json("migrate --to region:0 --range 16M+16M");
        assert_eq!(moved["moved"]["granules"], 8, "without {without}: {moved}");
        assert_eq!(machine.json("evacuate --region 0")["moved"]["granules"], 8);
        let verified = &machine.json("residency --verify")["verified"];
        assert_eq!(verified["mismatches"], json!([]));
        let (_, ended) = machine.end(Signal::TERM);
        let ended = ended.expect_status(143);
        assert_eq!(ended.stderr.contains("backing=memfd"), warns, "{}", ended.stderr);
    }
}

#[test]
fn what_is_pinned_stays_and_says_so() {
    let machine = Machine::start(TIERS);
    let pin = machine.tells("pin --range 0+4M");
    let ended = machine.ctl("migrate --to region:0 --range 0+4M").run().expect_status(1);
    assert!(ended.stdout.starts_with("moved 0 granules\npinned 2 granules\n"), "{}", ended.stdout);
    assert_eq!(ended.stderr, "neap: migrate: nothing moved: 2 granules pinned\n");
    let some = machine.json("migrate --to region:0 --range 0+8M");
    assert_eq!(some["outcomes"], json!({"moved": 2, "pinned": 2}));
    // In the region a pin holds too.
    let held = machine.tells("pin --range 4M+4M");
    let ended = machine.ctl("evacuate --region 0").run().expect_status(1);
    assert_eq!(ended.stderr, "neap: evacuate: nothing moved: 2 granules pinned\n");
    machine.tells(&format!("unpin {}", held.trim()));
    let home = machine.json("evacuate --region 0");
    assert_eq!(home["moved"]["granules"], 2);
    machine.tells("evacuate --region 0");
    assert_eq!(machine.json("residency")["runs"][0]["pins"], 1);
    machine.tells(&format!("unpin {}", pin.trim()));
    machine.refuses(&format!("unpin {}", pin.trim()), &["unpin: there is no pin"]);
    machine.tells("migrate --to region:0 --range 0+4M");
    machine.end(Signal::TERM).1.expect_status(143);
}

#[test]
fn requests_that_make_no_sense_move_nothing() {
    let machine = Machine::start(TIERS);
    for (arguments, parts) in [
        ("migrate --to region:0 --range 0+1M", ["0x0-0xfffff", "multiples of 2M"]),
        ("migrate --to region:0 --range 64M+2M", ["0x4000000-0x41fffff", "0x0-0x3ffffff"]),
        ("migrate --to region:0 --range 0xffffffffffe00000+4M", ["0xffffffffffe00000", "end of"]),
        ("migrate --to region:0 --range 0+0", ["0x0+0x0", "empty"]),
        ("migrate --to region:0 --range 0+4M --range 2M+2M", ["overlaps", "0x200000-0x3fffff"]),
        ("migrate --to region:1", ["device region 1", "0 to 0"]),
        ("migrate --to home --from-region 7", ["device region 7", "0 to 0"]),
        ("evacuate --region 1", ["device region 1", "0 to 0"]),
        ("pin --range 1M+1M", ["0x100000-0x1fffff", "whole granules"]),
    ] {
        let name = arguments.split(' ').next().unwrap();
        machine.refuses(arguments, &[&[name], &parts[..]].concat());
    }
    assert_eq!(machine.json("status")["tiers"]["moves"]["to-device"], 0);
    machine.end(Signal::TERM).1.expect_status(143);
}

mod bad_input {
    use super::*;

    #[test]
    fn options_of_ctl() {
        refused(Neap::new(["ctl", "status"]), &["--socket", "missing"]);
        let ctl = |arguments: &str| ctl(Path::new("/nonexistent/s"), arguments);
        refused(ctl("migrate"), &["--to"]);
        refused(ctl("migrate --to moon"), &["--to", "moon", "region:N"]);
        refused(ctl("migrate --to home --range 5"), &["--range", "\"5\"", "GPA+SIZE"]);
        refused(ctl("migrate --to home --select all"), &["--select", "all", "device-public"]);
        refused(ctl("migrate --to home --limit some"), &["--limit", "some"]);
        refused(ctl("fly"), &["fly"]);
        let ended = ctl("status").run().expect_status(2);
        assert!(ended.stderr.contains("/nonexistent/s"), "{}", ended.stderr);
    }

    #[test]
    fn sockets_that_cannot_be() {
        let folder = Folder::new();
        let long = "x".repeat(108);
        refused(folder.run(&format!("--api-socket {long}")), &["--api-socket", "at most 107"]);
        refused(folder.run("").args(["--api-socket", ""]), &["--api-socket", "none was supplied"]);
        let file = folder.file("letter", b"keep me");
        let options = format!("--api-socket {}", file.display());
        refused(folder.run(&options), &["--api-socket", "letter", "is no socket"]);
        assert_eq!(fs::read(&file).unwrap(), b"keep me");
        refused(folder.run("--api-socket /nonexistent/s"), &["--api-socket", "No such file"]);
        assert_eq!(names(&folder.path(".")), ["kernel", "letter"]);
    }

    #[test]
    fn a_run_that_is_refused_leaves_no_socket_and_takes_none() {
        let folder = Folder::new();
        let stale = folder.path("stale");
        drop(UnixListener::bind(&stale).unwrap());
        for options in ["--initrd /nonexistent/i", "--exit-stats /nonexistent/x"] {
            for socket in ["fresh", "stale"] {
                let neap = folder.run(options).args(["--api-socket"]).args([folder.path(socket)]);
                refused(neap, &["No such file"]);
            }
        }
        assert_eq!(names(&folder.path(".")), ["kernel", "stale"]);
    }
}
