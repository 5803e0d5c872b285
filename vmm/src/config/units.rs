//! Values with units: sizes, addresses, bandwidths, switches, lists of vCPUs.

use std::fmt;
use std::str::FromStr;

use neap_memory::addr::{GIB, KIB, MIB, TIB, display_size};

/// A number of bytes: `4096`, `512M`, `2G`, `0x1000`. Suffixes are binary.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a size: a number with K, M, G or T, such as 512M");
        let (digits, unit) = match text.chars().last() {
            Some('K' | 'k') => (&text[..text.len() - 1], KIB),
            Some('M' | 'm') => (&text[..text.len() - 1], MIB),
            Some('G' | 'g') => (&text[..text.len() - 1], GIB),
            Some('T' | 't') => (&text[..text.len() - 1], TIB),
            _ => (text, 1),
        };
        let number = parse_number(digits).ok_or_else(bad)?;
        number.checked_mul(unit).map(Self).ok_or_else(|| format!("\"{text}\" is more than 2^64"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&display_size(self.0))
    }
}

/// A number that stands alone: `4294967296`, `0x100000000`, or a size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Address(pub u64);

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse::<Size>().map(|size| Self(size.0)).map_err(|_| {
            format!("\"{text}\" is not an address below 2^64, such as 0x100000000 or 4G")
        })
    }
}

/// A part in hundredths of a percent: `1`, `0.5`, `2.25`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Percent(pub u32);

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("\"{text}\" is not a percentage with at most two decimals, such as 0.5");
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 2 || whole.len() > 3 {
            return Err(bad());
        }
        let tenths = if part.len() == 1 { 10 } else { 1 };
        let (whole, part) = (whole.parse::<u32>(), part.parse::<u32>());
        Ok(Self(whole.map_err(|_| bad())? * 100 + part.map_err(|_| bad())? * tenths))
    }
}

/// A bandwidth in MB/s (10^6 bytes a second), the unit of HMAT; given in
/// bytes a second with decimal suffixes: `25G` is 25000 MB/s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bandwidth {
    /// Millions of bytes a second.
    pub megabytes: u64,
}

impl FromStr for Bandwidth {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("\"{text}\" is not a bandwidth in bytes a second, such as 25G or 800M");
        let (digits, unit) = match text.chars().last() {
            Some('M') => (&text[..text.len() - 1], 1),
            Some('G') => (&text[..text.len() - 1], 1000),
            Some('T') => (&text[..text.len() - 1], 1_000_000),
            _ => return Err(bad()),
        };
        let number: u64 = digits.parse().map_err(|_| bad())?;
        let megabytes = number.checked_mul(unit).filter(|&m| m > 0).ok_or_else(bad)?;
        Ok(Self { megabytes })
    }
}

/// A switch: `on` or `off`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "on" | "true" => Ok(Self(true)),
            "off" | "false" => Ok(Self(false)),
            _ => Err(format!("\"{text}\" is neither on nor off")),
        }
    }
}

/// Highest vCPU number that a list may name; the machine's own limit is
/// checked later.
const MAX_LISTED: u32 = 4096;

/// vCPU numbers: `0-3,8`, without repetition, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuList(pub Vec<u32>);

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("\"{text}\" is not a list of vCPUs such as 0-3");
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.parse().map_err(|_| bad())?;
            let last: u32 = last.parse().map_err(|_| bad())?;
            if first > last || last > MAX_LISTED {
                return Err(bad());
            }
            cpus.extend(first..=last);
        }
        cpus.sort_unstable();
        if let Some(pair) = cpus.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("\"{text}\" names vCPU {} twice", pair[0]));
        }
        Ok(Self(cpus))
    }
}

fn parse_number(digits: &str) -> Option<u64> {
    match digits.strip_prefix("0x") {
        // `from_str_radix` and `parse` take a sign; a size has none.
        Some(hex) if hex.starts_with(|c: char| c.is_ascii_hexdigit()) => {
            u64::from_str_radix(hex, 16).ok()
        }
        None if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_take_suffixes_and_hexadecimal() {
        for (text, bytes) in [("4096", 4096), ("512M", 512 * MIB), ("2g", 2 * GIB), ("0x10", 16)] {
            assert_eq!(text.parse::<Size>(), Ok(Size(bytes)));
        }
        for text in ["", "M", "-1", "+1", "1.5G", "0x", "12Q", "99999999999T", "\u{e9}"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn percentages_have_two_decimals_at_most() {
        for (text, hundredths) in
            [("1", 100), ("0.5", 50), ("2.25", 225), ("0.01", 1), ("10", 1000)]
        {
            assert_eq!(text.parse::<Percent>(), Ok(Percent(hundredths)));
        }
        for text in ["", ".", "1.", ".5", "-1", "0.001", "1e2", "1000", "1%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }

    #[test]
    fn bandwidths_are_decimal() {
        assert_eq!("25G".parse::<Bandwidth>().unwrap().megabytes, 25_000);
        assert!("25".parse::<Bandwidth>().is_err());
        assert!("0G".parse::<Bandwidth>().is_err());
    }

    #[test]
    fn lists_of_vcpus_have_no_repetition() {
        assert_eq!("3,0-1".parse::<CpuList>().unwrap().0, [0, 1, 3]);
        assert!("0-2,1".parse::<CpuList>().unwrap_err().contains("vCPU 1 twice"));
        for text in ["", "2-1", "a", "0-", "0-99999999"] {
            assert!(text.parse::<CpuList>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn sizes_round_trip(bytes in any::<u64>()) {
            prop_assert_eq!(Size(bytes).to_string().parse::<Size>().unwrap().0, bytes);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Percent>();
            let _ = text.parse::<Bandwidth>();
            let _ = text.parse::<CpuList>();
        }
    }
}
