//! Processors: how they hang together, and their clock. Four are as many as
//! the lab takes well; that 64 start is shown by a bare payload (payloads.rs).

use libtest_mimic::Trial;
use neap_tests::Guest;

use crate::trial;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("processors::topology_is_one_package_a_node", topology),
        trial("processors::the_first_may_be_on_a_later_node", first_on_a_later_node),
        trial("processors::the_clock_is_kvms", clock),
        trial("processors::no_interrupt_comes_as_an_exception_without_ioapic", without_ioapic),
        trial("processors::the_old_interrupt_controllers_serve_without_acpi", without_acpi),
    ]
}

const TOPOLOGY: &str = "for c in /sys/devices/system/cpu/cpu[0-9]*; do
    echo \"${c##*/}: package $(cat $c/topology/physical_package_id) core $(cat $c/topology/core_id) threads $(cat $c/topology/thread_siblings_list)\"
done; dmesg | grep -iE 'warning|llc-sibling|firmware bug' | sed 's/^/complaint: /'";

fn topology() {
    let ended = Guest::script(TOPOLOGY)
        .options("--cpus 4 --numa node=0,cpus=0-1,memory=512M --numa node=1,cpus=2-3,memory=512M")
        .run();
    for line in [
        "cpu0: package 0 core 0 threads 0",
        "cpu1: package 0 core 1 threads 1",
        "cpu2: package 1 core 0 threads 2",
        "cpu3: package 1 core 1 threads 3",
    ] {
        ended.expect_line(line);
    }
    assert!(!ended.stdout.contains("complaint:"), "{}", ended.stdout);
}

fn first_on_a_later_node() {
    let script = format!("{TOPOLOGY}; echo node1: $(cat /sys/devices/system/node/node1/cpulist)");
    let ended = Guest::script(&script)
        .options("--cpus 2 --numa node=0,cpus=1,memory=512M --numa node=1,cpus=0,memory=512M")
        .run();
    ended.expect_line("cpu0: package 0 core 0 threads 0");
    ended.expect_line("cpu1: package 1 core 0 threads 1");
    ended.expect_line("node1: 0");
    assert!(!ended.stdout.contains("complaint:"), "{}", ended.stdout);
}

fn clock() {
    let source = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    let ended = Guest::script(&format!("cat {source}; cat /proc/interrupts")).run();
    ended.expect_line("kvm-clock");
}

/// Neither IOAPIC nor the old interrupt controllers, which Neap masks: an
/// interrupt from one that nobody set up would be an exception. The console
/// has no interrupt then, so that only the end is seen.
fn without_ioapic() {
    let ended = Guest::script("true").cmdline("nosmp").boot().wait().expect_status(0);
    assert!(!ended.stdout.contains("panic"), "{}", ended.stdout);
}

/// Without ACPI the old interrupt controllers are all there is.
fn without_acpi() {
    let ended = Guest::script("grep ttyS0 /proc/interrupts").cmdline("acpi=off").boot().wait();
    assert!(ended.expect_status(0).expect_line("ttyS0").contains("XT-PIC"));
}
