//! The README's examples of HTTP, as they stand there, against a machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::{Command, Output, Stdio};

use neap_tests::machine::{Machine, TIERS};
use rustix::process::Signal;
use serde_json::Value;

/// The commands under the heading.
fn examples() -> Vec<String> {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let (_, section) = readme.split_once("\n## Over HTTP\n").expect("the section of the README");
    let section = section.split("\n## ").next().unwrap();
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    let lines: Vec<_> = lines.collect();
    // Lines that go on in the next one.
    let text = lines.join("\n").replace("\\\n", "");
    text.lines().filter(|line| line.starts_with("curl ")).map(str::to_owned).collect()
}

fn shell(machine: &Machine, line: &str) -> Output {
    Command::new("bash")
        .args(["-o", "pipefail", "-c", line])
        .current_dir(machine.folder.path("."))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn every_example_does_what_it_says() {
    let curl = Command::new("curl").arg("--version").output();
    assert!(curl.is_ok(), "curl is missing: apt-get install curl, or `neap setup`");
    let examples = examples();
    assert!(examples.len() >= 10, "{examples:?}");
    let machine = Machine::start(TIERS);
    for line in &examples {
        let output = shell(&machine, line);
        let text = String::from_utf8(output.stdout).unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        // Events end by the example's own time limit (curl(1), exit codes).
        let expected = if line.contains("--max-time") { 28 } else { 0 };
        assert_eq!(output.status.code(), Some(expected), "{line}\n{text}{errors}");
        if line.contains("/events") {
            assert!(text.starts_with(": events"), "{line}\n{text}");
        } else if line.contains("/metrics") {
            assert!(text.contains("neap_moved_bytes_total"), "{line}\n{text}");
        } else if line.contains("-X DELETE") {
            // A job that was quicker, or a pin that is gone without a word.
            let quick = text.contains("\"kind\":\"state\"");
            assert!(quick || text.is_empty() || !text.contains("\"error\""), "{line}\n{text}");
        } else {
            let json: Value = serde_json::from_str(&text).expect(line);
            assert!(json.get("error").is_none(), "{line}\n{text}");
        }
    }
    let moved = machine.json("status")["tiers"]["moves"]["to-device"].as_u64().unwrap();
    assert!(moved >= 8, "{moved} granules moved");
    assert_eq!(machine.json("policy")["policy"], "on-fault");
    machine.end(Signal::TERM).1.expect_status(143);
}
