//! Whether a run of hmm-tests was a success. The harness's own answer is not
//! enough: it counts a skipped test as a pass, and it cannot know of a test
//! that was not compiled in or of a guest that died.

use std::collections::BTreeSet;

use super::selection::{Selection, known_tests, series};
use super::tap::{Event, TestOutcome, TestResult, Totals};

/// What a run has said so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Record {
    /// What the guest's kernel calls itself.
    pub kernel: Option<String>,
    /// Number of tests that the harness announced.
    pub plan: Option<u64>,
    /// Results in order.
    pub results: Vec<TestResult>,
    /// The harness's own count.
    pub totals: Option<Totals>,
    /// What the job complained about.
    pub complaints: Vec<String>,
    /// Exit status of the job.
    pub exit: Option<u8>,
}

/// The judgement on a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that did not run.
    pub skipped: usize,
    /// Whether the names were held against a list.
    pub names_checked: bool,
    /// Everything that was wrong; empty is a success.
    pub problems: Vec<String>,
}

impl Record {
    /// Takes an event down.
    pub(super) fn note(&mut self, event: Event) {
        match event {
            Event::Up => {}
            Event::Kernel(release) => self.kernel = Some(release),
            Event::Plan(count) => self.plan = Some(count),
            Event::Result(result) => self.results.push(result),
            Event::Totals(totals) => self.totals = Some(totals),
            Event::Job(text) => self.complaints.push(text),
            Event::Exit(status) => self.exit = Some(status),
        }
    }

    fn count(&self, outcome: TestOutcome) -> usize {
        self.results.iter().filter(|result| result.outcome == outcome).count()
    }

    /// Judges the run, which was asked for the tests in `selection`.
    pub(super) fn judge(&self, selection: &Selection) -> Verdict {
        let known = self.kernel.as_deref().and_then(known_tests);
        let mut verdict = Verdict {
            passed: self.count(TestOutcome::Passed),
            failed: self.count(TestOutcome::Failed),
            skipped: self.count(TestOutcome::Skipped),
            names_checked: known.is_some(),
            problems: Vec::new(),
        };
        let problems = &mut verdict.problems;
        // Results without a kernel version would escape the list of names.
        if self.kernel.is_none() {
            problems.push("the guest did not say which kernel it runs".to_owned());
        }
        if self.results.is_empty() {
            problems.push("no test ran".to_owned());
        }
        for (outcome, word) in
            [(TestOutcome::Failed, "failed"), (TestOutcome::Skipped, "were skipped")]
        {
            let names = self.results.iter().filter(|result| result.outcome == outcome);
            if let Some(names) = some_names(names.map(|result| result.name.as_str())) {
                problems.push(format!("{word}: {names}"));
            }
        }
        match self.plan {
            None => problems.push("the harness announced no plan".to_owned()),
            Some(plan) if plan != verdict.passed as u64 => {
                problems.push(format!("{} of {plan} planned tests passed", verdict.passed));
            }
            Some(_) => {}
        }
        match self.totals {
            None => problems.push("there is no `# Totals` line".to_owned()),
            Some(totals) => {
                let clean = Totals { pass: verdict.passed as u64, ..Totals::default() };
                if totals != clean {
                    problems.push(format!("the harness's own count is {totals:?}"));
                }
            }
        }
        match self.exit {
            None => problems.push("the job in the guest did not end".to_owned()),
            Some(0) => {}
            Some(status) => problems.push(format!("the job in the guest ended with {status}")),
        }
        if let Some(known) = known {
            compare(&self.results, &known, selection, problems);
        }
        verdict
    }

    /// The kernel series, for messages.
    pub(super) fn series(&self) -> String {
        let release = self.kernel.as_deref().unwrap_or("unknown");
        series(release).unwrap_or_else(|| release.to_owned())
    }
}

/// Holds the names of `results` against those of `known` that are selected.
fn compare(
    results: &[TestResult],
    known: &BTreeSet<&str>,
    selection: &Selection,
    problems: &mut Vec<String>,
) {
    let wanted: BTreeSet<&str> =
        known.iter().copied().filter(|name| selection.contains(name)).collect();
    let mut ran = BTreeSet::new();
    let twice: Vec<&str> = results
        .iter()
        .map(|result| result.name.as_str())
        .filter(|name| !ran.insert(*name))
        .collect();
    let missing = wanted.difference(&ran).copied();
    let unknown = ran.difference(&wanted).copied();
    for (what, names) in [
        ("did not run", some_names(missing)),
        ("not in the list for this kernel", some_names(unknown)),
        ("ran more than once", some_names(twice.into_iter())),
    ] {
        if let Some(names) = names {
            problems.push(format!("{what}: {names}"));
        }
    }
}

/// Up to four names and how many more there are; `None` if there are none.
fn some_names<'a>(names: impl Iterator<Item = &'a str>) -> Option<String> {
    let names: Vec<&str> = names.collect();
    let shown = names.iter().take(4).copied().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        1..=4 => Some(shown),
        count => Some(format!("{shown} and {} more", count - 4)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::selection::Variant;
    use super::*;

    fn all() -> Selection {
        Selection::new(Variant::All, &[]).unwrap()
    }

    type Damage = fn(&mut Record);

    fn good() -> Record {
        let result =
            |name: &&str| TestResult { name: (*name).to_owned(), outcome: TestOutcome::Passed };
        Record {
            kernel: Some("6.12.117".to_owned()),
            plan: Some(58),
            results: known_tests("6.12").unwrap().iter().map(result).collect(),
            totals: Some(Totals { pass: 58, ..Totals::default() }),
            complaints: Vec::new(),
            exit: Some(0),
        }
    }

    #[test]
    fn all_tests_passed_is_a_success() {
        let verdict = good().judge(&all());
        assert_eq!(verdict.problems, [""; 0]);
        assert_eq!((verdict.passed, verdict.failed, verdict.skipped), (58, 0, 0));
        assert!(verdict.names_checked);
    }

    #[test]
    fn every_way_to_fall_short_is_a_failure_that_says_so() {
        let breaks: [(&str, Damage); 9] = [
            ("were skipped: hmm.hmm_device_coherent", |record| {
                record.results[0].outcome = TestOutcome::Skipped;
            }),
            ("failed: hmm.hmm_device_coherent", |record| {
                record.results[0].outcome = TestOutcome::Failed;
            }),
            ("own count", |record| {
                record.totals = Some(Totals { pass: 57, skip: 1, ..Totals::default() });
            }),
            ("no `# Totals` line", |record| record.totals = None),
            ("58 of 59 planned", |record| record.plan = Some(59)),
            ("did not run: hmm2.", |record| drop(record.results.pop())),
            ("not in the list", |record| record.results[3].name.push('x')),
            ("ran more than once", |record| record.results[3] = record.results[4].clone()),
            ("did not end", |record| record.exit = None),
        ];
        for (message, damage) in breaks {
            let mut record = good();
            damage(&mut record);
            let problems = record.judge(&all()).problems.join("; ");
            assert!(problems.contains(message), "{message}: {problems}");
        }
    }

    #[test]
    fn an_empty_run_is_a_failure() {
        assert!(!Record::default().judge(&all()).problems.is_empty());
    }

    #[test]
    fn without_a_list_the_counts_still_have_to_agree() {
        let mut record = good();
        record.kernel = Some("6.99.1".to_owned());
        let verdict = record.judge(&all());
        assert!(verdict.problems.is_empty() && !verdict.names_checked);
        record.plan = Some(60);
        assert!(!record.judge(&all()).problems.is_empty());
    }

    #[test]
    fn a_selection_is_judged_against_the_selected_names() {
        let selection = Selection::new(Variant::Coherent, &[]).unwrap();
        let mut record = good();
        assert!(!record.judge(&selection).problems.is_empty());
        record.results.retain(|result| selection.contains(&result.name));
        record.plan = Some(29);
        record.totals = Some(Totals { pass: 29, ..Totals::default() });
        assert_eq!(record.judge(&selection).problems, [""; 0]);
    }
}
