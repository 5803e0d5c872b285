//! JSON lines.

use std::fs;
use std::io::Read;
use std::net::Shutdown;
use std::sync::atomic::Ordering;

use neap_vmm::control::api::{self, MAX_LINE, MAX_RUNS};
use neap_vmm::control::client::Client;
use neap_vmm::control::server::MAX_CLIENTS;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::machine::{GRANULE, GRANULES, Machine, wait_until};

#[test]
fn a_client_gets_what_it_asks() {
    let machine = Machine::start();
    let mut peer = machine.connect();
    let status = peer.ask(r#"{"id":7,"request":"status"}"#);
    assert_eq!((&status["id"], &status["ok"]["state"]), (&json!(7), &json!("running")));
    assert_eq!(status["ok"]["vcpus"], 2);
    assert_eq!(status["ok"]["tiers"]["granule-bytes"], GRANULE);
    assert_eq!(peer.ask(r#"{"id":8,"request":"pause"}"#)["ok"]["state"], "paused");
    assert_eq!(peer.ask(r#"{"id":9,"request":"status"}"#)["ok"]["state"], "paused");
    peer.send("{\"id\":10,\"request\":\"pause\"}\n");
    let message = peer.expect_error(json!(10), "state");
    assert_eq!(message, "the machine is paused already");
    assert_eq!(peer.ask(r#"{"id":11,"request":"resume"}"#)["ok"]["state"], "running");
    peer.send("{\"id\":12,\"request\":\"resume\"}\n");
    assert_eq!(peer.expect_error(json!(12), "state"), "the machine is not paused");
    machine.memory.go.store(true, Ordering::SeqCst);
    let moved = peer.ask(
        r#"{"id":13,"request":"migrate","to":"pool:0","ranges":[{"base":"0x0","size":"4M"}]}"#,
    );
    assert_eq!(moved["ok"]["moved"], json!({"granules": 2, "bytes": 2 * GRANULE}));
    assert_eq!(moved["ok"]["outcomes"], json!({"moved": 2}));
}

#[test]
fn nonsense_gets_an_error_and_the_connection_goes_on() {
    let machine = Machine::start();
    let mut peer = machine.connect();
    for (line, id) in [
        ("", json!(1)), // An empty line is nothing at all.
        ("{\"id\":2,\"request\":\"sta", json!(null)),
        ("\u{0}\u{1}", json!(null)),
        ("[]", json!(null)),
        ("{\"id\":4,\"request\":\"fly\"}", json!(4)),
        ("{\"id\":5,\"request\":\"pin\",\"range\":{\"base\":1}}", json!(5)),
    ] {
        peer.send(format!("{line}\n"));
        if !line.is_empty() {
            peer.expect_error(id, "malformed");
        }
    }
    peer.send(b"\xff\xfe\n");
    peer.expect_error(json!(null), "malformed");
    assert_eq!(peer.ask(r#"{"id":6,"request":"status"}"#)["id"], 6);
}

#[test]
fn ranges_that_are_none_move_nothing() {
    let machine = Machine::start();
    let mut peer = machine.connect();
    for (range, part) in [
        (r#"{"base":"0xfffffffffffff000","size":8192}"#, "passes the end"),
        (r#"{"base":0,"size":0}"#, "is empty"),
    ] {
        peer.send(format!(
            "{{\"id\":1,\"request\":\"migrate\",\"to\":\"home\",\"ranges\":[{range}]}}\n"
        ));
        assert!(peer.expect_error(json!(1), "refused").contains(part));
        peer.send(format!("{{\"id\":1,\"request\":\"pin\",\"range\":{range}}}\n"));
        assert!(peer.expect_error(json!(1), "refused").contains(part));
    }
    peer.send("{\"id\":1,\"request\":\"migrate\",\"to\":\"home\",\"select\":[]}\n");
    assert!(peer.expect_error(json!(1), "refused").contains("device-public"));
    assert!(machine.memory.active.lock().unwrap().is_empty());
}

#[test]
fn a_line_that_is_too_long_ends_the_connection() {
    let machine = Machine::start();
    let mut peer = machine.connect();
    let exactly = format!("{{\"id\":1,\"request\":\"status\"{}}}", " ".repeat(MAX_LINE - 28));
    assert_eq!(exactly.len(), MAX_LINE - 1);
    assert_eq!(peer.ask(&exactly)["id"], 1);
    peer.send(vec![b' '; MAX_LINE]);
    assert!(peer.expect_error(json!(null), "too-long").contains("65536"));
    assert_eq!(peer.read(), None);
    assert_eq!(machine.connect().ask(r#"{"id":1,"request":"status"}"#)["id"], 1);
}

#[test]
fn a_client_that_has_said_its_last_is_answered() {
    let machine = Machine::start();
    let mut peer = machine.connect();
    peer.send(
        "{\"id\":1,\"request\":\"migrate\",\"to\":\"home\"}\n{\"id\":2,\"request\":\"status\"}",
    );
    peer.0.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(peer.answer()["id"], 2);
    machine.memory.go.store(true, Ordering::SeqCst);
    assert_eq!(peer.answer()["ok"]["moved"]["granules"], GRANULES);
    assert_eq!(peer.read(), None);
    // Cut off in the middle of a request, and then nothing more.
    let mut peer = machine.connect();
    peer.send("{\"id\":1,\"request\":\"pau");
    peer.0.get_ref().shutdown(Shutdown::Write).unwrap();
    peer.expect_error(json!(null), "malformed");
    assert_eq!(peer.read(), None);
}

#[test]
fn a_client_that_goes_away_cancels_what_it_asked() {
    let machine = Machine::start();
    let mut peer = machine.connect();
    peer.send("{\"id\":1,\"request\":\"migrate\",\"to\":\"pool:0\"}\n");
    assert!(peer.read().unwrap().get("progress").is_some());
    drop(peer);
    wait_until(|| machine.memory.cancelled.load(Ordering::SeqCst) == 1);
    // Nothing of it is left: the same range can be asked for again.
    wait_until(|| machine.memory.active.lock().unwrap().is_empty());
    machine.memory.go.store(true, Ordering::SeqCst);
    let again = machine.connect().ask(r#"{"id":1,"request":"migrate","to":"pool:0"}"#);
    assert_eq!(again["ok"]["moved"]["granules"], GRANULES);
}

#[test]
fn a_long_migration_holds_up_nobody() {
    let machine = Machine::start();
    let mut long = machine.connect();
    let of = |base: u64| {
        format!(
            "{{\"id\":1,\"request\":\"migrate\",\"to\":\"pool:0\",\
             \"ranges\":[{{\"base\":{base},\"size\":\"4M\"}}]}}\n"
        )
    };
    long.send(of(0));
    assert!(long.read().unwrap().get("progress").is_some());
    let mut other = machine.connect();
    for request in ["status", "residency", "pause", "resume"] {
        let answer = other.ask(&format!("{{\"id\":2,\"request\":\"{request}\"}}"));
        assert!(answer.get("ok").is_some(), "{answer}");
    }
    // The same range, and one that overlaps it, are refused; another is not.
    for base in [0, GRANULE] {
        other.send(of(base));
        assert!(other.expect_error(json!(1), "refused").contains("is being moved already"));
    }
    other.send(of(4 * GRANULE));
    assert!(other.read().unwrap().get("progress").is_some());
    wait_until(|| machine.memory.active.lock().unwrap().len() == 2);
    // The same connection is not held up either.
    long.send("{\"id\":9,\"request\":\"status\"}\n");
    assert_eq!(long.answer()["id"], 9);
    machine.memory.go.store(true, Ordering::SeqCst);
    for peer in [&mut long, &mut other] {
        assert_eq!(peer.answer()["ok"]["moved"]["granules"], 2);
    }
}

#[test]
fn one_client_more_than_there_may_be_is_told_so() {
    let machine = Machine::start();
    let mut peers: Vec<_> = (0..MAX_CLIENTS).map(|_| machine.connect()).collect();
    for peer in &mut peers {
        peer.ask(r#"{"id":1,"request":"status"}"#);
    }
    let mut one_more = machine.connect();
    assert!(one_more.expect_error(json!(null), "too-many-clients").contains("16"));
    assert_eq!(one_more.read(), None);
    let error = Client::connect(&machine.path)
        .unwrap()
        .ask::<api::Status>(&api::Request::Status { verify: false })
        .unwrap_err();
    assert!(error.to_string().contains("16 clients"), "{error}");
    peers.pop();
    wait_until(|| {
        let status =
            Client::connect(&machine.path).unwrap().ask(&api::Request::Status { verify: false });
        status.is_ok_and(|status: api::Status| status.vcpus == 2)
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_and_misses_nothing() {
    let machine = Machine::start();
    let mut lazy = machine.connect();
    // Together the answers are larger than the socket's buffer.
    let asked = 12;
    for id in 0..asked {
        lazy.send(format!("{{\"id\":{id},\"request\":\"residency\"}}\n"));
    }
    let mut other = machine.connect();
    for id in 0..20 {
        other.ask(&format!("{{\"id\":{id},\"request\":\"status\"}}"));
    }
    let mut ids: Vec<u64> = (0..asked).map(|_| lazy.answer()["id"].as_u64().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..asked).collect::<Vec<_>>());
}

#[test]
fn residency_comes_in_parts() {
    let machine = Machine::start();
    let mut client = Client::connect(&machine.path).unwrap();
    let mut from = api::Hex(0);
    let mut bases = Vec::new();
    let mut parts = 0;
    loop {
        let request = api::Request::Residency { verify: parts == 0, from };
        let part: api::Residency = client.ask(&request).unwrap();
        assert!(part.runs.len() <= MAX_RUNS);
        assert_eq!(part.verified.is_some(), parts == 0);
        parts += 1;
        bases.extend(part.runs.iter().map(|run| run.base.0));
        let Some(next) = part.next else { break };
        from = next;
    }
    assert_eq!(parts, 3);
    let all: Vec<u64> = (0..2 * MAX_RUNS as u64 + 5).map(|index| index * GRANULE).collect();
    assert_eq!(bases, all);
}

#[test]
fn pins_are_held_until_they_are_let_go() {
    let machine = Machine::start();
    let pin = r#"{"id":1,"request":"pin","range":{"base":0,"size":"2M"}}"#;
    let number = machine.connect().ask(pin)["ok"]["pin"].as_u64().unwrap();
    let mut other = machine.connect();
    assert_ne!(other.ask(pin)["ok"]["pin"], number);
    assert_eq!(machine.memory.pins.load(Ordering::SeqCst), 2);
    let unpin = format!("{{\"id\":1,\"request\":\"unpin\",\"pin\":{number}}}");
    assert_eq!(other.ask(&unpin)["ok"], json!({}));
    assert_eq!(machine.memory.pins.load(Ordering::SeqCst), 1);
    other.send(format!("{unpin}\n"));
    assert!(other.expect_error(json!(1), "refused").contains("no pin"));
    other.send("{\"id\":1,\"request\":\"pin\",\"range\":{\"base\":\"1T\",\"size\":\"2M\"}}\n");
    assert!(other.expect_error(json!(1), "refused").contains("not whole granules"));
}

#[test]
fn at_the_end_open_requests_are_answered_and_the_socket_goes() {
    let mut machine = Machine::start();
    let mut peer = machine.connect();
    peer.send("{\"id\":1,\"request\":\"migrate\",\"to\":\"pool:0\"}\n");
    assert!(peer.read().unwrap().get("progress").is_some());
    machine.stop();
    assert_eq!(peer.answer()["ok"]["outcomes"], json!({"cancelled": GRANULES}));
    assert_eq!(peer.read(), None);
    assert!(!fs::exists(&machine.path).unwrap());
}

#[test]
fn a_machine_whose_memory_does_not_move_says_so() {
    let machine = Machine::with_memory(false);
    let mut peer = machine.connect();
    assert_eq!(peer.ask(r#"{"id":1,"request":"status"}"#)["ok"]["tiers"], json!(null));
    for request in ["\"residency\"", "\"evacuate\",\"region\":0", "\"unpin\",\"pin\":0"] {
        peer.send(format!("{{\"id\":2,\"request\":{request}}}\n"));
        assert_eq!(peer.expect_error(json!(2), "unsupported"), "no memory of this machine moves");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_bytes_end_the_server(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let machine = Machine::start();
        let mut peer = machine.connect();
        peer.send(&bytes);
        peer.0.get_ref().shutdown(Shutdown::Write).unwrap();
        let mut answers = Vec::new();
        peer.0.read_to_end(&mut answers).unwrap();
        // A capital letter begins an HTTP request.
        if bytes.first().is_some_and(u8::is_ascii_uppercase) {
            let refused = answers.is_empty() || answers.starts_with(b"HTTP/1.1 4");
            prop_assert!(refused, "{}", String::from_utf8_lossy(&answers));
        } else {
            for line in answers.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let answer: Value = serde_json::from_slice(line).unwrap();
                prop_assert_eq!(&answer["error"]["kind"], "malformed");
            }
        }
        let status = machine.connect().ask(r#"{"id":1,"request":"status"}"#);
        prop_assert_eq!(&status["id"], 1);
    }
}
