//! What Neap makes for shells, man(1) and tools, from its own options and types.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::process::Command;

use neap_tests::Neap;
use neap_tests::refusal::{Folder, names, refused};

const COMMANDS: [&str; 10] =
    ["run", "ctl", "hmm-tests", "lab", "doctor", "bench", "setup", "openapi", "completions", "man"];

#[test]
fn completions_know_every_command_and_bash_reads_its() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Neap::new(["completions", shell]).run().expect_status(0).stdout;
        for word in COMMANDS.iter().chain(&["migrate", "evacuate", "cancel", "events"]) {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let folder = Folder::new();
    let script = Neap::new(["completions", "bash"]).run().expect_status(0).stdout;
    let path = folder.file("neap.bash", script.as_bytes());
    let checked = Command::new("bash").arg("-n").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    // What it offers after `neap ctl mig`.
    let ask = format!(
        "source {}; COMP_WORDS=(neap ctl mig) COMP_CWORD=2; _neap neap mig ctl; \
         echo \"${{COMPREPLY[*]}}\"",
        path.display()
    );
    let offered = Command::new("bash").args(["-c", &ask]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&offered.stdout), "migrate\n");
    refused(Neap::new(["completions", "tcsh"]), &["tcsh", "bash, zsh, fish"]);
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let folder = Folder::new();
    let man = folder.path("share/man1");
    let ended = Neap::new(["man"]).args([&man]).run().expect_status(0);
    assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("", ""));
    let main = fs::read_to_string(man.join("neap.1")).unwrap();
    let pages = names(&man);
    for command in COMMANDS {
        let page = format!("neap-{command}.1");
        assert!(pages.contains(&page), "{page} in {pages:?}");
        // A hyphen that is to be seen as one is escaped (groff_char(7)).
        let named = format!("neap\\-{}(1)", command.replace('-', "\\-"));
        assert!(main.contains(&named), "{named} in\n{main}");
    }
    assert!(pages.contains(&"neap-ctl-migrate.1".to_owned()), "{pages:?}");
    for page in &pages {
        let text = fs::read_to_string(man.join(page)).unwrap();
        // A title first, and the sections that man(7) asks for.
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{page}: no {part}"));
        assert!(at(".TH ") < at(".SH NAME"), "{page}");
        at(".SH SYNOPSIS");
    }
    refused(Neap::new(["man", "/proc/none"]), &["/proc/none"]);
}

#[test]
fn the_document_is_json() {
    let text = Neap::new(["openapi"]).run().expect_status(0).stdout;
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    assert!(document["paths"]["/v1/jobs/{id}"]["delete"].is_object());
}
