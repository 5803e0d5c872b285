//! Bus, device and function.

use std::fmt;

/// Address of one PCI function on segment 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress(u16);

impl PciAddress {
    /// Where the host bridge sits.
    pub const HOST_BRIDGE: Self = Self(0);

    /// `device` is 0 to 31 and `function` 0 to 7; `None` for anything else.
    pub fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8)
            .then(|| Self(u16::from(bus) << 8 | u16::from(device) << 3 | u16::from(function)))
    }

    /// From the packed form that requester ids, ECAM offsets (bits 27:12) and
    /// the 0xcf8 register (bits 23:8) share: bus 15:8, device 7:3, function
    /// 2:0.
    pub fn from_packed(bits: u16) -> Self {
        Self(bits)
    }

    /// Bus number.
    pub fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device number, 0 to 31.
    pub fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 0x1f
    }

    /// Function number, 0 to 7.
    pub fn function(self) -> u8 {
        self.0 as u8 & 7
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_survive_packing() {
        let address = PciAddress::new(0x12, 31, 7).unwrap();
        assert_eq!((address.bus(), address.device(), address.function()), (0x12, 31, 7));
        assert_eq!(address.to_string(), "12:1f.7");
        assert_eq!(PciAddress::from_packed(0x12ff), address);
        assert_eq!(PciAddress::new(0, 32, 0), None);
        assert_eq!(PciAddress::new(0, 0, 8), None);
    }
}
