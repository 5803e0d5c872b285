//! Exits: what each kind means, and how many there were.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_ioctls::VcpuExit;
use neap_devices::{Bus, IoError, IoResult};

/// Kinds of exit that are counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ExitKind {
    /// A port was read.
    PortIn,
    /// A port was written.
    PortOut,
    /// Device memory was read.
    MmioRead,
    /// Device memory was written.
    MmioWrite,
    /// An access that no device took.
    Unclaimed,
    /// A kick or another signal.
    Interrupted,
    /// Everything else.
    Other,
}

/// Names of the kinds, in the order of [`ExitKind`].
pub const NAMES: [&str; 7] =
    ["port_in", "port_out", "mmio_read", "mmio_write", "unclaimed", "interrupted", "other"];

/// Exits of one vCPU, by kind. On a cache line of its own, so that counting
/// costs no traffic between processors.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ExitCounters([AtomicU64; NAMES.len()]);

impl ExitCounters {
    /// Counts one exit; only the vCPU's own thread does.
    pub fn count(&self, kind: ExitKind) {
        self.0[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts, in the order of [`NAMES`].
    pub fn read(&self) -> [u64; NAMES.len()] {
        std::array::from_fn(|kind| self.0[kind].load(Ordering::Relaxed))
    }
}

/// The two address spaces that a guest reaches devices through.
#[derive(Debug)]
pub struct Buses {
    /// The 65536 I/O ports.
    pub ports: Bus,
    /// Guest-physical addresses that are no memory.
    pub mmio: Bus,
}

/// What the vCPU thread does after an exit.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Run again.
    Resume,
    /// All processors shut down by a fault within a fault within a fault.
    TripleFault,
    /// KVM cannot reach memory of the guest's, and does not say which.
    Unreachable,
    /// The guest cannot go on; why.
    Fail(String),
}

/// Carries out one exit.
pub fn handle(exit: VcpuExit<'_>, buses: &Buses, counters: &ExitCounters) -> Next {
    let access = |kind: ExitKind, result: IoResult| {
        counters.count(kind);
        if result == Err(IoError::NoDevice) {
            counters.count(ExitKind::Unclaimed);
        }
        Next::Resume
    };
    let next = match exit {
        VcpuExit::IoOut(port, data) => {
            return access(ExitKind::PortOut, buses.ports.write(u64::from(port), data));
        }
        VcpuExit::IoIn(port, data) => {
            return access(ExitKind::PortIn, buses.ports.read(u64::from(port), data));
        }
        VcpuExit::MmioRead(addr, data) => {
            return access(ExitKind::MmioRead, buses.mmio.read(addr, data));
        }
        VcpuExit::MmioWrite(addr, data) => {
            return access(ExitKind::MmioWrite, buses.mmio.write(addr, data));
        }
        VcpuExit::Intr => {
            counters.count(ExitKind::Interrupted);
            return Next::Resume;
        }
        VcpuExit::Shutdown => Next::TripleFault,
        VcpuExit::FailEntry(reason, cpu) => Next::Fail(format!(
            "the processor refused to enter the guest (reason {reason:#x}, host CPU {cpu})"
        )),
        VcpuExit::InternalError => {
            Next::Fail("KVM could not emulate an instruction (KVM_EXIT_INTERNAL_ERROR)".to_owned())
        }
        // The in-kernel interrupt chips handle HLT and IRQ windows; if one
        // comes up all the same, running again is right.
        VcpuExit::Hlt | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr | VcpuExit::TprAccess => {
            Next::Resume
        }
        other => Next::Fail(format!("an exit that Neap does not know: {other:?}")),
    };
    counters.count(ExitKind::Other);
    next
}

#[cfg(test)]
mod tests {
    use neap_devices::BusBuilder;

    use super::*;

    fn buses() -> Buses {
        Buses { ports: BusBuilder::new().build(), mmio: BusBuilder::new().build() }
    }

    #[test]
    fn accesses_without_a_device_read_as_ones_and_are_counted() {
        let (buses, counters) = (buses(), ExitCounters::default());
        let mut data = [0u8; 4];
        assert_eq!(handle(VcpuExit::IoIn(0x80, &mut data), &buses, &counters), Next::Resume);
        assert_eq!(data, [0xff; 4]);
        handle(VcpuExit::MmioWrite(0xe000_0000, &data), &buses, &counters);
        assert_eq!(counters.read(), [1, 0, 0, 1, 2, 0, 0]);
    }

    #[test]
    fn a_triple_fault_is_no_failure_of_the_monitor() {
        let counters = ExitCounters::default();
        assert_eq!(handle(VcpuExit::Shutdown, &buses(), &counters), Next::TripleFault);
        let failed = handle(VcpuExit::FailEntry(0x80, 1), &buses(), &counters);
        assert!(matches!(failed, Next::Fail(text) if text.contains("0x80")));
    }
}
