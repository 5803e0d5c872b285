//! Lines out of bytes as they arrive.

use super::api::MAX_LINE;

/// Bytes that have no line break yet. Holds at the most [`MAX_LINE`] and what
/// is pushed at once.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    /// How many of them are known to hold no line break.
    scanned: usize,
}

/// A line longer than [`MAX_LINE`]; where the next one begins is not known.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Lines {
    /// More bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole line without its line break.
    pub(super) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let end = self.bytes[self.scanned..].iter().position(|byte| *byte == b'\n');
        let Some(end) = end.map(|end| self.scanned + end) else {
            self.scanned = self.bytes.len();
            return if self.scanned >= MAX_LINE { Err(TooLong) } else { Ok(None) };
        };
        if end >= MAX_LINE {
            return Err(TooLong);
        }
        let rest = self.bytes.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.scanned = 0;
        Ok(Some(line))
    }

    /// Whether there are no bytes.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is left where no more bytes come: a last line without line break.
    pub(super) fn take_rest(&mut self) -> Vec<u8> {
        self.scanned = 0;
        std::mem::take(&mut self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_line_passes_and_a_longer_one_does_not() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; MAX_LINE - 1]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"\ny");
        assert_eq!(lines.next().unwrap().unwrap().len(), MAX_LINE - 1);
        lines.push(&vec![b'y'; MAX_LINE - 2]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"y");
        assert_eq!(lines.next(), Err(TooLong));
        let mut lines = Lines::default();
        lines.push(&[&vec![b'x'; MAX_LINE], &b"\n"[..]].concat());
        assert_eq!(lines.next(), Err(TooLong));
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_arrive(
            parts in prop::collection::vec(prop::collection::vec(9u8..12, 0..9), 0..30),
        ) {
            let whole = parts.concat();
            let mut expected: Vec<_> = whole.split(|b| *b == b'\n').map(<[u8]>::to_vec).collect();
            let rest = expected.pop().unwrap();
            let mut lines = Lines::default();
            let mut got = Vec::new();
            for part in &parts {
                lines.push(part);
                while let Some(line) = lines.next().unwrap() {
                    got.push(line);
                }
            }
            prop_assert_eq!(got, expected);
            prop_assert_eq!(lines.take_rest(), rest);
        }
    }
}
