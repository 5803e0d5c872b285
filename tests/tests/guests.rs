//! Linux guests with an unmodified kernel. Where KVM does not run guest kernel
//! mode at hardware speed the whole of this file runs in one lab.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod guests {
    pub(crate) mod acpi;
    pub(crate) mod console;
    pub(crate) mod ends;
    pub(crate) mod limits;
    pub(crate) mod memory_failure;
    pub(crate) mod memory_map;
    pub(crate) mod moving;
    pub(crate) mod processors;
    pub(crate) mod profiles;
}

use std::process::ExitCode;
use std::time::Duration;

use guests::{
    acpi, console, ends, limits, memory_failure, memory_map, moving, processors, profiles,
};
use libtest_mimic::{Arguments, Trial};
use neap_vmm::doctor::{GuestMode, guest_mode};
use neap_vmm::lab;

/// For all guests together in one lab; idle it takes two minutes.
const TIME_LIMIT: Duration = Duration::from_secs(900);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list && !lab::inside() && guest_mode() != GuestMode::Native {
        return neap_tests::in_lab::run_again(&[], TIME_LIMIT);
    }
    // Guests share two processors and a lab's memory: one at a time, so that
    // deadlines mean something.
    arguments.test_threads = Some(1);
    let trials = [
        profiles::trials(),
        moving::trials(),
        limits::trials(),
        memory_failure::trials(),
        memory_map::trials(),
        acpi::trials(),
        processors::trials(),
        ends::trials(),
        console::trials(),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// A test that passes unless it panics.
pub(crate) fn trial(name: &str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
