//! The recipes in `guest-images/`, embedded so that the binary works without
//! its checkout.

use super::cache::key;

/// First process of a guest.
pub(crate) const INIT: &str = include_str!("../../../guest-images/init");
/// First process of the lab host.
pub(crate) const LAB_INIT: &str = include_str!("../../../guest-images/lab-init");
/// Configuration merged over tinyconfig.
pub(crate) const KERNEL_CONFIG: &str = include_str!("../../../guest-images/kernel.config");
/// Builds the kernel.
pub(crate) const KERNEL_SCRIPT: &str = include_str!("../../../guest-images/kernel.sh");
/// Builds hmm-tests.
pub(crate) const HMM_TESTS_SCRIPT: &str = include_str!("../../../guest-images/hmm-tests.sh");
/// Job of the guest profile `hmm`.
pub(crate) const HMM_JOB: &str = include_str!("../../../guest-images/jobs/hmm.sh");
/// Job of the guest profile `dax`.
pub(crate) const DAX_JOB: &str = include_str!("../../../guest-images/jobs/dax.sh");
/// Job of the guest profile `node`.
pub(crate) const NODE_JOB: &str = include_str!("../../../guest-images/jobs/node.sh");

/// Lists of the tests that hmm-tests runs: kernel series, and full names,
/// one a line.
pub(crate) const HMM_TEST_LISTS: &[(&str, &str)] =
    &[("6.12", include_str!("../../../guest-images/hmm-tests-6.12.txt"))];

/// Digest of every recipe that an image is built from.
pub(crate) fn all_key() -> String {
    key(&[INIT, LAB_INIT, KERNEL_CONFIG, KERNEL_SCRIPT, HMM_TESTS_SCRIPT].map(str::as_bytes))
}

/// Digest of what makes a kernel from the source package's `version`.
pub(crate) fn kernel_key(version: &str) -> String {
    key(&[KERNEL_CONFIG, KERNEL_SCRIPT, HMM_TESTS_SCRIPT, version].map(str::as_bytes))
}
