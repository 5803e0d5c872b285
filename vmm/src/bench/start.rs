//! `neap bench start`: from nothing to the first guest instruction and to the
//! end of the process, beside the least that any VMM must do.
//!
//! Both sides run the same payload ([`crate::payload::hello`]) in turn, after
//! one run of each that is not counted. The clock starts just before the
//! process is made; the first instruction has run when its byte is on the
//! child's stdout.
//!
//! Peak memory is read in runs of their own, with a payload that stays: the
//! `ru_maxrss` of a child is no use, because at exec(2) it inherits the peak
//! of the process that made it (fs/exec.c, `exec_mmap`), which is larger than
//! what is to be measured. Guest memory is what is mapped by pieces of at
//! least [`GUEST_PIECE`].

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use neap_memory::addr::MIB;

use super::child::{Child, Subject};
use super::table::Table;
use super::{BenchError, Figure, Samples};
use crate::payload;

/// Limit of each child. A run takes some 20 ms.
const LIMIT: Duration = Duration::from_secs(20);
/// Time for a child that was told to end.
const GRACE: Duration = Duration::from_secs(5);
/// Runs in which memory is read.
const MEMORY_RUNS: usize = 3;
/// A mapping this large, in bytes, is guest memory.
const GUEST_PIECE: u64 = 64 * MIB;

/// The two sides, each with a payload that powers off and one that stays.
#[derive(Clone, Debug)]
pub struct Sides {
    /// Neap.
    pub ours: Side,
    /// The floor.
    pub floor: Side,
}

/// One side.
#[derive(Clone, Debug)]
pub struct Side {
    /// Runs the payload that greets and powers off.
    pub hello: Subject,
    /// Runs the payload that greets and stays.
    pub stay: Subject,
}

/// All samples of one side.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Milliseconds to the first instruction.
    pub first_ms: Samples,
    /// Milliseconds to the end of the process.
    pub whole_ms: Samples,
    /// CPU time in milliseconds.
    pub cpu_ms: Samples,
    /// Peak resident memory beyond guest memory, in MiB.
    pub rss_mib: Samples,
}

/// What the bench found.
#[derive(Clone, Debug)]
pub struct Start {
    /// Neap.
    pub ours: Measured,
    /// The floor.
    pub floor: Measured,
    /// The figures, in the order of the table.
    pub figures: Vec<Figure>,
}

impl Sides {
    /// `neap`, which is this program's file, against `neap-floor` beside it,
    /// with payload files written into `folder`.
    ///
    /// # Errors
    /// The payloads cannot be written, or there is no `neap-floor`.
    pub fn new(neap: &Path, folder: &Path) -> Result<Self, BenchError> {
        let floor = neap.with_file_name("neap-floor");
        if !floor.is_file() {
            return Err(BenchError::Unexpected(format!(
                "{}: no such file; build it with: cargo build --release --bin neap-floor",
                floor.display()
            )));
        }
        let ours = |name: &str, elf: Vec<u8>| -> Result<Subject, BenchError> {
            let file = folder.join(name);
            fs::write(&file, elf).map_err(|source| BenchError::File {
                what: format!("cannot write the payload {}", file.display()),
                source,
            })?;
            let arguments = ["run", "--kernel"].map(Into::into).into_iter();
            let arguments = arguments
                .chain([file.into_os_string()])
                .chain(["--memory", "512M", "--cpus", "1"].map(Into::into));
            Ok(Subject {
                name: "neap".into(),
                program: neap.to_owned(),
                arguments: arguments.collect(),
            })
        };
        Ok(Self {
            ours: Side {
                hello: ours("hello.elf", payload::hello_elf())?,
                stay: ours("stay.elf", payload::stay_elf())?,
            },
            floor: Side::floor(floor),
        })
    }
}

impl Side {
    /// The floor program at `program`.
    pub fn floor(program: PathBuf) -> Self {
        let subject = |arguments: Vec<std::ffi::OsString>| Subject {
            name: "neap-floor".into(),
            program: program.clone(),
            arguments,
        };
        Self { hello: subject(vec![]), stay: subject(vec!["stay".into()]) }
    }
}

/// Runs both sides `runs` times in turn.
///
/// # Errors
/// A child fails, takes too long, or does not say what the payload says.
pub fn measure(sides: &Sides, runs: usize) -> Result<Start, BenchError> {
    if runs == 0 {
        return Err(BenchError::NoRuns(runs));
    }
    let (mut ours, mut floor) = (Timings::default(), Timings::default());
    run_once(&sides.floor.hello)?;
    run_once(&sides.ours.hello)?;
    for turn in 0..runs {
        for (side, timings) in [(&sides.floor, &mut floor), (&sides.ours, &mut ours)] {
            std::thread::sleep(phase(turn));
            timings.push(run_once(&side.hello)?);
        }
    }
    for _ in 0..runs.min(MEMORY_RUNS) {
        floor.rss_mib.push(peak_rss_mib(&sides.floor.stay)?);
        ours.rss_mib.push(peak_rss_mib(&sides.ours.stay)?);
    }
    let (ours, floor) = (ours.measured()?, floor.measured()?);
    let figures = figures(&ours, &floor)?;
    Ok(Start { ours, floor, figures })
}

/// Time to wait before both runs of a turn, so that over the turns they begin at
/// every phase of the kernel's tick alike.
///
/// Most of a start is grace periods (KVM_SET_USER_MEMORY_REGION), which end on a
/// tick, and so does the tear-down of the run before: without this all runs of a
/// side begin at the same phase, and which side needs one tick more is an
/// accident of the day.
fn phase(turn: usize) -> Duration {
    /// Multiples of it, less their whole part, lie as evenly as can be.
    const GOLDEN: f64 = 0.618_033_988_75;
    /// A whole number of ticks at 100, 250 and 1000 Hz.
    const TICKS: Duration = Duration::from_millis(20);
    TICKS.mul_f64((turn as f64 * GOLDEN).fract())
}

fn figures(ours: &Measured, floor: &Measured) -> Result<Vec<Figure>, BenchError> {
    let name = |quantity: &str| format!("start.{quantity}");
    let first = Figure::ratio(&name("first_instruction_vs_floor"), &ours.first_ms, &floor.first_ms);
    let whole = Figure::ratio(&name("process_vs_floor"), &ours.whole_ms, &floor.whole_ms);
    let cpu = Figure::difference(&name("cpu_ms_over_floor"), "ms", &ours.cpu_ms, &floor.cpu_ms);
    let none = || BenchError::Unexpected("a time of 0 was measured".to_owned());
    Ok(vec![
        first.ok_or_else(none)?.at_most(1.25),
        whole.ok_or_else(none)?.at_most(1.15),
        cpu.ok_or_else(none)?.at_most(1.5),
        Figure::median(&name("rss_mib"), "MiB", &ours.rss_mib).at_most(5.0),
    ])
}

impl Start {
    /// Both sides and the figures, for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new("tiny payload, 512 MiB, 1 vCPU", "neap", "floor");
        let (ours, floor) = (&self.ours, &self.floor);
        let rows = [
            ("first guest instruction", "ms", &ours.first_ms, &floor.first_ms),
            ("whole process", "ms", &ours.whole_ms, &floor.whole_ms),
            ("CPU time", "ms", &ours.cpu_ms, &floor.cpu_ms),
            ("peak RSS beyond guest memory", "MiB", &ours.rss_mib, &floor.rss_mib),
        ];
        for ((quantity, unit, ours, floor), figure) in rows.into_iter().zip(&self.figures) {
            table.row(quantity, unit, ours, Some(floor), figure);
        }
        table
    }
}

/// Samples of one side while they are taken.
#[derive(Default)]
struct Timings {
    first_ms: Vec<f64>,
    whole_ms: Vec<f64>,
    cpu_ms: Vec<f64>,
    rss_mib: Vec<f64>,
}

impl Timings {
    fn push(&mut self, run: Run) {
        self.first_ms.push(ms(run.first));
        self.whole_ms.push(ms(run.whole));
        self.cpu_ms.push(ms(run.cpu));
    }

    fn measured(self) -> Result<Measured, BenchError> {
        let samples = |values| {
            Samples::new(values)
                .ok_or_else(|| BenchError::Unexpected("a run gave no sample".to_owned()))
        };
        Ok(Measured {
            first_ms: samples(self.first_ms)?,
            whole_ms: samples(self.whole_ms)?,
            cpu_ms: samples(self.cpu_ms)?,
            rss_mib: samples(self.rss_mib)?,
        })
    }
}

struct Run {
    first: Duration,
    whole: Duration,
    cpu: Duration,
}

fn run_once(subject: &Subject) -> Result<Run, BenchError> {
    let mut child = Child::spawn(subject, LIMIT)?;
    let first = child.wait_for_output()?;
    let ended = child.finish()?;
    greeted(subject, &ended.output)?;
    Ok(Run { first, whole: ended.after, cpu: ended.cpu })
}

/// The payload writes one byte; more is noise that would count as speed.
fn greeted(subject: &Subject, output: &[u8]) -> Result<(), BenchError> {
    if output == [payload::GREETING] {
        return Ok(());
    }
    Err(BenchError::Unexpected(format!(
        "{} wrote {:?} where the payload writes {:?}",
        subject.name,
        String::from_utf8_lossy(output),
        char::from(payload::GREETING)
    )))
}

fn peak_rss_mib(subject: &Subject) -> Result<f64, BenchError> {
    let mut child = Child::spawn(subject, LIMIT)?;
    child.wait_for_output()?;
    greeted(subject, child.output())?;
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", child.id());
        fs::read_to_string(&path).map_err(|source| BenchError::File { what: path, source })
    };
    let (smaps, status) = (read("smaps")?, read("status")?);
    child.terminate(GRACE)?;
    let resident = Resident::from_smaps(&smaps);
    let peak = kib_of(&status, "VmHWM:").unwrap_or(0).max(resident.all);
    Ok(peak.saturating_sub(resident.guest) as f64 / 1024.0)
}

/// Resident memory in KiB, as smaps counts it (the counters behind VmRSS lag).
#[derive(Debug, PartialEq)]
struct Resident {
    all: u64,
    guest: u64,
}

impl Resident {
    fn from_smaps(smaps: &str) -> Self {
        let mut resident = Self { all: 0, guest: 0 };
        let mut is_guest = false;
        for line in smaps.lines() {
            // Each mapping starts with its size and has its Rss after it.
            if let Some(size) = kib_of(line, "Size:") {
                is_guest = size * 1024 >= GUEST_PIECE;
            } else if let Some(rss) = kib_of(line, "Rss:") {
                resident.all += rss;
                if is_guest {
                    resident.guest += rss;
                }
            }
        }
        resident
    }
}

/// The number in the first line that begins with `key`.
fn kib_of(text: &str, key: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.split_whitespace().next()?.parse().ok()
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_by_the_size_of_its_mapping() {
        let smaps = "\
7f00-7f01 rw-p 00000000 00:00 0
Size:             524288 kB
KernelPageSize:        4 kB
Rss:                  12 kB
5500-5501 r-xp 00000000 08:01 1 /usr/bin/x
Size:               1024 kB
Rss:                 900 kB
";
        assert_eq!(Resident::from_smaps(smaps), Resident { all: 912, guest: 12 });
    }

    #[test]
    fn keys_match_at_the_start_of_a_line() {
        assert_eq!(kib_of("VmPeak:\t 9 kB\nVmHWM:\t    1234 kB\n", "VmHWM:"), Some(1234));
        assert_eq!(kib_of("KernelPageSize: 4 kB", "Size:"), None);
    }

    #[test]
    fn turns_begin_at_every_phase_of_a_tick() {
        let mut phases: Vec<_> = (0..21).map(|turn| phase(turn).as_micros() % 4000).collect();
        phases.sort_unstable();
        let gaps = phases.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(gaps.max().unwrap() < 1000, "{phases:?}");
    }

    #[test]
    fn no_runs_are_refused() {
        let side = Side::floor("/nonexistent".into());
        let sides = Sides { ours: side.clone(), floor: side };
        assert!(matches!(measure(&sides, 0), Err(BenchError::NoRuns(0))));
    }
}
