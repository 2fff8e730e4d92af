//! Cells whose policy knows the caches and is surely slower than one that does not.

use std::collections::{BTreeMap, BTreeSet};

use super::groups::{Grid, GridCell, Quantity};
use super::ratios::is_same_ratio;
use crate::statistics::interval_tail;

/// Policies that are blind to caches and never a bad choice.
pub(super) const BLIND: [&str; 2] = ["round-robin", "jsq"];

/// What was found in all cells.
pub(super) struct Losses {
    /// Surely slower, in the order of the cells.
    pub(super) sure: Vec<Loss>,
    /// Whether any cell could be judged.
    pub(super) is_judged: bool,
}

/// A cell with a P95 TTFT that is surely above that of a blind policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Loss {
    /// Index of the cell.
    pub(super) cell: usize,
    /// The blind policy against which it is worst.
    pub(super) against: &'static str,
    /// How much above it, as a share.
    pub(super) share: f64,
    pub(super) interval: (f64, f64),
}

/// All cells that are surely slower than round-robin or jsq of their scene.
pub(super) fn losses(grid: &Grid<'_>) -> Losses {
    let mut found = Losses { sure: Vec::new(), is_judged: false };
    for scene in &grid.scenes {
        let blind = BLIND.iter().filter_map(|kind| {
            let of_kind = grid.cells_of(scene).find(|cell| cell.kind == *kind);
            of_kind.map(|cell| (*kind, cell))
        });
        let blind: Vec<_> = blind.collect();
        for index in &scene.cells {
            let cell = &grid.cells[*index];
            if cell.is_load_only() {
                continue;
            }
            let mut worst: Option<Loss> = None;
            for (against, other) in &blind {
                match judged(cell, other) {
                    Judged::Unknown => {}
                    Judged::NotAbove => found.is_judged = true,
                    Judged::Above(share, interval) => {
                        found.is_judged = true;
                        if worst.is_none_or(|worst| share > worst.share) {
                            worst = Some(Loss { cell: *index, against, share, interval });
                        }
                    }
                }
            }
            found.sure.extend(worst);
        }
    }
    found
}

enum Judged {
    Unknown,
    NotAbove,
    Above(f64, (f64, f64)),
}

fn judged(cell: &GridCell<'_>, other: &GridCell<'_>) -> Judged {
    let pairs = cell.pairs(other);
    if interval_tail(pairs.len()).is_none() {
        return Judged::Unknown;
    }
    let of = |run: &crate::ExperimentRun| Quantity::TtftP95.of(&run.result);
    let differences: Option<Vec<f64>> =
        pairs.iter().map(|(run, other)| Some(of(run)? - of(other)?)).collect();
    let Some(differences) = differences else { return Judged::Unknown };
    // The lower bound is not above the mean: no need to find it.
    if differences.iter().sum::<f64>() <= 0.0 {
        return Judged::NotAbove;
    }
    let relative = cell.against(other, Quantity::TtftP95).and_then(|compared| compared.relative);
    match relative.and_then(|relative| Some((relative.value, relative.interval?))) {
        Some((share, (low, high))) if low > 0.0 => Judged::Above(share, (low, high)),
        Some(_) => Judged::NotAbove,
        None => Judged::Unknown,
    }
}

/// The losses of a kind of policy.
pub(super) struct OfKind<'a> {
    pub(super) kind: &'a str,
    /// Settings that it has in a scene, at most.
    pub(super) settings: usize,
    /// How many and which, for each workload or, of one setting, over all.
    pub(super) places: Vec<String>,
    pub(super) worst: Loss,
}

/// Losses by kind, the worst first.
pub(super) fn of_kinds<'a>(grid: &Grid<'a>, losses: &[Loss]) -> Vec<OfKind<'a>> {
    let mut kinds: BTreeMap<&'a str, Vec<Loss>> = BTreeMap::new();
    for loss in losses {
        kinds.entry(grid.cells[loss.cell].kind).or_default().push(*loss);
    }
    let of_kind = |(kind, losses): (&'a str, Vec<Loss>)| {
        let worst = losses.iter().copied().reduce(|a, b| if b.share > a.share { b } else { a })?;
        let in_scene = |scene: usize| -> Vec<&GridCell<'_>> {
            grid.cells_of(&grid.scenes[scene]).filter(|cell| cell.kind == kind).collect()
        };
        let settings = (0..grid.scenes.len()).map(|scene| in_scene(scene).len()).max()?;
        let mut by_scene: BTreeMap<usize, Vec<&GridCell<'_>>> = BTreeMap::new();
        for loss in &losses {
            let cell = &grid.cells[loss.cell];
            by_scene.entry(cell.scene).or_default().push(cell);
        }
        let workloads_alone: BTreeSet<&str> =
            by_scene.keys().map(|scene| grid.scenes[*scene].cell.workload.as_str()).collect();
        let is_one_each = workloads_alone.len() == by_scene.len();
        let places = if settings > 1 && is_one_each && by_scene.len() <= PLACES_MAX {
            let place = |(scene, worse): (&usize, &Vec<&GridCell<'_>>)| {
                let all = in_scene(*scene);
                let region =
                    region(&all, worse).map_or_else(String::new, |region| format!(" ({region})"));
                format!("{} {} of {}{region}", grid.scenes[*scene].name, worse.len(), all.len())
            };
            by_scene.iter().map(place).collect()
        } else {
            workloads(grid, kind, &by_scene)
        };
        Some(OfKind { kind, settings, places, worst })
    };
    let mut found: Vec<_> = kinds.into_iter().filter_map(of_kind).collect();
    found.sort_by(|a, b| b.worst.share.total_cmp(&a.worst.share));
    found
}

/// Places that are named one by one.
const PLACES_MAX: usize = 8;

/// In how many scenes of each workload.
fn workloads(
    grid: &Grid<'_>,
    kind: &str,
    by_scene: &BTreeMap<usize, Vec<&GridCell<'_>>>,
) -> Vec<String> {
    let mut counts: Vec<(&str, [usize; 2])> = Vec::new();
    for (index, scene) in grid.scenes.iter().enumerate() {
        if !grid.cells_of(scene).any(|cell| cell.kind == kind) {
            continue;
        }
        let workload = scene.cell.workload.as_str();
        let place = counts.iter().position(|(known, _)| *known == workload).unwrap_or_else(|| {
            counts.push((workload, [0, 0]));
            counts.len() - 1
        });
        counts[place].1[0] += usize::from(by_scene.contains_key(&index));
        counts[place].1[1] += 1;
    }
    let all: usize = counts.iter().map(|(_, [_, all])| all).sum();
    counts.retain(|(_, [worse, _])| *worse > 0);
    if counts.len() > PLACES_MAX {
        return vec![format!("in {} of {all} scenes", by_scene.len())];
    }
    let text = |(workload, [worse, all]): &(&str, [usize; 2])| match all {
        1 => (*workload).to_owned(),
        _ => format!("{workload} in {worse} of {all} scenes"),
    };
    counts.iter().map(text).collect()
}

/// What the worse settings have in common, if it is a region of the ratio of the weights: all above one, all below one.
fn region(all: &[&GridCell<'_>], worse: &[&GridCell<'_>]) -> Option<String> {
    if worse.len() == all.len() {
        return Some("every one".to_owned());
    }
    // By ratio: how many are worse, of how many.
    let mut ratios: Vec<(f64, usize, usize)> = Vec::new();
    for cell in all {
        let ratio = cell.ratio().filter(|ratio| !ratio.is_nan())?;
        let is_worse = worse.iter().any(|other| std::ptr::eq(*other, *cell));
        match ratios.iter_mut().find(|(known, ..)| is_same_ratio(*known, ratio)) {
            Some((_, count, of)) => {
                *count += usize::from(is_worse);
                *of += 1;
            }
            None => ratios.push((ratio, usize::from(is_worse), 1)),
        }
    }
    ratios.sort_by(|a, b| a.0.total_cmp(&b.0));
    if ratios.iter().any(|(_, count, of)| *count != 0 && count != of) {
        return None;
    }
    let is_worse: Vec<bool> = ratios.iter().map(|(_, count, _)| *count > 0).collect();
    let below = is_worse.iter().take_while(|worse| **worse).count();
    let above = is_worse.iter().rev().take_while(|worse| **worse).count();
    if below + above != is_worse.iter().filter(|worse| **worse).count() {
        return None;
    }
    let ratio = |nth: usize| ratios[nth].0;
    let mut parts = Vec::new();
    if below == 1 && ratio(0) <= 0.0 {
        parts.push("every one with α = 0, which ignores the caches".to_owned());
    } else if below > 0 && is_same_ratio(ratio(below), 1.0) {
        parts.push("every one with α < β".to_owned());
    } else if below > 0 {
        parts.push(format!("every one with α/β up to {}", super::axis::short(ratio(below - 1))));
    }
    let from = ratios.len() - above;
    if above == 1 && ratio(from).is_infinite() {
        parts.push("every one with β = 0".to_owned());
    } else if above > 0 && from > 0 && is_same_ratio(ratio(from - 1), 1.0) {
        parts.push("every one with α > β".to_owned());
    } else if above > 0 {
        parts.push(format!("every one with α/β from {} on", super::axis::short(ratio(from))));
    }
    (!parts.is_empty()).then(|| parts.join(", and "))
}
