//! Policy `static`: the memory map says where a granule lives.

use super::{Decision, Event, Facts, Policy, PolicyName, to_fast};

pub(super) struct Static;

impl Policy for Static {
    fn name(&self) -> PolicyName {
        PolicyName::Static
    }

    fn choose(&mut self, event: Event, facts: &Facts) -> Decision {
        match event {
            // The map's tier: a window's granules belong to the device, RAM's
            // to the host.
            Event::FirstTouch if facts.window => to_fast(facts),
            _ => Decision::Stay,
        }
    }
}
