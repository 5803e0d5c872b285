//! Samples as a small SVG picture: a row a series, a dot a sample, a bar at
//! the median. No script, no font but the viewer's.

use std::fmt::Write;

use super::Samples;

/// One row of a plot.
#[derive(Debug)]
pub struct Series<'a> {
    /// Name at its left.
    pub name: &'a str,
    /// Its samples, in the unit of the plot.
    pub samples: &'a Samples,
}

/// Rows that share an axis.
#[derive(Debug)]
pub struct Panel<'a> {
    /// Title above it, with the unit.
    pub title: &'a str,
    /// Its rows, compared with one another.
    pub series: Vec<Series<'a>>,
}

const WIDTH: f64 = 720.0;
const LEFT: f64 = 110.0;
const RIGHT: f64 = 80.0;
const TITLE: f64 = 30.0;
const ROW: f64 = 26.0;
const AXIS: f64 = 30.0;
/// Told apart also without colour vision (Okabe and Ito's palette).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// The panels below one another. Axes start at zero, so lengths compare.
pub fn svg(panels: &[Panel<'_>]) -> String {
    let height: f64 = panels.iter().map(panel_height).sum();
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut top = 0.0;
    for panel in panels {
        draw(&mut svg, panel, top);
        top += panel_height(panel);
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel_height(panel: &Panel<'_>) -> f64 {
    TITLE + ROW * panel.series.len() as f64 + AXIS
}

fn draw(svg: &mut String, panel: &Panel<'_>, top: f64) {
    let largest = panel.series.iter().map(|row| row.samples.max()).fold(0.0, f64::max);
    let step = tick_step(largest);
    let end = (largest / step).ceil().max(1.0) * step;
    let x = |value: f64| LEFT + (WIDTH - LEFT - RIGHT) * value / end;
    let bottom = top + TITLE + ROW * panel.series.len() as f64;

    text(svg, LEFT, top + 20.0, "start", "#000", panel.title);
    let mut tick = 0.0;
    while tick <= end + step / 2.0 {
        let at = x(tick);
        line(svg, (at, top + TITLE), (at, bottom), "#ddd", 1.0);
        text(svg, at, bottom + 16.0, "middle", "#555", &short(tick));
        tick += step;
    }
    for (index, row) in panel.series.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let y = top + TITLE + ROW * (index as f64 + 0.5);
        text(svg, LEFT - 10.0, y + 4.0, "end", "#000", row.name);
        for value in row.samples.in_order() {
            let at = x(*value);
            let _ = writeln!(
                svg,
                "<circle cx=\"{at:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\" \
                 fill-opacity=\"0.35\"/>"
            );
        }
        let median = row.samples.median();
        line(svg, (x(median), y - 9.0), (x(median), y + 9.0), colour, 2.5);
        text(svg, WIDTH - RIGHT + 10.0, y + 4.0, "start", colour, &short(median));
    }
}

/// 1, 2 or 5 times a power of ten, so that four to ten ticks reach `largest`.
fn tick_step(largest: f64) -> f64 {
    if largest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf((largest / 4.0).log10().floor());
    let fits = |step: &f64| *step <= largest / 4.0;
    [5.0, 2.0, 1.0].map(|digit| digit * power).into_iter().find(fits).unwrap_or(power)
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    // Writing to a string does not fail.
    let _ = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, colour: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(tick_step(8.0), 2.0);
        assert_eq!(tick_step(27.0), 5.0);
        assert_eq!(tick_step(0.9), 0.2);
        assert_eq!(tick_step(0.0), 1.0);
    }

    #[test]
    fn every_sample_is_a_dot_and_names_are_escaped() {
        let samples = Samples::new(vec![1.0, 2.0, 3.0]).unwrap();
        let series = vec![Series { name: "a<b", samples: &samples }];
        let svg = svg(&[Panel { title: "time (ms)", series }]);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a&lt;b"));
        assert!(svg.ends_with("</svg>\n"));
    }
}
