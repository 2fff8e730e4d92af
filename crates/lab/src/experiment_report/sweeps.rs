//! Figures over several scenes: load, staleness, number of instances.

use std::collections::BTreeSet;

use super::axis::{Axis, short, time_unit};
use super::canvas::Looks;
use super::groups::{
    Grid, GridCell, Quantity, Scene, SceneKey, common_load_unit, load_number, load_text,
};
use super::lines::{Line, Lines, Panel, Point, Upright};
use super::tables::csv_text;
use super::{Drawn, optional};
use crate::Condition;
use crate::report::slug;

/// Lines of a panel whose names can stand beside it.
const LINES_MAX: usize = 8;

/// P95 TTFT and goodput over the offered load.
pub(super) fn loads(grid: &Grid<'_>, looks: &Looks) -> Vec<Drawn> {
    let groups = grid.scenes_by(|cell| Some(SceneKey::new(cell).without_load()));
    groups.iter().filter_map(|scenes| of_loads(grid, looks, scenes)).collect()
}

fn of_loads(grid: &Grid<'_>, looks: &Looks, scenes: &[&Scene<'_>]) -> Option<Drawn> {
    let unit = common_load_unit(scenes)?;
    let points = in_order(scenes, &|scene| load_number(&scene.cell.load).map(|(value, _)| value));
    if points.len() < 2 {
        return None;
    }
    let (name, key) = unit.axis();
    let x = Axis::around(name, points.iter().map(|(x, _)| *x));
    let what = without_load_name(scenes[0]);
    Some(over(
        (grid, looks),
        &points,
        Sweep {
            title: format!("Latency and goodput over load, {what}"),
            note: "Mean over seeds with 95 % intervals. A policy that bears more load stays low further to the right."
                .to_owned(),
            name: format!("load-{}", slug(&what)),
            key,
            x,
            reference: None,
            panels: &[Quantity::TtftP95, Quantity::Goodput],
        },
    ))
}

fn without_load_name(scene: &Scene<'_>) -> String {
    match load_text(&scene.cell.load) {
        Some(load) => scene.name.replacen(&format!(", {load}"), "", 1),
        None => scene.name.clone(),
    }
}

/// P95 TTFT and hit rate over the values of a sweep.
pub(super) fn staleness(grid: &Grid<'_>, looks: &Looks) -> Vec<Drawn> {
    let groups = sweeps(grid);
    groups.iter().filter_map(|scenes| of_sweep(grid, looks, scenes)).collect()
}

/// Scenes that differ in the value of their sweep alone, in the order of the file.
pub(super) fn sweeps<'g, 'a>(grid: &'g Grid<'a>) -> Vec<Vec<&'g Scene<'a>>> {
    let mut groups = grid.scenes_by(|cell| {
        (!cell.condition.sweep.is_empty()).then(|| SceneKey::new(cell).without_value())
    });
    groups.retain(|scenes| scenes.len() > 1);
    groups
}

fn of_sweep(grid: &Grid<'_>, looks: &Looks, scenes: &[&Scene<'_>]) -> Option<Drawn> {
    let condition = &scenes[0].cell.condition;
    let unit =
        if condition.unit.is_empty() { String::new() } else { format!(", {}", condition.unit) };
    let reference = grid.reference(scenes)?;
    let places = Places::new(scenes);
    let x_of = |scene: &Scene<'_>| Some(places.at(scene.cell.condition.value));
    let points = in_order(scenes, &x_of);
    if points.len() < 2 {
        return None;
    }
    let ticks: Vec<_> =
        points.iter().map(|(x, scene)| (*x, tick_label(&scene.cell.condition))).collect();
    let values = points.iter().map(|(x, _)| *x);
    let name = format!("{}{unit}", condition.sweep);
    let x = match places {
        Places::Log { .. } => Axis::log("", values).named(format!("{name} (log scale)")),
        Places::Linear { .. } => Axis::around(name, values),
    };
    let of_value = format!(", {} {}", condition.sweep, condition.label);
    let what = scenes[0].name.replacen(&of_value, "", 1);
    Some(over(
        (grid, looks),
        &points,
        Sweep {
            title: format!("P95 TTFT and hit rate over {}, {what}", condition.sweep),
            note: format!(
                "Mean over seeds with 95 % intervals. A flat line bears it. Dashed: {}, with which the others are compared.",
                reference.cell.condition.label
            ),
            name: format!("sweep-{}-{}", slug(&condition.sweep), slug(&what)),
            key: "value",
            x: x.with_ticks(ticks),
            reference: Some(Upright {
                at: places.at(reference.cell.condition.value),
                name: format!("reference: {}", reference.cell.condition.label),
            }),
            panels: &[Quantity::TtftP95, Quantity::HitRate],
        },
    ))
}

/// `500ms` on an axis in s is `0.5`; what is no number has its label.
fn tick_label(condition: &Condition) -> String {
    condition.value.map_or_else(|| condition.label.clone(), short)
}

/// Where values of a sweep stand. Zero and none have no logarithm: they stand a step before and after the others.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Places {
    Linear { none: f64 },
    Log { zero: f64, none: f64 },
}

impl Places {
    fn new(scenes: &[&Scene<'_>]) -> Self {
        let values: Vec<f64> =
            scenes.iter().filter_map(|scene| scene.cell.condition.value).collect();
        let positive = || values.iter().copied().filter(|value| *value > 0.0);
        let (least, most) =
            (positive().fold(f64::INFINITY, f64::min), positive().fold(0.0, f64::max));
        if most / least > 9.0 && values.iter().all(|value| *value >= 0.0) {
            let steps = (positive().count() - 1).max(1) as f64;
            let step = (most / least).powf(1.0 / steps);
            Self::Log { zero: least / step, none: most * step }
        } else {
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let steps = values.len().saturating_sub(1).max(1) as f64;
            let step = (most - least) / steps;
            Self::Linear { none: if step > 0.0 { most + step } else { 1.0 } }
        }
    }

    fn at(self, value: Option<f64>) -> f64 {
        match (self, value) {
            (Self::Linear { none } | Self::Log { none, .. }, None) => none,
            (Self::Log { zero, .. }, Some(value)) if value <= 0.0 => zero,
            (_, Some(value)) => value,
        }
    }
}

/// P95 TTFT, hit rate and imbalance over the number of instances.
pub(super) fn scaling(grid: &Grid<'_>, looks: &Looks) -> Vec<Drawn> {
    let groups = grid.scenes_by(|cell| Some(SceneKey::new(cell).without_instances()));
    groups.iter().filter_map(|scenes| of_sizes(grid, looks, scenes)).collect()
}

fn of_sizes(grid: &Grid<'_>, looks: &Looks, scenes: &[&Scene<'_>]) -> Option<Drawn> {
    let points = in_order(scenes, &|scene| Some(f64::from(scene.cell.instances)));
    if points.len() < 2 {
        return None;
    }
    let ticks: Vec<_> = points.iter().map(|(x, _)| (*x, x.to_string())).collect();
    let instances = scenes[0].cell.instances;
    let mut what = scenes[0].name.replacen(&format!(", {instances} instances"), "", 1);
    if scenes[0].cell.load.of_capacity.is_none() {
        what = without_load_name(scenes[0]).replacen(&format!(", {instances} instances"), "", 1);
    }
    let x = Axis::log("", points.iter().map(|(x, _)| *x)).with_ticks(ticks);
    Some(over(
        (grid, looks),
        &points,
        Sweep {
            title: format!("Scaling with the number of instances, {what}"),
            note: "Mean over seeds with 95 % intervals; the load for each instance stays the same."
                .to_owned(),
            name: format!("scaling-{}", slug(&what)),
            key: "instances",
            x: x.named("instances (log scale)"),
            reference: None,
            panels: &[Quantity::TtftP95, Quantity::HitRate, Quantity::Imbalance],
        },
    ))
}

/// Scenes with their place, from left to right; of two at the same place the first.
fn in_order<'g, 'a>(
    scenes: &[&'g Scene<'a>],
    x_of: &dyn Fn(&Scene<'a>) -> Option<f64>,
) -> Vec<(f64, &'g Scene<'a>)> {
    let placed = scenes.iter().filter_map(|scene| Some((x_of(scene)?, *scene)));
    let mut placed: Vec<_> = placed.collect();
    placed.sort_by(|a, b| a.0.total_cmp(&b.0));
    placed.dedup_by_key(|(x, _)| x.to_bits());
    placed
}

/// How a figure over several scenes is named and what it shows.
struct Sweep<'s> {
    title: String,
    note: String,
    name: String,
    /// Column of CSV.
    key: &'static str,
    x: Axis,
    /// Value that the others are compared with.
    reference: Option<Upright>,
    panels: &'s [Quantity],
}

fn over(
    (grid, looks): (&Grid<'_>, &Looks),
    points: &[(f64, &Scene<'_>)],
    sweep: Sweep<'_>,
) -> Drawn {
    let labels = labels(grid, points);
    let cell_of = |scene: &Scene<'_>, label: &str| -> Option<usize> {
        scene.cells.iter().copied().find(|index| grid.cells[*index].cell.policy == label)
    };
    let mut rows = Vec::new();
    let mut panels = Vec::new();
    for quantity in sweep.panels {
        let mut lines = Vec::new();
        let mut most_ms = 0.0;
        for label in &labels {
            let point = |(x, scene): &(f64, &Scene<'_>)| {
                let cell: Option<&GridCell<'_>> =
                    cell_of(scene, label).map(|index| &grid.cells[index]);
                let estimate = cell.and_then(|cell| cell.estimate(*quantity));
                Point {
                    x: *x,
                    y: estimate.map(|estimate| estimate.value),
                    interval: estimate.and_then(|estimate| estimate.interval),
                }
            };
            let named = points.iter().find_map(|(_, scene)| cell_of(scene, label));
            let line = Line {
                name: named.map_or_else(String::new, |index| grid.cells[index].name.clone()),
                look: looks.of(label),
                points: points.iter().map(point).collect(),
            };
            for (point, (x, scene)) in line.points.iter().zip(points) {
                let (low, high) = point.interval.unzip();
                let condition = &scene.cell.condition;
                // The value itself, not its place on the axis.
                let value = if condition.sweep.is_empty() || sweep.key != "value" {
                    x.to_string()
                } else {
                    condition.value.map_or_else(|| condition.label.clone(), |v| v.to_string())
                };
                let mut row = vec![(*label).to_owned(), value, quantity.key().to_owned()];
                row.extend([point.y, low, high].map(optional));
                rows.push(row);
            }
            if *quantity == Quantity::TtftP95 {
                most_ms = line.extent().fold(most_ms, f64::max);
            }
            lines.push(line);
        }
        let mut axis_name = quantity.axis();
        if *quantity == Quantity::TtftP95 {
            let (unit, per_ms) = time_unit(most_ms);
            for point in lines.iter_mut().flat_map(|line| &mut line.points) {
                *point = point.times(per_ms);
            }
            axis_name = format!("{}, {unit}", quantity.name());
        }
        let values: Vec<f64> = lines.iter().flat_map(Line::extent).collect();
        if values.is_empty() {
            continue;
        }
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let y = match quantity {
            Quantity::TtftP95 if least > 0.0 && most > 8.0 * least => Axis::log(axis_name, values),
            Quantity::Imbalance if most > 20.0 => Axis::log(axis_name, values),
            Quantity::Imbalance => Axis::around(axis_name, values.into_iter().chain([1.0, 1.1])),
            _ => Axis::from_zero(axis_name, values),
        };
        panels.push(Panel::new(y, lines));
    }
    let Sweep { title, note, name, key, x, reference, .. } = sweep;
    let mut figure = Lines::new(title, note, x, panels);
    figure.uprights.extend(reference);
    figure.is_dodged = true;
    let names = ["policy", key, "figure", "mean", "low", "high"];
    Drawn {
        name,
        svg: figure.to_svg(),
        csv: csv_text(names.map(str::to_owned).to_vec(), rows.into_iter()),
    }
}

/// Policies that are drawn: all of them, or one of each kind.
fn labels<'g>(grid: &'g Grid<'_>, points: &[(f64, &'g Scene<'_>)]) -> Vec<&'g str> {
    let all: BTreeSet<&str> = points
        .iter()
        .flat_map(|(_, scene)| grid.cells_of(scene))
        .map(|cell| cell.cell.policy.as_str())
        .collect();
    let Some((_, first)) = points.first() else { return Vec::new() };
    let chosen: Vec<_> = if all.len() <= LINES_MAX {
        grid.cells_of(first).collect()
    } else {
        grid.one_of_each_kind(first)
    };
    chosen.into_iter().map(|cell| cell.cell.policy.as_str()).collect()
}
