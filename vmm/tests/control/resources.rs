//! What there is behind the paths.

use std::sync::atomic::Ordering;

use neap_memory::migrate::Outcome;
use neap_vmm::control::api::MAX_RUNS;
use neap_vmm::control::http::openapi;
use neap_vmm::control::hub::MAX_WAITING;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::machine::{GRANULE, GRANULES, Machine, wait_until};

const FIRST: &str = r#"{"to":"pool:0","ranges":[{"base":0,"size":"4M"}]}"#;

/// Begins a job that waits, and says where it is.
fn begin(machine: &Machine, body: &str) -> String {
    let page = machine.post("/v1/migrate", body);
    assert_eq!(page.status, 202, "{page:?}");
    let place = page.header("location").unwrap().to_owned();
    assert_eq!(place, format!("/v1/jobs/{}", page.json()["id"]));
    place
}

fn ended(machine: &Machine, place: &str) -> Value {
    let state = || machine.get(place).json()["state"].as_str().unwrap().to_owned();
    wait_until(|| !["running", "cancelling"].contains(&state().as_str()));
    machine.get(place).json()
}

#[test]
fn the_machine_pauses_and_goes_on() {
    let machine = Machine::start();
    assert_eq!(machine.post("/v1/pause", "").json(), json!({"state": "paused"}));
    assert_eq!(
        machine.post("/v1/pause", "").refused(409, "state"),
        "the machine is paused already"
    );
    assert_eq!(machine.get("/v1/status").json()["state"], "paused");
    assert_eq!(machine.post("/v1/resume", "").json(), json!({"state": "running"}));
}

#[test]
fn paths_and_methods_that_there_are_not_say_what_there_is() {
    let machine = Machine::start();
    let message = machine.get("/v1/tides").refused(404, "not-found");
    assert!(message.contains("/v1/tides") && message.contains("/v1/status"), "{message}");
    machine.get("/").refused(404, "not-found");
    let page = machine.browse().ask("DELETE", "/v1/policy", "");
    assert_eq!(page.header("allow"), Some("GET, PUT"));
    page.refused(405, "malformed");
    machine.get("/v1/migrate").refused(405, "malformed");
    assert!(machine.get("/v1/status?x=1").refused(400, "malformed").contains("\"x\""));
    assert!(machine.get("/v1/residency?from=x").refused(400, "malformed").contains("\"from\""));
}

#[test]
fn bodies_that_make_no_sense_say_where() {
    let machine = Machine::start();
    for (path, body, part) in [
        ("/v1/migrate", "", "no JSON"),
        ("/v1/migrate", "{\"to\":", "no JSON"),
        ("/v1/migrate", "{}", "\"to\""),
        ("/v1/migrate", r#"{"to":"moon"}"#, "\"to\""),
        ("/v1/migrate", r#"{"to":"home","ranges":[{"base":0,"size":"many"}]}"#, "ranges[0].size"),
        ("/v1/migrate", r#"{"to":"home","colour":1}"#, "colour"),
        ("/v1/evacuate", r#"{"region":300}"#, "\"region\""),
        ("/v1/pins", r#"{"base":0}"#, "\"size\""),
    ] {
        let message = machine.post(path, body).refused(400, "malformed");
        assert!(message.contains(part), "{path} {body}: {message}");
    }
    let empty = r#"{"to":"home","ranges":[{"base":0,"size":0}]}"#;
    assert!(machine.post("/v1/migrate", empty).refused(422, "refused").contains("is empty"));
    let detached = r#"{"to":"home","detach":true}"#;
    assert!(machine.post("/v1/migrate", detached).refused(400, "malformed").contains("detach"));
    // Known to make no sense before it begins, so there is no job.
    let message = machine.post("/v1/migrate", r#"{"to":"pool:7"}"#).refused(422, "refused");
    assert!(message.contains("device region 7"), "{message}");
    assert_eq!(machine.get("/v1/jobs").json(), json!({"jobs": []}));
    assert!(machine.memory.active.lock().unwrap().is_empty());
}

#[test]
fn the_kernels_books_are_told_when_they_are_asked_for() {
    let machine = Machine::start();
    for path in ["/v1/status", "/v1/status?verify=false"] {
        assert_eq!(machine.get(path).json()["tiers"].get("accounts"), None);
    }
    let status = machine.get("/v1/status?verify=true").json();
    let accounts = &status["tiers"]["accounts"];
    assert_eq!(accounts["settled"], true);
    assert_eq!(accounts["differences"], json!(["home should have 2 bytes and has 1"]));
    machine.get("/v1/status?verify=perhaps").refused(400, "malformed");
    let lines = machine.connect().ask(r#"{"id":1,"request":"status","verify":true}"#);
    assert_eq!(&lines["ok"]["tiers"]["accounts"], accounts);
}

#[test]
fn residency_comes_in_parts() {
    let machine = Machine::start();
    let first = machine.get("/v1/residency?verify=true").json();
    assert_eq!(first["runs"].as_array().unwrap().len(), MAX_RUNS);
    assert_eq!(first["verified"]["checked"], GRANULES);
    let next = first["next"].as_str().unwrap();
    let second = machine.get(&format!("/v1/residency?from={next}")).json();
    assert_eq!(second["runs"][0]["base"], next);
    assert_eq!(second.get("verified"), None);
    let from = u64::from_str_radix(second["next"].as_str().unwrap().trim_start_matches("0x"), 16);
    let last = machine.get(&format!("/v1/residency?from={}", from.unwrap())).json();
    assert_eq!((last["runs"].as_array().unwrap().len(), last.get("next")), (5, None));
}

#[test]
fn pins_are_held_until_they_are_let_go() {
    let machine = Machine::start();
    let page = machine.post("/v1/pins", r#"{"base":"0x0","size":"2M"}"#);
    assert_eq!((page.status, page.header("location")), (201, Some("/v1/pins/0")));
    assert_eq!(machine.memory.pins.load(Ordering::SeqCst), 1);
    let mut browser = machine.browse();
    let page = browser.ask("DELETE", "/v1/pins/0", "");
    assert_eq!((page.status, page.text.as_str()), (204, ""));
    // The connection goes on.
    browser.ask("DELETE", "/v1/pins/0", "").refused(404, "not-found");
    browser.ask("DELETE", "/v1/pins/first", "").refused(404, "not-found");
    assert_eq!(machine.memory.pins.load(Ordering::SeqCst), 0);
}

#[test]
fn regions_and_pages_that_there_are_not_are_told_so() {
    let machine = Machine::start();
    for (path, body, part) in [
        ("/v1/unplug", r#"{"region":7}"#, "device region 7"),
        ("/v1/plug", r#"{"region":7}"#, "device region 7"),
        ("/v1/fail-page", r#"{"address":"1T"}"#, "0x10000000000"),
    ] {
        assert!(machine.post(path, body).refused(422, "refused").contains(part));
        machine.post(path, "{}").refused(400, "malformed");
    }
}

#[test]
fn a_job_outlives_its_client_and_is_told_of() {
    let machine = Machine::start();
    let place = begin(&machine, FIRST);
    // The client is gone: its connection was for one request.
    wait_until(|| machine.get(&place).json().get("progress").is_some());
    let job = machine.get(&place).json();
    assert_eq!((&job["state"], &job["detached"]), (&json!("running"), &json!(true)));
    assert_eq!((&job["what"], &job["progress"]["total"]), (&json!("migrate"), &json!(2)));
    assert_eq!(machine.get("/v1/jobs").json()["jobs"][0]["id"], job["id"]);
    machine.memory.go.store(true, Ordering::SeqCst);
    let job = ended(&machine, &place);
    assert_eq!(job["state"], "done");
    assert_eq!(job["result"]["moved"], json!({"granules": 2, "bytes": 2 * GRANULE}));
    assert_eq!(machine.memory.cancelled.load(Ordering::SeqCst), 0);
}

#[test]
fn jobs_leave_room_for_whoever_looks_at_them() {
    let machine = Machine::start();
    let of = |index: u64| {
        let base = index * GRANULE;
        format!(r#"{{"to":"pool:0","ranges":[{{"base":{base},"size":"2M"}}]}}"#)
    };
    for index in 0..32 {
        begin(&machine, &of(index));
    }
    let message = machine.post("/v1/migrate", &of(32)).refused(422, "refused");
    assert_eq!(message, "32 migrations are at work: wait for one");
    assert_eq!(machine.get("/v1/status").status, 200);
    assert!(machine.get("/metrics").text.contains("\nneap_jobs_running 32\n"));
    assert_eq!(machine.browse().ask("DELETE", "/v1/jobs/7", "").status, 202);
    ended(&machine, "/v1/jobs/7");
    wait_until(|| machine.post("/v1/migrate", &of(32)).status == 202);
}

#[test]
fn a_job_can_be_cancelled_by_anybody() {
    let machine = Machine::start();
    let place = begin(&machine, FIRST);
    let page = machine.browse().ask("DELETE", &place, "");
    assert_eq!((page.status, &page.json()["state"]), (202, &json!("cancelling")));
    let job = ended(&machine, &place);
    assert_eq!(
        (&job["state"], &job["result"]["outcomes"]),
        (&json!("cancelled"), &json!({"cancelled": 2}))
    );
    let page = machine.browse().ask("DELETE", &place, "");
    assert_eq!(page.refused(409, "state"), "job 0 is cancelled already");
    // One that somebody waits for in JSON lines, from outside.
    let mut peer = machine.connect();
    peer.send("{\"id\":1,\"request\":\"migrate\",\"to\":\"pool:0\"}\n");
    assert!(peer.read().unwrap().get("progress").is_some());
    assert_eq!(machine.browse().ask("DELETE", "/v1/jobs/1", "").status, 202);
    assert_eq!(peer.answer()["ok"]["outcomes"], json!({"cancelled": GRANULES}));
}

#[test]
fn jobs_that_there_are_not_are_told_so() {
    let machine = Machine::start();
    for method in ["GET", "DELETE"] {
        for id in ["0", "18446744073709551616", "first", "-1"] {
            let page = machine.browse().ask(method, &format!("/v1/jobs/{id}"), "");
            assert!(page.refused(404, "not-found").contains(id));
        }
    }
    let mut peer = machine.connect();
    peer.send("{\"id\":1,\"request\":\"job\",\"job\":3}\n");
    peer.expect_error(json!(1), "not-found");
}

#[test]
fn two_managers_see_one_another() {
    let machine = Machine::start();
    let (mut one, mut other) = (machine.browse(), machine.browse());
    assert_eq!(one.ask("POST", "/v1/migrate", FIRST).json()["id"], 0);
    assert_eq!(other.ask("GET", "/v1/jobs/0", "").json()["state"], "running");
    // The same memory cannot be moved twice at a time.
    let page = other.ask("POST", "/v1/migrate?wait=true", FIRST);
    assert!(page.refused(422, "refused").contains("is being moved already"));
    assert_eq!(one.ask("GET", "/v1/jobs/1", "").json()["state"], "failed");
    let place = other.ask("POST", "/v1/migrate", FIRST).header("location").unwrap().to_owned();
    let job = ended(&machine, &place);
    assert_eq!((&job["state"], &job["error"]["kind"]), (&json!("failed"), &json!("refused")));
    // What one changes the other is told.
    assert_eq!(other.ask("PUT", "/v1/policy", r#"{"policy":"on-fault"}"#).status, 200);
    assert_eq!(one.ask("GET", "/v1/policy", "").json()["policy"], "on-fault");
    assert_eq!(other.ask("DELETE", "/v1/jobs/0", "").status, 202);
    assert_eq!(ended(&machine, "/v1/jobs/0")["state"], "cancelled");
}

#[test]
fn the_policy_is_told_and_changed_and_no_job_minds() {
    let machine = Machine::start();
    let policy = |name| json!({"policy": name, "available": ["static", "on-fault"]});
    assert_eq!(machine.get("/v1/policy").json(), policy("static"));
    let place = begin(&machine, FIRST);
    wait_until(|| machine.get(&place).json().get("progress").is_some());
    let put = |body: &str| machine.browse().ask("PUT", "/v1/policy", body);
    assert_eq!(put(r#"{"policy":"on-fault"}"#).json(), policy("on-fault"));
    assert_eq!(machine.get(&place).json()["state"], "running");
    let message = put(r#"{"policy":"lru"}"#).refused(400, "malformed");
    assert!(message.contains("\"lru\" is no policy") && message.contains("first-touch"));
    assert!(put(r#"{"policy":"first-touch"}"#).refused(422, "refused").contains("not watched"));
    assert!(put("{}").refused(400, "malformed").contains("policy"));
    assert_eq!(machine.get("/v1/policy").json(), policy("on-fault"));
    machine.memory.go.store(true, Ordering::SeqCst);
    let job = ended(&machine, &place);
    assert_eq!((&job["state"], &job["result"]["outcomes"]), (&json!("done"), &json!({"moved": 2})));
}

fn events(machine: &Machine) -> Browser {
    let mut browser = machine.browse();
    browser.request("GET", "/v1/events", "");
    let page = browser.page().unwrap();
    assert_eq!(page.header("content-type"), Some("text/event-stream"));
    browser
}

#[test]
fn what_happens_is_told_as_it_happens() {
    let mut machine = Machine::start();
    let mut browser = events(&machine);
    let mut next = || browser.event().unwrap();
    machine.post("/v1/pause", "");
    let (name, data) = next();
    assert_eq!((name.as_str(), &data["state"]), ("lifecycle", &json!("paused")));
    machine.post("/v1/resume", "");
    assert_eq!(next().1, json!({"event": "lifecycle", "state": "running"}));
    machine.browse().ask("PUT", "/v1/policy", r#"{"policy":"on-fault"}"#);
    let policy = json!({"event": "policy", "policy": "on-fault", "before": "static"});
    assert_eq!(next(), ("policy".to_owned(), policy));
    machine.post("/v1/fail-page", r#"{"address":"0x5000"}"#);
    let failed = json!({
        "event": "memory-failed", "base": "0x5000", "size": 4096, "region": 0, "frame": 3,
        "retired": true, "met": "ahead", "machine-check": false
    });
    assert_eq!(next(), ("memory-failed".to_owned(), failed));
    begin(&machine, FIRST);
    let (name, job) = next();
    assert_eq!(
        (name.as_str(), &job["id"], &job["state"]),
        ("job-started", &json!(0), &json!("running"))
    );
    let (name, job) = next();
    assert_eq!((name.as_str(), &job["progress"]["total"]), ("job-progress", &json!(2)));
    machine.memory.go.store(true, Ordering::SeqCst);
    let (name, job) =
        std::iter::repeat_with(next).find(|(name, _)| name != "job-progress").unwrap();
    assert_eq!((name.as_str(), &job["state"]), ("job-ended", &json!("done")));
    machine.stop();
    assert_eq!(browser.event(), Some(("over".to_owned(), json!({"event": "over"}))));
    assert_eq!(browser.event(), None);
}

#[test]
fn a_job_that_lacks_memory_is_told_once() {
    let machine = Machine::start();
    *machine.memory.outcome.lock().unwrap() = Some(Outcome::NoMemory);
    machine.memory.go.store(true, Ordering::SeqCst);
    let mut browser = events(&machine);
    begin(&machine, FIRST);
    let mut told = Vec::new();
    loop {
        let (name, data) = browser.event().unwrap();
        if name == "no-memory" {
            told.push(data);
        } else if name == "job-ended" {
            assert_eq!(data["result"]["outcomes"], json!({"no-memory": 2}));
            break;
        }
    }
    assert_eq!(told, [json!({"event": "no-memory", "job": 0, "granules": 2})]);
    let metrics = machine.get("/metrics").text;
    let line = "neap_requested_granules_total{outcome=\"no-memory\"} 2";
    assert!(metrics.contains(line), "{metrics}");
}

#[test]
fn a_reader_of_events_that_is_slow_is_told_what_it_lost() {
    let machine = Machine::start();
    let mut slow = events(&machine);
    // Progress comes once in a millisecond until the queue and the socket's
    // buffer are full.
    let place = begin(&machine, FIRST);
    let mut quick = events(&machine);
    for _ in 0..8 * MAX_WAITING {
        assert_eq!(quick.event().unwrap().0, "job-progress");
    }
    machine.memory.go.store(true, Ordering::SeqCst);
    ended(&machine, &place);
    let mut told = 0;
    let lost = loop {
        match slow.event().unwrap() {
            (name, data) if name == "lost" => break data["lost"].as_u64().unwrap(),
            _ => told += 1,
        }
    };
    assert!(lost > 0 && told + lost >= 8 * MAX_WAITING as u64, "{told} told, {lost} lost");
    // It goes on from there.
    machine.post("/v1/pause", "");
    let next =
        std::iter::repeat_with(|| slow.event().unwrap()).find(|(name, _)| name == "lifecycle");
    assert_eq!(next.unwrap().1["state"], "paused");
}

#[test]
fn metrics_are_told_and_move_nothing() {
    let machine = Machine::start();
    machine.get("/v1/status");
    machine.connect().ask(r#"{"id":1,"request":"status"}"#);
    let page = machine.get("/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for line in [
        "neap_vcpus 2",
        "neap_running 1",
        "neap_jobs_total 0",
        "neap_api_requests_total{protocol=\"json-lines\"} 1",
        "neap_api_requests_total{protocol=\"http\"} 2",
        "neap_moved_bytes_total 0",
    ] {
        assert!(page.text.lines().any(|other| other == line), "no {line} in\n{}", page.text);
    }
    let text = machine.connect().ask(r#"{"id":1,"request":"metrics"}"#);
    assert!(text["ok"]["text"].as_str().unwrap().starts_with("# HELP neap_info"));
    assert!(machine.memory.active.lock().unwrap().is_empty());
}

#[test]
fn a_machine_whose_memory_does_not_move_says_so() {
    let machine = Machine::with_memory(false);
    assert_eq!(machine.get("/v1/status").json()["tiers"], json!(null));
    assert_eq!(machine.get("/v1/jobs").json(), json!({"jobs": []}));
    assert!(machine.get("/metrics").text.contains("neap_vcpus 2"));
    for path in ["/v1/residency", "/v1/policy", "/v1/jobs/0"] {
        let message = machine.get(path).refused(501, "unsupported");
        assert_eq!(message, "no memory of this machine moves");
    }
}

#[test]
fn the_machine_tells_what_it_can_be_asked() {
    let machine = Machine::start();
    let page = machine.get("/v1/openapi.json");
    assert_eq!(page.json()["openapi"], "3.1.0");
    assert_eq!(page.text, openapi::text());
}

/// `neap openapi > docs/openapi.json` puts it right.
#[test]
fn the_document_in_docs_is_the_one_that_is_served() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let kept = std::fs::read_to_string(path).unwrap();
    assert!(
        kept == openapi::text(),
        "docs/openapi.json has drifted: neap openapi > docs/openapi.json"
    );
}

#[test]
fn at_the_end_open_requests_are_answered() {
    let mut machine = Machine::start();
    let mut browser = machine.browse();
    browser.request("POST", "/v1/migrate?wait=true", FIRST);
    wait_until(|| !machine.memory.active.lock().unwrap().is_empty());
    machine.stop();
    assert_eq!(browser.page().unwrap().json()["outcomes"], json!({"cancelled": 2}));
    assert_eq!(browser.line(), None);
}
