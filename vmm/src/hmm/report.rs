//! What a run of hmm-tests prints at its end.

use std::time::Duration;

use serde_json::json;

use super::Place;
use super::verdict::{Record, Verdict};

/// Times of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// Start of the machine's process to the first line of the guest's
    /// `/init`.
    pub boot: Option<Duration>,
    /// The harness's plan to its totals.
    pub tests: Option<Duration>,
}

/// The line that a success ends with.
pub(super) fn success_line(verdict: &Verdict, record: &Record) -> String {
    let mut line = format!("hmm-tests: {} passed, 0 failed", verdict.passed);
    if !verdict.names_checked {
        line.push_str(&format!(
            " (the names were not checked: no list is kept for Linux {})",
            record.series()
        ));
    }
    line
}

/// The line that a failure ends with.
pub(super) fn failure_line(verdict: &Verdict) -> String {
    let Verdict { passed, failed, skipped, problems, .. } = verdict;
    format!(
        "hmm-tests: {passed} passed, {failed} failed, {skipped} skipped; {}",
        problems.join("; ")
    )
}

/// The table under either.
pub(super) fn table(place: Place, record: &Record, times: Times) -> String {
    let kernel = record.kernel.as_deref().map_or("unknown".to_owned(), |r| format!("Linux {r}"));
    [
        ("ran in", place.describe().to_owned()),
        ("kernel", kernel),
        ("boot", seconds(times.boot)),
        ("tests", seconds(times.tests)),
    ]
    .map(|(name, value)| format!("  {name:<8} {value}\n"))
    .concat()
}

fn seconds(time: Option<Duration>) -> String {
    time.map_or("-".to_owned(), |time| format!("{:.2} s", time.as_secs_f64()))
}

/// Everything as one JSON object; times in milliseconds.
pub(super) fn json(place: Place, record: &Record, verdict: &Verdict, times: Times) -> String {
    let milliseconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1e3);
    json!({
        "place": place.name(),
        "kernel": record.kernel,
        "planned": record.plan,
        "passed": verdict.passed,
        "failed": verdict.failed,
        "skipped": verdict.skipped,
        "names_checked": verdict.names_checked,
        "problems": verdict.problems,
        "boot_ms": milliseconds(times.boot),
        "tests_ms": milliseconds(times.tests),
        "tests": record.results,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(names_checked: bool) -> Verdict {
        Verdict { passed: 58, failed: 0, skipped: 0, names_checked, problems: Vec::new() }
    }

    #[test]
    fn the_success_line_is_exact_and_owns_up_to_unchecked_names() {
        let record = Record { kernel: Some("6.18.2".to_owned()), ..Record::default() };
        assert_eq!(success_line(&verdict(true), &record), "hmm-tests: 58 passed, 0 failed");
        let line = success_line(&verdict(false), &record);
        assert!(line.ends_with("(the names were not checked: no list is kept for Linux 6.18)"));
    }

    #[test]
    fn the_table_says_where_what_and_how_long() {
        let record = Record { kernel: Some("6.12.117".to_owned()), ..Record::default() };
        let times = Times { boot: Some(Duration::from_millis(2816)), tests: None };
        assert_eq!(
            table(Place::Lab, &record, times),
            "  ran in   the lab (software emulation with nested paging)\n  \
             kernel   Linux 6.12.117\n  boot     2.82 s\n  tests    -\n"
        );
    }

    #[test]
    fn the_json_parses_and_has_the_times() {
        let times = Times { boot: Some(Duration::from_millis(1500)), tests: None };
        let text = json(Place::Kvm, &Record::default(), &verdict(true), times);
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["boot_ms"], 1500.0);
        assert_eq!(value["place"], "kvm");
        assert!(value["tests_ms"].is_null());
    }
}
