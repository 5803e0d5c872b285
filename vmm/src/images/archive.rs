//! Initramfs archives in cpio's "newc" format, as the kernel unpacks them
//! (Documentation/driver-api/early-userspace/buffer-format.rst). They are
//! made without root and without a staging folder, and the same input gives
//! the same bytes.

use std::io::{self, Write};

use cpio::newc::{Builder, ModeFileType, trailer};

/// An archive under construction.
#[derive(Debug, Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive without entries.
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Adds a folder; its parent must have been added.
    pub(super) fn folder(&mut self, path: &str) -> io::Result<()> {
        self.add(path, ModeFileType::Directory, 0o755, (0, 0), &[])
    }

    /// Adds a file.
    pub(super) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.add(path, ModeFileType::Regular, mode, (0, 0), content)
    }

    /// Adds a symbolic link to `target`.
    pub(super) fn symlink(&mut self, path: &str, target: &str) -> io::Result<()> {
        self.add(path, ModeFileType::Symlink, 0o777, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    pub(super) fn device(&mut self, path: &str, mode: u32, number: (u32, u32)) -> io::Result<()> {
        self.add(path, ModeFileType::Char, mode, number, &[])
    }

    fn add(
        &mut self,
        path: &str,
        kind: ModeFileType,
        mode: u32,
        (major, minor): (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::new(io::ErrorKind::FileTooLarge, path.to_owned()))?;
        self.entries += 1;
        let mut writer = Builder::new(path)
            .ino(self.entries)
            .mode(mode)
            .set_mode_file_type(kind)
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut self.bytes, size);
        writer.write_all(content)?;
        writer.finish().map(drop)
    }

    /// The finished archive, padded so that another may follow it.
    pub(super) fn finish(mut self) -> io::Result<Vec<u8>> {
        trailer(&mut self.bytes)?;
        pad(&mut self.bytes);
        Ok(self.bytes)
    }
}

/// Fills up to a multiple of four bytes: the kernel looks for the next
/// archive at such an offset and skips zeros before it.
pub(super) fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cpio::newc::Reader;
    use std::io::Read;

    #[test]
    fn an_archive_reads_back_as_it_was_made() {
        let mut archive = Archive::new();
        archive.folder("dev").unwrap();
        archive.device("dev/console", 0o600, (5, 1)).unwrap();
        archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        archive.symlink("sh", "busybox").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 4, 0);

        let mut rest: &[u8] = &bytes;
        let mut seen = Vec::new();
        loop {
            let mut reader = Reader::new(rest).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode, ino) =
                (reader.entry().name().to_owned(), reader.entry().mode(), reader.entry().ino());
            let device = (reader.entry().rdev_major(), reader.entry().rdev_minor());
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            rest = reader.finish().unwrap();
            seen.push((name, mode, ino, device, content));
        }
        assert_eq!(
            seen,
            [
                ("dev".to_owned(), 0o040_755, 1, (0, 0), Vec::new()),
                ("dev/console".to_owned(), 0o020_600, 2, (5, 1), Vec::new()),
                ("init".to_owned(), 0o100_755, 3, (0, 0), b"#!/bin/sh\n".to_vec()),
                ("sh".to_owned(), 0o120_777, 4, (0, 0), b"busybox".to_vec()),
            ]
        );
    }

    #[test]
    fn padding_reaches_the_next_multiple_of_four_and_no_further() {
        for (len, padded) in [(0, 0), (1, 4), (4, 4), (5, 8)] {
            let mut bytes = vec![1; len];
            pad(&mut bytes);
            assert_eq!(bytes.len(), padded);
        }
    }
}
