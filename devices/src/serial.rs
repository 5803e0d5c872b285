//! The first serial port: a 16550A from vm-superio, with its output on any
//! writer and its input from whoever calls [`SerialPort::enqueue`].
//!
//! Output goes out byte by byte, one write each, on the vCPU thread that wrote
//! the register. Buffering would save little: the port exit that brings a byte
//! costs 10 to 60 microseconds and Linux polls the line status with one more,
//! while a one-byte write costs about one. Without a buffer a prompt is never
//! late and a byte that the guest saw leave is never lost, however the process
//! ends.
//!
//! A writer that fails loses the byte, which is counted; the guest goes on as
//! with an unplugged cable. The writer should block: one that answers
//! `WouldBlock` loses output like any other failure.

use std::fmt;
use std::io::Write;

use vm_superio::serial::{NoEvents, Serial};
use vmm_sys_util::eventfd::EventFd;

use crate::io::{Device, IoError, IoResult, byte, byte_mut};
use crate::irq::EventFdTrigger;

/// Where the output of the guest goes.
pub type Output = Box<dyn Write + Send>;

/// Room in an empty receive FIFO, in bytes (vm-superio's `FIFO_SIZE`).
const FIFO_SIZE: usize = 64;
/// Interrupt enable register, and its bit for received data.
const INTERRUPT_ENABLE: u8 = 1;
const RECEIVED_DATA: u8 = 1;
/// Interrupt identification register; its bit for "none", and the code of
/// received data.
const INTERRUPT_IDENTIFICATION: u8 = 2;
const NO_INTERRUPT: u8 = 1;
const DATA_AVAILABLE: u8 = 1 << 2;
/// Line status register, and its bit for received data.
const LINE_STATUS: u8 = 5;
const DATA_READY: u8 = 1;
/// Modem control register, and its loopback bit, in which the receiver is cut
/// off from the line.
const MODEM_CONTROL: u8 = 4;
const LOOPBACK: u8 = 1 << 4;

/// A 16550A serial port.
pub struct SerialPort {
    uart: Serial<EventFdTrigger, NoEvents, Output>,
    /// Written when input that was refused would be taken again.
    room: EventFd,
    /// Whether [`SerialPort::enqueue`] took less than it was given since
    /// `room` was last written.
    owes_room: bool,
    lost: u64,
}

impl SerialPort {
    /// Ports that it takes.
    pub const SIZE: u64 = 8;

    /// A port that raises `interrupt`, writes to `output`, and writes `room`
    /// when it can take input again.
    pub fn new(interrupt: EventFdTrigger, output: Output, room: EventFd) -> Self {
        Self { uart: Serial::new(interrupt, output), room, owes_room: false, lost: 0 }
    }

    /// Gives the guest input and returns how many bytes were taken, from the
    /// front. If that is not all, keep the rest and try again when the `room`
    /// eventfd is readable: it is written once half of the FIFO is free.
    pub fn enqueue(&mut self, input: &[u8]) -> usize {
        let before = self.uart.fifo_capacity();
        // The result says only whether the interrupt could be raised, and
        // counts nothing when it could not: the FIFO knows what was taken.
        let _ = self.uart.enqueue_raw_bytes(input);
        let taken = before.saturating_sub(self.uart.fifo_capacity());
        self.owes_room |= taken < input.len();
        taken
    }

    /// Bytes that the output did not take.
    pub fn lost_output(&self) -> u64 {
        self.lost
    }

    /// Tells the owner of the input once that there is room again.
    fn pay_room(&mut self) {
        if self.owes_room && self.uart.fifo_capacity() >= FIFO_SIZE / 2 && !self.in_loopback() {
            self.owes_room = false;
            // Fails only with the counter at its end, and then it is readable.
            let _ = self.room.write(1);
        }
    }

    /// Reads a register. As on real hardware, received data is identified as
    /// an interrupt for as long as there is some: vm-superio forgets it at the
    /// first byte read, and a driver that stops in between (Linux does after
    /// 256 bytes) would wait for ever.
    fn read_register(&mut self, register: u8) -> u8 {
        let value = self.uart.read(register);
        let unidentified = register == INTERRUPT_IDENTIFICATION
            && value & NO_INTERRUPT != 0
            && self.uart.read(LINE_STATUS) & DATA_READY != 0
            && self.uart.read(INTERRUPT_ENABLE) & RECEIVED_DATA != 0;
        if unidentified { value & !NO_INTERRUPT | DATA_AVAILABLE } else { value }
    }

    fn in_loopback(&mut self) -> bool {
        self.uart.read(MODEM_CONTROL) & LOOPBACK != 0
    }
}

/// The register of an access at `offset`.
fn register(offset: u64) -> Result<u8, IoError> {
    u8::try_from(offset).ok().filter(|o| u64::from(*o) < SerialPort::SIZE).ok_or(IoError::NoDevice)
}

impl Device for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) -> IoResult {
        *byte_mut(data)? = self.read_register(register(offset)?);
        self.pay_room();
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> IoResult {
        use vm_superio::serial::Error;
        match self.uart.write(register(offset)?, byte(data)?) {
            Err(Error::IOError(_)) => self.lost = self.lost.saturating_add(1),
            // An interrupt that could not be raised finds the eventfd's
            // counter full, so the interrupt is pending anyway.
            Err(Error::Trigger(_) | Error::FullFifo) | Ok(()) => {}
        }
        self.pay_room();
        Ok(())
    }
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort")
            .field("owes_room", &self.owes_room)
            .field("lost", &self.lost)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = super::INTERRUPT_ENABLE as u64;
    const LINE_STATUS: u64 = super::LINE_STATUS as u64;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct ClosedPipe;

    impl Write for ClosedPipe {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn eventfd() -> EventFd {
        EventFd::new(EFD_NONBLOCK).unwrap()
    }

    /// A port with the test's ends of its interrupt and room eventfds.
    fn port(output: impl Write + Send + 'static) -> (SerialPort, EventFd, EventFd) {
        let (interrupt, room) = (eventfd(), eventfd());
        let port = SerialPort::new(
            EventFdTrigger(interrupt.try_clone().unwrap()),
            Box::new(output),
            room.try_clone().unwrap(),
        );
        (port, interrupt, room)
    }

    fn get(port: &mut SerialPort, register: u64) -> u8 {
        let mut data = [0];
        port.read(register, &mut data).unwrap();
        data[0]
    }

    #[test]
    fn output_reaches_the_writer_at_once() {
        let sink = Sink::default();
        let (mut port, ..) = port(sink.clone());
        for (i, byte) in b"login: ".iter().enumerate() {
            port.write(DATA, &[*byte]).unwrap();
            assert_eq!(sink.0.lock().unwrap().len(), i + 1);
        }
        assert_eq!(*sink.0.lock().unwrap(), b"login: ");
        assert_eq!(port.lost_output(), 0);
    }

    #[test]
    fn a_closed_pipe_costs_bytes_and_nothing_else() {
        let (mut port, ..) = port(ClosedPipe);
        for _ in 0..3 {
            port.write(DATA, b"x").unwrap();
        }
        assert_eq!(port.lost_output(), 3);
        assert_eq!(get(&mut port, LINE_STATUS) & 0x20, 0x20, "the guest may go on sending");
    }

    #[test]
    fn input_raises_the_interrupt_and_is_read_in_order() {
        let (mut port, interrupt, _room) = port(io::sink());
        port.write(INTERRUPT_ENABLE, &[1]).unwrap();
        assert_eq!(port.enqueue(b"ab"), 2);
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(get(&mut port, LINE_STATUS) & 1, 1);
        assert_eq!([get(&mut port, DATA), get(&mut port, DATA)], *b"ab");
        assert_eq!(get(&mut port, LINE_STATUS) & 1, 0);
    }

    #[test]
    fn received_data_is_identified_until_the_last_byte_is_read() {
        let (mut port, _interrupt, _room) = port(io::sink());
        let identification = INTERRUPT_IDENTIFICATION.into();
        port.write(INTERRUPT_ENABLE, &[1]).unwrap();
        port.enqueue(b"ab");
        for _ in 0..2 {
            assert_eq!(get(&mut port, identification) & 0xf, 4);
            get(&mut port, DATA);
        }
        assert_eq!(get(&mut port, identification) & 0xf, 1);
        port.write(INTERRUPT_ENABLE, &[0]).unwrap();
        port.enqueue(b"c");
        assert_eq!(get(&mut port, identification) & 0xf, 1);
    }

    #[test]
    fn input_that_does_not_fit_waits_and_none_is_lost() {
        let (mut port, _interrupt, room) = port(io::sink());
        let input: Vec<u8> = (0..200).collect();
        let mut sent = port.enqueue(&input);
        assert_eq!(sent, 64);
        assert_eq!(port.enqueue(&input[sent..]), 0);
        let mut received = Vec::new();
        while received.len() < input.len() {
            received.push(get(&mut port, DATA));
            if room.read().is_ok() {
                sent += port.enqueue(&input[sent..]);
            }
        }
        assert_eq!(received, input);
    }

    #[test]
    fn room_is_not_signalled_when_nobody_waits_for_it() {
        let (mut port, _interrupt, room) = port(io::sink());
        assert_eq!(port.enqueue(b"abc"), 3);
        for _ in 0..5 {
            get(&mut port, DATA);
        }
        assert!(room.read().is_err());
    }

    #[test]
    fn input_refused_in_loopback_is_asked_for_after_it() {
        let (mut port, _interrupt, room) = port(io::sink());
        port.write(u64::from(MODEM_CONTROL), &[LOOPBACK]).unwrap();
        assert_eq!(port.enqueue(b"x"), 0);
        get(&mut port, LINE_STATUS);
        assert!(room.read().is_err(), "it would be refused again");
        port.write(u64::from(MODEM_CONTROL), &[0]).unwrap();
        assert_eq!(room.read().unwrap(), 1);
        assert_eq!(port.enqueue(b"x"), 1);
    }

    #[test]
    fn wide_accesses_are_refused() {
        let (mut port, ..) = port(io::sink());
        assert_eq!(port.write(DATA, &[1, 2]), Err(IoError::BadWidth));
        assert_eq!(port.read(DATA, &mut [0; 4]), Err(IoError::BadWidth));
        assert_eq!(port.read(8, &mut [0]), Err(IoError::NoDevice));
    }

    proptest! {
        #[test]
        fn no_access_panics(
            accesses in prop::collection::vec(
                (0u64..10, prop::collection::vec(any::<u8>(), 0..3), 0usize..100), 0..64),
        ) {
            let (mut port, ..) = port(ClosedPipe);
            for (offset, data, input) in accesses {
                let _ = port.write(offset, &data);
                let _ = port.read(offset, &mut data.clone());
                prop_assert!(port.enqueue(&vec![0; input]) <= input);
            }
        }
    }
}
