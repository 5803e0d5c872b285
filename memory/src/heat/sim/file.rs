//! Traces in files, little-endian:
//!
//! | bytes | |
//! |---|---|
//! | 0-7 | `NEAPTRC1` |
//! | 8-11 | granules, 1 to 2^30 |
//! | 12-15 | touches a window, at least 1; the last window may have less |
//! | 16-23 | touches |
//! | 24- | 4 bytes a touch: the granule; bit 31: a write; bit 30: of a scan |

use std::io::{self, Read, Write};

use thiserror::Error;

use super::{Access, Trace};

const MAGIC: &[u8; 8] = b"NEAPTRC1";
const HEADER: usize = 24;
const WRITE: u32 = 1 << 31;
const SCAN: u32 = 1 << 30;
/// Most granules.
pub const GRANULES_MAX: u32 = 1 << 30;
/// Most touches in a file: 4 GiB of them.
pub const TOUCHES_MAX: u64 = 1 << 30;

/// A trace that cannot be read.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is none.
    #[error("this is no trace: it does not begin with NEAPTRC1")]
    Magic,
    /// A number that cannot be.
    #[error("{what} of {value} is not 1 to {most}")]
    Number {
        /// Which.
        what: &'static str,
        /// The number.
        value: u64,
        /// The largest that can be.
        most: u64,
    },
    /// It ends too early, or too late.
    #[error("the file has not the {0} touches that its header promises")]
    Length(u64),
    /// A touch of a granule that there is not.
    #[error("touch {index} is of granule {granule}, and there are {granules}")]
    Granule {
        /// Which touch.
        index: u64,
        /// Its granule.
        granule: u32,
        /// Granules of the trace.
        granules: u32,
    },
}

/// A trace in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    granules: u32,
    window: u32,
    touches: Vec<u32>,
    at: usize,
}

impl Recorded {
    /// Reads a trace, every number of it checked.
    ///
    /// # Errors
    /// No trace, or one that contradicts itself.
    pub fn read(from: &mut dyn Read) -> Result<Self, TraceError> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        if !header.starts_with(MAGIC) {
            return Err(TraceError::Magic);
        }
        let word = |at: usize| -> u32 {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (granules, window) = (word(8), word(12));
        let count = u64::from(word(16)) | u64::from(word(20)) << 32;
        let check = |what, value: u64, most: u64| match value {
            1.. if value <= most => Ok(()),
            _ => Err(TraceError::Number { what, value, most }),
        };
        check("a number of granules", granules.into(), GRANULES_MAX.into())?;
        check("touches a window", window.into(), u32::MAX.into())?;
        check("a number of touches", count, TOUCHES_MAX)?;
        // Read before memory for it is taken: the header may promise anything.
        let mut bytes = Vec::new();
        from.take(4 * count + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 != 4 * count {
            return Err(TraceError::Length(count));
        }
        let mut touches = Vec::with_capacity(bytes.len() / 4);
        for (index, bytes) in (0..).zip(bytes.chunks_exact(4)) {
            let touch = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            let granule = touch & !(WRITE | SCAN);
            if granule >= granules {
                return Err(TraceError::Granule { index, granule, granules });
            }
            touches.push(touch);
        }
        Ok(Self { granules, window, touches, at: 0 })
    }

    /// Touches a window.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Windows, of which the last may be short.
    pub fn windows(&self) -> usize {
        self.touches.len().div_ceil(self.window.max(1) as usize)
    }
}

/// Writes all of `trace`, in windows of `window` touches.
///
/// # Errors
/// The file cannot be written, or the trace does not fit.
pub fn write(trace: &mut dyn Trace, window: u32, to: &mut dyn Write) -> Result<(), TraceError> {
    let number = |what, value, most| Err(TraceError::Number { what, value, most });
    let granules = trace.granules();
    if granules == 0 || granules > GRANULES_MAX {
        return number("a number of granules", granules.into(), GRANULES_MAX.into());
    }
    if window == 0 {
        return number("touches a window", 0, u32::MAX.into());
    }
    let (mut touches, mut next) = (Vec::new(), Vec::new());
    trace.restart();
    while trace.next(&mut next) {
        for access in &next {
            let flag = |on: bool, bit: u32| if on { bit } else { 0 };
            let touch = access.granule | flag(access.write, WRITE) | flag(access.scan, SCAN);
            touches.extend_from_slice(&touch.to_le_bytes());
        }
    }
    let count = (touches.len() / 4) as u64;
    if count == 0 || count > TOUCHES_MAX {
        return number("a number of touches", count, TOUCHES_MAX);
    }
    to.write_all(MAGIC)?;
    to.write_all(&granules.to_le_bytes())?;
    to.write_all(&window.to_le_bytes())?;
    to.write_all(&count.to_le_bytes())?;
    to.write_all(&touches)?;
    Ok(to.flush()?)
}

impl Trace for Recorded {
    fn granules(&self) -> u32 {
        self.granules
    }

    fn restart(&mut self) {
        self.at = 0;
    }

    fn next(&mut self, window: &mut Vec<Access>) -> bool {
        window.clear();
        let end = self.at.saturating_add(self.window as usize).min(self.touches.len());
        let access = |touch: &u32| Access {
            granule: touch & !(WRITE | SCAN),
            write: touch & WRITE != 0,
            scan: touch & SCAN != 0,
        };
        window.extend(self.touches[self.at..end].iter().map(access));
        self.at = end;
        !window.is_empty()
    }
}
