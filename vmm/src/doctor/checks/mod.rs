//! The checks, one file a subject.

pub(super) mod dax;
pub(super) mod heat;
pub(super) mod kvm;
pub(super) mod lab;
pub(super) mod memory;
pub(super) mod numa;
pub(super) mod uffd;
