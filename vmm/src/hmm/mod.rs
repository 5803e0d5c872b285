//! The main job: a guest with two windows of coherent device memory runs the
//! kernel's own hmm-tests on them, and the run is judged.
//!
//! [`prepare`] does the set-up outside of the lab and resolves the options;
//! [`execute`] runs the guest wherever it is called, and never enters the lab
//! itself.

mod guest;
mod report;
mod selection;
mod tap;
mod tree;
mod verdict;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub use selection::Variant;

use crate::failure::{Failure, Outcome, SUCCESS, print};
use crate::images::guarded::Interrupts;
use crate::images::{self, ImageError, InheritedFile, Job};
use guest::{End, Guest};
use report::Times;
use selection::Selection;
use tap::{Event, TestOutcome};
use verdict::Record;

/// Lines before a failed test's result that are shown with it.
const CONTEXT: usize = 40;

/// Where a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On this machine's KVM.
    Kvm,
    /// In the lab.
    Lab,
}

impl Place {
    /// For machines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Lab => "lab",
        }
    }

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Kvm => "KVM on this machine",
            Self::Lab => "the lab (software emulation with nested paging)",
        }
    }
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Kind of device memory.
    pub variant: Variant,
    /// Somebody's own built kernel tree.
    pub kernel_tree: Option<PathBuf>,
    /// vCPUs of the guest.
    pub cpus: u32,
    /// RAM of the guest, as `neap run --memory` takes it.
    pub memory: String,
    /// Limit for boot and tests together.
    pub time_limit: Duration,
    /// JSON instead of text on stdout.
    pub json: bool,
    /// Filters for hmm-tests.
    pub test_args: Vec<String>,
    /// Kernel and initramfs that an earlier [`prepare`] made.
    pub prepared: Option<(PathBuf, PathBuf)>,
}

/// What will be done.
#[derive(Clone, Debug)]
pub struct Plan {
    options: Options,
    selection: Selection,
    kernel: PathBuf,
    initramfs: PathBuf,
}

/// Checks the options and does all set-up they need, with progress on stderr.
pub fn prepare(options: Options) -> Result<Plan, Failure> {
    let selection = Selection::new(options.variant, &options.test_args).map_err(Failure::usage)?;
    let (kernel, initramfs) = match (&options.prepared, &options.kernel_tree) {
        (Some(prepared), _) => prepared.clone(),
        (None, Some(folder)) => {
            let tree = tree::Tree::open(folder)?;
            let initramfs = tree.initramfs()?;
            (tree.kernel, initramfs)
        }
        (None, None) => {
            let images = images::ensure()?;
            let known = selection::known_tests(&images.kernel_version);
            if known.is_some_and(|tests| !tests.iter().any(|name| selection.contains(name))) {
                return Err(Failure::usage(format!(
                    "TEST-ARGS `{}` select none of the tests of Linux {}",
                    options.test_args.join(" "),
                    images.kernel_version
                )));
            }
            (images.vmlinux, images.initramfs)
        }
    };
    Ok(Plan { options, selection, kernel, initramfs })
}

impl Plan {
    /// The arguments of a `neap` that carries this plan out without any
    /// set-up: what runs inside the lab.
    pub fn arguments(&self) -> Vec<OsString> {
        let Options { variant, cpus, memory, time_limit, json, test_args, .. } = &self.options;
        let mut arguments: Vec<OsString> = vec!["hmm-tests".into()];
        arguments.extend(["--prepared-kernel".into(), self.kernel.clone().into()]);
        arguments.extend(["--prepared-initramfs".into(), self.initramfs.clone().into()]);
        arguments.extend(["--variant".into(), variant.name().into()]);
        arguments.extend(["--cpus".into(), cpus.to_string().into()]);
        arguments.extend(["--memory".into(), memory.into()]);
        arguments.extend(["--time-limit".into(), time_limit.as_secs().to_string().into()]);
        if *json {
            arguments.push("--json".into());
        }
        arguments.push("--".into());
        arguments.extend(test_args.iter().map(OsString::from));
        arguments
    }
}

/// Runs the guest here and now and judges what it says. `place` is only told
/// to the user.
pub fn execute(plan: &Plan, place: Place) -> Outcome {
    let start_failed = |source| Failure::vm(format!("cannot start the guest: {source}"));
    let job = Job::hmm(Some(guest::WINDOWS), plan.selection.arguments());
    let initrd = job
        .initrd(&plan.initramfs)
        .map_err(ImageError::cache("read", &plan.initramfs))
        .map_err(Failure::from)?;
    let initrd = InheritedFile::new("neap-initrd", &initrd).map_err(start_failed)?;
    let program = std::env::current_exe().map_err(start_failed)?;
    let interrupts = Interrupts::watch().map_err(start_failed)?;
    let Options { cpus, memory, time_limit, json, .. } = &plan.options;
    let arguments = guest::arguments(&plan.kernel, &initrd.path(), *cpus, memory);
    let mut guest = Guest::start(&program, &arguments).map_err(start_failed)?;

    let mut watch = Watch::new(guest.started, *json);
    let deadline = guest.started + *time_limit;
    let end = guest.follow(deadline, &interrupts, |at, line| watch.see(at, line));
    let ended = guest.finish(&end);

    if end == End::Interrupted {
        return Err(Failure::test("hmm-tests: stopped by a signal; the guest was ended"));
    }
    let Watch { record, times, .. } = watch;
    let last_words = guest::last_words(&ended.stderr);
    let code = ended.status.and_then(|status| status.code());
    if times.boot.is_none()
        && let (Some(code @ 1..=2), Some(message)) = (code, last_words.clone())
    {
        // The machine never ran; what it says about that is the answer.
        let status = if code == 1 { crate::failure::USAGE } else { crate::failure::VM_FAILED };
        return Err(Failure { status, message });
    }

    let mut verdict = record.judge(&plan.selection);
    // A reason goes first, before what follows from it.
    let mut reasons = record.complaints.iter().filter(|line| !line.starts_with("kernel log:"));
    if let Some(complaint) = reasons.next() {
        verdict.problems.insert(0, complaint.clone());
    }
    if end == End::TimedOut {
        let limit = time_limit.as_secs();
        verdict.problems.insert(0, format!("no end within {limit} s (--time-limit sets it)"));
    } else if code != Some(0) {
        let status = ended.status.map_or("was killed".to_owned(), |s| format!("ended with {s}"));
        let message = last_words.map_or(String::new(), |message| format!(": {message}"));
        verdict.problems.insert(0, format!("the machine {status}{message}"));
    }

    if *json {
        print(report::json(place, &record, &verdict, times) + "\n")?;
    }
    let success = verdict.problems.is_empty();
    if !*json {
        if success {
            print(report::success_line(&verdict, &record) + "\n")?;
        }
        print(report::table(place, &record, times))?;
    }
    if success { Ok(SUCCESS) } else { Err(Failure::test(report::failure_line(&verdict))) }
}

/// Sees the console's lines go by: keeps the record and the times, and shows
/// results as they come.
struct Watch {
    record: Record,
    times: Times,
    started: Instant,
    planned: Option<Instant>,
    /// Lines since the last result.
    context: VecDeque<String>,
    json: bool,
}

impl Watch {
    fn new(started: Instant, json: bool) -> Self {
        let (record, times) = (Record::default(), Times::default());
        Self { record, times, started, planned: None, context: VecDeque::new(), json }
    }

    fn see(&mut self, at: Instant, line: &str) {
        let line = line.trim_end();
        let event = tap::parse(line);
        match &event {
            Some(Event::Up) if self.times.boot.is_none() => {
                self.times.boot = Some(at.duration_since(self.started));
            }
            Some(Event::Plan(_)) => self.planned = Some(at),
            Some(Event::Totals(_)) => {
                self.times.tests = self.planned.map(|planned| at.duration_since(planned));
            }
            _ => {}
        }
        match &event {
            Some(Event::Result(result)) => {
                let context = std::mem::take(&mut self.context);
                if result.outcome != TestOutcome::Passed {
                    context.iter().for_each(|line| self.show(line));
                }
                self.show(line);
            }
            Some(Event::Job(_)) => self.show(line),
            _ => {
                if self.context.len() == CONTEXT {
                    self.context.pop_front();
                }
                self.context.push_back(line.to_owned());
            }
        }
        if let Some(event) = event {
            self.record.note(event);
        }
    }

    /// With `--json` stdout is for the one object.
    fn show(&self, line: &str) {
        let line = format!("{line}\n");
        // Nobody may be reading, and then the verdict is all the same.
        let _ = if self.json {
            io::stderr().write_all(line.as_bytes())
        } else {
            io::stdout().write_all(line.as_bytes())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lab_is_handed_everything_that_was_asked_for() {
        let options = Options {
            variant: Variant::Private,
            kernel_tree: None,
            cpus: 3,
            memory: "2G".to_owned(),
            time_limit: Duration::from_secs(90),
            json: true,
            test_args: vec!["-t".to_owned(), "migrate".to_owned()],
            prepared: Some(("/k".into(), "/i".into())),
        };
        let arguments = prepare(options).unwrap().arguments();
        let text = arguments.join(" ".as_ref()).into_string().unwrap();
        assert_eq!(
            text,
            "hmm-tests --prepared-kernel /k --prepared-initramfs /i --variant private --cpus 3 \
             --memory 2G --time-limit 90 --json -- -t migrate"
        );
    }

    #[test]
    fn boot_and_test_times_come_from_the_marks() {
        let start = Instant::now();
        let mut watch = Watch::new(start, true);
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        watch.see(at(700), "neap-guest: up\r");
        watch.see(at(800), "1..1\r");
        watch.see(at(900), "ok 1 hmm.hmm_device_private.open_close\r");
        watch.see(at(950), "# Totals: pass:1 fail:0 xfail:0 xpass:0 skip:0 error:0\r");
        assert_eq!(watch.times.boot, Some(Duration::from_millis(700)));
        assert_eq!(watch.times.tests, Some(Duration::from_millis(150)));
        assert_eq!(watch.record.results.len(), 1);
    }
}
