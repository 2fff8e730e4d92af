//! Lines over a common axis: one or more panels below each other, each line with its name at its end.

use super::axis::Axis;
use super::canvas::{Anchor, CHARACTER, Canvas, GRID, INK, Look, WIDTH, pushed_apart};
use super::extent;

/// Height of the plotting area of a panel.
const PLOT: f64 = 165.0;
/// Above it: the axis' name.
const TOP: f64 = 25.0;
/// Left of it: the ticks' labels.
const LEFT: f64 = 44.0;
/// Below a panel that has another below.
const BETWEEN: f64 = 12.0;
/// Height of a line of labels.
const LABEL: f64 = 12.5;
/// Points above this number are a curve, with a mark at every so manieth.
const MARKS_MAX: usize = 30;
const CURVE_MARKS: usize = 25;

/// Panels with the same horizontal axis.
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) x: Axis,
    pub(super) panels: Vec<Panel>,
}

/// A vertical axis and what is drawn over it.
pub(super) struct Panel {
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Values to compare with, across the panel.
    pub(super) rules: Vec<f64>,
    pub(super) labels: Labels,
}

/// Where the names of the lines stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Labels {
    /// Beside the end of each line.
    AtEnds,
    /// In the order of the lines, with a sample of each: for lines that end in the same place.
    Listed,
}

/// A line, or points alone.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) look: Look,
    /// From left to right.
    pub(super) points: Vec<Point>,
}

/// A point with its interval; without a value the line has a gap there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Point {
    pub(super) x: f64,
    pub(super) y: Option<f64>,
    pub(super) interval: Option<(f64, f64)>,
}

impl Line {
    /// Values and bounds: what the vertical axis must hold.
    pub(super) fn extent(&self) -> impl Iterator<Item = f64> {
        self.points.iter().flat_map(|point| extent(point.y, point.interval))
    }
}

impl Panel {
    /// A panel whose lines have their names at their ends.
    pub(super) fn new(y: Axis, lines: Vec<Line>) -> Self {
        Self { y, lines, rules: Vec::new(), labels: Labels::AtEnds }
    }
}

impl Lines {
    pub(super) fn to_svg(&self) -> String {
        let mut canvas = Canvas::new(&self.title);
        if !self.note.is_empty() {
            canvas.note(&self.note);
        }
        let names = self.panels.iter().flat_map(|panel| &panel.lines).map(|line| &line.name);
        let longest = names.map(|name| name.chars().count()).max().unwrap_or(0).min(22);
        let listed = self.panels.iter().any(|panel| panel.labels == Labels::Listed);
        let swatch = if listed { 26.0 } else { 10.0 };
        let right = WIDTH - swatch - 4.0 - CHARACTER * longest as f64;
        let place = |x: f64| LEFT + 6.0 + (right - LEFT - 12.0) * self.x.at(x);
        let mut bottom = 0.0;
        for panel in &self.panels {
            let top = canvas.height + TOP;
            bottom = top + PLOT;
            for (value, _) in &self.x.ticks {
                canvas.rule(GRID, (place(*value), top), (place(*value), bottom));
            }
            panel.draw(&mut canvas, &place, (LEFT, right), (top, bottom));
            canvas.height = bottom + BETWEEN;
        }
        let mut free_from = f64::NEG_INFINITY;
        for (value, label) in &self.x.ticks {
            let (x, half) = (place(*value), CHARACTER * label.chars().count() as f64 / 2.0);
            // A label that would touch the one before is left out; its line stays.
            if x - half > free_from {
                canvas.text(x, bottom + 14.0, Anchor::Middle, label);
                free_from = x + half + 3.0;
            }
        }
        canvas.text(f64::midpoint(LEFT, right), bottom + 30.0, Anchor::Middle, &self.x.name);
        canvas.height = bottom + 38.0;
        canvas.into_svg()
    }
}

impl Panel {
    fn draw(
        &self,
        canvas: &mut Canvas,
        place: &dyn Fn(f64) -> f64,
        (left, right): (f64, f64),
        (top, bottom): (f64, f64),
    ) {
        canvas.text(2.0, top - 11.0, Anchor::Start, &self.y.name);
        let height = |y: f64| bottom - (bottom - top) * self.y.at(y);
        for (value, label) in &self.y.ticks {
            let y = height(*value);
            canvas.rule(GRID, (left, y), (right, y));
            canvas.text(left - 4.0, y + 4.0, Anchor::End, label);
        }
        for rule in &self.rules {
            canvas.rule(INK, (left, height(*rule)), (right, height(*rule)));
        }
        let (mut names, mut ends) = (Vec::new(), Vec::new());
        for line in &self.lines {
            let mut run = Vec::new();
            for point in &line.points {
                let x = place(point.x);
                if let Some((low, high)) = point.interval {
                    let (low, high) = (height(low), height(high));
                    canvas.stroke(line.look, 1.2, (x, low), (x, high));
                    for end in [low, high] {
                        canvas.stroke(line.look, 1.2, (x - 2.5, end), (x + 2.5, end));
                    }
                }
                if let Some(y) = point.y {
                    run.push((x, height(y)));
                } else {
                    canvas.path(line.look, &run);
                    run.clear();
                }
            }
            canvas.path(line.look, &run);
            let drawn = line.points.iter().filter_map(|p| Some((place(p.x), height(p.y?))));
            let drawn: Vec<_> = drawn.collect();
            // On a curve, a few marks tell which it is where colours do not.
            let every = if drawn.len() <= MARKS_MAX { 1 } else { CURVE_MARKS };
            for at in drawn.iter().step_by(every) {
                canvas.mark(line.look, *at, 3.0);
            }
            if let Some(end) = drawn.last().filter(|_| !line.name.is_empty()) {
                names.push(line);
                ends.push(*end);
            }
        }
        match self.labels {
            Labels::AtEnds => {
                let wanted: Vec<f64> = ends.iter().map(|(_, y)| *y).collect();
                let at = pushed_apart(&wanted, LABEL, top + 4.0, bottom - 2.0);
                for ((line, (x, y)), at) in names.iter().zip(&ends).zip(at) {
                    canvas.stroke(line.look, 0.8, (x + 3.0, *y), (right + 8.0, at));
                    let name = crate::columns::shortened(&line.name, 22);
                    canvas.text(right + 10.0, at + 4.0, Anchor::Start, &name);
                }
            }
            Labels::Listed => {
                for (nth, line) in names.iter().enumerate() {
                    let y = top + 10.0 + nth as f64 * (LABEL + 2.0);
                    canvas.path(line.look, &[(right + 6.0, y), (right + 24.0, y)]);
                    canvas.mark(line.look, (right + 15.0, y), 3.0);
                    let name = crate::columns::shortened(&line.name, 22);
                    canvas.text(right + 28.0, y + 4.0, Anchor::Start, &name);
                }
            }
        }
    }
}
