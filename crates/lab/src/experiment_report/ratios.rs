//! What each ratio of the two weights of load-cache costs, a line for each scene.
//!
//! ```text
//! cost = p95(settings of the ratio) / p95(best setting of the scene) - 1
//! ```
//!
//! Its choice depends on the ratio alone, so that settings of equal ratio are one point: the mean over them, seed by seed.

use std::collections::BTreeMap;

use super::axis::{Axis, short};
use super::canvas::Look;
use super::groups::{Grid, GridCell, Quantity, Scene};
use super::lines::{Line, Lines, Panel, Point, Upright};
use super::maps::{AlphaBeta, of_variant, slug_of_variant};
use super::tables::csv_text;
use super::{Drawn, optional};
use crate::{Estimate, compare};

/// Lines that can be told apart: of more scenes there are the maps and the table.
const LINES_MAX: usize = 8;

/// Ratios that make a line, at least.
const RATIOS_MIN: usize = 4;
/// Height of the plotting area.
const HEIGHT: f64 = 330.0;
/// A mark at every so manieth ratio.
const MARKS: usize = 8;
/// From the outermost ratio to 0 and to infinity, which have no logarithm.
const BESIDE: f64 = 1.8;

/// A figure for each variant of the policy.
pub(super) fn ratios(grid: &Grid<'_>, maps: &[AlphaBeta]) -> Vec<Drawn> {
    maps.iter().filter_map(|map| figure(grid, map)).collect()
}

/// Whether two ratios are one but for rounding.
pub(super) fn is_same_ratio(a: f64, b: f64) -> bool {
    let is_near = || (a - b).abs() <= 1e-9 * a.abs().max(b.abs());
    a.total_cmp(&b).is_eq() || (a.is_finite() && b.is_finite() && is_near())
}

/// What a ratio costs in a scene.
struct Cost {
    ratio: f64,
    /// Settings that have it.
    settings: usize,
    /// P95 TTFT above that of the best setting, as a share.
    share: Estimate,
}

/// The costs of a scene, by the ratio ascending.
struct OfScene<'g, 'a> {
    scene: &'g Scene<'a>,
    costs: Vec<Cost>,
}

/// Where ratios stand: 0 and infinity beside the others.
#[derive(Clone, Copy)]
struct Ends {
    least: f64,
    most: f64,
}

impl Ends {
    fn new(scenes: &[OfScene<'_, '_>]) -> Option<Self> {
        let all = || scenes.iter().flat_map(|scene| &scene.costs).map(|cost| cost.ratio);
        let finite = || all().filter(|ratio| *ratio > 0.0 && ratio.is_finite());
        let ends = Self {
            least: finite().fold(f64::INFINITY, f64::min),
            most: finite().fold(0.0, f64::max),
        };
        let mut different: Vec<f64> = all().collect();
        different.sort_by(f64::total_cmp);
        different.dedup_by(|a, b| is_same_ratio(*a, *b));
        (different.len() >= RATIOS_MIN && ends.most > 0.0).then_some(ends)
    }

    fn zero(self) -> f64 {
        self.least / BESIDE
    }

    fn infinity(self) -> f64 {
        self.most * BESIDE
    }

    fn place(self, ratio: f64) -> f64 {
        match ratio {
            ratio if ratio <= 0.0 => self.zero(),
            ratio if ratio.is_infinite() => self.infinity(),
            ratio => ratio,
        }
    }

    fn axis(self) -> Axis {
        let ticks = [0.01, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 100.0];
        let between = ticks.into_iter().filter(|tick| (self.least..=self.most).contains(tick));
        let ticks = [(self.zero(), "0".to_owned())]
            .into_iter()
            .chain(between.map(|tick| (tick, short(tick))))
            .chain([(self.infinity(), "∞".to_owned())]);
        Axis::log("", [self.zero(), self.infinity()])
            .named("α / β: weight of the cache over weight of the load (log scale)")
            .with_ticks(ticks.collect())
    }
}

fn figure(grid: &Grid<'_>, map: &AlphaBeta) -> Option<Drawn> {
    if map.scenes.len() > LINES_MAX {
        return None;
    }
    let scenes: Vec<OfScene<'_, '_>> = map
        .scenes
        .iter()
        .filter_map(|index| {
            let scene = &grid.scenes[*index];
            Some(OfScene { scene, costs: costs(grid, map, scene)? })
        })
        .collect();
    let ends = Ends::new(&scenes)?;
    let line = |(nth, of_scene): (usize, &OfScene<'_, '_>)| Line {
        name: of_scene.scene.name.clone(),
        look: Look::nth(nth),
        points: points(&of_scene.costs, ends),
    };
    let lines: Vec<Line> = scenes.iter().enumerate().map(line).collect();
    let y = Axis::excess(
        "P95 TTFT above that of the workload's best setting",
        lines.iter().flat_map(Line::extent),
    );
    let mut panel = Panel::new(y, lines);
    panel.rules.push(0.05);
    panel.height = HEIGHT;
    panel.curve_marks = MARKS;
    let mut figure = Lines::new(
        format!("Cost of each ratio of the weights{}", of_variant(map)),
        "Only the ratio decides, so that settings of equal ratio are one point (mean over them and the seeds; bands: 95 % \
         intervals). Left of α = β load weighs more, right of it the cache. Below the dashed line: within 5 % of the best."
            .to_owned(),
        ends.axis(),
        vec![panel],
    );
    figure.uprights.push(Upright { at: 1.0, name: "α = β".to_owned() });
    let header = [
        "scene",
        "alpha_over_beta",
        "settings",
        "regret_percent",
        "regret_percent_low",
        "regret_percent_high",
    ];
    let rows = scenes.iter().flat_map(|of_scene| {
        of_scene.costs.iter().map(|Cost { ratio, settings, share }| {
            let (low, high) = share.interval.unzip();
            let mut row =
                vec![of_scene.scene.name.clone(), ratio.to_string(), settings.to_string()];
            row.extend(
                [Some(share.value), low, high].map(|share| optional(share.map(|s| 100.0 * s))),
            );
            row
        })
    });
    Some(Drawn {
        name: format!("alpha-beta-ratio{}", slug_of_variant(map)),
        svg: figure.to_svg(),
        csv: csv_text(header.map(str::to_owned).to_vec(), rows),
    })
}

/// Points of a line, with gaps to what has no place on the scale.
fn points(costs: &[Cost], ends: Ends) -> Vec<Point> {
    let mut points = Vec::new();
    for Cost { ratio, settings: _, share } in costs {
        let x = ends.place(*ratio);
        let gap = Point { x, y: None, interval: None };
        points.extend(ratio.is_infinite().then_some(gap));
        points.push(Point {
            x,
            y: Some(share.value.max(0.0)),
            interval: share.interval.map(|(low, high)| (low.max(0.0), high.max(0.0))),
        });
        points.extend((*ratio <= 0.0).then_some(gap));
    }
    points
}

/// What each ratio costs in a scene; `None` if no setting was measured.
fn costs(grid: &Grid<'_>, map: &AlphaBeta, scene: &Scene<'_>) -> Option<Vec<Cost>> {
    let is_of_map = |cell: &&GridCell<'_>| {
        cell.alpha_beta().is_some() && (map.variant.is_empty() || cell.variant() == map.variant)
    };
    let cells: Vec<&GridCell<'_>> = grid.cells_of(scene).filter(is_of_map).collect();
    let best = Grid::least(cells.iter().copied(), Quantity::TtftP95)?;
    let mut by_ratio: Vec<(f64, Vec<&GridCell<'_>>)> = Vec::new();
    for cell in &cells {
        let Some(ratio) = cell.ratio() else { continue };
        match by_ratio.iter_mut().find(|(known, _)| is_same_ratio(*known, ratio)) {
            Some((_, same)) => same.push(cell),
            None => by_ratio.push((ratio, vec![cell])),
        }
    }
    by_ratio.sort_by(|a, b| a.0.total_cmp(&b.0));
    let cost = |(ratio, same): (f64, Vec<&GridCell<'_>>)| {
        Some(Cost { ratio, settings: same.len(), share: above(&same, best)? })
    };
    Some(by_ratio.into_iter().filter_map(cost).collect())
}

/// Mean P95 TTFT of some cells above that of another, as a share, over the seeds that all have.
fn above(cells: &[&GridCell<'_>], best: &GridCell<'_>) -> Option<Estimate> {
    let mut sums: BTreeMap<u64, (f64, usize)> = BTreeMap::new();
    for run in cells.iter().flat_map(|cell| &cell.runs) {
        let (sum, count) = sums.entry(run.result.seed).or_default();
        *sum += Quantity::TtftP95.of(&run.result)?;
        *count += 1;
    }
    let (mut of_cells, mut of_best) = (Vec::new(), Vec::new());
    for run in &best.runs {
        let Some((sum, count)) = sums.get(&run.result.seed) else { continue };
        if *count == cells.len() {
            of_cells.push(sum / cells.len() as f64);
            of_best.push(Quantity::TtftP95.of(&run.result)?);
        }
    }
    compare(&of_cells, &of_best)?.relative
}
