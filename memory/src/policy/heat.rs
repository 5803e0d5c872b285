//! Policy `heat`: no touch moves anything by itself, but touches are counted,
//! see [`crate::heat`].

use super::{Decision, Event, Facts, Policy, PolicyName};

pub(super) struct Heat;

impl Policy for Heat {
    fn name(&self) -> PolicyName {
        PolicyName::Heat
    }

    fn choose(&mut self, _: Event, _: &Facts) -> Decision {
        Decision::Stay
    }
}
