//! Device-dax instances: host memory that a device region can be made of.

use std::fs;

use neap_memory::addr::display_size;

use crate::doctor::{Check, Host};

const DEVICES: &str = "dax.devices";
const FOLDER: &str = "sys/bus/dax/devices";

pub(in crate::doctor) fn all(host: &Host) -> Vec<Check> {
    let names = host.names(FOLDER);
    let devices: Vec<String> = names.iter().filter_map(|name| describe(host, name)).collect();
    if devices.is_empty() {
        return vec![Check::missing(
            DEVICES,
            "none",
            "backing=dax:PATH cannot be used",
            "for one without the hardware: neap lab --host-tiers; with free RAM: boot with \
             memmap=512M%0x40000000-1+0xefffffff and load dax_hmem",
        )];
    }
    vec![Check::ok(
        DEVICES,
        devices.join("; "),
        "those with driver device_dax serve backing=dax:PATH, those with kmem backing=node:N",
    )]
}

/// `dax0.0: 1G, align 2M, node 2, driver device_dax`; `None` for an instance
/// without memory (the seed of a region).
fn describe(host: &Host, name: &str) -> Option<String> {
    let folder = format!("{FOLDER}/{name}");
    let size = host.number(format!("{folder}/size")).filter(|size| *size > 0)?;
    let mut parts = vec![format!("{name}: {}", display_size(size))];
    if let Some(align) = host.number(format!("{folder}/align")) {
        parts.push(format!("align {}", display_size(align)));
    }
    if let Some(node) = host.text(format!("{folder}/target_node")) {
        parts.push(format!("node {node}"));
    }
    let driver = fs::read_link(host.path(format!("{folder}/driver")))
        .ok()
        .and_then(|path| path.file_name()?.to_str().map(str::to_owned));
    parts.push(driver.map_or_else(|| "no driver".to_owned(), |name| format!("driver {name}")));
    Some(parts.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::doctor::State;
    use crate::doctor::host::fixture::host;

    #[test]
    fn instances_show_size_alignment_node_and_driver() {
        let (guard, host) = host(&[
            ("sys/bus/dax/devices/dax0.0/size", "1073741824\n"),
            ("sys/bus/dax/devices/dax0.0/align", "2097152\n"),
            ("sys/bus/dax/devices/dax0.0/target_node", "2\n"),
            ("sys/bus/dax/devices/dax1.0/size", "0\n"),
        ]);
        let link = guard.path().join("sys/bus/dax/devices/dax0.0/driver");
        symlink("../../bus/dax/drivers/device_dax", link).unwrap();
        let checks = all(&host);
        assert_eq!(checks[0].state, State::Ok);
        assert_eq!(checks[0].value, "dax0.0: 1G, align 2M, node 2, driver device_dax");
    }

    #[test]
    fn no_bus_is_no_device() {
        let (_guard, host) = host(&[]);
        assert_eq!(all(&host)[0].state, State::Missing);
    }
}
