//! What the policy saw of a running guest, in a text file, and the load that it
//! seems to have been.
//!
//! ```text
//! neap-heat-trace 1
//! granules 2048 bytes 2097152 period-us 100000
//! 17 1023 45 w slow
//! 18 7 0 - fast
//! ```
//!
//! After the two lines of the head each line is a look: the tick, which never
//! falls; the granule; about how often it was touched in that tick; `r`, `w`,
//! or `-` if it was not; and the tier that it was in, `fast`, `slow` or `fixed`.
//! A last line `full` says that the file has as many looks or ticks as one may
//! ([`LOOKS_MAX`], [`TICKS_MAX`]) and that there were more. A last line without
//! an end, as a full disk leaves it, does not count.
//!
//! A tick is a window of the trace, from the first that the file has. Only few
//! granules are looked at in each: a granule is taken to be touched as often as
//! when it was last looked at until it is looked at again. A window has
//! [`WINDOW`] touches at the most, and all together [`TOUCHES_MAX`]; more are
//! scaled down, and none to less than one. So what is replayed is a likely load,
//! and not the guest's. Of memory of more than [`REPLAYED_MAX`] granules those
//! that were never looked at are left out.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufRead, Read, Write};

use thiserror::Error;

use super::random::Random;
use super::{Access, Trace};
use crate::granule::{Granule, GranuleSize};
use crate::heat::{Seen, Where};

/// First line.
const HEAD: &str = "neap-heat-trace 1";
const FULL: &str = "full";
/// Most granules.
pub const GRANULES_MAX: u32 = 1 << 30;
/// Most looks in a file: half a gigabyte at the most, and at 64 a tick of 100 ms
/// more than seven hours.
pub const LOOKS_MAX: u64 = 1 << 24;
/// Most ticks from the first to the last look.
pub const TICKS_MAX: u64 = 1 << 22;
/// Most touches in a window.
pub const WINDOW: u64 = 50_000;
/// Most touches in all: minutes of replaying.
pub const TOUCHES_MAX: u64 = 1 << 32;
/// Most granules of memory that is replayed; as many as there may be looks.
pub const REPLAYED_MAX: u32 = 1 << 24;
/// Longest line.
const LINE: u64 = 128;

/// A file that is no such trace.
#[derive(Debug, Error)]
pub enum SampledError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A line that cannot be.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// A look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    tick: u32,
    granule: u32,
    touches: u32,
    write: bool,
}

/// A trace in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampled {
    granules: u32,
    looks: Vec<Look>,
    /// Most touches in a window, but one for each granule.
    most: u64,
    /// Where the replay is.
    at: usize,
    tick: u32,
    /// Touches a tick of each granule that was looked at, as far as is known.
    rates: BTreeMap<u32, (u32, bool)>,
}

impl Sampled {
    /// Whether a file that begins so may be one.
    pub fn begins(head: &[u8]) -> bool {
        head.starts_with(b"neap-heat")
    }

    /// Reads a trace, every line of it checked.
    ///
    /// # Errors
    /// The first line that cannot be.
    pub fn read(from: &mut dyn BufRead) -> Result<Self, SampledError> {
        let mut lines = Lines { from, number: 0, text: String::new() };
        if lines.next()? != Some(HEAD) {
            return Err(lines.wrong(format!("a trace of heat begins with \"{HEAD}\"")));
        }
        let granules = {
            let line = lines.next()?.unwrap_or_default().to_owned();
            head(&line).map_err(|what| lines.wrong(what))?
        };
        let (mut looks, mut first, mut last) = (Vec::new(), None, 0);
        let mut full = false;
        while let Some(line) = lines.next()? {
            let line = line.to_owned();
            if full {
                return Err(lines.wrong(format!("nothing follows \"{FULL}\"")));
            }
            if line == FULL {
                full = true;
                continue;
            }
            let (tick, mut look) = parse(&line, granules).map_err(|what| lines.wrong(what))?;
            let from = *first.get_or_insert(tick);
            if tick < last {
                return Err(lines.wrong(format!("tick {tick} comes after tick {last}")));
            }
            last = tick;
            look.tick = match u32::try_from(tick - from) {
                Ok(tick) if u64::from(tick) < TICKS_MAX => tick,
                _ => return Err(lines.wrong(format!("more than {TICKS_MAX} ticks"))),
            };
            if looks.len() as u64 >= LOOKS_MAX {
                return Err(lines.wrong(format!("more than {LOOKS_MAX} looks")));
            }
            looks.push(look);
        }
        if looks.is_empty() {
            return Err(lines.wrong("there is no look in it".to_owned()));
        }
        let granules = renumber(granules, &mut looks);
        let used = used(granules, &looks);
        if used > TOUCHES_MAX {
            return Err(lines.wrong(format!(
                "replaying it takes {used} touches and more, and {TOUCHES_MAX} are the most: \
                 give fewer of its lines"
            )));
        }
        let windows = looks.last().map_or(1, |look| u64::from(look.tick) + 1);
        let most = WINDOW.min(TOUCHES_MAX / windows);
        Ok(Self { granules, looks, most, at: 0, tick: 0, rates: BTreeMap::new() })
    }

    /// Windows.
    pub fn windows(&self) -> usize {
        self.looks.last().map_or(0, |look| look.tick as usize + 1)
    }
}

/// Gives the granules of memory that is too large to be replayed numbers without
/// gaps, in the same order. Says how many granules there are then.
fn renumber(granules: u32, looks: &mut [Look]) -> u32 {
    if granules <= REPLAYED_MAX {
        return granules;
    }
    let mut known: Vec<u32> = looks.iter().map(|look| look.granule).collect();
    known.sort_unstable();
    known.dedup();
    for look in looks {
        // No more than there are looks.
        look.granule = known.partition_point(|known| *known < look.granule) as u32;
    }
    REPLAYED_MAX
}

/// Granules in use, of each window, all together.
fn used(granules: u32, looks: &[Look]) -> u64 {
    let mut in_use = vec![false; granules as usize];
    let (mut now, mut all, mut tick) = (0, 0u64, 0);
    for look in looks {
        // At the most REPLAYED_MAX times TICKS_MAX.
        all += now * u64::from(look.tick - tick);
        tick = look.tick;
        let Some(before) = in_use.get_mut(look.granule as usize) else { continue };
        now = now - u64::from(*before) + u64::from(look.touches > 0);
        *before = look.touches > 0;
    }
    all + now
}

struct Lines<'a> {
    from: &'a mut dyn BufRead,
    number: u64,
    text: String,
}

impl Lines<'_> {
    fn next(&mut self) -> Result<Option<&str>, SampledError> {
        self.number += 1;
        self.text.clear();
        let mut bytes = Vec::new();
        Read::take(&mut *self.from, LINE).read_until(b'\n', &mut bytes)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let whole = bytes.len() as u64 == LINE;
        if bytes.pop() != Some(b'\n') {
            if !whole {
                return Ok(None);
            }
            return Err(self.wrong(format!("it has no end within {LINE} bytes")));
        }
        match String::from_utf8(bytes) {
            Ok(text) => self.text = text,
            Err(_) => return Err(self.wrong("it is not text".to_owned())),
        }
        Ok(Some(&self.text))
    }

    fn wrong(&self, what: String) -> SampledError {
        SampledError::Line { line: self.number, what }
    }
}

/// Granules, of the second line.
fn head(line: &str) -> Result<u32, String> {
    const FORM: &str = "expected \"granules N bytes N period-us N\"";
    let words: Vec<&str> = line.split(' ').collect();
    let ["granules", granules, "bytes", bytes, "period-us", period] = words[..] else {
        return Err(FORM.to_owned());
    };
    let number = |text: &str, most: u64| match text.parse::<u64>() {
        Ok(number) if (1..=most).contains(&number) => Ok(number),
        _ => Err(format!("{text} is not 1 to {most}; {FORM}")),
    };
    let granules = number(granules, GRANULES_MAX.into())?;
    number(bytes, GranuleSize::M2.bytes())?;
    number(period, u32::MAX.into())?;
    // At the most 2^30.
    Ok(granules as u32)
}

/// A look with its tick as it stands there.
fn parse(line: &str, granules: u32) -> Result<(u64, Look), String> {
    const FORM: &str = "expected \"TICK GRANULE TOUCHES r|w|- fast|slow|fixed\"";
    let words: Vec<&str> = line.split(' ').collect();
    let [tick, granule, touches, kind, tier] = words[..] else { return Err(FORM.to_owned()) };
    let bad = |what: &str, text: &str| format!("{what} {text}: {FORM}");
    let tick = tick.parse().map_err(|_| bad("tick", tick))?;
    let granule = granule.parse().map_err(|_| bad("granule", granule))?;
    let touches = touches.parse().map_err(|_| bad("touches", touches))?;
    if granule >= granules {
        return Err(format!("granule {granule}, and there are {granules}"));
    }
    let write = match (kind, touches) {
        ("-", 0) | ("r", 1..) => false,
        ("w", 1..) => true,
        _ => return Err(bad("kind of touch", kind)),
    };
    if !["fast", "slow", "fixed"].contains(&tier) {
        return Err(bad("tier", tier));
    }
    Ok((tick, Look { tick: 0, granule, touches, write }))
}

impl Trace for Sampled {
    fn granules(&self) -> u32 {
        self.granules
    }

    fn restart(&mut self) {
        (self.at, self.tick) = (0, 0);
        self.rates.clear();
    }

    fn next(&mut self, window: &mut Vec<Access>) -> bool {
        window.clear();
        if self.tick as usize >= self.windows() {
            return false;
        }
        while let Some(look) = self.looks.get(self.at).filter(|look| look.tick <= self.tick) {
            self.at += 1;
            if look.touches == 0 {
                self.rates.remove(&look.granule);
            } else {
                self.rates.insert(look.granule, (look.touches, look.write));
            }
        }
        let total: u64 = self.rates.values().map(|(rate, _)| u64::from(*rate)).sum();
        let scale = |rate: u32| match total > self.most {
            true => (u64::from(rate) * self.most / total).max(1),
            false => rate.into(),
        };
        for (granule, (rate, write)) in &self.rates {
            for _ in 0..scale(*rate) {
                window.push(Access { granule: *granule, write: *write, scan: false });
            }
        }
        let mut random = Random::new(u64::from(self.tick) + 1);
        let order = random.shuffled(u32::try_from(window.len()).unwrap_or(u32::MAX));
        *window = order.iter().filter_map(|at| window.get(*at as usize)).copied().collect();
        self.tick += 1;
        true
    }
}

/// Writes such a file while a guest runs.
pub struct Recorder<W: Write> {
    to: W,
    left: u64,
    tick: u64,
    /// Tick of the first look.
    first: Option<u64>,
}

impl<W: Write> fmt::Debug for Recorder<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("left", &self.left).finish_non_exhaustive()
    }
}

impl<W: Write> Recorder<W> {
    /// A recorder that has written the head.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn new(
        mut to: W,
        granules: u32,
        size: GranuleSize,
        period: std::time::Duration,
    ) -> io::Result<Self> {
        let (bytes, period) = (size.bytes(), period.as_micros());
        writeln!(to, "{HEAD}\ngranules {granules} bytes {bytes} period-us {period}")?;
        // A guest may be shorter than a tick.
        to.flush()?;
        Ok(Self { to, left: LOOKS_MAX, tick: 0, first: None })
    }

    /// Notes what was seen in the next tick. What does not fit any more is left
    /// out.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&mut self, seen: &[Seen], place: &dyn Fn(Granule) -> Where) -> io::Result<()> {
        let tick = self.tick;
        self.tick += 1;
        for Seen { granule, touch } in seen {
            if self.left == 0 {
                break;
            }
            if tick - *self.first.get_or_insert(tick) >= TICKS_MAX {
                self.left = 0;
                writeln!(self.to, "{FULL}")?;
                break;
            }
            self.left -= 1;
            let (touches, kind) = match touch {
                None => (0, '-'),
                Some(touch) => (touch.count.max(1), if touch.write { 'w' } else { 'r' }),
            };
            let tier = match place(*granule) {
                Where::Fast => "fast",
                Where::Slow => "slow",
                Where::Fixed => "fixed",
            };
            writeln!(self.to, "{tick} {} {touches} {kind} {tier}", granule.0)?;
            if self.left == 0 {
                writeln!(self.to, "{FULL}")?;
            }
        }
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::heat::Touch;

    fn read(text: &str) -> Result<Sampled, SampledError> {
        Sampled::read(&mut text.as_bytes())
    }

    const GOOD: &str = "neap-heat-trace 1\ngranules 8 bytes 2097152 period-us 100000\n";

    #[test]
    fn what_is_recorded_is_replayed_and_held_until_the_next_look() {
        let mut file = Vec::new();
        let period = std::time::Duration::from_millis(100);
        let mut recorder = Recorder::new(&mut file, 8, GranuleSize::M2, period).unwrap();
        let touch = |count, write| Some(Touch { count, write });
        let seen = |granule, touch| Seen { granule: Granule(granule), touch };
        let place = |granule: Granule| if granule.0 == 3 { Where::Fast } else { Where::Slow };
        recorder.note(&[seen(3, touch(4, true)), seen(1, touch(2, false))], &place).unwrap();
        recorder.note(&[], &place).unwrap();
        recorder.note(&[seen(3, None)], &place).unwrap();
        let text = String::from_utf8(file).unwrap();
        assert_eq!(text, format!("{GOOD}0 3 4 w fast\n0 1 2 r slow\n2 3 0 - fast\n"));
        let mut trace = read(&text).unwrap();
        assert_eq!((trace.granules(), trace.windows()), (8, 3));
        for _ in 0..2 {
            trace.restart();
            let mut window = Vec::new();
            let mut counts = Vec::new();
            while trace.next(&mut window) {
                let of = |granule| window.iter().filter(|a| a.granule == granule).count();
                counts.push([of(1), of(3)]);
                assert!(window.iter().all(|access| access.write == (access.granule == 3)));
            }
            assert_eq!(counts, [[2, 4], [2, 4], [2, 0]]);
        }
    }

    #[test]
    fn a_window_is_scaled_down_and_nobody_is_lost() {
        let mut trace = read(&format!("{GOOD}0 1 4000000000 r slow\n0 2 1 w slow\n")).unwrap();
        let mut window = Vec::new();
        assert!(trace.next(&mut window));
        assert!(window.len() as u64 <= WINDOW + 1);
        assert_eq!(window.iter().filter(|access| access.granule == 2).count(), 1);
    }

    #[test]
    fn lines_that_cannot_be_are_refused_by_number() {
        for (text, line) in [
            (String::new(), 1),
            ("neap-heat-trace 2\n".to_owned(), 1),
            ("neap-heat-trace 1\n".to_owned(), 2),
            ("neap-heat-trace 1\ngranules 0 bytes 4096 period-us 1\n".to_owned(), 2),
            ("neap-heat-trace 1\ngranules 1 bytes 4194304 period-us 1\n".to_owned(), 2),
            (GOOD.to_owned(), 3),
            (format!("{GOOD}1 8 1 r slow\n"), 3),
            (format!("{GOOD}1 7 0 r slow\n"), 3),
            (format!("{GOOD}1 7 1 - slow\n"), 3),
            (format!("{GOOD}1 7 1 r warm\n"), 3),
            (format!("{GOOD}1 7 1 r\n"), 3),
            (format!("{GOOD}2 7 1 r slow\n1 7 1 r slow\n"), 4),
            (format!("{GOOD}1 7 1 r slow\n9999999 7 1 r slow\n"), 4),
            (format!("{GOOD}1 7 1 r slow\nfull\n1 7 1 r slow\n"), 5),
            (format!("{GOOD}1 7 1 r slow"), 3),
            (format!("{GOOD}{}\n", "1".repeat(500)), 3),
        ] {
            let error = read(&text).unwrap_err();
            let SampledError::Line { line: found, .. } = &error else { panic!("{error}") };
            assert_eq!(*found, line, "{text:?}: {error}");
        }
        assert!(read(&format!("{GOOD}1 7 1 r slow\nfull\n")).is_ok());
        // A disk was full.
        for torn in ["1", "1 7 1 r sl", "fu"] {
            assert_eq!(read(&format!("{GOOD}1 7 1 r slow\n{torn}")).unwrap().looks.len(), 1);
        }
        assert!(Sampled::read(&mut &b"\xff\xfe\n"[..]).is_err());
    }

    #[test]
    fn what_runs_for_weeks_can_be_read() {
        let mut file = Vec::new();
        let period = std::time::Duration::from_millis(10);
        let mut recorder = Recorder::new(&mut file, 8, GranuleSize::M2, period).unwrap();
        let look = [Seen { granule: Granule(1), touch: Some(Touch { count: 1, write: false }) }];
        recorder.note(&[], &|_| Where::Slow).unwrap();
        recorder.note(&look, &|_| Where::Slow).unwrap();
        for tick in [TICKS_MAX, TICKS_MAX + 1, TICKS_MAX + 2] {
            recorder.tick = tick;
            recorder.note(&look, &|_| Where::Slow).unwrap();
        }
        let text = String::from_utf8(file).unwrap();
        assert!(text.ends_with(&format!("\n{TICKS_MAX} 1 1 r slow\nfull\n")), "{text}");
        assert_eq!(read(&text).unwrap().windows() as u64, TICKS_MAX);
    }

    #[test]
    fn a_short_file_takes_no_more_than_a_long_one_may() {
        let head = "neap-heat-trace 1\ngranules 1073741824 bytes 4096 period-us 100000\n";
        let trace = read(&format!("{head}0 1000000000 1 r slow\n0 7 2 r slow\n")).unwrap();
        let granules: Vec<u32> = trace.looks.iter().map(|look| look.granule).collect();
        assert_eq!((trace.granules(), granules), (REPLAYED_MAX, vec![1, 0]));
        let last = TICKS_MAX - 1;
        let mut trace = read(&format!("{GOOD}0 1 4000000000 r slow\n{last} 1 0 - slow\n")).unwrap();
        let mut window = Vec::new();
        assert!(trace.next(&mut window));
        assert!(window.len() as u64 * TICKS_MAX <= TOUCHES_MAX, "{}", window.len());
        let many: String = (0..2000).map(|granule| format!("0 {granule} 1 r slow\n")).collect();
        let error = read(&format!("{head}{many}{last} 1 0 - slow\n")).unwrap_err();
        assert!(error.to_string().contains("fewer of its lines"), "{error}");
    }

    proptest::proptest! {
        /// No text makes the reader panic.
        #[test]
        fn any_text_is_a_trace_or_an_error(text in "[0-9rw \\-a-z\n]{0,80}") {
            let _ = read(&text);
            if let Ok(mut trace) = read(&format!("{GOOD}{text}")) {
                let mut window = Vec::new();
                for _ in 0..3 {
                    trace.next(&mut window);
                }
            }
        }
    }
}
