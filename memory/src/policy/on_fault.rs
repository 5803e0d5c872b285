//! Policy `on-fault`: a granule is where it was last missed.

use super::{Decision, Event, Facts, Policy, PolicyName, to_fast};

pub(super) struct OnFault;

impl Policy for OnFault {
    fn name(&self) -> PolicyName {
        PolicyName::OnFault
    }

    fn choose(&mut self, event: Event, facts: &Facts) -> Decision {
        match event {
            Event::AcceleratorTouch => to_fast(facts),
            Event::FirstTouch | Event::VcpuTouch => Decision::Stay,
        }
    }
}
