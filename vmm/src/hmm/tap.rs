//! Reads what a guest prints while it runs hmm-tests: the marks of our own
//! `/init`, and the test protocol of the kernel's harness
//! (tools/testing/selftests/kselftest_harness.h and kselftest.h), among
//! whatever else appears on a console.

/// One line of the console, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// `/init` runs.
    Up,
    /// What the guest's kernel calls itself.
    Kernel(String),
    /// The harness is about to run this many tests.
    Plan(u64),
    /// A test ended.
    Result(TestResult),
    /// The harness's own count.
    Totals(Totals),
    /// The job says something, as a rule why it could not go on.
    Job(String),
    /// The job ended with this status.
    Exit(u8),
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TestOutcome {
    /// It passed without reservation.
    Passed,
    /// It did not run; the harness itself counts that as a pass.
    Skipped,
    /// Anything else, expected failures included.
    Failed,
}

/// A result line.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(super) struct TestResult {
    /// Full name: fixture, variant and test, with dots between.
    pub name: String,
    /// How it ended.
    pub outcome: TestOutcome,
}

/// The line `# Totals:`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Tests that passed.
    pub pass: u64,
    /// Tests that failed.
    pub fail: u64,
    /// Tests that failed as was expected.
    pub xfail: u64,
    /// Tests that passed unexpectedly.
    pub xpass: u64,
    /// Tests that did not run.
    pub skip: u64,
    /// Tests that could not be carried out.
    pub error: u64,
}

/// Understands a line, without its line end, or says that it is noise.
///
/// A message of the kernel may come between two writes of a program and end
/// up before a line of the protocol, so that text before it is allowed;
/// a line cut in two is not recognised and counts as missing.
pub(super) fn parse(line: &str) -> Option<Event> {
    let line = line.trim_end_matches(['\r', '\n', ' ']);
    if let Some(text) = after(line, "neap-guest: ") {
        return match text.split_once(' ') {
            None if text == "up" => Some(Event::Up),
            Some(("kernel", release)) => Some(Event::Kernel(release.to_owned())),
            Some(("exit", status)) => status.parse().ok().map(Event::Exit),
            _ => None,
        };
    }
    if let Some(text) = after(line, "neap-job: ") {
        return Some(Event::Job(text.to_owned()));
    }
    if let Some(text) = after(line, "# Totals: ") {
        return totals(text).map(Event::Totals);
    }
    if let Some(count) = line.strip_prefix("1..") {
        return count.parse().ok().map(Event::Plan);
    }
    result(line).map(Event::Result)
}

/// What follows `mark` in `line`.
fn after<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark).map(|(_, text)| text)
}

fn totals(text: &str) -> Option<Totals> {
    let mut totals = Totals::default();
    let mut fields = 0;
    for word in text.split_whitespace() {
        let (name, count) = word.split_once(':')?;
        let field = match name {
            "pass" => &mut totals.pass,
            "fail" => &mut totals.fail,
            "xfail" => &mut totals.xfail,
            "xpass" => &mut totals.xpass,
            "skip" => &mut totals.skip,
            "error" => &mut totals.error,
            _ => return None,
        };
        *field = count.parse().ok()?;
        fields += 1;
    }
    (fields == 6).then_some(totals)
}

/// `ok 3 hmm.hmm_device_private.anon_read # SKIP why`
fn result(line: &str) -> Option<TestResult> {
    for (position, _) in line.match_indices("ok ") {
        let before = &line[..position];
        let failed = before.ends_with("not ");
        let before = before.strip_suffix("not ").unwrap_or(before);
        if before.ends_with(|last: char| last.is_alphanumeric() || last == '_') {
            continue;
        }
        let mut words = line[position + 3..].split_whitespace();
        let number = words.next().and_then(|word| word.parse::<u64>().ok());
        let name = words.next().filter(|name| name.contains('.'));
        let (Some(_), Some(name)) = (number, name) else { continue };
        let directive = (words.next() == Some("#")).then(|| words.next()).flatten();
        let outcome = match (failed, directive) {
            (false, None) => TestOutcome::Passed,
            (false, Some("SKIP")) => TestOutcome::Skipped,
            _ => TestOutcome::Failed,
        };
        return Some(TestResult { name: name.to_owned(), outcome });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test_result(name: &str, outcome: TestOutcome) -> Option<Event> {
        Some(Event::Result(TestResult { name: name.to_owned(), outcome }))
    }

    #[test]
    fn result_lines_are_read_with_carriage_returns_and_directives() {
        use TestOutcome::*;
        let name = "hmm.hmm_device_private.anon_read";
        for (line, outcome) in [
            (format!("ok 2 {name}\r"), Passed),
            (format!("not ok 2 {name}\r\n"), Failed),
            (format!("ok 2 {name} # SKIP DEVICE_COHERENT not available"), Skipped),
            (format!("ok 2 {name} # XFAIL unknown"), Failed),
            (format!("ok 2 {name} # XPASS unknown"), Failed),
        ] {
            assert_eq!(parse(&line), test_result(name, outcome), "{line}");
        }
    }

    #[test]
    fn noise_before_a_result_does_not_hide_it_or_turn_it_round() {
        let line = "[    3.5] hmm: loaded not ok 7 hmm2.hmm2_device_private.snapshot";
        let outcome = TestOutcome::Failed;
        assert_eq!(parse(line), test_result("hmm2.hmm2_device_private.snapshot", outcome));
    }

    #[test]
    fn lines_that_only_look_like_results_are_noise() {
        for line in [
            "#            OK  hmm.hmm_device_private.open_close",
            "#  RUN           hmm.hmm_device_private.open_close ...",
            "look 3 hmm.x.y",
            "ok hmm.x.y",
            "ok 3 nothing-with-dots",
            "book 4 a.b",
            "1..",
            "1..58x",
            "# Totals: pass:58 fail:0",
            "# Totals: pass:58 fail:0 xfail:0 xpass:0 skip:no error:0",
            "",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn totals_and_plan_are_read() {
        let line = "# Totals: pass:57 fail:0 xfail:0 xpass:0 skip:1 error:0\r";
        let totals = Totals { pass: 57, skip: 1, ..Totals::default() };
        assert_eq!(parse(line), Some(Event::Totals(totals)));
        assert_eq!(parse("1..58\r"), Some(Event::Plan(58)));
    }

    #[test]
    fn the_marks_of_our_own_init_are_read() {
        assert_eq!(parse("neap-guest: up\r"), Some(Event::Up));
        let kernel = Event::Kernel("6.12.117".to_owned());
        assert_eq!(parse("neap-guest: kernel 6.12.117\r"), Some(kernel));
        assert_eq!(parse("neap-guest: exit 125\r"), Some(Event::Exit(125)));
        let job = Event::Job("test_hmm did not load".to_owned());
        assert_eq!(parse("neap-job: test_hmm did not load"), Some(job));
    }
}
