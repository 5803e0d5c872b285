//! How vCPU threads and devices tell the main thread that the machine is
//! over: a slot that the first reason fills, and an eventfd that wakes the
//! event loop.

use std::sync::{Arc, OnceLock};

use neap_devices::{PowerEvent, PowerSink};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::gate::{Gate, Wanted};
use crate::lifecycle::StopReason;

/// The sending side; clones share the slot.
#[derive(Clone, Debug)]
pub struct Reporter {
    gate: Arc<Gate>,
    slot: Arc<OnceLock<StopReason>>,
    wake: Arc<EventFd>,
}

impl Reporter {
    /// A reporter that closes `gate` and writes `wake`.
    pub fn new(gate: Arc<Gate>, wake: EventFd) -> Self {
        Self { gate, slot: Arc::new(OnceLock::new()), wake: Arc::new(wake) }
    }

    /// Says why the machine is over; the first one to say so is heard. No
    /// vCPU enters the guest after this.
    pub fn report(&self, reason: StopReason) {
        self.gate.want(Wanted::Stop);
        let _ = self.slot.set(reason);
        // The counter can only be full if the loop has been woken already.
        let _ = self.wake.write(1);
    }

    /// The reason, once there is one.
    pub fn reason(&self) -> Option<&StopReason> {
        self.slot.get()
    }

    /// Readable once there is a reason.
    pub fn wake(&self) -> &EventFd {
        &self.wake
    }
}

impl PowerSink for Reporter {
    fn request(&self, event: PowerEvent) {
        self.report(match event {
            PowerEvent::Shutdown => StopReason::Shutdown,
            PowerEvent::Reset => StopReason::Reset,
        });
    }
}
