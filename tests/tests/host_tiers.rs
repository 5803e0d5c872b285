//! Linux guests whose device regions are tiers of the host: a NUMA node of
//! memory alone, and a /dev/dax. All of it runs in one lab that has both.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod host_tiers {
    pub(crate) mod hmm;
    pub(crate) mod plug;
    pub(crate) mod refusals;
}

use std::process::ExitCode;
use std::time::Duration;

use host_tiers::{hmm, plug, refusals};
use libtest_mimic::{Arguments, Trial};
use neap_vmm::lab;

/// For all of them in one lab; idle it takes two minutes.
const TIME_LIMIT: Duration = Duration::from_secs(900);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if !arguments.list && !lab::inside() {
        return neap_tests::in_lab::run_again(&["--host-tiers"], TIME_LIMIT);
    }
    // Guests share two processors and a lab's memory.
    arguments.test_threads = Some(1);
    let trials = [refusals::trials(), plug::trials(), hmm::trials()];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}

/// A test that passes unless it panics.
pub(crate) fn trial(name: &str, test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}
