//! /dev/dax: memory that the kernel leaves to whoever maps it, as a device
//! region. It is mapped shared and in whole 2 MiB, and userfaultfd cannot
//! watch it (`vma_can_userfault` in include/linux/userfaultfd_k.h).
//!
//! Whoever uses a device holds a lock on its file (flock(2)), so that two
//! machines do not share one unawares. What was in it is overwritten.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, fstat, major, minor, open};
use rustix::io::Errno;

use crate::addr::{HUGE_PAGE_SIZE, display_size};

/// Longest path of a device, in bytes.
const PATH_MAX: usize = 31;
const DEVICES: &str = "/sys/bus/dax/devices";

/// Path of a device. Held in place, so that a kind of memory can be copied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DaxPath {
    bytes: [u8; PATH_MAX],
    len: u8,
}

impl DaxPath {
    /// The path `text`; `None` if it is longer than a device's is.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; PATH_MAX];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Self { bytes, len: text.len() as u8 })
    }

    /// The path.
    pub fn as_str(&self) -> &str {
        // It was made from a string.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl fmt::Display for DaxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DaxPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DaxError {
    /// There is none.
    #[error("backing=dax:{path}: there is no such device: this host has {}", devices())]
    Missing {
        /// Its path.
        path: DaxPath,
    },
    /// It is something else.
    #[error("backing=dax:{path} is no device of the dax bus: this host has {}", devices())]
    NotDax {
        /// Its path.
        path: DaxPath,
    },
    /// No driver, or another one, has it.
    #[error(
        "backing=dax:{path} is not bound to device_dax: echo NAME > \
         /sys/bus/dax/drivers/device_dax/new_id, after it is unbound from its driver"
    )]
    Unbound {
        /// Its path.
        path: DaxPath,
    },
    /// Another machine has it.
    #[error("backing=dax:{path} is in use: give another device")]
    Busy {
        /// Its path.
        path: DaxPath,
    },
    /// Its mappings must be larger than a granule.
    #[error(
        "backing=dax:{path} has an alignment of {}, and 2M is what guests get: \
         echo 2097152 > the align file in {DEVICES}", display_size(*.align)
    )]
    Alignment {
        /// Its path.
        path: DaxPath,
        /// Bytes.
        align: u64,
    },
    /// It is too small.
    #[error(
        "backing=dax:{path}: {} are asked for and the device has {}: ask for less",
        display_size(*.wanted), display_size(*.size)
    )]
    Small {
        /// Its path.
        path: DaxPath,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes that it has.
        size: u64,
    },
    /// The kernel refused.
    #[error("backing=dax:{path}: {source}")]
    Refused {
        /// Its path.
        path: DaxPath,
        /// What it said.
        source: io::Error,
    },
}

/// The devices of this host, for a message.
fn devices() -> String {
    let entries = fs::read_dir(DEVICES).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .map(|entry| format!("/dev/{}", entry.file_name().to_string_lossy()))
        .filter(|path| Path::new(path).exists())
        .collect();
    names.sort_unstable();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// Opens the device for `wanted` bytes from its start and locks it for as long
/// as the descriptor, or a copy of it, is open.
///
/// # Errors
/// [`DaxError`].
pub fn open_device(path: DaxPath, wanted: u64) -> Result<OwnedFd, DaxError> {
    let refused = |source: Errno| DaxError::Refused { path, source: source.into() };
    let kind = fs::metadata(path.as_str()).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => DaxError::Missing { path },
        _ => DaxError::Refused { path, source: error },
    })?;
    // Opening something else could block, or do something.
    if !kind.file_type().is_char_device() {
        return Err(DaxError::NotDax { path });
    }
    let folder = folder(std::os::unix::fs::MetadataExt::rdev(&kind));
    let bus = fs::read_link(folder.join("subsystem"));
    if !bus.is_ok_and(|bus| bus.ends_with("dax")) {
        return Err(DaxError::NotDax { path });
    }
    let file = open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let file = file.map_err(|errno| match errno {
        Errno::NXIO | Errno::NODEV => DaxError::Unbound { path },
        other => refused(other),
    })?;
    // It may be another by now.
    if self::folder(fstat(&file).map_err(refused)?.st_rdev) != folder {
        return Err(DaxError::NotDax { path });
    }
    flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).map_err(|errno| match errno {
        Errno::WOULDBLOCK => DaxError::Busy { path },
        other => refused(other),
    })?;
    let (size, align) = (number(&folder, "size"), number(&folder, "align"));
    let (Some(size), Some(align)) = (size, align) else {
        return Err(DaxError::NotDax { path });
    };
    if align == 0 || !HUGE_PAGE_SIZE.is_multiple_of(align) {
        return Err(DaxError::Alignment { path, align });
    }
    if size < wanted {
        return Err(DaxError::Small { path, wanted, size });
    }
    Ok(file)
}

/// Whether an open device has `wanted` bytes.
///
/// # Errors
/// [`DaxError`].
pub fn check_size(file: impl AsFd, path: DaxPath, wanted: u64) -> Result<(), DaxError> {
    let refused = |source: Errno| DaxError::Refused { path, source: source.into() };
    let folder = folder(fstat(file).map_err(refused)?.st_rdev);
    match number(&folder, "size") {
        Some(size) if size >= wanted => Ok(()),
        size => Err(DaxError::Small { path, wanted, size: size.unwrap_or(0) }),
    }
}

/// Bytes that a device has; `None`: it is no device of the dax bus, or gone.
pub(crate) fn size_of(device: u64) -> Option<u64> {
    number(&folder(device), "size")
}

/// What sysfs says of a device.
fn folder(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/char/{}:{}", major(device), minor(device)))
}

fn number(folder: &Path, name: &str) -> Option<u64> {
    fs::read_to_string(folder.join(name)).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &str) -> String {
        open_device(DaxPath::new(path).unwrap(), 4096).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_dax_device_is_refused_before_it_is_opened() {
        assert!(refusal("/dev/dax77.7").contains("there is no such device"));
        for path in ["/dev/null", "/dev/zero", "/etc/passwd", "/tmp"] {
            assert!(refusal(path).contains("is no device of the dax bus"), "{path}");
        }
        assert_eq!(DaxPath::new(&"x".repeat(32)), None);
        assert_eq!(DaxPath::new("/dev/dax0.0").unwrap().to_string(), "/dev/dax0.0");
    }
}
