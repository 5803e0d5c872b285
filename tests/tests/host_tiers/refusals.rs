//! Tiers of the host that cannot be had: one line that names the option and
//! the value.

use std::fs::{self, File};
use std::path::Path;

use libtest_mimic::Trial;
use neap_tests::Neap;
use neap_vmm::images;
use rustix::fs::{FlockOperation, flock};

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("refusals::nodes_that_cannot_give_memory", nodes),
        trial("refusals::dax_devices_that_cannot_be_used", dax),
    ]
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

fn dax() {
    let region = |path: &str| format!("--device-memory size=64M,backing=dax:{path}");
    refused(
        &region("/dev/dax9.9"),
        &["--device-memory", "dax:/dev/dax9.9", "no such device", "/dev/dax0.0"],
    );
    for path in ["/dev/null", "/proc/version", "/tmp"] {
        refused(&region(path), &["--device-memory", path, "no device of the dax bus"]);
    }
    refused(&region("dax0.0"), &["device-memory", "no path of a device"]);
    refused(
        "--memory 512M,backing=memfd \
         --device-memory size=256M,pool=1G,backing=dax:/dev/dax0.0",
        &["--device-memory", "1280M are asked for", "the device has 1G"],
    );
    refused(
        "--device-memory size=0,pool=64M,backing=dax:/dev/dax0.0",
        &["--device-memory", "--memory 512M,backing=memfd or hugetlb"],
    );
    refused(
        "--memory 512M,backing=memfd --granule 64K \
         --device-memory size=0,pool=64M,backing=dax:/dev/dax0.0",
        &["--granule", "dax:/dev/dax0.0", "--granule 2M"],
    );
    refused("--memory 512M,backing=dax:/dev/dax0.0", &["--memory", "of a device region"]);
    // Somebody has it.
    let device = File::open("/dev/dax0.0").unwrap();
    flock(&device, FlockOperation::LockExclusive).unwrap();
    refused(&region("/dev/dax0.0"), &["--device-memory", "dax:/dev/dax0.0", "in use"]);
    drop(device);
    // Nobody drives it.
    let driver = Path::new("/sys/bus/dax/drivers/device_dax");
    fs::write(driver.join("unbind"), "dax0.0").unwrap();
    refused(&region("/dev/dax0.0"), &["--device-memory", "not bound to device_dax"]);
    // Pages of 1G are more than a granule.
    let align = |bytes: &str| fs::write("/sys/bus/dax/devices/dax0.0/align", bytes).unwrap();
    align("1073741824");
    fs::write(driver.join("bind"), "dax0.0").unwrap();
    refused(&region("/dev/dax0.0"), &["--device-memory", "an alignment of 1G", "2097152"]);
    fs::write(driver.join("unbind"), "dax0.0").unwrap();
    align("2097152");
    fs::write(driver.join("bind"), "dax0.0").unwrap();
}

fn nodes() {
    refused(
        "--device-memory size=0,pool=64M,backing=node:7",
        &["--device-memory", "backing=node:7", "no such node", "node:0, node:1"],
    );
    // Huge pages are counted node by node.
    refused(
        "--memory 512M,backing=memfd --device-memory size=0,pool=64M,backing=hugetlb:1",
        &[
            "--device-memory",
            "backing=hugetlb:1: 32 huge pages of 2M are needed on that node and 0 are free",
            "echo 32 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
        ],
    );
    refused("--memory 512M,backing=hugetlb:7", &["--memory", "7: there is no such node"]);
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
