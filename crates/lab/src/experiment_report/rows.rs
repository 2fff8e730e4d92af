//! One row for each policy: bars, dots, boxes or shares that lie, so that names are read level.

use super::axis::Axis;
use super::canvas::{Anchor, CHARACTER, Canvas, GRID, INK, Look, WHISKER, WIDTH};
use crate::columns::shortened;

/// Height of a row.
const ROW: f64 = 25.0;
/// Characters of a name that are shown.
const NAME_LENGTH_MAX: usize = 24;
/// Colour of a share's text that is read on each of the colours of [`Look::nth`].
const ON_SHARE: &str = "class=\"on-light\" fill=\"#111\" font-size=\"10.5\"";

/// Rows over a common axis.
pub(super) struct Rows {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) axis: Axis,
    pub(super) entries: Vec<Row>,
    /// Values to compare with and what they are.
    pub(super) references: Vec<(f64, String)>,
    /// Names of what the parts of a whole are, in the order of their looks.
    pub(super) parts: Vec<String>,
}

/// One row.
pub(super) struct Row {
    pub(super) name: String,
    pub(super) look: Look,
    pub(super) marks: Marks,
    /// What stands at the end of the row: the value, to be read.
    pub(super) label: String,
}

/// What is drawn in a row.
pub(super) enum Marks {
    /// Not measured.
    Nothing,
    /// From zero to a value, with its interval.
    Bar(f64, Option<(f64, f64)>),
    /// A value, with its interval.
    Dot(f64, Option<(f64, f64)>),
    /// Least, lower quartile, median, upper quartile, greatest; and a mark beside.
    Box([f64; 5], Option<f64>),
    /// Index of a part, and its share of the axis.
    Parts(Vec<(usize, f64)>),
}

impl Rows {
    pub(super) fn to_svg(&self) -> String {
        let mut canvas = Canvas::new(&self.title);
        if !self.note.is_empty() {
            canvas.note(&self.note);
        }
        self.draw_parts(&mut canvas);
        let length = |text: &str| text.chars().count() as f64 * CHARACTER;
        let names = self.entries.iter().map(|row| length(&shortened(&row.name, NAME_LENGTH_MAX)));
        let left = 8.0 + names.fold(0.0, f64::max);
        let labels = self.entries.iter().map(|row| length(&row.label));
        let right = WIDTH - 10.0 - labels.fold(0.0, f64::max);
        let place = |value: f64| left + 4.0 + (right - left - 8.0) * self.axis.at(value);
        // One below the other, as most lie close together.
        for (value, name) in &self.references {
            canvas.height += 14.0;
            let (x, half) = (place(*value), length(name) / 2.0);
            let x = x.clamp(half + 2.0, WIDTH - half - 2.0);
            canvas.text(x, canvas.height - 1.0, Anchor::Middle, name);
        }
        let top = canvas.height + 3.0;
        let bottom = top + ROW * self.entries.len() as f64;
        let mut free_from = f64::NEG_INFINITY;
        for (value, label) in &self.axis.ticks {
            let (x, half) = (place(*value), length(label) / 2.0);
            canvas.rule(GRID, (x, top), (x, bottom));
            if x - half > free_from {
                canvas.text(x, bottom + 14.0, Anchor::Middle, label);
                free_from = x + half + 3.0;
            }
        }
        for (nth, row) in self.entries.iter().enumerate() {
            let middle = top + ROW * (nth as f64 + 0.5);
            let name = shortened(&row.name, NAME_LENGTH_MAX);
            canvas.text(left - 4.0, middle + 4.0, Anchor::End, &name);
            row.draw(&mut canvas, middle, &place);
            canvas.text(WIDTH - 4.0, middle + 4.0, Anchor::End, &row.label);
        }
        for (value, _) in &self.references {
            canvas.rule(INK, (place(*value), top - 2.0), (place(*value), bottom));
        }
        // Below its ticks, but inside the image.
        let half = length(&self.axis.name) / 2.0;
        let middle =
            f64::midpoint(left, right).clamp(half + 2.0, (WIDTH - half - 2.0).max(half + 2.0));
        canvas.text(middle, bottom + 31.0, Anchor::Middle, &self.axis.name);
        canvas.height = bottom + 39.0;
        canvas.into_svg()
    }

    /// Colours and what they are.
    fn draw_parts(&self, canvas: &mut Canvas) {
        let mut x = 4.0;
        for (nth, part) in self.parts.iter().enumerate() {
            let width = 20.0 + CHARACTER * part.chars().count() as f64;
            if nth == 0 || x + width > WIDTH {
                x = 4.0;
                canvas.height += 16.0;
            }
            let y = canvas.height - 11.0;
            canvas.bar(Look::nth(nth), PART_OPACITY, (x, y), (11.0, 11.0));
            canvas.text(x + 15.0, canvas.height - 1.5, Anchor::Start, part);
            x += width + 6.0;
        }
        if !self.parts.is_empty() {
            canvas.height += 4.0;
        }
    }
}

impl Row {
    fn draw(&self, canvas: &mut Canvas, middle: f64, place: &dyn Fn(f64) -> f64) {
        let whisker = |canvas: &mut Canvas, look: Look, (low, high): (f64, f64)| {
            let (low, high) = (place(low), place(high));
            canvas.stroke(look, 1.6, (low, middle), (high, middle));
            for end in [low, high] {
                canvas.stroke(look, 1.6, (end, middle - 4.0), (end, middle + 4.0));
            }
        };
        let zero = place(0.0);
        match &self.marks {
            Marks::Nothing => {
                canvas.text(zero.max(place(f64::NEG_INFINITY)), middle + 4.0, Anchor::Start, "-");
            }
            Marks::Bar(value, interval) => {
                let at = place(*value);
                canvas.bar(self.look, 0.75, (zero, middle - 7.0), (at - zero, 14.0));
                if let Some((low, high)) = interval {
                    let (low, high) = (place(*low), place(*high));
                    canvas.rule(WHISKER, (low, middle), (high, middle));
                    for end in [low, high] {
                        canvas.rule(WHISKER, (end, middle - 4.0), (end, middle + 4.0));
                    }
                }
            }
            Marks::Dot(value, interval) => {
                if let Some(interval) = interval {
                    whisker(canvas, self.look, *interval);
                }
                canvas.mark(self.look, (place(*value), middle), 4.0);
            }
            Marks::Box([least, lower, median, upper, greatest], mark) => {
                whisker(canvas, self.look, (*least, *greatest));
                let (from, to) = (place(*lower), place(*upper));
                canvas.bar(self.look, 0.6, (from, middle - 7.0), ((to - from).max(1.5), 14.0));
                let median = place(*median);
                canvas.rule(WHISKER, (median, middle - 7.0), (median, middle + 7.0));
                if let Some(mark) = mark {
                    let at = place(*mark);
                    canvas.styled_text(at, middle + 4.5, Anchor::Middle, "font-size=\"13\"", "×");
                }
            }
            Marks::Parts(parts) => {
                let mut from = 0.0;
                for (part, share) in parts {
                    let (x, to) = (place(from), place(from + share));
                    canvas.bar(Look::nth(*part), PART_OPACITY, (x, middle - 8.0), (to - x, 16.0));
                    if to - x > 26.0 {
                        let text = crate::columns::fixed(Some(*share), 0);
                        canvas.styled_text(
                            f64::midpoint(x, to),
                            middle + 4.0,
                            Anchor::Middle,
                            ON_SHARE,
                            &text,
                        );
                    }
                    from += share;
                }
            }
        }
    }
}

/// Light enough for dark text.
const PART_OPACITY: f64 = 0.6;
