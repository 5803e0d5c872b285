//! What the kernel says is mapped where.

use std::collections::BTreeMap;
use std::fs;

use rustix::io::Errno;

use crate::hva::Hva;

/// The mappings of this process: start -> (end, inode, offset).
pub(super) struct Maps(BTreeMap<usize, (usize, u64, u64)>);

impl Maps {
    /// Reads /proc/self/maps (proc_pid_maps(5)).
    pub(super) fn read() -> Result<Self, Errno> {
        let text = fs::read_to_string("/proc/self/maps")
            .map_err(|error| error.raw_os_error().map_or(Errno::IO, Errno::from_raw_os_error))?;
        Ok(Self(text.lines().filter_map(Self::parse).collect()))
    }

    fn parse(line: &str) -> Option<(usize, (usize, u64, u64))> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let offset = fields.nth(1)?;
        let inode = fields.nth(1)?;
        Some((
            usize::from_str_radix(start, 16).ok()?,
            (
                usize::from_str_radix(end, 16).ok()?,
                inode.parse().ok()?,
                u64::from_str_radix(offset, 16).ok()?,
            ),
        ))
    }

    /// Inode and offset of what is mapped at `address`.
    pub(super) fn at(&self, address: Hva) -> Option<(u64, u64)> {
        let (start, (end, inode, offset)) = self.0.range(..=address.0).next_back()?;
        (address.0 < *end).then(|| (*inode, offset + (address.0 - start) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_maps_gives_inode_and_offset() {
        let line = "7f0000000000-7f0000400000 rw-s 00200000 00:01 1234   /memfd:neap (deleted)";
        let maps = Maps([Maps::parse(line).unwrap()].into());
        assert_eq!(maps.at(Hva(0x7f00_0000_1000)), Some((1234, 0x20_1000)));
        assert_eq!(maps.at(Hva(0x7f00_0040_0000)), None);
        assert_eq!(Maps::parse(""), None);
    }
}
