//! Host memory that has failed under a guest: who is told, and what.
//!
//! ```text
//!   vCPU touches it ──SIGBUS──► vCPU thread ─┬─► tiers: the frame is retired
//!                                            └─► KVM: machine check for the guest
//!   nobody touched it ──SIGBUS, eventfd──► main thread ──► tiers
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use neap_memory::guest::Slot;
use neap_memory::poison::Lost;
use neap_memory::tiers::{Met, Tiers};
use neap_memory::{Gpa, GuestMemory};

use crate::failure::{VM_FAILED, tell};
use crate::{console, fd};

/// Failures that are told on stderr; a guest that goes on touching one page
/// makes no flood.
const TOLD: u32 = 16;

/// What is to be done about memory that has failed.
#[derive(Debug)]
pub struct MemoryFailures {
    slots: Vec<Slot>,
    tiers: Option<Arc<Tiers>>,
    told: AtomicU32,
}

impl MemoryFailures {
    /// For the memory of a guest.
    pub fn new(memory: &GuestMemory, tiers: Option<Arc<Tiers>>) -> Self {
        Self { slots: memory.slots().to_vec(), tiers, told: AtomicU32::new(0) }
    }

    /// Notes that memory has failed, and says where the guest sees it; none if
    /// it is not the guest's.
    pub fn met(&self, lost: Lost, met: Met) -> Option<Gpa> {
        let gpa = gpa(&self.slots, lost)?;
        if let Some(tiers) = &self.tiers {
            tiers.memory_failed(lost, met);
        }
        if self.told.fetch_add(1, Ordering::Relaxed) < TOLD {
            let bytes = lost.0.len();
            tell(format_args!("host memory has failed: {bytes} bytes of the guest's at {gpa}"));
        }
        Some(gpa)
    }
}

fn gpa(slots: &[Slot], lost: Lost) -> Option<Gpa> {
    let hva = lost.0.start().0 as u64;
    let slot = slots
        .iter()
        .find(|slot| hva.checked_sub(slot.hva).is_some_and(|offset| offset < slot.range.size()))?;
    Some(Gpa(slot.range.base().0 + (hva - slot.hva)))
}

/// Ends the process from the handler of SIGBUS: takes no lock that anybody
/// holds, and allocates nothing.
pub fn end(why: &str) -> ! {
    console::restore();
    for part in ["neap: ", why, "\n"] {
        // Nobody may be reading.
        let _ = rustix::io::write(rustix::stdio::stderr(), part.as_bytes());
    }
    fd::exit_now(VM_FAILED)
}

/// Has SIGBUS handled, once for the process.
///
/// # Errors
/// What sigaction(2) says.
pub fn install() -> io::Result<()> {
    neap_memory::poison::install(end)
}

#[cfg(test)]
mod tests {
    use neap_memory::GpaRange;
    use neap_memory::hva::{Hva, HvaRange};

    use super::*;

    #[test]
    fn a_host_address_is_found_in_its_slot() {
        let slot = |base, size, hva| Slot { range: GpaRange::new(Gpa(base), size).unwrap(), hva };
        let slots = [slot(0, 0x20_0000, 0x7000_0000), slot(0x10_0000_0000, 0x1000, 0x6000_0000)];
        let at = |hva| gpa(&slots, Lost(HvaRange::new(Hva(hva), 0x1000)));
        assert_eq!(at(0x7000_3000), Some(Gpa(0x3000)));
        assert_eq!(at(0x6000_0000), Some(Gpa(0x10_0000_0000)));
        assert_eq!(at(0x6000_1000), None);
        assert_eq!(at(0x1000), None);
    }
}
