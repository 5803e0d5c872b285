//! Proofs that nothing is lost when granules move underneath a running guest:
//! bare guests in CPL 3 on the real `/dev/kvm`, which is native also where KVM
//! interprets guest kernel mode, with real userfaultfd, THP and huge pages.
//!
//! Guests check every word of every page in each pass, and a seeded bug must
//! show ([`seeded`]). One trial runs at a time unless somebody asks for more:
//! they load all processors, and some measure a time. A trial that needs what
//! this machine does not have counts as ignored, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod accounts;
mod budget;
mod census;
mod child;
mod devices;
mod ends;
mod first_touch;
mod heat;
mod hooks;
mod hugetlb;
mod injection;
mod kinds;
mod limits;
mod ping_pong;
mod plug;
mod poison;
mod reclaimed;
mod refusals;
mod requests;
mod rig;
mod seeded;
mod select;
mod windows;
mod written;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// Why a trial cannot run on this machine.
pub(crate) struct Unfit(pub(crate) String);

pub(crate) type Ran = Result<(), Unfit>;

/// A trial with a guest.
pub(crate) fn trial(
    name: impl Into<String>,
    proof: impl FnOnce() -> Ran + Send + 'static,
) -> Trial {
    Trial::ignorable_test(name, move || -> Result<Completion, Failed> {
        if let Err(error) = neap_vmm::kvm::open() {
            return Ok(Completion::ignored_with(error.to_string()));
        }
        Ok(match proof() {
            Ok(()) => Completion::Completed,
            Err(Unfit(why)) => Completion::ignored_with(why),
        })
    })
}

fn main() -> ExitCode {
    // The trials that end a process do it to another copy of this program.
    if let Some(part) = child::part() {
        return child::play(&part);
    }
    let trials = [
        ping_pong::trials(),
        seeded::trials(),
        injection::trials(),
        kinds::trials(),
        select::trials(),
        windows::trials(),
        first_touch::trials(),
        heat::trials(),
        reclaimed::trials(),
        accounts::trials(),
        budget::trials(),
        limits::trials(),
        devices::trials(),
        refusals::trials(),
        requests::trials(),
        plug::trials(),
        poison::trials(),
        ends::trials(),
        written::trials(),
    ];
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(1));
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit_code()
}
