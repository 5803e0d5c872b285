//! The configuration registers of one function: bytes, and which bits of them
//! a guest may change.
//!
//! A BAR is a register whose low bits are not writable: writing all ones and
//! reading back then gives its size, with no further logic.

use super::CONFIG_SIZE;
use crate::io::{IoError, IoResult};

/// Configuration space of a function.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: Box<[u8; CONFIG_SIZE]>,
    writable: Box<[u8; CONFIG_SIZE]>,
}

impl ConfigSpace {
    /// A type 0 header (PCI 3.0, section 6.1) with these ids; `class` is base
    /// class, sub-class and programming interface, from bit 23 down.
    pub fn new(vendor: u16, device: u16, class: u32, revision: u8) -> Self {
        let mut space =
            Self { bytes: Box::new([0; CONFIG_SIZE]), writable: Box::new([0; CONFIG_SIZE]) };
        space.define(0x00, &vendor.to_le_bytes(), &[]);
        space.define(0x02, &device.to_le_bytes(), &[]);
        space.define(0x08, &(class << 8 | u32::from(revision)).to_le_bytes(), &[]);
        space
    }

    /// Sets the bytes at `offset` and makes the bits in `writable` (missing
    /// bytes count as 0) the ones that a guest may change. What would lie
    /// beyond the end is left out.
    pub fn define(&mut self, offset: usize, value: &[u8], writable: &[u8]) {
        let cells = self.bytes.iter_mut().zip(self.writable.iter_mut()).skip(offset);
        let masks = writable.iter().copied().chain(std::iter::repeat(0));
        for ((byte, mask), (value, new_mask)) in cells.zip(value.iter().zip(masks)) {
            *byte = *value;
            *mask = new_mask;
        }
    }

    /// Reads registers.
    ///
    /// # Errors
    /// When the access does not lie in the configuration space.
    pub fn read(&self, register: u16, data: &mut [u8]) -> IoResult {
        let start = usize::from(register);
        let bytes = self.bytes.get(start..start + data.len()).ok_or(IoError::Straddles)?;
        data.copy_from_slice(bytes);
        Ok(())
    }

    /// Changes the writable bits of registers.
    ///
    /// # Errors
    /// When the access does not lie in the configuration space.
    pub fn write(&mut self, register: u16, data: &[u8]) -> IoResult {
        let range = usize::from(register)..usize::from(register) + data.len();
        let masks = self.writable.get(range.clone()).ok_or(IoError::Straddles)?;
        let bytes = self.bytes.get_mut(range).ok_or(IoError::Straddles)?;
        for ((byte, mask), value) in bytes.iter_mut().zip(masks).zip(data) {
            *byte = *byte & !mask | value & mask;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dword(space: &ConfigSpace, register: u16) -> u32 {
        let mut data = [0; 4];
        space.read(register, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_has_ids_and_class_where_they_belong() {
        let space = ConfigSpace::new(0x8086, 0x0d57, 0x06_00_00, 3);
        assert_eq!(dword(&space, 0), 0x0d57_8086);
        assert_eq!(dword(&space, 8), 0x0600_0003);
    }

    #[test]
    fn only_writable_bits_change_so_a_bar_can_be_sized() {
        let mut space = ConfigSpace::new(1, 2, 3, 4);
        space.define(0x10, &0u32.to_le_bytes(), &0xffff_f000u32.to_le_bytes());
        space.write(0x10, &u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(!dword(&space, 0x10) + 1, 4096);
        space.write(0, &[0xaa; 4]).unwrap();
        assert_eq!(dword(&space, 0), 0x0002_0001);
    }

    proptest! {
        #[test]
        fn no_access_panics(register: u16, data in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut space = ConfigSpace::new(1, 2, 3, 4);
            let inside = usize::from(register) + data.len() <= CONFIG_SIZE;
            prop_assert_eq!(space.write(register, &data).is_ok(), inside);
            prop_assert_eq!(space.read(register, &mut data.clone()).is_ok(), inside);
            space.define(usize::from(register), &data, &data);
        }
    }
}
