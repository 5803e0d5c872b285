//! A panic while the terminal is raw: restored by the hook alone, before the
//! message is printed and however the thread ends.
//!
//! There is no way to make `neap` panic, so the test program starts itself
//! again on a terminal and panics there, set up as `neap run` is.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{self, Read};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use neap_tests::terminal::Terminal;
use neap_vmm::console::{self, RawTerminal};

/// Says which thread is to panic, in the environment of the second program.
const PANIC_ON: &str = "NEAP_TEST_PANIC_ON";
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_panic_restores_the_terminal() {
    match std::env::var(PANIC_ON).as_deref() {
        Err(_) => ["same", "other"].into_iter().for_each(watch_a_panic_on),
        Ok(thread) => raw_until_panic(thread),
    }
}

fn watch_a_panic_on(thread: &str) {
    let mut person = Terminal::new();
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_panic_restores_the_terminal", "--nocapture"])
        .env(PANIC_ON, thread)
        .stdin(person.program())
        .stdout(person.program())
        .stderr(Stdio::from(person.program()))
        .spawn()
        .unwrap();
    person.wait_for("raw now", LIMIT);
    assert!(!person.is_cooked());
    person.enter("p");
    // A line break as only a terminal in its first state makes it.
    person.wait_for("on purpose\r\n", LIMIT);
    assert!(person.is_cooked());
    // The raw terminal's owner is still there, so it was not dropped.
    assert!(program.try_wait().unwrap().is_none());
    person.enter("\n");
    let end = Instant::now() + LIMIT;
    while program.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "the second program does not end");
        thread::sleep(Duration::from_millis(5));
    }
    assert!(person.is_cooked());
}

/// What `neap run` does, then a panic, then a wait for input.
fn raw_until_panic(thread: &str) {
    console::restore_on_panic();
    let terminal = RawTerminal::enter().unwrap().expect("standard input is a terminal");
    println!("raw now");
    wait_for_key();
    match thread {
        "same" => {
            let _ = std::panic::catch_unwind(|| panic!("on purpose"));
        }
        _ => {
            let _ = thread::spawn(|| panic!("on purpose")).join();
        }
    }
    wait_for_key();
    // Not dropped: that would restore the terminal too.
    std::mem::forget(terminal);
    std::process::exit(0);
}

fn wait_for_key() {
    io::stdin().read_exact(&mut [0]).unwrap();
}
