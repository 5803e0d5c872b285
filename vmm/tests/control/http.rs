//! HTTP as such, and what is none.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use neap_vmm::control::http::{MAX_BODY, MAX_HEAD};
use neap_vmm::control::server::{Limits, MAX_CLIENTS};
use proptest::prelude::*;
use serde_json::json;

use crate::browser::Browser;
use crate::machine::{LIMIT, Machine, wait_until};

const SOON: Duration = Duration::from_millis(300);

/// One that waits for a third of a second.
fn impatient() -> Machine {
    Machine::impatient(Limits { sending: SOON, reading: SOON })
}

#[test]
fn both_protocols_are_served_and_a_connection_is_kept() {
    let machine = Machine::start();
    let mut browser = machine.browse();
    let mut peer = machine.connect();
    for _ in 0..3 {
        let page = browser.ask("GET", "/v1/status", "");
        assert_eq!((page.status, &page.json()["vcpus"]), (200, &json!(2)));
        assert_eq!(peer.ask(r#"{"id":1,"request":"status"}"#)["ok"]["vcpus"], 2);
    }
    // Two at once are answered in order.
    browser.send("GET /v1/jobs HTTP/1.1\r\n\r\nGET /v1/policy HTTP/1.1\r\nHost: any\r\n\r\n");
    assert_eq!(browser.page().unwrap().json(), json!({"jobs": []}));
    assert_eq!(browser.page().unwrap().json()["policy"], "static");
    let head = browser.ask_head("/v1/status");
    assert_eq!(head, 200);
}

impl Browser {
    /// HEAD has a length and no body.
    fn ask_head(&mut self, path: &str) -> u16 {
        self.send(format!("HEAD {path} HTTP/1.1\r\nConnection: close\r\n\r\n"));
        let line = self.line().unwrap();
        while self.line().is_some_and(|line| !line.is_empty()) {}
        assert_eq!(self.line(), None);
        line.split(' ').nth(1).unwrap().parse().unwrap()
    }
}

#[test]
fn an_old_client_is_answered_and_closed() {
    let machine = Machine::start();
    let mut browser = machine.browse();
    browser.send("GET /v1/status HTTP/1.0\r\n\r\n");
    assert_eq!(browser.page().unwrap().status, 200);
    assert_eq!(browser.line(), None);
}

#[test]
fn a_client_that_asks_whether_to_go_on_may() {
    let machine = Machine::start();
    let mut browser = machine.browse();
    browser.send("PUT /v1/policy HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n");
    assert_eq!(browser.line().unwrap(), "HTTP/1.1 100 Continue");
    assert_eq!(browser.line().unwrap(), "");
    browser.send(r#"{"policy":"on-fault"}"#.get(..20).unwrap());
    browser.page().unwrap().refused(400, "malformed");
}

#[test]
fn malformed_requests_are_told_so_and_the_next_client_is_served() {
    let machine = Machine::start();
    for text in [
        "NONSENSE\r\n\r\n",
        "GET\r\n\r\n",
        "GET /v1/status HTTP/9.9\r\n\r\n",
        "GET /v1/status HTTP/1.1\r\nno colon\r\n\r\n",
        "G\u{e9}T / HTTP/1.1\r\n\r\n",
        "POST /v1/migrate HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        "POST /v1/migrate HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut browser = machine.browse();
        browser.send(text);
        let page = browser.page().unwrap_or_else(|| panic!("no answer to {text:?}"));
        assert_eq!(page.status, 400, "{text:?}: {page:?}");
        page.refused(400, "malformed");
        assert_eq!(browser.line(), None);
    }
    let mut browser = machine.browse();
    // A chunk whose length is none.
    browser.send("POST /v1/pins HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    assert!(browser.page().unwrap().refused(400, "malformed").contains("no whole body"));
    assert_eq!(machine.get("/v1/status").status, 200);
}

#[test]
fn what_is_too_long_is_told_so() {
    let machine = Machine::start();
    let mut browser = machine.browse();
    let long = "x".repeat(2 * MAX_HEAD);
    browser.try_send(format!("GET /v1/status HTTP/1.1\r\nX: {long}\r\n\r\n"));
    assert!(browser.page().unwrap().refused(431, "too-long").contains("16384"));
    let mut browser = machine.browse();
    browser.try_send(format!("GET /{long} HTTP/1.1\r\n\r\n"));
    let page = browser.page().unwrap();
    assert!([414, 431].contains(&page.status), "{page:?}");
    page.refused(page.status, "too-long");
    let mut browser = machine.browse();
    let headers = "A: b\r\n".repeat(1000);
    browser.try_send(format!("GET /v1/status HTTP/1.1\r\n{headers}\r\n"));
    browser.page().unwrap().refused(431, "too-long");
    // A body that says how long it is, before any of it has come.
    let mut browser = machine.browse();
    browser.send(format!("POST /v1/pins HTTP/1.1\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1));
    assert!(browser.page().unwrap().refused(413, "too-long").contains("65536"));
    // One that does not.
    let mut browser = machine.browse();
    browser.send("POST /v1/pins HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    while browser.try_send(&chunk) {}
    browser.page().unwrap().refused(413, "too-long");
    // As long as may be.
    let range = format!("{}{}", r#"{"base":0,"size":"2M"}"#, " ".repeat(MAX_BODY - 22));
    assert_eq!(machine.post("/v1/pins", &range).status, 201);
}

#[test]
fn slow_requests_are_given_up() {
    let machine = impatient();
    let began = Instant::now();
    let mut head = machine.browse();
    let mut body = machine.browse();
    body.send("POST /v1/pins HTTP/1.1\r\nContent-Length: 30\r\n\r\n");
    let mut open = [true; 2];
    // A byte now and then keeps nobody waiting for longer.
    for byte in b"GET /v1/status HTTP/1.1\r\nX: yyyyyyyyyyyyyyyyyyyyyyyyyyyy".iter().cycle() {
        open[0] = open[0] && head.try_send([*byte]);
        open[1] = open[1] && body.try_send(b" ");
        if open == [false; 2] || began.elapsed() > 4 * SOON {
            break;
        }
        thread::sleep(SOON / 20);
    }
    assert!(head.page().unwrap().refused(408, "timed-out").contains("head"));
    assert!(body.page().unwrap().refused(408, "timed-out").contains("body"));
    assert_eq!(head.line(), None);
    assert!(began.elapsed() < LIMIT);
    // One that says nothing is let go without a word.
    let mut idle = machine.browse();
    assert_eq!(idle.ask("GET", "/v1/status", "").status, 200);
    assert_eq!(idle.line(), None);
    assert_eq!(machine.get("/v1/status").status, 200);
}

#[test]
fn requests_that_come_byte_by_byte_are_served() {
    let machine = Machine::start();
    let mut browser = machine.browse();
    let text = "POST /v1/pins HTTP/1.1\r\nContent-Length: 22\r\n\r\n{\"base\":0,\"size\":\"2M\"}";
    for byte in text.bytes() {
        browser.send([byte]);
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(browser.page().unwrap().json(), json!({"pin": 0}));
}

#[test]
fn a_client_that_has_said_its_last_is_answered() {
    let machine = Machine::start();
    let mut browser = machine.browse();
    browser.request("POST", "/v1/migrate?wait=true", r#"{"to":"pool:0"}"#);
    browser.close_write();
    wait_until(|| !machine.memory.active.lock().unwrap().is_empty());
    // For longer than it takes to see that a client is gone.
    thread::sleep(Duration::from_millis(200));
    machine.memory.go.store(true, Ordering::SeqCst);
    assert_eq!(browser.page().unwrap().json()["outcomes"], json!({"moved": 1024}));
    assert_eq!(browser.line(), None);
    // Cut off in the middle of a head, and of a body.
    for part in ["GET /v1/sta", "POST /v1/pins HTTP/1.1\r\nContent-Length: 30\r\n\r\n{"] {
        let mut browser = machine.browse();
        browser.send(part);
        browser.close_write();
        browser.page().unwrap().refused(400, "malformed");
        assert_eq!(browser.line(), None);
    }
    assert_eq!(machine.memory.pins.load(Ordering::SeqCst), 0);
}

#[test]
fn a_client_that_goes_away_cancels_what_it_waits_for() {
    let machine = Machine::start();
    let mut browser = machine.browse();
    browser.request("POST", "/v1/evacuate?wait=true", r#"{"region":0}"#);
    wait_until(|| !machine.memory.active.lock().unwrap().is_empty());
    drop(browser);
    wait_until(|| machine.memory.cancelled.load(Ordering::SeqCst) == 1);
    wait_until(|| machine.get("/v1/jobs/0").json()["state"] == "cancelled");
    // And one that has said its last before.
    let mut browser = machine.browse();
    browser.request("POST", "/v1/evacuate?wait=true", r#"{"region":0}"#);
    browser.close_write();
    wait_until(|| !machine.memory.active.lock().unwrap().is_empty());
    drop(browser);
    wait_until(|| machine.memory.cancelled.load(Ordering::SeqCst) == 2);
}

#[test]
fn one_client_more_than_there_may_be_is_told_so_in_its_protocol() {
    let machine = Machine::start();
    let mut browsers: Vec<_> = (0..MAX_CLIENTS).map(|_| machine.browse()).collect();
    for browser in &mut browsers {
        assert_eq!(browser.ask("GET", "/v1/status", "").status, 200);
    }
    let mut one_more = machine.browse();
    one_more.request("GET", "/v1/status", "");
    assert!(one_more.page().unwrap().refused(503, "too-many-clients").contains("16"));
    assert_eq!(one_more.line(), None);
    let mut peer = machine.connect();
    peer.send("{\"id\":1,\"request\":\"status\"}\n");
    peer.expect_error(json!(null), "too-many-clients");
    browsers.pop();
    wait_until(|| machine.get("/v1/status").status == 200);
}

#[test]
fn a_client_that_does_not_read_is_put_out_and_holds_up_nobody() {
    let machine = impatient();
    let mut lazy = machine.browse();
    // Together more than a socket's buffer.
    lazy.send("GET /v1/residency HTTP/1.1\r\n\r\n".repeat(8));
    let mut lines = machine.connect();
    lines.send("{\"id\":1,\"request\":\"residency\"}\n".repeat(8));
    wait_until(|| {
        let mut others: Vec<_> = (0..MAX_CLIENTS).map(|_| machine.browse()).collect();
        // Those too many are answered and hung up on, in whichever order.
        others.iter_mut().all(|other| {
            other.try_send("GET /v1/status HTTP/1.1\r\n\r\n")
                && other.page().is_some_and(|page| page.status == 200)
        })
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_bytes_end_the_server(
        method in prop::sample::select(vec!["GET /v1/status", "POST /v1/migrate", "X"]),
        head in prop::collection::vec(any::<u8>(), 0..200),
        body in prop::collection::vec(any::<u8>(), 0..200),
        whole in any::<bool>(),
    ) {
        let machine = Machine::start();
        let mut browser = machine.browse();
        browser.send(method);
        if whole {
            let length = body.len();
            browser.try_send(format!(" HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"));
        }
        browser.try_send(&head);
        browser.try_send(&body);
        browser.close_write();
        while let Some(page) = browser.page() {
            prop_assert!((200..600).contains(&page.status));
        }
        let status = machine.connect().ask(r#"{"id":1,"request":"status"}"#);
        prop_assert_eq!(&status["id"], 1);
    }
}
