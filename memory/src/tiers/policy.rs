//! The policy of tiers that are at work: which it is, and another.

use super::Tiers;
use super::core::lock;
use crate::policy::{self, PolicyName};

/// Why the policy stays what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyRefused {
    /// Memory that was touched without anybody watching.
    #[error(
        "first touches of this guest's memory are not watched, so {0} would place nothing: \
         start the guest with --policy first-touch"
    )]
    NotWatched(PolicyName),
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
        let mut policy = lock(&self.core.policy);
        let before = policy.name();
        if before != name {
            *policy = policy::make(name);
        }
        Ok(before)
    }

    /// The policies that [`Self::set_policy`] takes.
    pub fn policies(&self) -> Vec<PolicyName> {
        PolicyName::ALL.into_iter().filter(|name| self.may_have(*name).is_ok()).collect()
    }

    fn may_have(&self, name: PolicyName) -> Result<(), PolicyRefused> {
        match name {
            PolicyName::FirstTouch if !self.core.watches_first_touch => {
                Err(PolicyRefused::NotWatched(name))
            }
            _ => Ok(()),
        }
    }
}
