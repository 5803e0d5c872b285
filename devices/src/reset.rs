//! The registers through which a guest switches itself off or resets itself:
//! the ACPI sleep and reset registers of a hardware-reduced machine, and the
//! one command of the PC keyboard controller that still matters.
//!
//! The devices only pass the wish on ([`PowerSink`]); the vCPU that made it
//! returns to its run loop as after any write.

use std::fmt;
use std::sync::Arc;

use crate::io::{Device, IoError, IoResult, byte, byte_mut};

/// What the guest asked of its power supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Enter S5: power off.
    Shutdown,
    /// Restart the machine.
    Reset,
}

/// Who acts on a [`PowerEvent`].
///
/// Called on a vCPU thread with the lock of the asking device held: it must
/// not block and must not use the bus. A guest may ask more than once.
pub trait PowerSink: Send + Sync {
    /// Takes note of the event.
    fn request(&self, event: PowerEvent);
}

/// Sleep control: bits 2 to 4 are SLP_TYP (ACPI 6.5, section 4.8.3.7).
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;
/// Sleep control: set to enter the state; reads as 0.
const SLP_EN: u8 = 1 << 5;

/// The three byte-wide registers of hardware-reduced ACPI: sleep control,
/// sleep status, reset, in this order.
pub struct AcpiPower {
    s5: u8,
    reset_value: u8,
    sleep_type: u8,
    sink: Arc<dyn PowerSink>,
}

impl AcpiPower {
    /// Ports that the registers take.
    pub const SIZE: u64 = 3;
    const SLEEP_CONTROL: u64 = 0;
    const SLEEP_STATUS: u64 = 1;
    const RESET: u64 = 2;

    /// `s5` is the SLP_TYP that `\_S5` names, `reset_value` the RESET_VALUE of
    /// the FADT.
    pub fn new(s5: u8, reset_value: u8, sink: Arc<dyn PowerSink>) -> Self {
        Self { s5: s5 & SLP_TYP_MASK, reset_value, sleep_type: 0, sink }
    }
}

impl Device for AcpiPower {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> IoResult {
        *byte_mut(data)? = match offset {
            Self::SLEEP_CONTROL => self.sleep_type << SLP_TYP_SHIFT,
            // Nothing ever wakes this machine, so WAK_STS (bit 7) stays clear.
            Self::SLEEP_STATUS => 0,
            _ => return Err(IoError::WriteOnly),
        };
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> IoResult {
        let value = byte(data)?;
        match offset {
            Self::SLEEP_CONTROL => {
                self.sleep_type = (value >> SLP_TYP_SHIFT) & SLP_TYP_MASK;
                if value & SLP_EN != 0 && self.sleep_type == self.s5 {
                    self.sink.request(PowerEvent::Shutdown);
                }
            }
            // WAK_STS is cleared by writing 1: it is clear already.
            Self::SLEEP_STATUS => {}
            Self::RESET if value == self.reset_value => self.sink.request(PowerEvent::Reset),
            _ => {}
        }
        Ok(())
    }
}

impl fmt::Debug for AcpiPower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AcpiPower").field("sleep_type", &self.sleep_type).finish_non_exhaustive()
    }
}

/// Keyboard controller command: pulse the reset line.
const PULSE_RESET: u8 = 0xfe;
/// Status bit 0, output buffer full.
const OUTPUT_FULL: u8 = 1 << 0;

/// The command and status port of a PC keyboard controller with no keyboard.
///
/// The status says "input buffer empty, output buffer full" for ever. With the
/// first half `reboot=k` sends its command at once (`kb_wait`,
/// arch/x86/kernel/reboot.c); with the second a driver that tries to empty the
/// output buffer gives up after 16 reads and says that there is no controller
/// (`i8042_flush`, drivers/input/serio/i8042.c), where a status of 0 would let
/// it wait half a second for each answer that never comes.
pub struct KeyboardController {
    sink: Arc<dyn PowerSink>,
}

impl KeyboardController {
    /// Ports that it takes.
    pub const SIZE: u64 = 1;

    /// A controller that passes resets on to `sink`.
    pub fn new(sink: Arc<dyn PowerSink>) -> Self {
        Self { sink }
    }
}

impl Device for KeyboardController {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> IoResult {
        *byte_mut(data)? = OUTPUT_FULL;
        Ok(())
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> IoResult {
        if byte(data)? == PULSE_RESET {
            self.sink.request(PowerEvent::Reset);
        }
        Ok(())
    }
}

impl fmt::Debug for KeyboardController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyboardController").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<PowerEvent>>);

    impl PowerSink for Recorder {
        fn request(&self, event: PowerEvent) {
            self.0.lock().unwrap().push(event);
        }
    }

    impl Recorder {
        fn take(&self) -> Vec<PowerEvent> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    #[test]
    fn only_s5_with_the_enable_bit_powers_off() {
        let sink = Arc::new(Recorder::default());
        let mut power = AcpiPower::new(5, 1, sink.clone());
        for value in 0..=u8::MAX {
            power.write(0, &[value]).unwrap();
            let s5 = (value >> 2) & 7 == 5 && value & 0x20 != 0;
            let expected = if s5 { vec![PowerEvent::Shutdown] } else { Vec::new() };
            assert_eq!(sink.take(), expected, "{value:#x}");
            let mut back = [0];
            power.read(0, &mut back).unwrap();
            assert_eq!(back[0], value & 0x1c, "SLP_EN reads as 0");
        }
    }

    #[test]
    fn the_reset_register_takes_its_value_only() {
        let sink = Arc::new(Recorder::default());
        let mut power = AcpiPower::new(5, 1, sink.clone());
        power.write(2, &[0]).unwrap();
        assert_eq!(sink.take(), []);
        power.write(2, &[1]).unwrap();
        assert_eq!(sink.take(), [PowerEvent::Reset]);
        assert_eq!(power.read(2, &mut [0]), Err(IoError::WriteOnly));
    }

    #[test]
    fn the_keyboard_controller_resets_and_looks_absent() {
        let sink = Arc::new(Recorder::default());
        let mut controller = KeyboardController::new(sink.clone());
        let mut status = [0];
        controller.read(0, &mut status).unwrap();
        assert_eq!(status[0] & 2, 0, "kb_wait must not wait");
        assert_eq!(status[0] & 1, 1, "i8042_flush must find no controller");
        controller.write(0, &[0xaa]).unwrap();
        assert_eq!(sink.take(), []);
        controller.write(0, &[0xfe]).unwrap();
        assert_eq!(sink.take(), [PowerEvent::Reset]);
    }

    proptest! {
        #[test]
        fn no_access_panics(offset: u64, data in prop::collection::vec(any::<u8>(), 0..9)) {
            let sink = Arc::new(Recorder::default());
            let mut power = AcpiPower::new(5, 1, sink.clone());
            let mut controller = KeyboardController::new(sink);
            let mut buffer = data.clone();
            for device in [&mut power as &mut dyn Device, &mut controller] {
                for offset in [offset, offset % 4] {
                    let _ = device.write(offset, &data);
                    let _ = device.read(offset, &mut buffer);
                }
            }
        }
    }
}
