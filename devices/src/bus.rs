//! The bus: which device answers an address. One type serves the 64 Ki ports
//! and the guest-physical address space.
//!
//! A [`Bus`] is frozen when it is built, so that vCPU threads share it without
//! a lock: finding a device is a binary search in an immutable, sorted table.
//! Then the lock of that one device is taken, and no other.

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::io::{Device, IoError, IoResult, lock};

/// Why a device cannot be put on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range has no byte.
    #[error("the range at {base:#x} is empty")]
    Empty {
        /// First address asked for.
        base: u64,
    },
    /// The range would go past the last address.
    #[error("{size:#x} bytes at {base:#x} go past the end of the address space")]
    Wraps {
        /// First address asked for.
        base: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// Another device has some of these addresses.
    #[error("{size:#x} bytes at {base:#x} overlap a device at {other:#x}")]
    Overlaps {
        /// First address asked for.
        base: u64,
        /// Bytes asked for.
        size: u64,
        /// First address of the device that is there.
        other: u64,
    },
}

/// One device and the addresses it decodes, both ends included: a range may
/// end at the very last address.
struct Slot {
    first: u64,
    last: u64,
    device: Arc<Mutex<dyn Device>>,
}

/// Collects devices for a [`Bus`].
#[derive(Default)]
pub struct BusBuilder {
    slots: Vec<Slot>,
}

impl BusBuilder {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a device at `size` addresses from `base`.
    ///
    /// # Errors
    /// When the range is empty, wraps, or overlaps a device already there; the
    /// builder is unchanged then.
    pub fn insert(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<Mutex<dyn Device>>,
    ) -> Result<&mut Self, BusError> {
        let extent = size.checked_sub(1).ok_or(BusError::Empty { base })?;
        let last = base.checked_add(extent).ok_or(BusError::Wraps { base, size })?;
        // Only the last device that begins at or below `last` can overlap:
        // those before it end before it begins.
        let at = self.slots.partition_point(|slot| slot.first <= last);
        if let Some(below) = at.checked_sub(1).and_then(|i| self.slots.get(i))
            && below.last >= base
        {
            return Err(BusError::Overlaps { base, size, other: below.first });
        }
        self.slots.insert(at, Slot { first: base, last, device });
        Ok(self)
    }

    /// Freezes the bus.
    pub fn build(self) -> Bus {
        Bus { slots: self.slots.into_boxed_slice() }
    }
}

/// Devices by address; immutable, shared by all vCPU threads.
pub struct Bus {
    /// Sorted by `first`, disjoint.
    slots: Box<[Slot]>,
}

impl Bus {
    /// Reads `data.len()` bytes at `addr`. After an error `data` is all ones.
    ///
    /// # Errors
    /// When no device is there, the access runs past its end, or the device
    /// refuses it. The guest may go on in each case.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> IoResult {
        let result = self
            .find(addr, data.len())
            .and_then(|(slot, offset)| lock(&slot.device).read(offset, data));
        if result.is_err() {
            data.fill(0xff);
        }
        result
    }

    /// Writes `data` at `addr`.
    ///
    /// # Errors
    /// As [`Bus::read`]; the write had no effect then.
    pub fn write(&self, addr: u64, data: &[u8]) -> IoResult {
        let (slot, offset) = self.find(addr, data.len())?;
        lock(&slot.device).write(offset, data)
    }

    /// The device that decodes all of `addr..addr + len`, and the offset in it.
    fn find(&self, addr: u64, len: usize) -> Result<(&Slot, u64), IoError> {
        let above = self.slots.partition_point(|slot| slot.first <= addr);
        let slot = above
            .checked_sub(1)
            .and_then(|i| self.slots.get(i))
            .filter(|slot| addr <= slot.last)
            .ok_or(IoError::NoDevice)?;
        let extent = (len as u64).checked_sub(1).ok_or(IoError::BadWidth)?;
        match addr.checked_add(extent) {
            Some(last) if last <= slot.last => Ok((slot, addr - slot.first)),
            _ => Err(IoError::Straddles),
        }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.slots.iter().map(|slot| format!("{:#x}-{:#x}", slot.first, slot.last)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Answers with the low byte of the offset, and remembers the last write.
    #[derive(Default)]
    struct Echo {
        written: Option<(u64, Vec<u8>)>,
    }

    impl Device for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) -> IoResult {
            if data.len() == 8 {
                data.fill(0);
                return Err(IoError::BadWidth);
            }
            for (i, byte) in data.iter_mut().enumerate() {
                *byte = (offset as u8).wrapping_add(i as u8);
            }
            Ok(())
        }

        fn write(&mut self, offset: u64, data: &[u8]) -> IoResult {
            self.written = Some((offset, data.to_vec()));
            Ok(())
        }
    }

    fn echo() -> Arc<Mutex<Echo>> {
        Arc::default()
    }

    fn bus(ranges: &[(u64, u64)]) -> Bus {
        let mut builder = BusBuilder::new();
        for &(base, size) in ranges {
            builder.insert(base, size, echo()).unwrap();
        }
        builder.build()
    }

    #[test]
    fn an_access_reaches_the_device_with_its_offset() {
        let device = echo();
        let mut builder = BusBuilder::new();
        builder.insert(0x10, 4, device.clone()).unwrap().insert(0x8, 4, echo()).unwrap();
        let bus = builder.build();
        let mut data = [0; 2];
        bus.read(0x12, &mut data).unwrap();
        assert_eq!(data, [2, 3]);
        bus.write(0x11, &[7]).unwrap();
        assert_eq!(device.lock().unwrap().written, Some((1, vec![7])));
    }

    #[test]
    fn refused_reads_give_all_ones() {
        let bus = bus(&[(0x10, 16)]);
        let mut data = [0; 4];
        assert_eq!(bus.read(0xc, &mut data), Err(IoError::NoDevice));
        assert_eq!(data, [0xff; 4]);
        data.fill(0);
        assert_eq!(bus.read(0x1e, &mut data), Err(IoError::Straddles));
        assert_eq!(data, [0xff; 4]);
        let mut wide = [0; 8];
        assert_eq!(bus.read(0x10, &mut wide), Err(IoError::BadWidth));
        assert_eq!(wide, [0xff; 8], "a device's own bytes must not show after its error");
        assert_eq!(bus.read(0x10, &mut []), Err(IoError::BadWidth));
        assert_eq!(bus.write(0x20, &[0]), Err(IoError::NoDevice));
    }

    #[test]
    fn a_device_may_end_at_the_last_address() {
        let bus = bus(&[(u64::MAX, 1)]);
        let mut data = [0];
        bus.read(u64::MAX, &mut data).unwrap();
        assert_eq!(data, [0]);
        assert_eq!(bus.read(u64::MAX, &mut [0; 2]), Err(IoError::Straddles));
    }

    #[test]
    fn ranges_that_are_empty_or_wrap_or_overlap_are_refused() {
        let mut builder = BusBuilder::new();
        builder.insert(0x10, 0x10, echo()).unwrap();
        let mut refused = |base, size| builder.insert(base, size, echo()).err();
        assert_eq!(refused(0, 0), Some(BusError::Empty { base: 0 }));
        assert_eq!(refused(u64::MAX, 2), Some(BusError::Wraps { base: u64::MAX, size: 2 }));
        for (base, size) in [(0x10, 0x10), (0xf, 2), (0x1f, 1), (0x14, 4), (0, 0x100)] {
            assert_eq!(refused(base, size), Some(BusError::Overlaps { base, size, other: 0x10 }));
        }
        assert_eq!(refused(0xf, 1), None);
        assert_eq!(refused(0x20, 1), None);
    }

    #[test]
    fn a_device_whose_holder_panicked_still_answers() {
        let device = echo();
        let poisoner = device.clone();
        let outcome = std::thread::spawn(move || {
            let _guard = poisoner.lock().unwrap();
            panic!("on purpose");
        })
        .join();
        assert!(outcome.is_err() && device.is_poisoned());
        let mut builder = BusBuilder::new();
        builder.insert(0, 1, device).unwrap();
        assert_eq!(builder.build().read(0, &mut [0]), Ok(()));
    }

    proptest! {
        #[test]
        fn the_frozen_bus_agrees_with_a_linear_search(
            ranges in prop::collection::vec((0u64..256, 0u64..32), 0..24),
            addr in 0u64..320,
            len in 1usize..=8,
        ) {
            let mut builder = BusBuilder::new();
            let mut kept: Vec<(u64, u64)> = Vec::new();
            for (base, size) in ranges {
                let free = size > 0
                    && kept.iter().all(|&(b, s)| base + size <= b || b + s <= base);
                prop_assert_eq!(builder.insert(base, size, echo()).is_ok(), free);
                if free {
                    kept.push((base, size));
                }
            }
            let expected = match kept.iter().find(|&&(b, s)| (b..b + s).contains(&addr)) {
                None => Err(IoError::NoDevice),
                Some(&(b, s)) if addr + len as u64 <= b + s => Ok(addr - b),
                Some(_) => Err(IoError::Straddles),
            };
            let bus = builder.build();
            prop_assert_eq!(bus.find(addr, len).map(|(_, offset)| offset), expected);
        }

        #[test]
        fn no_access_panics(addr: u64, near_end: bool, len in 0usize..=16) {
            let bus = bus(&[(0, 8), (u64::MAX - 3, 4)]);
            let addr = if near_end { u64::MAX - addr % 16 } else { addr % 16 };
            let _ = bus.read(addr, &mut vec![0; len]);
            let _ = bus.write(addr, &vec![0; len]);
        }
    }
}
