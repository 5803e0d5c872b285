//! The benches of memory that moves, in small: every figure comes, is sane,
//! and no word is lost. Targets are for the bench, on a quiet machine.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::{Mutex, PoisonError};

use neap_memory::addr::MIB;
use neap_vmm::bench::BenchError;
use neap_vmm::bench::moving::host::Interrupts;
use neap_vmm::bench::moving::rates::Task;
use neap_vmm::bench::moving::{Variant, fault, guest_time, overhead, pool, rates, steady};
use neap_vmm::bench::rows::Row;
use neap_vmm::doctor::Host;

/// Takes a few turns over a window of 128 MiB, and looks at each figure.
fn try_out(names: &[String], measure: impl Fn(Task<'_>) -> Result<Vec<Row>, BenchError>) {
    // Huge pages are allowed or not for the whole process, and threads are
    // given processors.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let host = Host::this_machine();
    let interrupts = Interrupts::watch().unwrap();
    let task = Task { window: 128 * MIB, turns: 3, host: &host, interrupts: &interrupts };
    let rows = match measure(task) {
        Err(BenchError::Unable(why)) => return eprintln!("skipped: {why}"),
        rows => rows.unwrap(),
    };
    for name in names {
        assert!(rows.iter().any(|row| row.figure.name == *name), "{name}");
    }
    for Row { figure, ours, .. } in rows {
        eprintln!("{} {} ({} to {})", figure.name, figure.value, figure.min, figure.max);
        assert!(figure.value.is_finite() && figure.samples > 0, "{figure:?}");
        assert!(ours.count() > 0);
    }
}

#[test]
fn moves_beside_copies() {
    for (_, variant) in Variant::NAMES {
        try_out(&rates::names(variant), |task| rates::measure(variant, task));
    }
}

#[test]
fn moves_beside_the_floor() {
    for variant in [Variant::Thp2m, Variant::Hugetlb2m] {
        try_out(&overhead::names(variant), |task| overhead::measure(variant, task));
    }
    try_out(&[overhead::SCATTERED.to_owned()], overhead::scattered);
}

#[test]
fn what_the_guest_has_of_it() {
    try_out(&guest_time::names(), guest_time::measure);
    try_out(&steady::names(), steady::measure);
}

#[test]
fn faults_beside_their_parts() {
    for variant in [Variant::K4, Variant::Thp2m] {
        try_out(&fault::names(variant), |task| fault::measure(variant, task));
    }
}

#[test]
fn regions_that_are_ready() {
    try_out(&pool::names(), pool::measure);
}
