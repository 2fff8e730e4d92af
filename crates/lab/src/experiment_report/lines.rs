//! Lines over a common axis: one or more panels below each other, each line with its name at its end.

use super::axis::Axis;
use super::canvas::{Anchor, CHARACTER, Canvas, GRID, INK, Look, WIDTH, pushed_apart};
use super::extent;

/// Height of the plotting area of a panel, if nothing else is said.
const PLOT: f64 = 165.0;
/// Above it: the axis' name.
const TOP: f64 = 25.0;
/// Left of it: the ticks' labels.
const LEFT: f64 = 46.0;
/// Below a panel that has another below.
const BETWEEN: f64 = 12.0;
/// Height of a line of labels.
const LABEL: f64 = 12.5;
/// Points above this number are a curve, with a mark at every so manieth and intervals as a band.
const MARKS_MAX: usize = 30;
const CURVE_MARKS: usize = 25;
/// Between points that stand side by side.
const DODGE: f64 = 1.4;

/// Panels with the same horizontal axis.
pub(super) struct Lines {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) x: Axis,
    pub(super) panels: Vec<Panel>,
    /// Values of the horizontal axis to compare with.
    pub(super) uprights: Vec<Upright>,
    /// Whether points at the same place stand side by side, so that none hides another.
    pub(super) is_dodged: bool,
}

/// A line across all panels, with its name above.
pub(super) struct Upright {
    pub(super) at: f64,
    pub(super) name: String,
}

/// A vertical axis and what is drawn over it.
pub(super) struct Panel {
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
    /// Values to compare with, across the panel.
    pub(super) rules: Vec<f64>,
    pub(super) labels: Labels,
    /// Height of the plotting area.
    pub(super) height: f64,
    /// A curve has a mark at every so manieth point.
    pub(super) curve_marks: usize,
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

impl Point {
    /// The same in another unit.
    pub(super) fn times(self, factor: f64) -> Self {
        Self {
            y: self.y.map(|y| factor * y),
            interval: self.interval.map(|(low, high)| (factor * low, factor * high)),
            ..self
        }
    }
}

impl Panel {
    /// A panel whose lines have their names at their ends.
    pub(super) fn new(y: Axis, lines: Vec<Line>) -> Self {
        Self {
            y,
            lines,
            rules: Vec::new(),
            labels: Labels::AtEnds,
            height: PLOT,
            curve_marks: CURVE_MARKS,
        }
    }
}

impl Lines {
    pub(super) const fn new(title: String, note: String, x: Axis, panels: Vec<Panel>) -> Self {
        Self { title, note, x, panels, uprights: Vec::new(), is_dodged: false }
    }

    pub(super) fn to_svg(&self) -> String {
        let mut canvas = Canvas::new(&self.title);
        if !self.note.is_empty() {
            canvas.note(&self.note);
        }
        let names = self.panels.iter().flat_map(|panel| &panel.lines).map(|line| &line.name);
        let longest = names.map(|name| name.chars().count()).max().unwrap_or(0).min(22);
        let listed = self.panels.iter().any(|panel| panel.labels == Labels::Listed);
        let swatch = if listed { 26.0 } else { 10.0 };
        let right = WIDTH - swatch - 8.0 - (CHARACTER + 0.3) * longest as f64;
        let place = |x: f64| LEFT + 6.0 + (right - LEFT - 12.0) * self.x.at(x);
        let (mut bottom, mut is_first) = (0.0, true);
        for panel in &self.panels {
            canvas.text(2.0, canvas.height + TOP - 11.0, Anchor::Start, &panel.y.name);
            let has_names = is_first && !self.uprights.is_empty();
            let top = canvas.height + TOP + if has_names { LABEL } else { 0.0 };
            bottom = top + panel.height;
            for (value, _) in &self.x.ticks {
                canvas.rule(GRID, (place(*value), top), (place(*value), bottom));
            }
            for (nth, upright) in self.uprights.iter().enumerate() {
                let x = place(upright.at);
                canvas.rule(INK, (x, top), (x, bottom));
                // Once is enough, where no axis has its name.
                if nth == 0 && is_first {
                    let half = CHARACTER * upright.name.chars().count() as f64 / 2.0;
                    let x = x.clamp(LEFT + half, (right - half).max(LEFT + half));
                    canvas.text(x, top - 3.0, Anchor::Middle, &upright.name);
                }
            }
            is_first = false;
            panel.draw(&mut canvas, &place, self.is_dodged, (LEFT, right), (top, bottom));
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

impl Line {
    /// Intervals of a curve, which would cover each other as bars.
    fn draw_bands(
        &self,
        canvas: &mut Canvas,
        place: &dyn Fn(f64) -> f64,
        height: &dyn Fn(f64) -> f64,
    ) {
        const OPACITY: f64 = 0.16;
        for part in self.points.split(|point| point.interval.is_none()) {
            let bounds = part.iter().filter_map(|point| Some((place(point.x), point.interval?)));
            let bounds: Vec<_> = bounds.collect();
            if let [(x, (low, high))] = bounds.as_slice() {
                canvas.stroke(self.look, 1.2, (*x, height(*low)), (*x, height(*high)));
                continue;
            }
            let upper = bounds.iter().map(|(x, (_, high))| (*x, height(*high)));
            let lower = bounds.iter().rev().map(|(x, (low, _))| (*x, height(*low)));
            let outline: Vec<_> = upper.chain(lower).collect();
            if !outline.is_empty() {
                canvas.area(self.look, OPACITY, &outline);
            }
        }
    }
}

impl Panel {
    fn draw(
        &self,
        canvas: &mut Canvas,
        place: &dyn Fn(f64) -> f64,
        is_dodged: bool,
        (left, right): (f64, f64),
        (top, bottom): (f64, f64),
    ) {
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
        for (nth, line) in self.lines.iter().enumerate() {
            let aside = if is_dodged {
                DODGE * (nth as f64 - (self.lines.len() as f64 - 1.0) / 2.0)
            } else {
                0.0
            };
            let place = |x: f64| place(x) + aside;
            let is_curve = line.points.len() > MARKS_MAX;
            if is_curve {
                line.draw_bands(canvas, &place, &height);
            }
            let mut run = Vec::new();
            for point in &line.points {
                let x = place(point.x);
                if let Some((low, high)) = point.interval.filter(|_| !is_curve) {
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
            let every = if is_curve { self.curve_marks } else { 1 };
            // Each at other places, so that curves that are one are seen to be several.
            let from = if every == 1 { 0 } else { nth * 4 % self.curve_marks };
            for at in drawn.iter().skip(from).step_by(every) {
                canvas.mark(line.look, *at, 3.0);
            }
            // A point beside a curve would not be seen without.
            for alone in line.points.split(|point| point.y.is_none()) {
                if let ([Point { x, y: Some(y), .. }], true) = (alone, is_curve) {
                    canvas.mark(line.look, (place(*x), height(*y)), 3.0);
                }
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
