//! The language that the host side and the agent speak over the lab's port:
//! frames of a kind (one byte), a length (four bytes, little-endian) and a
//! payload.
//!
//! Both ends are the same binary, so there is one version and no negotiation;
//! the number in [`Frame::Hello`] catches a mix-up. Reading is total: whatever
//! bytes come, the result is a frame or a [`WireError`], and no more than
//! [`MAX_PAYLOAD`] bytes are ever kept for one.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use thiserror::Error;

/// What [`Frame::Hello`] must carry.
pub const VERSION: u32 = 2;
/// Longest payload of one frame, in bytes: room for a full set of arguments
/// and environment (`ARG_MAX` is 2 MiB by default, execve(2)).
pub const MAX_PAYLOAD: usize = 4 << 20;
/// Most bytes of a stream that go into one frame.
pub const CHUNK: usize = 32 << 10;
/// Bytes of one stream that may be under way before its reader has taken
/// any; each [`Frame::Credit`] allows as many more as it names.
pub const WINDOW: usize = 256 << 10;
/// How often the agent sends [`Frame::Beat`].
pub const BEAT: Duration = Duration::from_secs(5);
const HEADER: usize = 5;

/// Bytes that are no frame.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// No frame has this kind.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// The length is more than any frame of the protocol has.
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    /// The payload does not fit its kind.
    #[error("a frame of kind {0} with a payload that does not fit it")]
    Payload(u8),
}

/// One of the three standard streams of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Host to program.
    Stdin,
    /// Program to host; also what a terminal shows.
    Stdout,
    /// Program to host.
    Stderr,
}

/// Size of a terminal, in characters and pixels, as in `struct winsize`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Lines.
    pub rows: u16,
    /// Characters a line.
    pub columns: u16,
    /// Width in pixels, 0 if unknown.
    pub width: u16,
    /// Height in pixels, 0 if unknown.
    pub height: u16,
}

/// A signal that is handed on to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGHUP.
    HangUp,
    /// SIGQUIT.
    Quit,
}

/// The program to run and its surroundings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Absolute path.
    pub program: OsString,
    /// Arguments after the program's name.
    pub arguments: Vec<OsString>,
    /// The whole environment: names and values.
    pub environment: Vec<(OsString, OsString)>,
    /// Working folder, absolute.
    pub folder: OsString,
    /// Whether the writable share is to be mounted over the working folder.
    pub share: bool,
    /// Stdin and stdout are a terminal of this size.
    pub terminal: Option<Window>,
    /// Stderr is that terminal too.
    pub stderr_on_terminal: bool,
    /// Kernel modules to load first, in order: absolute paths.
    pub modules: Vec<OsString>,
}

/// One message. Who sends it stands in its description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Agent, once, first: ready for [`Frame::Start`]. Holds [`VERSION`].
    Hello(u32),
    /// Host, once, as answer to [`Frame::Hello`].
    Start(Start),
    /// Either: bytes of a stream, at most as many as credit allows.
    Data(Stream, Vec<u8>),
    /// Host: stdin ends here.
    End(Stream),
    /// The stream's reader: it takes no more; what comes is thrown away.
    Closed(Stream),
    /// The stream's reader: it has taken this many bytes.
    Credit(Stream, u32),
    /// Host: the terminal has this size now.
    Resize(Window),
    /// Host: a signal for the program.
    Signal(Notice),
    /// Agent, every few seconds: the lab lives.
    Beat,
    /// Agent, last: the program ended with this exit status and all its
    /// output has been sent; 128 + n for a signal n.
    Exit(u8),
    /// Agent, last: the program could not be run, and why.
    Failed(String),
}

impl Frame {
    /// The frame as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER];
        let kind = match self {
            Self::Hello(version) => {
                out.extend(version.to_le_bytes());
                1
            }
            Self::Start(start) => {
                start.encode(&mut out);
                2
            }
            Self::Data(stream, bytes) => {
                out.push(stream.code());
                out.extend_from_slice(bytes);
                3
            }
            Self::End(stream) => {
                out.push(stream.code());
                4
            }
            Self::Closed(stream) => {
                out.push(stream.code());
                5
            }
            Self::Credit(stream, bytes) => {
                out.push(stream.code());
                out.extend(bytes.to_le_bytes());
                6
            }
            Self::Resize(window) => {
                window.encode(&mut out);
                7
            }
            Self::Signal(notice) => {
                out.push(notice.code());
                8
            }
            Self::Beat => 11,
            Self::Exit(status) => {
                out.push(*status);
                9
            }
            Self::Failed(message) => {
                out.extend_from_slice(message.as_bytes());
                10
            }
        };
        let length = (out.len() - HEADER) as u32;
        out[0] = kind;
        out[1..HEADER].copy_from_slice(&length.to_le_bytes());
        out
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, WireError> {
        let mut fields = Fields(payload);
        let frame = match kind {
            1 => fields.u32().map(Self::Hello),
            2 => Start::decode(&mut fields).map(Self::Start),
            3 => fields.stream().map(|stream| Self::Data(stream, fields.rest().to_vec())),
            4 => fields.stream().map(Self::End),
            5 => fields.stream().map(Self::Closed),
            6 => fields.stream().zip(fields.u32()).map(|(stream, n)| Self::Credit(stream, n)),
            7 => Window::decode(&mut fields).map(Self::Resize),
            8 => fields.u8().and_then(Notice::from_code).map(Self::Signal),
            9 => fields.u8().map(Self::Exit),
            10 => Some(Self::Failed(String::from_utf8_lossy(fields.rest()).into_owned())),
            11 => Some(Self::Beat),
            _ => return Err(WireError::Kind(kind)),
        };
        frame.filter(|_| fields.0.is_empty()).ok_or(WireError::Payload(kind))
    }
}

impl Stream {
    fn code(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }
}

impl Notice {
    fn code(self) -> u8 {
        match self {
            Self::Interrupt => 0,
            Self::Terminate => 1,
            Self::HangUp => 2,
            Self::Quit => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Interrupt, Self::Terminate, Self::HangUp, Self::Quit].get(usize::from(code)).copied()
    }
}

impl Window {
    fn encode(self, out: &mut Vec<u8>) {
        for field in [self.rows, self.columns, self.width, self.height] {
            out.extend(field.to_le_bytes());
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        Some(Self {
            rows: fields.u16()?,
            columns: fields.u16()?,
            width: fields.u16()?,
            height: fields.u16()?,
        })
    }
}

impl Start {
    fn encode(&self, out: &mut Vec<u8>) {
        put_string(out, &self.program);
        put_string(out, &self.folder);
        out.push(u8::from(self.share));
        out.push(u8::from(self.stderr_on_terminal));
        out.push(u8::from(self.terminal.is_some()));
        self.terminal.unwrap_or_default().encode(out);
        out.extend((self.arguments.len() as u32).to_le_bytes());
        for argument in &self.arguments {
            put_string(out, argument);
        }
        out.extend((self.modules.len() as u32).to_le_bytes());
        for module in &self.modules {
            put_string(out, module);
        }
        out.extend((self.environment.len() as u32).to_le_bytes());
        for (name, value) in &self.environment {
            put_string(out, name);
            put_string(out, value);
        }
    }

    fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let program = fields.string()?;
        let folder = fields.string()?;
        let share = fields.bool()?;
        let stderr_on_terminal = fields.bool()?;
        let on_terminal = fields.bool()?;
        let window = Window::decode(fields)?;
        // The counts are not trusted for an allocation: each item takes
        // bytes of the payload, so the loops end with it.
        let arguments = (0..fields.u32()?).map(|_| fields.string()).collect::<Option<_>>()?;
        let modules = (0..fields.u32()?).map(|_| fields.string()).collect::<Option<_>>()?;
        let environment = (0..fields.u32()?)
            .map(|_| Some((fields.string()?, fields.string()?)))
            .collect::<Option<_>>()?;
        Some(Self {
            program,
            arguments,
            environment,
            folder,
            share,
            terminal: on_terminal.then_some(window),
            stderr_on_terminal,
            modules,
        })
    }
}

fn put_string(out: &mut Vec<u8>, string: &OsStr) {
    out.extend((string.len() as u32).to_le_bytes());
    out.extend_from_slice(string.as_bytes());
}

/// What is left of a payload; each call takes a field off its front, or
/// `None` if the payload ends before.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(field)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|field| field[0])
    }

    fn bool(&mut self) -> Option<bool> {
        self.u8().filter(|&code| code < 2).map(|code| code == 1)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn string(&mut self) -> Option<OsString> {
        let length = self.u32()? as usize;
        Some(OsString::from_vec(self.take(length)?.to_vec()))
    }

    fn stream(&mut self) -> Option<Stream> {
        let code = usize::from(self.u8()?);
        [Stream::Stdin, Stream::Stdout, Stream::Stderr].get(code).copied()
    }
}

/// Puts frames together from bytes that come in pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes at the front that earlier frames have used up.
    used: usize,
}

impl Decoder {
    /// Adds bytes that have come.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.used);
        self.used = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// Bytes that are no frame. The stream has lost its beat then: nothing
    /// that follows makes sense.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        let bytes = &self.bytes[self.used..];
        let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let [kind, length @ ..] = *header;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            return Err(WireError::TooLong(length));
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let frame = Frame::decode(kind, payload)?;
        self.used += HEADER + length;
        Ok(Some(frame))
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
