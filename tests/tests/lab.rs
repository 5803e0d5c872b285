//! `neap lab` from outside: what passes between the host and a program in the
//! lab, and how a lab ends. Every child has a deadline.
//!
//! Needs the images of `neap setup`; `make test` makes them. The binary is
//! `NEAP_BIN`, or the `neap` beside this test's folder. `NEAP_LAB_KERNEL` and
//! `NEAP_LAB_INITRAMFS` name other images.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// For one lab from start to end on a busy machine; idle it takes 4 s.
const DEADLINE: Duration = Duration::from_secs(150);

fn neap() -> PathBuf {
    let path = env::var_os("NEAP_BIN").map_or_else(
        || env::current_exe().unwrap().parent().unwrap().parent().unwrap().join("neap"),
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not there; `make test` builds it", path.display());
    path
}

fn lab() -> Command {
    let mut command = Command::new(neap());
    command.arg("lab").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for (variable, option) in
        [("NEAP_LAB_KERNEL", "--lab-kernel"), ("NEAP_LAB_INITRAMFS", "--lab-initramfs")]
    {
        if let Some(path) = env::var_os(variable) {
            command.arg(option).arg(path);
        }
    }
    command
}

/// A shell script in the lab.
fn script(text: &str) -> Command {
    let mut command = lab();
    command.args(["--program", "/bin/sh", "--", "-c", text]);
    command
}

struct Running {
    child: Child,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
    began: Instant,
}

struct Ended {
    status: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

fn start(mut command: Command) -> Running {
    let mut child = command.spawn().unwrap();
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    Running { child, stdout, stderr, began: Instant::now() }
}

fn collect(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // A terminal ends with an error.
        let _ = pipe.read_to_end(&mut all);
        all
    })
}

impl Running {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    fn end(mut self) -> Ended {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.began.elapsed() > DEADLINE {
                self.child.kill().unwrap();
                self.child.wait().unwrap();
                let stderr = self.stderr.map(|t| t.join().unwrap()).unwrap_or_default();
                panic!("no end within {DEADLINE:?}; stderr: {}", String::from_utf8_lossy(&stderr));
            }
            thread::sleep(Duration::from_millis(10));
        };
        let stdout = self.stdout.map(|thread| thread.join().unwrap()).unwrap_or_default();
        let stderr = self.stderr.map(|thread| thread.join().unwrap()).unwrap_or_default();
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        let hint = "; `make test` builds the images";
        assert!(!stderr.contains("neap setup"), "{stderr}{hint}");
        Ended { status: status.code(), stdout, stderr }
    }
}

fn run(command: Command) -> Ended {
    start(command).end()
}

/// Waits for a condition, with the deadline of a lab.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes of every value without a pattern that a lost piece would keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        })
        .collect()
}

#[test]
fn streams_are_exact_and_apart_and_the_status_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let input = noise(3_000_000);
    fs::write(folder.path().join("input"), &input).unwrap();
    let mut command = script("tee /dev/stderr; exit 7");
    command.current_dir(&folder).stdin(File::open(folder.path().join("input")).unwrap());
    let mut running = start(command);
    let stderr = running.stderr.take().unwrap();
    let ended = running.end();
    assert_eq!(ended.status, Some(7));
    assert!(ended.stdout == input, "stdout differs");
    assert!(stderr.join().unwrap() == input, "stderr differs");
}

#[test]
fn nothing_to_read_and_no_terminal_is_fine() {
    let neap = lab();
    let mut command = Command::new("/usr/bin/setsid");
    command
        .args(["--wait", "/bin/sh", "-c", r#"exec "$0" "$@" <&-"#])
        .arg(neap.get_program())
        .args(neap.get_args())
        .args(["--program", "/bin/sh", "--", "-c", "read line || echo end"])
        .env_clear()
        .env("PATH", env::var_os("PATH").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    for name in ["HOME", "XDG_CACHE_HOME"] {
        command.envs(env::var_os(name).map(|value| (name, value)));
    }
    let ended = run(command);
    assert_eq!(
        (ended.stdout.as_slice(), ended.status),
        (&b"end\n"[..], Some(0)),
        "{}",
        ended.stderr
    );
}

#[test]
fn an_open_stdin_that_says_nothing_does_not_hold_the_lab() {
    let mut command = script("echo done");
    command.stdin(Stdio::piped());
    let mut running = start(command);
    let _open = running.child.stdin.take();
    assert_eq!(running.end().stdout, b"done\n");
}

#[test]
fn the_working_folder_is_writable_and_nothing_else_of_the_host() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("a, \"b\" = ü");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("from-host"), "h").unwrap();
    let outside = parent.path().join("outside");
    let mut command = lab();
    command.current_dir(&folder).args(["--program", "/bin/sh", "--", "-c"]).arg(
        "cat from-host && echo lab > from-lab && mkdir sub && mv from-lab sub/ && pwd
         echo x > \"$0\"; echo x > /etc/neap-lab-test; echo x > /neap-lab-test; true",
    );
    let ended = run({
        command.arg(&outside);
        command
    });
    assert_eq!(ended.stdout, format!("h{}\n", folder.display()).into_bytes(), "{}", ended.stderr);
    assert_eq!(fs::read(folder.join("sub/from-lab")).unwrap(), b"lab\n");
    for path in [outside.as_path(), Path::new("/etc/neap-lab-test"), Path::new("/neap-lab-test")] {
        assert!(!path.exists(), "{} was written on the host", path.display());
    }
}

#[test]
fn the_root_as_working_folder_is_not_shared_and_that_is_said() {
    let mut command = script("pwd; touch /neap-lab-test 2>/dev/null || echo refused");
    command.current_dir("/");
    let ended = run(command);
    assert_eq!(ended.stdout, b"/\nrefused\n");
    assert!(ended.stderr.contains("no file can be written"), "{}", ended.stderr);
    assert!(!Path::new("/neap-lab-test").exists());
}

#[test]
fn the_lab_has_what_neap_needs_and_does_not_nest() {
    let mut command = script(
        r#"cat /sys/module/kvm_amd/parameters/npt /sys/module/kvm/parameters/tdp_mmu
        cat /sys/module/kvm/parameters/tsc_tolerance_ppm
        test -c /dev/kvm && test -c /dev/userfaultfd && echo devices
        echo 8 > /proc/sys/vm/nr_hugepages && grep -o 'HugePages_Total: *8' /proc/meminfo
        touch /dev/hugepages/x /tmp/x /var/tmp/x /dev/shm/x /run/x && ls -d /sys/kernel/debug/kvm
        echo "$NEAP_IN_LAB $NEAP_FOR_THIS_TEST"
        "$NEAP_TESTED" lab -- --version"#,
    );
    command.env("NEAP_TESTED", neap()).env("NEAP_FOR_THIS_TEST", "passed");
    let ended = run(command);
    let expected =
        "Y\nY\n50000\ndevices\nHugePages_Total:       8\n/sys/kernel/debug/kvm\n1 passed\nneap ";
    let stdout = String::from_utf8(ended.stdout).unwrap();
    assert!(stdout.starts_with(expected), "{stdout}\n{}", ended.stderr);
    assert!(ended.stderr.contains("the lab already"), "{}", ended.stderr);
    assert_eq!(ended.status, Some(0));
}

#[test]
fn what_the_program_leaves_running_does_not_hold_the_lab() {
    let ended = run(script("sleep 1000 & echo started; kill -9 $$"));
    assert_eq!((ended.stdout.as_slice(), ended.status), (&b"started\n"[..], Some(137)));
}

#[test]
fn a_reader_that_leaves_ends_the_program_as_sigpipe_does() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = lab();
    command.args(["--program", "/usr/bin/yes"]).stdout(writer);
    let running = start(command);
    reader.read_exact(&mut [0; 100]).unwrap();
    drop(reader);
    assert_eq!(running.end().status, Some(141));
}

#[test]
fn signals_reach_the_program_and_the_second_one_ends_the_lab() {
    let folder = tempfile::tempdir().unwrap();
    let ready = folder.path().join("ready");
    let mut command = script("trap 'echo caught' TERM; touch ready; while :; do sleep 0.2; done");
    command.current_dir(&folder);
    let mut running = start(command);
    until("the program is up", || ready.exists());
    running.signal(Signal::TERM);
    // The first one is handed on; the program goes on with its loop.
    thread::sleep(Duration::from_secs(2));
    assert!(running.child.try_wait().unwrap().is_none(), "the first signal ended the lab");
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!((ended.stdout.as_slice(), ended.status), (&b"caught\n"[..], Some(143)));
}

#[test]
fn a_stdout_that_is_stuck_can_be_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = script("touch ready; exec yes");
    command.current_dir(&folder).stdout(writer);
    let running = start(command);
    until("the program is up", || folder.path().join("ready").exists());
    thread::sleep(Duration::from_secs(1));
    // Not SIGINT, which is ignored where the tests are a shell's background
    // job, and then by the lab too.
    running.signal(Signal::TERM);
    // The program dies of it; what it had written still waits for a reader.
    thread::sleep(Duration::from_secs(1));
    running.signal(Signal::TERM);
    assert_eq!(running.end().status, Some(143));
    drop(reader);
}

fn children(pid: Pid) -> Vec<i32> {
    let pid = pid.as_raw_nonzero();
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|list| {
            list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn qemu_does_not_outlive_a_neap_that_is_killed() {
    let running = start(script("sleep 1000"));
    let mut qemu = Vec::new();
    until("QEMU runs", || {
        qemu = children(running.pid());
        !qemu.is_empty()
    });
    running.signal(Signal::KILL);
    running.end();
    until("QEMU is gone", || qemu.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()));
}

#[test]
fn the_time_limit_ends_the_lab() {
    let mut command = lab();
    command.args(["--time-limit", "1", "--program", "/bin/sleep", "--", "1000"]);
    let ended = run(command);
    assert_eq!(ended.status, Some(2));
    assert!(ended.stderr.contains("--time-limit"), "{}", ended.stderr);
}

#[test]
fn a_lab_that_dies_says_so_with_its_last_lines() {
    let ended = run(script("echo the last words > /dev/console; sleep 1; busybox reboot -f"));
    assert_eq!(ended.status, Some(2));
    assert!(ended.stderr.contains("lab: the last words"), "{}", ended.stderr);
    assert!(ended.stderr.contains("ended before its program"), "{}", ended.stderr);
}

#[test]
fn what_cannot_work_is_one_line() {
    let cases: [(&[&str], &str); 5] = [
        (&["--cpus", "0", "--", "doctor"], "--cpus 0"),
        (&["--memory", "1M", "--", "doctor"], "--memory 1M"),
        (&["--memory", "much", "--", "doctor"], "much"),
        (&["--program", "/nonexistent"], "--program /nonexistent"),
        (&[], "after `--`"),
    ];
    for (arguments, named) in cases {
        let mut command = lab();
        command.args(arguments);
        let ended = run(command);
        assert_eq!(ended.status, Some(1), "{arguments:?}");
        assert!(ended.stderr.contains(named), "{arguments:?}: {}", ended.stderr);
    }
    let mut command = script("true");
    command.env("PATH", "/nonexistent");
    let ended = run(command);
    assert_eq!((ended.status, ended.stderr.lines().count()), (Some(1), 1), "{}", ended.stderr);
    assert!(ended.stderr.contains("qemu-system-x86"), "{}", ended.stderr);
}

#[test]
fn a_file_that_is_no_program_is_one_line() {
    let mut command = lab();
    command.args(["--program", "/etc/passwd"]);
    let ended = run(command);
    assert_eq!((ended.status, ended.stderr.lines().count()), (Some(1), 1), "{}", ended.stderr);
    assert!(ended.stderr.contains("/etc/passwd"), "{}", ended.stderr);
}

fn window(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[test]
fn a_terminal_passes_through() {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, flags).unwrap();
    tcsetwinsize(&master, window(33, 111)).unwrap();
    let before = tcgetattr(&slave).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let neap = script(
        r#"stty size; tty; trap 'echo interrupted' INT; trap 'stty size; exit 5' WINCH
           touch ready; while :; do sleep 0.2; done"#,
    );
    let mut command = Command::new("/usr/bin/setsid");
    command
        .args(["--ctty", "--wait"])
        .arg(neap.get_program())
        .args(neap.get_args())
        .current_dir(&folder)
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave.try_clone().unwrap());
    let running = start(command);
    let mut keys = File::from(master.try_clone().unwrap());
    let screen = collect(File::from(master.try_clone().unwrap()));
    until("the program is up", || folder.path().join("ready").exists());
    assert!(!tcgetattr(&slave).unwrap().local_modes.contains(LocalModes::ISIG), "not raw");
    keys.write_all(&[3]).unwrap();
    thread::sleep(Duration::from_secs(1));
    tcsetwinsize(&master, window(44, 99)).unwrap();
    let ended = running.end();
    assert_eq!(tcgetattr(&slave).unwrap().local_modes, before.local_modes, "not restored");
    drop(slave);
    drop((keys, master));
    let screen = String::from_utf8(screen.join().unwrap()).unwrap();
    assert_eq!(screen, "33 111\r\n/dev/pts/0\r\n^Cinterrupted\r\n44 99\r\n");
    assert_eq!(ended.status, Some(5));
}

#[test]
fn a_lab_with_tiers_has_a_node_of_memory_alone_and_a_dax_device() {
    let mut command = lab();
    command.args(["--host-tiers", "--program", "/bin/sh", "--", "-c"]).arg(
        "cd /sys/devices/system/node/node1
         echo cpus=$(cat cpulist)
         echo node=$(grep -c 'MemTotal: *2[0-9]\\{6\\} kB' meminfo)
         echo latency=$(cat access0/initiators/read_latency)
         echo bandwidth=$(cat access0/initiators/read_bandwidth)
         cd /sys/bus/dax/devices/dax0.0
         echo size=$(cat size) align=$(cat align) target=$(cat target_node)
         test -c /dev/dax0.0 && basename $(readlink driver)",
    );
    let ended = run(command);
    assert_eq!(ended.status, Some(0), "{}", ended.stderr);
    assert_eq!(
        String::from_utf8(ended.stdout).unwrap(),
        "cpus=\nnode=1\nlatency=200\nbandwidth=51200\n\
         size=1073741824 align=2097152 target=2\ndevice_dax\n"
    );
}

#[test]
fn a_lab_with_tiers_that_has_too_little_memory_is_refused() {
    let mut command = lab();
    command.args(["--host-tiers", "--memory", "3G", "--", "doctor"]);
    let ended = run(command);
    assert_eq!(ended.status, Some(1));
    assert!(
        ended.stderr.contains("--memory 3G") && ended.stderr.contains("4G"),
        "{}",
        ended.stderr
    );
}
