//! Panels of lines and points over two axes, as SVG by hand: distributions, and a model beside its measurements.
//!
//! One column of panels, small enough to be read on a phone. A line is the model or the simulation, a ring is
//! measured; two lines are told apart by dashes too, so that colour only helps. The colours are those of Okabe & Ito,
//! "Color Universal Design", 2008. The image carries its style, for light and dark.

use std::fmt::Write as _;

use super::svg::{Scale, WIDTH, opening};
use super::{escaped, fixed};
use crate::{Latencies, LatencyComparison};

/// Height of the plotting area of a panel.
const PLOT: f64 = 170.0;
/// Above it: the panel's title and its legend.
const TOP: f64 = 50.0;
/// Below it: the ticks' labels, the axis' name, and the space to the next panel.
const BOTTOM: f64 = 46.0;
/// Left of it: the ticks' labels.
const LEFT: f64 = 52.0;
/// Right of it.
const RIGHT: f64 = 22.0;
/// Above the first panel: the title.
const HEADING: f64 = 26.0;
/// Room for a character of the legend, generously.
const CHARACTER: f64 = 6.6;

/// Colours for light and for dark.
const COLOURS: [(&str, &str); 4] = [
    ("#0072B2", "#56B4E9"),
    ("#D55E00", "#E69F00"),
    ("#007A5A", "#2BC79A"),
    ("#8A4F7D", "#CC79A7"),
];

const STYLE: &str = "\
.kvroute-plot{font-family:system-ui,sans-serif;font-size:11px}\
.kvroute-plot text{fill:#222}\
.kvroute-plot .line{fill:none;stroke-width:1.8}\
.kvroute-plot .dashed{stroke-dasharray:6 3}\
.kvroute-plot .ring{fill:none;stroke-width:1.6}";

/// Two axes and what is drawn over them. Both begin at zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What it shows.
    pub title: String,
    /// Horizontal axis, with its unit.
    pub x_axis: String,
    /// Vertical axis, with its unit; stands before the legend.
    pub y_axis: String,
    /// Drawn in this order.
    pub series: Vec<Series>,
}

/// Points of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend; without one it is not there.
    pub name: String,
    /// How its points are drawn.
    pub mark: Mark,
    /// Which of the four colours; series that belong together have the same.
    pub colour: usize,
    /// Finite points, none negative; for a line from left to right.
    pub points: Vec<(f64, f64)>,
}

/// How points are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Joined by a line.
    Line,
    /// Joined by a dashed line.
    Dashed,
    /// A ring each.
    Rings,
}

/// Distributions of TTFT, TPOT and E2E of a measured run and its simulation, as one image.
pub fn latency_figure(title: &str, measured: &Latencies, simulated: &Latencies) -> String {
    let compared = LatencyComparison::new(measured, simulated);
    let error = |index: usize| {
        let [mean, .., p99] = compared.latencies()[index].1.figures();
        let percent = |error: Option<f64>| super::signed(error.map(|error| 100.0 * error), 1);
        format!(
            "mean {} %, p99 {} %",
            percent(mean.1.relative_error),
            percent(p99.1.relative_error)
        )
    };
    let panel = |index: usize, name: &str, is: Vec<f64>, should: Vec<f64>| {
        let largest = is.iter().chain(&should).copied().fold(0.0, f64::max);
        let (unit, per_ms) = if largest >= 2_000.0 { ("s", 1e-3) } else { ("ms", 1.0) };
        Panel {
            title: format!("{name}: error of {}", error(index)),
            x_axis: format!("{name}, {unit}"),
            y_axis: "share of requests".to_owned(),
            series: vec![
                Series {
                    name: "measured".to_owned(),
                    mark: Mark::Line,
                    colour: 0,
                    points: distribution(should, per_ms),
                },
                Series {
                    name: "simulated".to_owned(),
                    mark: Mark::Dashed,
                    colour: 1,
                    points: distribution(is, per_ms),
                },
            ],
        }
    };
    panels_svg(
        title,
        &[
            panel(0, "TTFT", simulated.ttft_ms(), measured.ttft_ms()),
            panel(1, "TPOT", simulated.tpot_ms(), measured.tpot_ms()),
            panel(2, "E2E", simulated.e2e_ms(), measured.e2e_ms()),
        ],
    )
}

/// The steps of an empirical distribution function.
fn distribution(mut samples: Vec<f64>, factor: f64) -> Vec<(f64, f64)> {
    samples.sort_by(f64::total_cmp);
    let count = samples.len() as f64;
    let steps = samples.iter().enumerate();
    steps
        .flat_map(|(below, sample)| {
            let x = sample * factor;
            [(x, below as f64 / count), (x, (below + 1) as f64 / count)]
        })
        .collect()
}

/// The image: one panel below the other. It has no ids, so that several can be put into one page.
pub fn panels_svg(title: &str, panels: &[Panel]) -> String {
    let height = HEADING + panels.len() as f64 * (TOP + PLOT + BOTTOM);
    let mut style = STYLE.to_owned();
    let mut dark = "@media screen and (prefers-color-scheme:dark){.kvroute-plot text{fill:#ddd}\
        .kvroute-plot .paper{fill:#1c1c1c}.kvroute-plot .grid{stroke:#3c3c3c}"
        .to_owned();
    // Writing to a string cannot fail; so below.
    for (index, (on_light, on_dark)) in COLOURS.iter().enumerate() {
        let _ = write!(style, ".kvroute-plot .c{index}{{stroke:{on_light}}}");
        let _ = write!(dark, ".kvroute-plot .c{index}{{stroke:{on_dark}}}");
    }
    let style = format!("{style}{dark}}}");
    let mut svg = opening(("kvroute-plot", &style), 11, height, title, title);
    for (index, panel) in panels.iter().enumerate() {
        panel.draw(&mut svg, HEADING + index as f64 * (TOP + PLOT + BOTTOM));
    }
    svg.push_str("</svg>\n");
    svg
}

impl Panel {
    fn draw(&self, svg: &mut String, top: f64) {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (plot_top, plot_bottom) = (top + TOP, top + TOP + PLOT);
        let x = Scale::new(LEFT, WIDTH - RIGHT, points().map(|(x, _)| *x).fold(0.0, f64::max));
        let y = Scale::new(plot_bottom, plot_top, points().map(|(_, y)| *y).fold(0.0, f64::max));
        let _ = writeln!(
            svg,
            "<text x=\"4\" y=\"{:.1}\" font-size=\"12\" font-weight=\"600\">{}</text>",
            top + 16.0,
            escaped(&self.title)
        );
        self.draw_legend(svg, top + 36.0);
        for tick in y.ticks() {
            let at = y.x(tick);
            let label = fixed(Some(tick), y.tick_decimals());
            let right = WIDTH - RIGHT;
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
                LEFT - 6.0,
                at + 4.0,
            );
        }
        for tick in x.ticks() {
            let at = x.x(tick);
            let label = fixed(Some(tick), x.tick_decimals());
            let _ = writeln!(
                svg,
                "<line class=\"grid\" x1=\"{at:.1}\" y1=\"{plot_top}\" x2=\"{at:.1}\" y2=\"{plot_bottom}\" \
                 stroke=\"#ddd\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>",
                plot_bottom + 14.0,
            );
        }
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            plot_bottom + 30.0,
            escaped(&self.x_axis)
        );
        for series in &self.series {
            let points: Vec<_> =
                series.points.iter().map(|(px, py)| (x.x(*px), y.x(*py))).collect();
            series.draw(svg, &points);
        }
    }

    fn draw_legend(&self, svg: &mut String, at: f64) {
        let text = |svg: &mut String, x: f64, text: &str| {
            let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{at:.1}\">{}</text>", escaped(text));
        };
        text(svg, 4.0, &self.y_axis);
        let mut x = 16.0 + CHARACTER * self.y_axis.chars().count() as f64;
        for series in self.series.iter().filter(|series| !series.name.is_empty()) {
            let y = at - 4.0;
            let sample = match series.mark {
                Mark::Rings => vec![(x + 12.0, y)],
                Mark::Line | Mark::Dashed => vec![(x, y), (x + 24.0, y)],
            };
            series.draw(svg, &sample);
            text(svg, x + 28.0, &series.name);
            x += 42.0 + CHARACTER * series.name.chars().count() as f64;
        }
    }
}

impl Series {
    /// Draws it at these places of the image.
    fn draw(&self, svg: &mut String, points: &[(f64, f64)]) {
        let colour = self.colour % COLOURS.len();
        let stroke = COLOURS[colour].0;
        let dashed = match self.mark {
            Mark::Rings => {
                for (x, y) in points {
                    let _ = writeln!(
                        svg,
                        "<circle class=\"ring c{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"none\" \
                         stroke=\"{stroke}\"/>"
                    );
                }
                return;
            }
            Mark::Line => "",
            Mark::Dashed => " dashed",
        };
        let mut path = String::new();
        for (x, y) in points {
            let _ = write!(path, "{x:.1},{y:.1} ");
        }
        let _ = writeln!(
            svg,
            "<polyline class=\"line c{colour}{dashed}\" points=\"{}\" fill=\"none\" stroke=\"{stroke}\"/>",
            path.trim_end()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_climbs_from_zero_to_one() {
        let steps = distribution(vec![3_000.0, 1_000.0], 1e-3);
        assert_eq!(steps, [(1.0, 0.0), (1.0, 0.5), (3.0, 0.5), (3.0, 1.0)]);
        assert_eq!(distribution(Vec::new(), 1.0), []);
    }

    #[test]
    fn everything_is_drawn_inside_and_escaped() {
        let series = |mark, points| Series { name: "a < b".into(), mark, colour: 5, points };
        let panel = Panel {
            title: "steps & tokens".into(),
            x_axis: "tokens".into(),
            y_axis: "ms".into(),
            series: vec![
                series(Mark::Rings, vec![(0.0, 0.0), (200.0, 30.0)]),
                series(Mark::Dashed, vec![(0.0, 1.0), (100.0, 7.0)]),
            ],
        };
        let svg = panels_svg("model", &[panel.clone(), panel]);
        assert_eq!(svg.matches("<circle").count(), 2 * (2 + 1), "with the legend's");
        assert_eq!(svg.matches("<polyline class=\"line c1 dashed\"").count(), 2 * 2);
        assert!(svg.contains("steps &amp; tokens") && svg.contains("a &lt; b"));
        // The last point of the rings lies on both outer ticks.
        assert!(svg.contains("cx=\"458.0\" cy=\"76.0\""), "{svg}");
        assert!(svg.contains("prefers-color-scheme:dark"));
    }
}
