//! What KVM counts of a machine, by the binary statistics of its descriptor
//! (Documentation/virt/kvm/api.rst, section 4.133).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use neap_memory::mapped::{Mapped, Pages};
use vmm_sys_util::ioctl::ioctl;

/// Numbers of the calls (include/uapi/linux/kvm.h).
mod numbers {
    #![allow(missing_docs)]
    use kvm_bindings::KVMIO;
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
}
use numbers::KVM_GET_STATS_FD;

/// `struct kvm_stats_header`: six words of 32 bits.
const HEADER: usize = 24;
/// `struct kvm_stats_desc` before its name.
const DESCRIPTOR: usize = 16;
/// More than a kernel has of either; a descriptor of something else would have
/// any number there.
const MOST: u32 = 4096;

/// The pages that KVM maps a machine's memory with.
#[derive(Debug)]
pub struct MappedPages {
    file: File,
    // After `file`, which kernels before 6.4 do not keep the machine alive for.
    _vm: Arc<VmFd>,
    small: u64,
    large: [u64; 2],
}

impl MappedPages {
    /// Of that machine; `None` where KVM does not tell (before Linux 5.14).
    pub fn of(vm: &Arc<VmFd>) -> Option<Self> {
        // SAFETY: the call has no argument, and makes a descriptor or fails.
        let fd = unsafe { ioctl(&**vm, KVM_GET_STATS_FD()) };
        if fd < 0 {
            return None;
        }
        // SAFETY: a new descriptor that nobody else has.
        let file = unsafe { File::from_raw_fd(fd) };
        let places = places(&file, ["pages_4k", "pages_2m", "pages_1g"]).ok()?;
        let [Some(small), Some(two), Some(one)] = places else { return None };
        Some(Self { file, _vm: Arc::clone(vm), small, large: [two, one] })
    }
}

impl Mapped for MappedPages {
    fn pages(&self) -> Option<Pages> {
        let value = |at: u64| {
            let mut word = [0; 8];
            self.file.read_exact_at(&mut word, at).ok()?;
            Some(u64::from_ne_bytes(word))
        };
        let [two, one] = self.large;
        let large = value(two)?.saturating_add(value(one)?.saturating_mul(512));
        Some(Pages { small: value(self.small)?, large })
    }
}

/// Where in the file the values of these names are.
fn places<const N: usize>(file: &impl FileExt, names: [&str; N]) -> io::Result<[Option<u64>; N]> {
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
        word.map_or(0, u32::from_ne_bytes)
    };
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let [name_size, count, descriptors, data] = [4, 8, 16, 20].map(|at| word(&header, at));
    if name_size > MOST || count > MOST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut found = [None; N];
    let mut entry = vec![0; DESCRIPTOR + name_size as usize];
    for index in 0..u64::from(count) {
        let at = u64::from(descriptors) + index * entry.len() as u64;
        file.read_exact_at(&mut entry, at)?;
        let name = entry[DESCRIPTOR..].split(|byte| *byte == 0).next().unwrap_or_default();
        if let Some(number) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            found[number] = Some(u64::from(data) + u64::from(word(&entry, 8)));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn values_are_found_by_name() {
        let mut bytes = Vec::new();
        // Flags, size of names, count, identifier, descriptors, data.
        for word in [0u32, 16, 2, 24, 24, 88] {
            bytes.extend(word.to_ne_bytes());
        }
        for (name, offset) in [("max_size", 0u32), ("pages_2m", 8)] {
            bytes.extend([0; 8]);
            bytes.extend(offset.to_ne_bytes());
            bytes.extend([0; 4]);
            let mut padded = [0; 16];
            padded[..name.len()].copy_from_slice(name.as_bytes());
            bytes.extend(padded);
        }
        let found = places(&file(&bytes), ["pages_2m", "pages_2"]).unwrap();
        assert_eq!(found, [Some(96), None]);
        // Cut short, and full of anything.
        assert!(places(&file(&bytes[..60]), ["pages_2m"]).is_err());
        assert!(places(&file(&[0xff; 100]), ["pages_2m"]).is_err());
    }
}
