//! A region that was taken away comes back with memory of another node behind
//! it, and the kernel says so.

use libtest_mimic::Trial;
use neap_tests::machine::Machine;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("plug::a_region_comes_back_from_another_node", another)]
}

/// Bytes of guest and tiers on a node; the kernel agrees on all of it.
#[track_caller]
fn on_node(machine: &Machine, node: u64) -> u64 {
    let accounts = machine.json("status --verify")["tiers"]["accounts"].clone();
    assert_eq!((&accounts["settled"], &accounts["differences"]), (&json!(true), &json!([])));
    let nodes = accounts["nodes"].as_array().unwrap();
    let found = nodes.iter().find(|entry| entry["node"] == node);
    found.map_or(0, |entry| entry["bytes"].as_u64().unwrap())
}

fn moved(answer: &Value) -> u64 {
    answer["moved"]["granules"].as_u64().unwrap()
}

fn another() {
    let machine = Machine::start(
        "--memory 64M,prefault=on --device-memory size=0,pool=32M,backing=node:1,engine=move",
    );
    assert_eq!(moved(&machine.json("migrate --to region:0")), 16);
    assert_eq!(on_node(&machine, 1), 32 << 20);
    machine.tells("unplug --region 0");
    assert_eq!(on_node(&machine, 1), 0);
    machine.refuses("plug --region 0 --backing memfd", &["backing=node:1", "memfd"]);
    machine.refuses("plug --region 0 --backing node:7", &["no such node"]);
    machine.refuses("plug --region 0 --backing node:0", &["home is on node 0"]);
    machine.tells("plug --region 0 --backing anon");
    assert_eq!(machine.json("status")["tiers"]["regions"][0]["backing"], "anon");
    assert_eq!(moved(&machine.json("migrate --to region:0")), 16);
    on_node(&machine, 0);
    machine.tells("unplug --region 0");
    machine.tells("plug --region 0 --backing node:1 --pool 16M");
    assert_eq!(moved(&machine.json("migrate --to region:0")), 8);
    assert_eq!(on_node(&machine, 1), 16 << 20);
    machine.end(Signal::TERM).1.expect_status(143);
}
