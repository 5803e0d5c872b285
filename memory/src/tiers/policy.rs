//! The policy of tiers that are at work: which it is, and another.

use std::fs::File;
use std::io::{self, BufWriter};

use super::Tiers;
use super::core::lock;
use super::heat::{HeatThread, TAKES_APART, takes_apart};
use crate::granule::Kind;
use crate::heat::sim::sampled::Recorder;
use crate::policy::{self, PolicyName};

/// Why the policy stays what it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefused {
    /// Memory that was touched without anybody watching.
    #[error(
        "first touches of this guest's memory are not watched, so {0} would place nothing: \
         start the guest with --policy first-touch"
    )]
    NotWatched(PolicyName),
    /// Reads that are not seen.
    #[error(
        "{0} sees no reads of this memory: start the guest with engine=move, or with memfd or \
         hugetlb memory on a kernel that tells of minor faults (Linux 5.14)"
    )]
    NotSeen(PolicyName),
    /// Looking would cost the guest its huge pages.
    #[error("{0}: {TAKES_APART}: start the guest with engine=move")]
    TakesApart(PolicyName),
    /// Nowhere to promote to.
    #[error("{0} needs a device region of kind public with a pool")]
    NoPool(PolicyName),
    /// Its thread was not to be had.
    #[error("{0} has not begun: {1}")]
    NotBegun(PolicyName, String),
}

impl Tiers {
    /// What moves by itself.
    pub fn policy(&self) -> PolicyName {
        lock(&self.core.policy).name()
    }

    /// Has `name` decide from the next touch on; what has been decided is
    /// carried out, and requests at work go on. The result is the policy
    /// before. The policy that is at work already keeps its state.
    ///
    /// # Errors
    /// The machine cannot have it.
    pub fn set_policy(&self, name: PolicyName) -> Result<PolicyName, PolicyRefused> {
        self.may_have(name)?;
        // Held all the while, so that two changes are one after the other.
        let mut heat = lock(&self.heat);
        let before = lock(&self.core.policy).name();
        if before == name {
            return Ok(before);
        }
        // One that is left brings back what it has set aside.
        *heat = None;
        if name == PolicyName::Heat {
            let started = HeatThread::start(&self.movers, self.config.heat);
            *heat = Some(started.map_err(|e| PolicyRefused::NotBegun(name, e.to_string()))?);
        }
        *lock(&self.core.policy) = policy::make(name);
        Ok(before)
    }

    /// The policies that [`Self::set_policy`] takes.
    pub fn policies(&self) -> Vec<PolicyName> {
        PolicyName::ALL.into_iter().filter(|name| self.may_have(*name).is_ok()).collect()
    }

    /// Writes what policy `heat` sees from now on to `file`, which is empty; see
    /// [`crate::heat::sim::sampled`].
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn record_heat(&self, file: File) -> io::Result<()> {
        let (granules, size) = (self.core.space.granules(), self.core.space.size());
        let recorder =
            Recorder::new(BufWriter::new(file), granules, size, self.config.heat.period)?;
        *lock(&self.core.recorder) = Some(recorder);
        Ok(())
    }

    fn may_have(&self, name: PolicyName) -> Result<(), PolicyRefused> {
        match name {
            PolicyName::FirstTouch if !self.core.watches_first_touch => {
                Err(PolicyRefused::NotWatched(name))
            }
            PolicyName::Heat if self.core.engine.is_watched() && !self.core.engine.sets_aside() => {
                Err(PolicyRefused::NotSeen(name))
            }
            PolicyName::Heat if takes_apart(&self.core) => Err(PolicyRefused::TakesApart(name)),
            PolicyName::Heat if !self.core.kinds.contains(&Kind::Public) => {
                Err(PolicyRefused::NoPool(name))
            }
            _ => Ok(()),
        }
    }
}
