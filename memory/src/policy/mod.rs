//! Policies: what moves when somebody touches a granule. Pure: no clock, no
//! thread, no lock, no system call.
//!
//! | event | `static` | `first-touch` | `on-fault` | `heat` |
//! |---|---|---|---|---|
//! | first touch of a granule | the map's tier | fast tier while it has room | home | home |
//! | vCPU touches a device-resident granule, kind `public` | stays | stays | stays | stays |
//! | the same, kind `private` | comes home | comes home | comes home | comes home |
//! | accelerator touches a granule at home | stays | stays | goes to the device | stays |
//!
//! What `heat` moves it moves in ticks of its own, see [`crate::heat`].
//!
//! Two rules stand above the table and are kept in [`Policy::decide`], so that
//! no policy can break them: kind `generic` never moves, and what a vCPU's touch
//! does to a granule in a device frame is the kind's to say. A window of
//! special-purpose memory is `public` towards vCPUs whatever its region's kind.
//!
//! Requests (`migrate`, `evacuate`) are nobody's to decide here: they are
//! obeyed or refused granule by granule.

mod first_touch;
mod heat;
mod on_fault;
mod statics;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

pub use crate::granule::{Kind, PoolId};
pub use crate::table::Place;

/// Which policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyName {
    /// Everything stays where the memory map puts it.
    #[default]
    Static,
    /// A granule goes to the fast tier when it is first touched, while there
    /// is room.
    FirstTouch,
    /// A granule goes to the device when the accelerator touches it.
    OnFault,
    /// What is used most is in the fast tier; see [`crate::heat`].
    Heat,
}

impl PolicyName {
    /// Every policy.
    pub const ALL: [Self; 4] = [Self::Static, Self::FirstTouch, Self::OnFault, Self::Heat];

    /// The word for it, as the option takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Static => "static",
            Self::FirstTouch => "first-touch",
            Self::OnFault => "on-fault",
            Self::Heat => "heat",
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A word that names no policy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is no policy; static, first-touch, on-fault and heat are")]
pub struct PolicyNameError(String);

impl FromStr for PolicyName {
    type Err = PolicyNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.name() == text)
            .ok_or_else(|| PolicyNameError(text.to_owned()))
    }
}

/// What happened to a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The first touch of its life, by anybody.
    FirstTouch,
    /// A vCPU, or a device model in the host, touched it and faulted.
    VcpuTouch,
    /// The accelerator touched it and faulted.
    AcceleratorTouch,
}

/// What a policy may know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Kind of the region that holds the granule; of the region of `fast` if
    /// the granule is at home.
    pub kind: Kind,
    /// Where the granule is now.
    pub place: Place,
    /// Whether it belongs to a window of special-purpose memory.
    pub window: bool,
    /// The pool to move to, if there is one with room.
    pub fast: Option<PoolId>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing moves; at a first touch it means home memory.
    Stay,
    /// The granule comes home to host memory.
    ToHome,
    /// The granule goes to a frame of that pool.
    ToPool(PoolId),
}

/// What moves on a touch.
pub trait Policy: Send {
    /// Which policy it is.
    fn name(&self) -> PolicyName;

    /// The policy's own choice, for a granule that may move and that no rule
    /// of its kind speaks for. Callers want [`Policy::decide`].
    fn choose(&mut self, event: Event, facts: &Facts) -> Decision;

    /// What to do after `event`.
    fn decide(&mut self, event: Event, facts: &Facts) -> Decision {
        match event {
            _ if facts.kind == Kind::Generic => Decision::Stay,
            Event::VcpuTouch => touched_by_vcpu(facts),
            // First touches are processors' touches: a private frame would
            // have to give the granule back at once.
            Event::FirstTouch if !used_in_place(facts) => Decision::Stay,
            _ => self.choose(event, facts),
        }
    }
}

/// The policy of that name, in its first state.
pub fn make(name: PolicyName) -> Box<dyn Policy> {
    match name {
        PolicyName::Static => Box::new(statics::Static),
        PolicyName::FirstTouch => Box::new(first_touch::FirstTouch),
        PolicyName::OnFault => Box::new(on_fault::OnFault),
        PolicyName::Heat => Box::new(heat::Heat),
    }
}

/// Whether vCPUs use the granule where it is when it is in a device frame.
fn used_in_place(facts: &Facts) -> bool {
    facts.window || facts.kind != Kind::Private
}

fn touched_by_vcpu(facts: &Facts) -> Decision {
    if facts.place.is_device() && !used_in_place(facts) { Decision::ToHome } else { Decision::Stay }
}

/// To the fast pool, if the granule is not in a device frame already and there
/// is a pool with room.
fn to_fast(facts: &Facts) -> Decision {
    match facts.fast {
        Some(pool) if !facts.place.is_device() => Decision::ToPool(pool),
        _ => Decision::Stay,
    }
}
