//! The granule state word: how place, flags and pins share 64 bits, so that one
//! compare-exchange changes them together.
//!
//! | bits | |
//! |---|---|
//! | 0-1 | tag: 0 untouched, 1 home, 2 device |
//! | 2 | moving; the rest of the word still says where from |
//! | 3 | somebody waits for the move to end |
//! | 4 | mapped into the guest |
//! | 8-15 | pool, if device |
//! | 16-47 | frame, if device |
//! | 48-63 | pins |
//!
//! The zero word is an untouched granule, so that zeroed memory is a table.

use super::{Place, View};
use crate::granule::{Frame, PoolId};

const TAG: u64 = 0b11;
const TAG_HOME: u64 = 1;
const TAG_DEVICE: u64 = 2;
const MOVING: u64 = 1 << 2;
const WAITED: u64 = 1 << 3;
const MAPPED: u64 = 1 << 4;
const POOL_SHIFT: u32 = 8;
const FRAME_SHIFT: u32 = 16;
const PIN_SHIFT: u32 = 48;
const ONE_PIN: u64 = 1 << PIN_SHIFT;
const PINS: u64 = u64::MAX << PIN_SHIFT;

/// A decoded-on-demand copy of a granule's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

impl Word {
    /// A granule at rest, with no pins.
    pub(super) fn settled(place: Place, mapped: bool) -> Self {
        let place = match place {
            Place::Untouched => 0,
            Place::Home => TAG_HOME,
            Place::Device { pool, frame } => {
                TAG_DEVICE | u64::from(pool.0) << POOL_SHIFT | u64::from(frame.0) << FRAME_SHIFT
            }
        };
        Self(place | if mapped { MAPPED } else { 0 })
    }

    pub(super) fn place(self) -> Place {
        match self.0 & TAG {
            0 => Place::Untouched,
            TAG_HOME => Place::Home,
            _ => Place::Device {
                pool: PoolId((self.0 >> POOL_SHIFT) as u8),
                frame: Frame((self.0 >> FRAME_SHIFT) as u32),
            },
        }
    }

    pub(super) fn pins(self) -> u16 {
        (self.0 >> PIN_SHIFT) as u16
    }

    pub(super) fn is_moving(self) -> bool {
        self.0 & MOVING != 0
    }

    pub(super) fn is_waited(self) -> bool {
        self.0 & WAITED != 0
    }

    pub(super) fn is_mapped(self) -> bool {
        self.0 & MAPPED != 0
    }

    pub(super) fn moving(self) -> Self {
        Self(self.0 | MOVING)
    }

    pub(super) fn waited(self) -> Self {
        Self(self.0 | WAITED)
    }

    /// The same with the pins of `other`; it has none itself.
    pub(super) fn with_pins_of(self, other: Self) -> Self {
        Self(self.0 | other.0 & PINS)
    }

    /// One more pin, unless there are as many as the word can count.
    pub(super) fn with_pin(self) -> Option<Self> {
        self.0.checked_add(ONE_PIN).map(Self)
    }

    /// One pin less, if there is one.
    pub(super) fn without_pin(self) -> Option<Self> {
        self.0.checked_sub(ONE_PIN).map(Self)
    }

    pub(super) fn view(self) -> View {
        View {
            place: self.place(),
            pins: self.pins(),
            moving: self.is_moving(),
            mapped: self.is_mapped(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn zero_is_an_untouched_granule() {
        let view = View { place: Place::Untouched, pins: 0, moving: false, mapped: false };
        assert_eq!(Word(0).view(), view);
        assert_eq!(Word::settled(Place::Untouched, false).0, 0);
    }

    #[test]
    fn pins_never_spill_into_the_rest() {
        let device = Place::Device { pool: PoolId(255), frame: Frame(u32::MAX) };
        let mut word = Word::settled(device, true);
        assert!(word.without_pin().is_none());
        for pins in 1..=u16::MAX {
            word = word.with_pin().unwrap();
            assert_eq!(word.pins(), pins);
        }
        assert!(word.with_pin().is_none());
        assert_eq!(word.place(), device);
        assert_eq!(word.without_pin().unwrap().pins(), u16::MAX - 1);
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(
            pool in any::<u8>(), frame in any::<u32>(), tag in 0..3, mapped in any::<bool>(),
        ) {
            let place = match tag {
                0 => Place::Untouched,
                1 => Place::Home,
                _ => Place::Device { pool: PoolId(pool), frame: Frame(frame) },
            };
            let word = Word::settled(place, mapped);
            prop_assert_eq!(word.view(), View { place, pins: 0, moving: false, mapped });
            let moving = word.moving().waited();
            prop_assert_eq!(moving.view(), View { place, pins: 0, moving: true, mapped });
            prop_assert!(moving.is_waited());
        }
    }
}
