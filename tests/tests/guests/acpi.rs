//! What the guest's kernel makes of its ACPI tables.

use libtest_mimic::Trial;
use neap_tests::Guest;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("acpi::tables_are_taken_without_complaint", no_complaint),
        trial("acpi::srat_and_slit_make_the_nodes", nodes),
        trial("acpi::the_host_bridge_answers_both_ways", host_bridge),
    ]
}

fn no_complaint() {
    let ended = Guest::script(
        "dmesg | grep -iE 'acpi|pnp|hmat|srat' | grep -iE 'error|warn|invalid|bug|fail|not found' |
         grep -v _OSC; ls /sys/firmware/acpi/tables",
    )
    .options("--cpus 2 --memory 1G --device-memory size=512M,node=1")
    .options("--hmat 0:1,read-latency=300,bandwidth=25G")
    .run();
    let lines: Vec<&str> =
        ended.stdout.lines().filter(|line| !line.starts_with("neap-guest:")).collect();
    let tables: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
    for table in ["APIC", "DSDT", "FACP", "HMAT", "MCFG", "SLIT", "SRAT"] {
        assert!(tables.contains(&table), "{table} in {lines:?}");
    }
    assert!(tables.iter().all(|word| word.len() <= 7), "complaints: {lines:?}");
}

fn nodes() {
    let ended = Guest::script(
        "for n in /sys/devices/system/node/node*; do
             echo \"${n##*/}: cpus $(cat $n/cpulist) distance $(cat $n/distance)\"
         done; dmesg | grep -E 'SRAT:|NUMA:'",
    )
    .options(
        "--cpus 4 --numa node=0,cpus=0,cpus=2,memory=512M --numa node=1,cpus=1,cpus=3,memory=1G",
    )
    .options("--numa-distance 0:1=17 --numa-distance 1:0=28")
    .run();
    ended.expect_line("node0: cpus 0,2 distance 10 17");
    ended.expect_line("node1: cpus 1,3 distance 28 10");
    ended.expect_line("SRAT: Node 1 PXM 1 [mem 0x20000000-0x5fffffff]");
}

fn host_bridge() {
    let script = "cat /sys/bus/pci/devices/0000:00:00.0/class; dmesg | grep -E 'PCI.*ECAM'";
    let ended = Guest::script(script).run();
    ended.expect_line("0x060000");
    ended.expect_line("ECAM [mem 0xe0000000-0xe00fffff]");
    // The same bridge without ECAM.
    let ended =
        Guest::script("cat /sys/bus/pci/devices/0000:00:00.0/class").cmdline("pci=nommconf").run();
    ended.expect_line("0x060000");
}
