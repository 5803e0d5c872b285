//! The report as text for a terminal.

use super::{Check, Report, State};

/// Column where names start.
const NAME_COLUMN: usize = 9;

/// Three columns, state, name and value, and under each line what it means
/// and, after an arrow, what to do.
pub(super) fn text(report: &Report, width: usize) -> String {
    let name_width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let value_column = NAME_COLUMN + name_width + 2;
    let mut text = String::new();
    for check in &report.checks {
        line(&mut text, check, name_width);
        wrap(&mut text, value_column, width, "", &check.value);
        wrap_block(&mut text, value_column, width, "", &check.meaning);
        if let Some(advice) = &check.advice {
            wrap_block(&mut text, value_column, width, "-> ", advice);
        }
    }
    text
}

fn line(text: &mut String, check: &Check, name_width: usize) {
    let state = match check.state {
        State::Ok => "ok",
        State::Limited => "limited",
        State::Missing => "missing",
    };
    text.push_str(&format!("{state:<NAME_COLUMN$}{:<name_width$}  ", check.name));
}

/// Indents the first line too.
fn wrap_block(text: &mut String, column: usize, width: usize, mark: &str, words: &str) {
    text.push_str(&" ".repeat(column));
    wrap(text, column, width, mark, words);
}

/// Appends `mark` and `words`, and a newline; what does not fit goes on in
/// lines of its own at `column`.
fn wrap(text: &mut String, column: usize, width: usize, mark: &str, words: &str) {
    text.push_str(mark);
    let indent = column + mark.chars().count();
    let mut at = indent;
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if at > indent {
            if at + 1 + length > width {
                text.push('\n');
                text.push_str(&" ".repeat(indent));
                at = indent;
            } else {
                text.push(' ');
                at += 1;
            }
        }
        text.push_str(word);
        at += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_long_lines_wrap_under_themselves() {
        let report = Report {
            guest_mode: "none",
            guest_speed: None,
            checks: vec![
                Check::ok("a.b", "12", "good"),
                Check::missing("long.name", "none at all", "bad", "do this or that"),
            ],
        };
        let expected = "\
ok       a.b        12
                    good
missing  long.name  none at
                    all
                    bad
                    -> do this
                       or that
";
        assert_eq!(text(&report, 30), expected);
    }
}
