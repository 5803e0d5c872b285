//! The life of a virtual machine as a pure state machine: which state follows
//! which event. The main thread alone feeds it.

use std::fmt;

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The guest powered off (ACPI S5).
    Shutdown,
    /// The guest asked for a reset; Neap ends instead of starting again.
    Reset,
    /// The guest faulted three deep.
    TripleFault,
    /// A signal to Neap.
    Signal(i32),
    /// Whoever sits at the console ended it.
    Console,
    /// Neap or KVM could not go on.
    Failed(String),
}

impl StopReason {
    /// Exit status of the process: 0 when the guest ended itself, 2 when the
    /// machine failed, 128 plus the number for a signal, as shells have it.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Shutdown | Self::Reset | Self::Console => crate::failure::SUCCESS,
            Self::TripleFault | Self::Failed(_) => crate::failure::VM_FAILED,
            Self::Signal(number) => u8::try_from(128 + (number & 0x7f)).unwrap_or(u8::MAX),
        }
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::TripleFault => f.write_str("the guest triple-faulted"),
            Self::Signal(number) => write!(f, "stopped by signal {number}"),
            Self::Console => f.write_str("ended from the console"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// State of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// vCPUs run.
    Running,
    /// vCPUs are parked.
    Paused,
    /// Over; the first reason stands.
    Stopped(StopReason),
}

/// What can happen to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Somebody wants it parked.
    Pause,
    /// Somebody wants it to go on.
    Resume,
    /// It is over.
    Stop(StopReason),
}

impl State {
    /// The state after `event`. Stopped is final: a guest that powers off
    /// while a signal arrives has powered off.
    #[must_use]
    pub fn after(self, event: Event) -> Self {
        match (self, event) {
            (Self::Stopped(reason), _) => Self::Stopped(reason),
            (_, Event::Stop(reason)) => Self::Stopped(reason),
            (_, Event::Pause) => Self::Paused,
            (_, Event::Resume) => Self::Running,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Pause),
            Just(Event::Resume),
            Just(Event::Stop(StopReason::Shutdown)),
            (1i32..65).prop_map(|number| Event::Stop(StopReason::Signal(number))),
        ]
    }

    proptest! {
        #[test]
        fn the_first_stop_is_final(events in prop::collection::vec(events(), 0..20)) {
            let first = events.iter().find_map(|event| match event {
                Event::Stop(reason) => Some(reason.clone()),
                _ => None,
            });
            let end = events.into_iter().fold(State::Running, State::after);
            match first {
                Some(reason) => prop_assert_eq!(end, State::Stopped(reason)),
                None => prop_assert!(!matches!(end, State::Stopped(_))),
            }
        }
    }

    #[test]
    fn every_end_has_its_exit_status() {
        for (reason, status) in [
            (StopReason::Shutdown, 0),
            (StopReason::Reset, 0),
            (StopReason::Console, 0),
            (StopReason::TripleFault, 2),
            (StopReason::Failed(String::new()), 2),
            (StopReason::Signal(15), 143),
            (StopReason::Signal(2), 130),
        ] {
            assert_eq!(reason.exit_status(), status, "{reason}");
        }
    }
}
