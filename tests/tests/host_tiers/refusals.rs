//! Tiers of the host that cannot be had: one line that names the option and
//! the value.

use libtest_mimic::Trial;
use neap_tests::Neap;
use neap_vmm::images;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("refusals::nodes_that_cannot_give_memory", nodes)]
}

/// `neap run` with `options` is refused by a line that has all of `parts`.
#[track_caller]
fn refused(options: &str, parts: &[&str]) {
    let images = images::locate().unwrap();
    let ended = Neap::new(["run", "--kernel"])
        .args([&images.vmlinux])
        .args(options.split_whitespace())
        .run()
        .expect_status(1);
    for part in parts {
        assert!(ended.stderr.contains(part), "no {part:?} in {:?}", ended.stderr);
    }
    assert_eq!(ended.stderr.trim_end().lines().count(), 1, "{:?}", ended.stderr);
}

fn nodes() {
    refused(
        "--device-memory size=0,pool=64M,backing=node:7",
        &["--device-memory", "backing=node:7", "no such node", "node:0, node:1"],
    );
    // The sum of two regions counts.
    refused(
        "--device-memory size=0,pool=1536M,backing=node:1 \
         --device-memory size=512M,pool=512M,backing=node:1",
        &["--device-memory", "backing=node:1", "2560M are asked for", "are free there"],
    );
    refused("--memory 3G,backing=node:1", &["--memory", "backing=node:1", "3G are asked for"]);
    refused(
        "--device-memory size=0,pool=64M,backing=node:1,engine=node,kind=private",
        &["engine=node", "engine=move"],
    );
    refused(
        "--granule 64K --device-memory size=0,pool=64M,backing=node:1,engine=node",
        &["engine=node", "--granule 2M"],
    );
    refused(
        "--memory 512M,backing=memfd --device-memory size=0,pool=64M,backing=node:1",
        &["--device-memory", "backing=node:1", "--memory 512M,backing=anon"],
    );
}
