//! The Enhanced Configuration Access Mechanism: configuration space in memory,
//! 4 KiB a function and 1 MiB a bus (PCI Express base specification, section
//! 7.2.2).

use std::sync::Arc;

use super::{CONFIG_SIZE, PciAddress, PciRoot};
use crate::io::{Device, IoError, IoResult};

/// The ECAM window of segment 0, beginning with bus 0.
#[derive(Debug)]
pub struct Ecam {
    root: Arc<PciRoot>,
}

impl Ecam {
    /// Bytes of the window for each bus.
    pub const BYTES_PER_BUS: u64 = 1 << 20;

    /// The window of this root.
    pub fn new(root: Arc<PciRoot>) -> Self {
        Self { root }
    }
}

/// The function and register at `offset` in the window.
fn target(offset: u64) -> Result<(PciAddress, u16), IoError> {
    let function = u16::try_from(offset / CONFIG_SIZE as u64).map_err(|_| IoError::NoDevice)?;
    let register = (offset % CONFIG_SIZE as u64) as u16;
    Ok((PciAddress::from_packed(function), register))
}

impl Device for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> IoResult {
        let (function, register) = target(offset)?;
        self.root.read(function, register, data)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> IoResult {
        let (function, register) = target(offset)?;
        self.root.write(function, register, data)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::pci::{ConfigPorts, HostBridge, PciRootBuilder};

    fn root() -> Arc<PciRoot> {
        let mut root = PciRootBuilder::new();
        root.insert(PciAddress::HOST_BRIDGE, Arc::new(Mutex::new(HostBridge::new()))).unwrap();
        let second = PciAddress::new(1, 2, 3).unwrap();
        root.insert(second, Arc::new(Mutex::new(HostBridge::new()))).unwrap();
        Arc::new(root.build())
    }

    #[test]
    fn a_function_is_found_at_its_page() {
        let mut ecam = Ecam::new(root());
        let mut ids = [0; 4];
        ecam.read(1 << 20 | 2 << 15 | 3 << 12, &mut ids).unwrap();
        assert_eq!(ids, [0x86, 0x80, 0x57, 0x0d]);
        assert_eq!(ecam.read(1 << 20 | 2 << 15, &mut ids), Err(IoError::NoDevice));
        assert_eq!(ecam.read(0x1, &mut ids), Err(IoError::BadWidth));
        assert_eq!(ecam.read(0, &mut [0; 8]), Err(IoError::BadWidth));
        assert_eq!(ecam.read(0xffc, &mut ids), Ok(()));
        assert_eq!(ids, [0; 4], "no extended capability");
    }

    #[test]
    fn both_ways_show_the_same_registers() {
        let root = root();
        let mut ecam = Ecam::new(root.clone());
        let mut ports = ConfigPorts::new(root);
        ecam.write(4, &[0xff, 0xff]).unwrap();
        ports.write(0, &0x8000_0004u32.to_le_bytes()).unwrap();
        let mut command = [0; 2];
        ports.read(4, &mut command).unwrap();
        assert_eq!(command, [0x06, 0x05]);
    }

    #[test]
    fn two_functions_cannot_share_an_address() {
        let mut root = PciRootBuilder::new();
        let bridge = || Arc::new(Mutex::new(HostBridge::new()));
        root.insert(PciAddress::HOST_BRIDGE, bridge()).unwrap();
        assert!(root.insert(PciAddress::HOST_BRIDGE, bridge()).is_err());
    }

    proptest! {
        #[test]
        fn no_access_panics(offset: u64, data in prop::collection::vec(any::<u8>(), 0..9)) {
            let mut ecam = Ecam::new(root());
            for offset in [offset, offset % 8192] {
                let _ = ecam.write(offset, &data);
                let _ = ecam.read(offset, &mut data.clone());
            }
        }
    }
}
