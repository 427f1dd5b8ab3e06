//! Figures as pictures: horizontal bars with their intervals, in an SVG that needs nothing else and is read in light and dark.

use std::fmt::Write as _;

use crate::report::{Measured, Report, number};
use crate::stats::Statistic;

const WIDTH: f64 = 980.0;
/// Where bars begin, and how much room they have.
const LEFT: f64 = 480.0;
const ROOM: f64 = 400.0;
const ROW: f64 = 26.0;
const TOP: f64 = 44.0;

/// A picture for each unit of a report: the name of its file, and what is in it. Shares, which are all or nearly, have none.
pub fn pictures(report: &Report) -> Vec<(String, String)> {
    let shown = || report.measured.iter().filter(|m| m.statistic != Statistic::Mean);
    let mut units: Vec<&str> = Vec::new();
    for measured in shown() {
        if !units.contains(&measured.unit.as_str()) {
            units.push(&measured.unit);
        }
    }
    units
        .iter()
        .enumerate()
        .map(|(index, unit)| {
            let rows: Vec<&Measured> = shown().filter(|m| m.unit == *unit).collect();
            let name =
                if index == 0 { report.level.clone() } else { format!("{}-{}", report.level, index + 1) };
            (format!("{name}.svg"), bars(&format!("{}, {unit}", report.level), &rows))
        })
        .collect()
}

fn bars(title: &str, rows: &[&Measured]) -> String {
    let most = rows.iter().map(|m| m.estimate.high).fold(f64::MIN_POSITIVE, f64::max);
    let x = |value: f64| LEFT + ROOM * value / most;
    let height = TOP + ROW * rows.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"26\" font-size=\"15\" font-weight=\"bold\" fill=\"#1b1f24\">{} (median or what is named, 95 % interval)</text>\n",
        escaped(title)
    );
    for (index, row) in rows.iter().enumerate() {
        let y = TOP + ROW * index as f64;
        let (middle, e) = (y + ROW / 2.0, row.estimate);
        let ours = !row.what.starts_with("a program")
            && !row.what.starts_with("one look-up")
            && !row.what.contains("without hydra");
        let fill = if ours { "#2f6f9f" } else { "#b9c2cc" };
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#1b1f24\">{}</text>\n\
             <rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\"/>\n\
             <path d=\"M{:.1} {middle:.1}H{:.1}\" stroke=\"#1b1f24\" stroke-width=\"1.5\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#1b1f24\">{}</text>",
            LEFT - 8.0,
            middle + 4.5,
            escaped(&row.what),
            y + 4.0,
            x(e.median) - LEFT,
            ROW - 8.0,
            x(e.low),
            x(e.high),
            x(e.high) + 6.0,
            middle + 4.5,
            number(e.median),
        );
    }
    svg + "</svg>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Estimate;

    #[test]
    fn names_cannot_break_a_picture_and_bars_stay_in_it() {
        let measured = |what: &str, median| Measured {
            what: what.to_owned(),
            unit: "ns".to_owned(),
            statistic: Statistic::Median,
            estimate: Estimate { median, low: median - 1.0, high: median + 1.0, n: 1 },
            samples: Vec::new(),
            goal: None,
        };
        let (a, b) = (measured("<a> & b", 10.0), measured("c", 99.0));
        let svg = bars("t", &[&a, &b]);
        assert!(svg.contains("&lt;a&gt; &amp; b") && !svg.contains("<a>"));
        assert!(svg.contains(&format!("width=\"{:.1}\"", ROOM * 99.0 / 100.0)));
        assert_eq!(svg.matches("<rect").count(), 3);
    }
}
