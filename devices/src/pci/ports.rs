//! Configuration mechanism #1: an address register at 0xcf8 and a data window
//! at 0xcfc (PCI 3.0, section 3.2.2.3.2).

use std::sync::Arc;

use super::{PciAddress, PciRoot};
use crate::io::{Device, IoError, IoResult};

/// Offset of the data window from the address register.
const DATA: u64 = 4;
/// Address register: the data window is open.
const ENABLE: u32 = 1 << 31;
/// Address register bits that hold a value: enable, bus, device, function and
/// dword number.
const ADDRESS_MASK: u32 = ENABLE | 0x00ff_fffc;

/// The eight ports from 0xcf8.
#[derive(Debug)]
pub struct ConfigPorts {
    root: Arc<PciRoot>,
    address: u32,
}

impl ConfigPorts {
    /// Ports that it takes.
    pub const SIZE: u64 = 8;

    /// The ports of this root.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root, address: 0 }
    }

    /// The function and register that the data window at `offset` shows.
    fn target(&self, offset: u64, width: usize) -> Result<(PciAddress, u16), IoError> {
        let byte = offset.checked_sub(DATA).ok_or(IoError::BadWidth)?;
        if byte + width as u64 > 4 {
            return Err(IoError::Straddles);
        }
        if self.address & ENABLE == 0 {
            return Err(IoError::NoDevice);
        }
        let function = PciAddress::from_packed((self.address >> 8) as u16);
        Ok((function, (self.address & 0xfc) as u16 + byte as u16))
    }
}

impl Device for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> IoResult {
        if offset == 0
            && let Ok(dword) = <&mut [u8; 4]>::try_from(&mut *data)
        {
            *dword = self.address.to_le_bytes();
            return Ok(());
        }
        let (function, register) = self.target(offset, data.len())?;
        self.root.read(function, register, data)
    }

    /// Narrower writes below the data window do not reach the address
    /// register: Linux writes a byte to 0xcfb when it looks for the mechanism,
    /// and chipsets have other registers there.
    fn write(&mut self, offset: u64, data: &[u8]) -> IoResult {
        if offset == 0
            && let Ok(dword) = <[u8; 4]>::try_from(data)
        {
            self.address = u32::from_le_bytes(dword) & ADDRESS_MASK;
            return Ok(());
        }
        let (function, register) = self.target(offset, data.len())?;
        self.root.write(function, register, data)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::pci::{HostBridge, PciRootBuilder};

    fn ports() -> ConfigPorts {
        let mut root = PciRootBuilder::new();
        root.insert(PciAddress::HOST_BRIDGE, Arc::new(Mutex::new(HostBridge::new()))).unwrap();
        ConfigPorts::new(Arc::new(root.build()))
    }

    fn select(ports: &mut ConfigPorts, address: u32) {
        ports.write(0, &address.to_le_bytes()).unwrap();
    }

    fn read<const N: usize>(ports: &mut ConfigPorts, offset: u64) -> Result<[u8; N], IoError> {
        let mut data = [0; N];
        ports.read(offset, &mut data).map(|()| data)
    }

    #[test]
    fn the_bridge_answers_dwords_words_and_bytes() {
        let mut ports = ports();
        select(&mut ports, 0x8000_0000);
        assert_eq!(read(&mut ports, 4), Ok([0x86, 0x80, 0x57, 0x0d]));
        assert_eq!(read(&mut ports, 6), Ok([0x57, 0x0d]));
        select(&mut ports, 0x8000_0008);
        assert_eq!(read(&mut ports, 7), Ok([0x06]), "base class: bridge");
        select(&mut ports, 0x8000_000c);
        assert_eq!(read(&mut ports, 6), Ok([0x00]), "header type 0, one function");
    }

    #[test]
    fn linux_finds_the_mechanism() {
        // pci_check_type1, arch/x86/pci/direct.c
        let mut ports = ports();
        assert_eq!(ports.write(3, &[1]), Err(IoError::BadWidth));
        let saved = read::<4>(&mut ports, 0).unwrap();
        select(&mut ports, 0x8000_0000);
        assert_eq!(read(&mut ports, 0), Ok([0, 0, 0, 0x80]));
        ports.write(0, &saved).unwrap();
        assert_eq!(read::<4>(&mut ports, 0), Ok([0; 4]));
    }

    #[test]
    fn everything_else_is_absent() {
        let mut ports = ports();
        for address in [0x8000_0800, 0x8000_0100, 0x8001_0000] {
            select(&mut ports, address);
            assert_eq!(read::<2>(&mut ports, 4), Err(IoError::NoDevice), "{address:#x}");
        }
        select(&mut ports, 0);
        assert_eq!(read::<4>(&mut ports, 4), Err(IoError::NoDevice), "window closed");
    }

    #[test]
    fn accesses_across_the_window_are_refused() {
        let mut ports = ports();
        select(&mut ports, 0x8000_0000);
        assert!(read::<4>(&mut ports, 2).is_err());
        assert!(read::<2>(&mut ports, 5).is_err());
        assert!(read::<8>(&mut ports, 0).is_err());
        assert!(read::<4>(&mut ports, 5).is_err());
    }

    proptest! {
        #[test]
        fn no_access_panics(
            accesses in prop::collection::vec(
                (0u64..9, prop::collection::vec(any::<u8>(), 0..9)), 0..16),
        ) {
            let mut ports = ports();
            for (offset, data) in accesses {
                let _ = ports.write(offset, &data);
                let _ = ports.read(offset, &mut data.clone());
            }
        }
    }
}
