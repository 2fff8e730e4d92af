//! Points over two figures, each with its name beside it, and the front that none beats.

use super::axis::Axis;
use super::canvas::{Anchor, CHARACTER, Canvas, FRONT, GRID, Look, WIDTH};
use crate::columns::shortened;

/// Height of the plotting area.
const PLOT: f64 = 210.0;
/// Left of it: the ticks' labels.
const LEFT: f64 = 44.0;

/// Points over two axes.
pub(super) struct Scatter {
    pub(super) title: String,
    pub(super) note: String,
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) points: Vec<Dot>,
    /// Indices of the points on the front, from left to right.
    pub(super) front: Vec<usize>,
}

/// A point with its intervals.
pub(super) struct Dot {
    /// Beside it, if not empty.
    pub(super) name: String,
    pub(super) look: Look,
    pub(super) at: (f64, f64),
    pub(super) x_interval: Option<(f64, f64)>,
    pub(super) y_interval: Option<(f64, f64)>,
}

/// Keeps a name apart from what is under it.
const HALO: &str = "class=\"halo\" paint-order=\"stroke\" stroke=\"#fff\" stroke-width=\"3\" \
    stroke-linejoin=\"round\"";

/// Left, top, right, bottom.
type Frame = [f64; 4];

impl Scatter {
    pub(super) fn to_svg(&self) -> String {
        let mut canvas = Canvas::new(&self.title);
        canvas.note(&self.note);
        let top = canvas.height + 24.0;
        let (bottom, right) = (top + PLOT, WIDTH - 8.0);
        canvas.text(2.0, top - 11.0, Anchor::Start, &self.y.name);
        let place = |x: f64, y: f64| {
            (
                LEFT + 8.0 + (right - LEFT - 16.0) * self.x.at(x),
                bottom - 6.0 - (PLOT - 12.0) * self.y.at(y),
            )
        };
        for (value, label) in &self.y.ticks {
            let (_, y) = place(0.0, *value);
            canvas.rule(GRID, (LEFT, y), (right, y));
            canvas.text(LEFT - 4.0, y + 4.0, Anchor::End, label);
        }
        for (value, label) in &self.x.ticks {
            let (x, _) = place(*value, 0.0);
            canvas.rule(GRID, (x, top), (x, bottom));
            canvas.text(x, bottom + 14.0, Anchor::Middle, label);
        }
        canvas.text(f64::midpoint(LEFT, right), bottom + 30.0, Anchor::Middle, &self.x.name);
        canvas.height = bottom + 38.0;

        let front: Vec<_> = self.front.iter().map(|index| self.points[*index].at).collect();
        let mut taken: Vec<Frame> = Vec::new();
        for pair in front.windows(2) {
            // What lies beyond the corner of two neighbours is beaten by none of them.
            let (from, to) = (place(pair[0].0, pair[0].1), place(pair[1].0, pair[1].1));
            canvas.rule(FRONT, from, (from.0, to.1));
            canvas.rule(FRONT, (from.0, to.1), to);
            taken.push([from.0 - 1.0, to.1, from.0 + 1.0, from.1]);
            taken.push([from.0, to.1 - 1.0, to.0, to.1 + 1.0]);
        }
        for dot in &self.points {
            let (x, y) = place(dot.at.0, dot.at.1);
            if let Some((low, high)) = dot.x_interval {
                canvas.stroke(dot.look, 1.0, (place(low, 0.0).0, y), (place(high, 0.0).0, y));
            }
            if let Some((low, high)) = dot.y_interval {
                canvas.stroke(dot.look, 1.0, (x, place(0.0, low).1), (x, place(0.0, high).1));
            }
            let size = if dot.name.is_empty() { 2.0 } else { 4.0 };
            canvas.mark(dot.look, (x, y), size);
            taken.push([x - size, y - size, x + size, y + size]);
        }
        for dot in self.points.iter().filter(|dot| !dot.name.is_empty()) {
            let at = place(dot.at.0, dot.at.1);
            let name = shortened(&dot.name, 28);
            let frame = free_frame(at, &name, [LEFT, top, right, bottom], &taken);
            let nearest = (at.0.clamp(frame[0], frame[2]), at.1.clamp(frame[1], frame[3]));
            if (nearest.0 - at.0).hypot(nearest.1 - at.1) > 9.0 {
                canvas.stroke(dot.look, 0.8, at, nearest);
            }
            let (x, anchor) = if f64::midpoint(frame[0], frame[2]) < at.0 {
                (frame[2] - 1.0, Anchor::End)
            } else {
                (frame[0] + 1.0, Anchor::Start)
            };
            canvas.styled_text(x, frame[3] - 3.0, anchor, HALO, &name);
            taken.push(frame);
        }
        canvas.into_svg()
    }
}

/// The place for a name, near its point, that covers the least of what is there.
fn free_frame((x, y): (f64, f64), name: &str, inside: Frame, taken: &[Frame]) -> Frame {
    let (width, height) = (CHARACTER * name.chars().count() as f64 + 2.0, 13.0);
    let frames = [7.0, 20.0, 34.0, 50.0].into_iter().flat_map(|away: f64| {
        [
            (x + away.min(9.0), y - height / 2.0 + away - 7.0),
            (x + away.min(9.0), y - height / 2.0 - away + 7.0),
            (x - away.min(9.0) - width, y - height / 2.0 + away - 7.0),
            (x - away.min(9.0) - width, y - height / 2.0 - away + 7.0),
            (x - width / 2.0, y - away - height),
            (x - width / 2.0, y + away),
        ]
    });
    let frames = frames.map(|(left, top)| [left, top, left + width, top + height]);
    let covered = |frame: &Frame| -> f64 {
        let outside = (inside[0] - frame[0]).max(0.0)
            + (inside[1] - frame[1]).max(0.0)
            + (frame[2] - inside[2]).max(0.0)
            + (frame[3] - inside[3]).max(0.0);
        let shared = |other: &Frame| {
            let wide = frame[2].min(other[2]) - frame[0].max(other[0]);
            let high = frame[3].min(other[3]) - frame[1].max(other[1]);
            wide.max(0.0) * high.max(0.0)
        };
        outside * 100.0 + taken.iter().map(shared).sum::<f64>()
    };
    // Far away is as bad as a little covered.
    let cost = |frame: &Frame| {
        let (dx, dy) = (x.clamp(frame[0], frame[2]) - x, y.clamp(frame[1], frame[3]) - y);
        covered(frame) + 0.3 * dx.hypot(dy)
    };
    frames.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or([x, y, x, y])
}
