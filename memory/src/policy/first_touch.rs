//! Policy `first-touch`: the fast tier fills up in the order of touching.

use super::{Decision, Event, Facts, Policy, PolicyName, to_fast};

pub(super) struct FirstTouch;

impl Policy for FirstTouch {
    fn name(&self) -> PolicyName {
        PolicyName::FirstTouch
    }

    fn choose(&mut self, event: Event, facts: &Facts) -> Decision {
        match event {
            Event::FirstTouch => to_fast(facts),
            Event::VcpuTouch | Event::AcceleratorTouch => Decision::Stay,
        }
    }
}
