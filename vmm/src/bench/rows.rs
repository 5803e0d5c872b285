//! What a bench of several figures found: a row a figure, as table, plot and
//! JSON.

use super::plot::{Panel, Series, svg};
use super::table::Table;
use super::{BenchError, Figure, LeftOut, Samples};

/// One figure with the samples behind it.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured, for people.
    pub quantity: String,
    /// Unit of the samples.
    pub unit: &'static str,
    /// Samples of Neap.
    pub ours: Samples,
    /// Samples of what it is compared with.
    pub theirs: Option<(&'static str, Samples)>,
    /// The figure.
    pub figure: Figure,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// In the order in which they were taken.
    pub rows: Vec<Row>,
    /// Figures that this machine cannot give.
    pub left_out: Vec<LeftOut>,
}

impl Rows {
    /// Adds what `measured` gives, or notes why the figures `names` cannot be
    /// had. Other failures are the caller's.
    ///
    /// # Errors
    /// A bench that should have worked did not.
    pub fn take(
        &mut self,
        names: &[String],
        measured: Result<Vec<Row>, BenchError>,
    ) -> Result<(), BenchError> {
        match measured {
            Ok(rows) => self.rows.extend(rows),
            Err(BenchError::Unable(why)) => {
                let left_out = |name: &String| LeftOut { name: name.clone(), why: why.clone() };
                self.left_out.extend(names.iter().map(left_out));
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// The figures alone.
    pub fn figures(&self) -> Vec<Figure> {
        self.rows.iter().map(|row| row.figure.clone()).collect()
    }

    /// A table of all rows, and under it what was left out and why.
    pub fn text(&self, subject: &str) -> String {
        let mut table = Table::new(subject, "neap", "other");
        for row in &self.rows {
            let theirs = row.theirs.as_ref().map(|(_, samples)| samples);
            let quantity = match &row.theirs {
                Some((name, _)) => format!("{}; other: {name}", row.quantity),
                None => row.quantity.clone(),
            };
            table.row(&quantity, row.unit, &row.ours, theirs, &row.figure);
        }
        let mut text = table.to_string();
        for LeftOut { name, why } in &self.left_out {
            text += &format!("LEFT OUT: {name}: {why}\n");
        }
        text
    }

    /// A panel for each row.
    pub fn plot(&self) -> String {
        let titles: Vec<String> =
            self.rows.iter().map(|row| format!("{} ({})", row.quantity, row.unit)).collect();
        let panels: Vec<Panel<'_>> = self
            .rows
            .iter()
            .zip(&titles)
            .map(|(row, title)| {
                let mut series = vec![Series { name: "neap", samples: &row.ours }];
                if let Some((name, samples)) = &row.theirs {
                    series.push(Series { name, samples });
                }
                Panel { title, series }
            })
            .collect();
        svg(&panels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_had_is_told_by_name_and_what_fails_is_an_error() {
        let ours = Samples::new(vec![2.0]).unwrap();
        let theirs = Samples::new(vec![4.0]).unwrap();
        let figure = Figure::ratio("a.b", &ours, &theirs).unwrap().at_least(0.9);
        let row = Row {
            quantity: "speed".into(),
            unit: "GB/s",
            ours,
            theirs: Some(("floor", theirs)),
            figure,
        };
        let mut rows = Rows::default();
        rows.take(&["a.b".into()], Ok(vec![row])).unwrap();
        rows.take(&["a.c".into()], Err(BenchError::Unable("no pages".into()))).unwrap();
        assert!(rows.take(&[], Err(BenchError::NoRuns(0))).is_err());
        let text = rows.text("moving");
        assert!(text.contains("\nspeed; other: floor"), "{text}");
        assert!(text.contains("at least 0.90: NOT REACHED"), "{text}");
        assert!(text.ends_with("LEFT OUT: a.c: no pages\n"), "{text}");
        assert_eq!(rows.figures().len(), 1);
        assert_eq!(rows.plot().matches("<circle").count(), 2);
    }
}
