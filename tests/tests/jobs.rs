//! Jobs, policy, events and metrics of a real machine, by `neap ctl`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use neap_tests::Neap;
use neap_tests::machine::{Machine, TIERS};
use neap_tests::refusal::{Folder, refused};
use rustix::process::Signal;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);

fn ended(machine: &Machine, job: u64) -> Value {
    let end = Instant::now() + LIMIT;
    loop {
        let told = machine.json(&format!("job {job}"));
        if !["running", "cancelling"].contains(&told["state"].as_str().unwrap()) {
            return told;
        }
        assert!(Instant::now() < end, "{told}");
    }
}

#[test]
fn a_detached_migration_is_a_job() {
    let machine = Machine::start(TIERS);
    assert_eq!(machine.tells("jobs"), "no job has begun\n");
    let job = machine.json("migrate --to region:0 --range 0+16M --detach");
    assert_eq!(
        (&job["id"], &job["what"], &job["detached"]),
        (&json!(0), &json!("migrate"), &json!(true))
    );
    let job = ended(&machine, 0);
    assert_eq!((&job["state"], &job["result"]["moved"]["granules"]), (&json!("done"), &json!(8)));
    assert!(machine.tells("job 0").starts_with("job 0 (migrate) done, moved 8 granules, "));
    machine.tells("evacuate --region 0 --detach");
    assert_eq!(ended(&machine, 1)["result"]["moved"]["granules"], 8);
    // One that is waited for is a job too.
    machine.tells("migrate --to region:0 --range 0+4M");
    let jobs = machine.json("jobs");
    let detached: Vec<_> =
        jobs["jobs"].as_array().unwrap().iter().map(|j| &j["detached"]).collect();
    assert_eq!(detached, [&json!(true), &json!(true), &json!(false)]);
    assert_eq!(machine.tells("jobs").lines().count(), 4);
    machine.refuses("job 3", &["job: there is no job 3: the last is 2"]);
    machine.refuses("cancel 3", &["cancel: there is no job 3"]);
    machine.refuses("cancel 0", &["cancel: job 0 is done already"]);
    machine.refuses("migrate --to region:4 --detach", &["migrate: there is no device region 4"]);
    assert_eq!(machine.json("jobs")["jobs"].as_array().unwrap().len(), 3);
    machine.end(Signal::TERM).1.expect_status(143);
}

#[test]
fn the_policy_changes_while_memory_moves_and_nothing_is_lost() {
    let machine = Machine::start(TIERS);
    assert_eq!(machine.tells("policy"), "static (there are also on-fault, heat)\n");
    for round in 0..10 {
        let to = if round % 2 == 0 { "migrate --to region:0" } else { "evacuate --region 0" };
        let job = machine.json(&format!("{to} --detach"))["id"].as_u64().unwrap();
        let policy = if round % 2 == 0 { "on-fault" } else { "static" };
        assert_eq!(machine.json(&format!("policy {policy}"))["policy"], policy);
        assert_eq!(machine.json("status")["tiers"]["policy"], policy);
        let job = ended(&machine, job);
        assert_eq!(
            (&job["state"], &job["result"]["moved"]["granules"]),
            (&json!("done"), &json!(16))
        );
    }
    let verified = &machine.json("residency --verify")["verified"];
    assert_eq!(verified["mismatches"], json!([]));
    machine.refuses("policy lru", &["lru", "no policy", "on-fault"]);
    machine.refuses("policy first-touch", &["policy: first touches", "--policy first-touch"]);
    assert_eq!(machine.json("policy")["policy"], "static");
    machine.end(Signal::TERM).1.expect_status(143);
}

#[test]
fn heat_can_be_had_and_left_at_work() {
    let machine = Machine::start(TIERS);
    assert_eq!(machine.json("policy heat")["policy"], "heat");
    // The guest has one granule that it uses all the time.
    let watched = || {
        let metrics = machine.tells("metrics");
        let line = metrics.lines().find_map(|line| {
            line.strip_prefix("neap_heat_granules_total{what=\"watched\"} ")?.parse::<u64>().ok()
        });
        line.expect("a count of what was watched")
    };
    let end = Instant::now() + LIMIT;
    while watched() == 0 {
        assert!(Instant::now() < end);
    }
    assert_eq!(machine.json("policy static")["policy"], "static");
    assert_eq!(machine.json("residency --verify")["verified"]["mismatches"], json!([]));
    machine.tells("evacuate --region 0");
    machine.end(Signal::TERM).1.expect_status(143);
}

#[test]
fn what_heat_sees_is_recorded_and_replayed() {
    let folder = Folder::new();
    let trace = folder.path("seen.trace");
    let options = format!(
        "{TIERS} --policy heat --heat-period 10 --heat-cost 10 --heat-trace {}",
        trace.display()
    );
    let machine = Machine::start_in(folder, &options);
    let end = Instant::now() + LIMIT;
    // The guest has one granule that it uses all the time. What it runs is in
    // there too, so that its first touch in a tick is seldom a write.
    let touched = |text: String| text.contains(" r ") || text.contains(" w ");
    while !touched(fs::read_to_string(&trace).unwrap()) {
        assert!(Instant::now() < end, "{:?}", machine.tells("status"));
    }
    assert_eq!(machine.json("status")["tiers"]["heat"]["trace-failed"], false);
    let (folder, ended) = machine.end(Signal::TERM);
    ended.expect_status(143);
    let replayed = Neap::new(["bench", "heat", "--trace"]).args([&trace]).run().expect_status(0);
    assert!(replayed.stdout.contains("  optimum "), "{}", replayed.stdout);
    let mode = fs::metadata(&trace).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it says what the guest uses");
    // It is not written over.
    let again = folder.run(&format!("{TIERS} --policy heat --heat-trace {}", trace.display()));
    refused(again, &["--heat-trace", "seen.trace", "exists", "new file"]);
}

#[test]
fn first_touch_can_be_left_and_had_again() {
    let machine =
        Machine::start("--memory 64M --device-memory size=0,pool=32M --policy first-touch");
    let policy = machine.json("policy");
    assert_eq!(policy["policy"], "first-touch");
    assert!(policy["available"].as_array().unwrap().contains(&json!("first-touch")));
    for name in ["static", "on-fault", "first-touch"] {
        assert_eq!(machine.json(&format!("policy {name}"))["policy"], name);
    }
    machine.end(Signal::TERM).1.expect_status(143);
}

#[test]
fn events_tell_what_happens_until_the_machine_is_over() {
    let machine = Machine::start(TIERS);
    let events = machine.ctl("events --json").start();
    // It listens once the machine has counted its request.
    let end = Instant::now() + LIMIT;
    while !machine.tells("metrics").contains("{protocol=\"http\"} 1") {
        assert!(Instant::now() < end);
    }
    machine.tells("pause");
    machine.tells("resume");
    machine.tells("policy on-fault");
    machine.tells("migrate --to region:0 --range 0+4M");
    assert!(machine.tells("unplug --region 0").starts_with("the region is gone: 2 granules"));
    machine.refuses("unplug --region 0", &["unplug: "]);
    machine.tells("plug --region 0");
    machine.end(Signal::TERM).1.expect_status(143);
    let ended = events.wait().expect_status(0);
    let told: Vec<Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = told
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .filter(|name| *name != "job-progress")
        .collect();
    let expected = [
        "lifecycle",
        "lifecycle",
        "policy",
        "job-started",
        "job-ended",
        "region",
        "region",
        "over",
    ];
    assert_eq!(names, expected);
    let gone = json!({"event": "region", "region": 0, "there": false});
    assert!(told.contains(&gone), "{told:?}");
    assert_eq!(told[2], json!({"event": "policy", "policy": "on-fault", "before": "static"}));
}

#[test]
fn metrics_count_what_moved_and_a_scrape_moves_nothing() {
    let machine = Machine::start(TIERS);
    machine.tells("migrate --to region:0 --range 0+8M");
    // There are 12 frames for the other 28.
    machine.tells("pin --range 60M+4M");
    machine.tells("migrate --to region:0 --range 8M+56M");
    machine.tells("migrate --to home --range 0+64M");
    machine.tells("migrate --to region:0 --range 0+8M");
    let before = machine.json("status")["tiers"]["moves"].clone();
    let metrics = machine.tells("metrics");
    for line in [
        "neap_moved_granules_total{direction=\"to-device\"} 20",
        "neap_moved_granules_total{direction=\"to-home\"} 16",
        "neap_moved_bytes_total 75497472",
        "neap_move_outcomes_total{outcome=\"moved\"} 36",
        "neap_requested_granules_total{outcome=\"moved\"} 36",
        "neap_requested_granules_total{outcome=\"no-frame\"} 14",
        "neap_requested_granules_total{outcome=\"pinned\"} 2",
        "neap_requested_granules_total{outcome=\"copy-failed\"} 0",
        "neap_region_bytes{region=\"0\",kind=\"public\",state=\"used\"} 8388608",
        "neap_jobs_total 4",
        "neap_vcpus 1",
    ] {
        assert!(metrics.lines().any(|other| other == line), "no {line} in\n{metrics}");
    }
    assert!(metrics.contains("neap_vcpu_exits_total{kind="), "{metrics}");
    assert_eq!(machine.json("status")["tiers"]["moves"], before);
    machine.end(Signal::TERM).1.expect_status(143);
}
