//! Tables for people: a row a quantity, columns aligned.

use super::{Figure, Samples};

/// Rows of cells; the first row is the heading.
#[derive(Debug)]
pub struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    /// A table that compares `ours` with `theirs`.
    pub fn new(subject: &str, ours: &str, theirs: &str) -> Self {
        let heading = [subject, ours, theirs, "figure", "target"];
        Self { rows: vec![heading.map(str::to_owned)] }
    }

    /// Adds a quantity: the medians of both sides in `unit`, and the figure.
    pub fn row(
        &mut self,
        quantity: &str,
        unit: &str,
        ours: &Samples,
        theirs: Option<&Samples>,
        figure: &Figure,
    ) {
        let median = |samples: &Samples| format!("{} {unit}", number(samples.median()));
        let suffix =
            if figure.unit == "ratio" { String::new() } else { format!(" {}", figure.unit) };
        let target = match (figure.target, figure.bound, figure.reached) {
            (Some(target), Some(bound), Some(reached)) => format!(
                "{} {}{suffix}: {}",
                bound.name(),
                number(target),
                if reached { "reached" } else { "NOT REACHED" }
            ),
            _ => String::new(),
        };
        self.rows.push([
            quantity.to_owned(),
            median(ours),
            theirs.map(median).unwrap_or_default(),
            format!("{}{suffix}", number(figure.value)),
            target,
        ]);
    }
}

/// Two digits behind the point, three below 0.1.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 0.1 { format!("{value:.3}") } else { format!("{value:.2}") }
}

impl std::fmt::Display for Table {
    /// Names to the left, numbers to the right, no blanks at line ends.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        };
        let widths: [usize; 5] = std::array::from_fn(width);
        for [quantity, ours, theirs, figure, target] in &self.rows {
            let line = format!(
                "{quantity:<a$}  {ours:>b$}  {theirs:>c$}  {figure:>d$}  {target}",
                a = widths[0],
                b = widths[1],
                c = widths[2],
                d = widths[3],
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_a_missed_target_is_loud() {
        let ours = Samples::new(vec![12.0]).unwrap();
        let theirs = Samples::new(vec![8.0]).unwrap();
        let figure = Figure::ratio("a.b", &ours, &theirs).unwrap().at_most(1.25);
        let mut table = Table::new("start", "neap", "floor");
        table.row("whole process", "ms", &ours, Some(&theirs), &figure);
        let expected = "\
start              neap    floor  figure  target
whole process  12.00 ms  8.00 ms    1.50  at most 1.25: NOT REACHED
";
        assert_eq!(table.to_string(), expected);
    }
}
