//! KVM: the host's side of a virtual machine.
//!
//! [`vm`] makes the machine and its memory slots, [`state`] and [`cpuid`] give
//! a vCPU its first state, [`vcpu`] runs it, [`exit`] says what each exit
//! means and counts it, [`kick`] gets a vCPU out of guest mode, [`stats`] is
//! what KVM itself counts.

pub mod cpuid;
pub mod exit;
pub mod gate;
pub mod kick;
pub mod mce;
pub mod state;
pub mod stats;
pub mod vcpu;
pub mod vm;

use std::io;
use std::path::Path;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

/// The device that KVM is reached through.
pub const DEVICE: &str = "/dev/kvm";
/// The one version of KVM's interface that there has been since Linux 2.6.22
/// (Documentation/virt/kvm/api.rst, section 4.1).
const API_VERSION: i32 = 12;

/// Why there is no KVM.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No device file.
    #[error(
        "{DEVICE} is not there: load kvm_intel or kvm_amd, enable virtualisation in the firmware, or use neap lab"
    )]
    Missing,
    /// No permission.
    #[error(
        "{DEVICE} is there, but this user may not use it: become root, or join the group that owns it (often kvm)"
    )]
    Permission,
    /// Another error.
    #[error("{DEVICE} cannot be opened: {0}")]
    Other(io::Error),
    /// A device that is not KVM.
    #[error("{DEVICE} is no KVM device: {0}")]
    NotKvm(String),
}

/// A KVM call that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct KvmError {
    /// Name of the ioctl.
    pub call: &'static str,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// Names the ioctl in the error of a KVM call.
pub(crate) fn named(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> KvmError {
    move |error| KvmError { call, source: io::Error::from_raw_os_error(error.errno()) }
}

/// Opens KVM.
///
/// # Errors
/// [`OpenError`] with what to do.
pub fn open() -> Result<Kvm, OpenError> {
    let kvm = Kvm::new().map_err(|error| match error.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO if !Path::new(DEVICE).exists() => {
            OpenError::Missing
        }
        libc::EACCES | libc::EPERM => OpenError::Permission,
        errno => OpenError::Other(io::Error::from_raw_os_error(errno)),
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        -1 => Err(OpenError::NotKvm(io::Error::last_os_error().to_string())),
        other => Err(OpenError::NotKvm(format!("interface version {other}, not {API_VERSION}"))),
    }
}

/// What KVM can show a guest of this processor.
///
/// # Errors
/// The ioctl's.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(named("KVM_GET_SUPPORTED_CPUID"))
}
