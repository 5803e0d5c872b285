//! What a heat policy can be told.

use thiserror::Error;

use super::purse::Looks;
use crate::granule::GranuleSize;

/// Numbers of a heat policy. A tick is the user's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Unit of tracking and moving.
    pub granule: GranuleSize,
    /// Bytes that may move in a tick, both ways together.
    pub budget: u64,
    /// Most granules that are watched in a tick.
    pub watched: u32,
    /// Most of them that were touched when they were last watched: a touch is most
    /// of what a look costs the guest.
    pub touched: u32,
    /// Touches in so many of the last eight ticks in which a granule was
    /// watched make it hot, 1 to 8.
    pub seen: u8,
    /// How much more a granule must be used than the one that makes room for
    /// it, in 256ths of a doubling.
    pub margin: u16,
    /// Ticks for which a granule that has moved stays.
    pub rest: u16,
    /// Entries that are looked at in a tick to find what is to move; larger
    /// memory is gone through in slices.
    pub looks: u32,
}

impl Settings {
    /// Most ticks of [`Self::rest`].
    pub const REST_MAX: u16 = 8192;

    /// Defaults for granules of that size and a budget in bytes a tick.
    pub fn new(granule: GranuleSize, budget: u64) -> Self {
        Self {
            granule,
            budget,
            watched: 64,
            touched: 24,
            seen: 2,
            margin: 512,
            rest: 50,
            looks: 1 << 18,
        }
    }

    /// Most that is looked at in a tick.
    pub fn most(&self) -> Looks {
        Looks { watched: self.watched, touched: self.touched }
    }

    /// Whether a policy can work with them.
    ///
    /// # Errors
    /// A number that makes no sense.
    pub fn check(&self) -> Result<(), SettingsError> {
        match self {
            Self { budget: 0, .. } => Err(SettingsError::Budget),
            Self { watched: 0, .. } | Self { touched: 0, .. } | Self { looks: 0, .. } => {
                Err(SettingsError::Watched)
            }
            Self { seen: 0 | 9.., .. } => Err(SettingsError::Seen(self.seen)),
            Self { rest, .. } if *rest > Self::REST_MAX => Err(SettingsError::Rest(*rest)),
            _ => Ok(()),
        }
    }
}

/// Settings that make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// Nothing may move.
    #[error("a heat budget of 0 bytes lets nothing move: give more, or another policy")]
    Budget,
    /// Nothing may be looked at.
    #[error("heat cannot be seen if no granule is watched")]
    Watched,
    /// Not a number of ticks.
    #[error("{0} of the last eight ticks: give 1 to 8")]
    Seen(u8),
    /// Longer than the policy can count.
    #[error("a rest of {0} ticks: at most {max}", max = Settings::REST_MAX)]
    Rest(u16),
}
