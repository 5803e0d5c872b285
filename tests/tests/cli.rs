//! The command line itself: help, version, output that nobody takes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::File;

use neap_tests::Neap;

const COMMANDS: [&str; 10] =
    ["run", "ctl", "hmm-tests", "lab", "doctor", "bench", "setup", "openapi", "completions", "man"];

#[test]
fn help_names_every_command() {
    let help = Neap::new(["--help"]).run().expect_status(0).stdout;
    for command in COMMANDS {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}");
    }
}

#[test]
fn help_of_every_command_has_examples() {
    for command in COMMANDS {
        let help = Neap::new([command, "--help"]).run().expect_status(0).stdout;
        let example = format!("neap {command}");
        assert!(help.contains("Examples:") && help.contains(&example), "{command}:\n{help}");
    }
}

#[test]
fn version_is_the_package_s() {
    let version = Neap::new(["--version"]).run().expect_status(0).stdout;
    assert_eq!(version.trim(), format!("neap {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn no_command_shows_help_and_is_a_mistake() {
    let ended = Neap::new::<&str>([]).run().expect_status(1);
    assert!(ended.stderr.contains("Usage: neap <COMMAND>"), "{}", ended.stderr);
}

#[test]
fn doctor_prints_json_that_tools_can_follow() {
    let ended = Neap::new(["doctor", "--json"]).run().expect_status(0);
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    for name in
        ["kvm.device", "kvm.guest_kernel_mode", "uffd.features", "memory.huge_pages", "numa.nodes"]
    {
        let check = checks.iter().find(|check| check["name"] == name).expect(name);
        assert!(["ok", "limited", "missing"].contains(&check["state"].as_str().unwrap()));
        assert!(!check["value"].as_str().unwrap().is_empty());
    }
}

#[test]
fn output_that_nobody_takes_is_an_error_and_no_panic() {
    for command in ["doctor", "setup"] {
        let mut neap = Neap::new([command]);
        neap.command().stdout(File::create("/dev/full").unwrap());
        let ended = neap.run().expect_status(1);
        assert!(ended.stderr.starts_with("neap: standard output: "), "{}", ended.stderr);
    }
}
