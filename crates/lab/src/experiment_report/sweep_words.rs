//! What the numbers say of a sweep, in sentences.

use super::axis::time_text;
use super::groups::{Grid, GridCell, Quantity, Scene, is_near};
use super::sweeps;
use super::words::change;
use crate::Estimate;

/// Scenes of a sweep that differ in its value alone.
type Scenes<'g, 'a> = Vec<&'g Scene<'a>>;

/// Over which values of each sweep a policy is as good as at the reference: a sentence for each sweep.
pub(super) fn staleness(grid: &Grid<'_>) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut by_name: Vec<(&str, Vec<Scenes<'_, '_>>)> = Vec::new();
    for scenes in sweeps::sweeps(grid) {
        let name = scenes[0].cell.condition.sweep.as_str();
        match by_name.iter_mut().find(|(known, _)| *known == name) {
            Some((_, groups)) => groups.push(scenes),
            None => by_name.push((name, vec![scenes])),
        }
    }
    for (name, groups) in by_name {
        // Of two values both are told, of a scale how far it goes.
        let is_scale = |scenes: &&Vec<&Scene<'_>>| {
            scenes.len() > 2 && scenes.iter().any(|s| s.cell.condition.value.is_some())
        };
        for scenes in groups.iter().filter(|scenes| !is_scale(scenes)) {
            if let Some(reference) = grid.reference(scenes) {
                let others = scenes.iter().filter(|scene| !std::ptr::eq(**scene, reference));
                sentences.extend(others.map(|scene| against(grid, reference, scene)));
            }
        }
        let groups: Vec<_> = groups.iter().filter(is_scale).collect();
        sentences.extend(borne_values(grid, name, &groups));
    }
    sentences
}

/// Where a policy is as good as at the reference, over the workloads.
struct Borne<'g> {
    label: &'g str,
    /// Name of the place, and the values; `None` for all of them.
    places: Vec<(String, Option<String>)>,
}

impl Borne<'_> {
    fn is_everywhere(&self) -> bool {
        self.places.iter().all(|(_, values)| values.is_none())
    }

    /// `up to 5s on chat and rag, at every value on mooncake`.
    fn text(&self) -> String {
        let mut by_values: Vec<(&str, Vec<&str>)> = Vec::new();
        for (place, values) in &self.places {
            let values = values.as_deref().unwrap_or("at every value");
            match by_values.iter_mut().find(|(known, _)| *known == values) {
                Some((_, places)) => places.push(place),
                None => by_values.push((values, vec![place])),
            }
        }
        let text =
            |(values, places): &(&str, Vec<&str>)| format!("{values} on {}", places.join(" and "));
        by_values.iter().map(text).collect::<Vec<_>>().join(", ")
    }
}

/// `index refresh: P95 TTFT stays within 5 % of that at 0: …`, over the workloads.
fn borne_values(grid: &Grid<'_>, name: &str, groups: &[&Vec<&Scene<'_>>]) -> Option<String> {
    let reference = &grid.reference(groups.first()?)?.cell.condition.label;
    let mut borne: Vec<Borne<'_>> = Vec::new();
    for scenes in groups {
        let Some(first) = grid.reference(scenes) else { continue };
        for cell in grid.one_of_each_kind(first) {
            let Some(values) = values_borne(grid, scenes, first, cell) else { continue };
            let label = cell.cell.policy.as_str();
            let place = (without_value(first), values);
            match borne.iter_mut().find(|known| known.label == label) {
                Some(known) => known.places.push(place),
                None => borne.push(Borne { label, places: vec![place] }),
            }
        }
    }
    // Policies that bear the same together.
    let mut parts: Vec<(String, Vec<&str>)> = Vec::new();
    for of_policy in &borne {
        let text =
            if of_policy.is_everywhere() { "at every value".to_owned() } else { of_policy.text() };
        match parts.iter_mut().find(|(known, _)| *known == text) {
            Some((_, labels)) => labels.push(of_policy.label),
            None => parts.push((text, vec![of_policy.label])),
        }
    }
    let parts: Vec<_> =
        parts.iter().map(|(text, labels)| format!("{} {text}", labels.join(", "))).collect();
    Some(format!(
        "{name}: P95 TTFT stays within 5 % of that at {reference}: {}.{}",
        parts.join("; "),
        worst_value(grid, groups)
    ))
}

/// Values around the reference at which a policy is as good as there: `Some(None)` for all, `None` if it was not measured.
#[expect(clippy::option_option, reason = "unmeasured is another thing than all values")]
fn values_borne(
    grid: &Grid<'_>,
    scenes: &[&Scene<'_>],
    first: &Scene<'_>,
    cell: &GridCell<'_>,
) -> Option<Option<String>> {
    let reference = cell.mean(Quantity::TtftP95)?;
    let mut scenes = scenes.to_vec();
    // None is more than any number: `never`.
    scenes.sort_by(|a, b| {
        let of = |scene: &Scene<'_>| scene.cell.condition.value.unwrap_or(f64::INFINITY);
        of(a).total_cmp(&of(b))
    });
    let at = scenes.iter().position(|scene| std::ptr::eq(*scene, first)).unwrap_or(0);
    let is_borne = |scene: &Scene<'_>| {
        let p95 = same(grid, scene, &cell.cell.policy).and_then(|c| c.mean(Quantity::TtftP95));
        p95.is_some_and(|p95| is_near(p95 / reference - 1.0))
    };
    let after = scenes[at..].iter().take_while(|scene| is_borne(scene)).count().max(1);
    let before = scenes[..at].iter().rev().take_while(|scene| is_borne(scene)).count();
    let (from, to) = (at - before, at + after - 1);
    let label = |nth: usize| scenes[nth].cell.condition.label.as_str();
    Some(match (from, to + 1 == scenes.len()) {
        (0, true) => None,
        _ if from == to => Some(format!("at {} alone", label(to))),
        (0, false) => Some(format!("up to {}", label(to))),
        (_, true) => Some(format!("from {} upwards", label(from))),
        (_, false) => Some(format!("from {} to {}", label(from), label(to))),
    })
}

/// Where the most is lost against the reference, if something surely is.
fn worst_value(grid: &Grid<'_>, groups: &[&Vec<&Scene<'_>>]) -> String {
    let mut worst: Option<(Estimate, &GridCell<'_>, &Scene<'_>)> = None;
    for scenes in groups {
        let Some(first) = grid.reference(scenes) else { continue };
        for cell in grid.one_of_each_kind(first) {
            for scene in scenes.iter().filter(|scene| !std::ptr::eq(**scene, first)) {
                let there = same(grid, scene, &cell.cell.policy);
                let change = there.and_then(|there| there.against(cell, Quantity::TtftP95));
                let Some(change) = change.and_then(|change| change.relative) else { continue };
                if worst.is_none_or(|(worst, ..)| change.value > worst.value) {
                    worst = Some((change, cell, scene));
                }
            }
        }
    }
    let worst = worst.filter(|(worst, ..)| worst.value > 0.0 && worst.is_nonzero());
    worst.map_or_else(String::new, |(worst, cell, scene)| {
        format!(
            " The worst is {} at {} on {}: {}.",
            cell.cell.policy,
            scene.cell.condition.label,
            without_value(scene),
            change(worst)
        )
    })
}

/// The cell of a policy in a scene.
fn same<'g, 'a>(grid: &'g Grid<'a>, scene: &'g Scene<'a>, label: &str) -> Option<&'g GridCell<'a>> {
    grid.cells_of(scene).find(|cell| cell.cell.policy == label)
}

/// A scene's name but for its condition.
fn without_value(scene: &Scene<'_>) -> String {
    let condition = &scene.cell.condition;
    scene.name.replacen(&format!(", {} {}", condition.sweep, condition.label), "", 1)
}

/// Two conditions side by side.
fn against(grid: &Grid<'_>, first: &Scene<'_>, other: &Scene<'_>) -> String {
    let changes = grid.one_of_each_kind(first).into_iter().filter_map(|cell| {
        let label = cell.cell.policy.as_str();
        let same = grid.cells_of(other).find(|cell| cell.cell.policy == label)?;
        let figure = |quantity| Some((cell.mean(quantity)?, same.mean(quantity)?));
        let ((p95, p95_there), (hits, hits_there)) =
            (figure(Quantity::TtftP95)?, figure(Quantity::HitRate)?);
        Some(format!(
            "{label} {} and {} ({hits:.1} % and {hits_there:.1} % hits)",
            time_text(p95),
            time_text(p95_there)
        ))
    });
    let changes: Vec<String> = changes.collect();
    let condition = &first.cell.condition;
    format!(
        "{}, {} {} and {}: P95 TTFT is {}.",
        first.cell.workload,
        condition.sweep,
        condition.label,
        other.cell.condition.label,
        changes.join(", ")
    )
}
