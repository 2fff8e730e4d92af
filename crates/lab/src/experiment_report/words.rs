//! What the numbers say, in sentences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::axis::{short, time_text};
use super::groups::{
    Grid, GridCell, Quantity, Scene, SceneKey, common_load_unit, load_number, load_text,
};
use super::losses::{Losses, of_kinds};
use super::maps::{AlphaBeta, Gain};
use super::sweep_words;
use super::sweeps;
use super::tables::is_steady;
use crate::columns::fixed;
use crate::report::signed;
use crate::{Estimate, ExperimentResults};

/// Seeds that an interval should stand on.
const SEEDS_MIN: usize = 5;
/// Sentences of one sort that are written out: a reader has a dozen in all.
const SENTENCES_MAX: usize = 8;

/// Sentences under headings; not escaped.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Words {
    /// What all scenes have in common; empty for nothing.
    pub(super) common: String,
    /// What was found.
    pub(super) findings: Vec<String>,
    /// What to be careful with.
    pub(super) warnings: Vec<String>,
}

impl Words {
    pub(super) fn new(
        results: &ExperimentResults,
        grid: &Grid<'_>,
        losses: &Losses,
        maps: &[AlphaBeta],
        gains: &[Gain<'_>],
    ) -> Self {
        if grid.cells.is_empty() {
            return Self { findings: vec!["There are no runs.".to_owned()], ..Self::default() };
        }
        let plain: Vec<&Scene<'_>> = plain_scenes(grid);
        let mut findings = capped(bests(grid, &plain), "tables/best");
        findings.extend(capped(harm(grid, losses), "tables/losses"));
        findings.extend(maps.iter().flat_map(|map| robust_region(grid, map)));
        findings.extend(capped(sweep_words::staleness(grid), "tables/cells"));
        findings.extend(factors(grid, gains));
        Self { common: common(grid), findings, warnings: warnings(results, grid, &plain) }
    }

    /// For a terminal.
    pub(super) fn plain(&self, title: &str, question: &str) -> String {
        let mut lines = vec![title.to_owned()];
        let opening = [question, &self.common].into_iter().filter(|text| !text.is_empty());
        lines.extend(opening.map(str::to_owned));
        lines.push(String::new());
        lines.extend(self.findings.iter().map(|sentence| format!("- {sentence}")));
        if !self.warnings.is_empty() {
            lines.extend([String::new(), "Warnings".to_owned()]);
            lines.extend(self.warnings.iter().map(|sentence| format!("- {sentence}")));
        }
        lines.join("\n") + "\n"
    }
}

/// What is the same in all scenes, and so not in their names.
fn common(grid: &Grid<'_>) -> String {
    let loads: BTreeSet<_> = grid.scenes.iter().map(|scene| load_text(&scene.cell.load)).collect();
    let sizes: BTreeSet<u32> = grid.scenes.iter().map(|scene| scene.cell.instances).collect();
    let mut parts = Vec::new();
    if loads.len() == 1 {
        parts.extend(loads.into_iter().flatten());
    }
    if let (1, Some(size)) = (sizes.len(), sizes.first()) {
        parts.push(format!("{size} instance{}", if *size == 1 { "" } else { "s" }));
    }
    let mut sentences = Vec::new();
    if !parts.is_empty() {
        sentences.push(format!("Everywhere: {}.", parts.join(", ")));
    }
    let short_names: BTreeSet<(&str, &str)> = grid
        .cells
        .iter()
        .map(|cell| (cell.name.as_str(), cell.cell.policy.as_str()))
        .filter(|(name, label)| name != label)
        .collect();
    if (1..=SHORT_NAMES_MAX).contains(&short_names.len()) {
        let named = short_names.iter().map(|(name, label)| format!("{name} is {label}"));
        sentences.push(format!("In figures, {}.", named.collect::<Vec<_>>().join(", ")));
    }
    sentences.join(" ")
}

/// Short names of policies that are explained; of more, their weights say it all.
const SHORT_NAMES_MAX: usize = 3;

/// Scenes that are worth a sentence and figures of their own: not each point of a sweep or of a grid of factors.
pub(super) fn plain_scenes<'g, 'a>(grid: &'g Grid<'a>) -> Vec<&'g Scene<'a>> {
    let is_plain =
        |scene: &&Scene<'_>| scene.cell.factors.is_empty() && scene.cell.condition.sweep.is_empty();
    let plain: Vec<_> = grid.scenes.iter().filter(is_plain).collect();
    if !plain.is_empty() {
        return plain;
    }
    // Sweeps alone: the reference of the first, of each workload; all values of one that has no numbers.
    let mut seen = BTreeSet::new();
    let mut scenes = Vec::new();
    for sweep in sweeps::sweeps(grid) {
        let Some(reference) = grid.reference(&sweep) else { continue };
        if sweep.iter().all(|scene| scene.cell.condition.value.is_none()) {
            scenes.extend(sweep);
        } else if seen.insert(SceneKey::new(reference.cell).without_condition()) {
            scenes.push(reference);
        }
    }
    scenes
}

fn capped(mut sentences: Vec<String>, table: &str) -> Vec<String> {
    let more = sentences.len().saturating_sub(SENTENCES_MAX);
    if more > 0 {
        sentences.truncate(SENTENCES_MAX);
        sentences.push(format!("{more} more are in {table}."));
    }
    sentences
}

/// `35.2 % less (95 % interval 30.1 to 39.9 % less)`, or that there is no difference.
pub(super) fn change(relative: Estimate) -> String {
    let percent = |share: f64| 100.0 * share;
    let word = if relative.value < 0.0 { "less" } else { "more" };
    let size = |share: f64| fixed(Some(percent(share).abs()), 1);
    match relative.interval {
        None => format!("{} % {word} (too few seeds for an interval)", size(relative.value)),
        Some((low, high)) if relative.is_nonzero() => {
            let (near, far) = if relative.value < 0.0 { (high, low) } else { (low, high) };
            format!(
                "{} % {word} (95 % interval: {} to {} % {word})",
                size(relative.value),
                size(near),
                size(far)
            )
        }
        Some((low, high)) => format!(
            "{} % {word}, which is no difference that the seeds show (95 % interval: {} to {} %)",
            size(relative.value),
            signed(Some(percent(low)), 1),
            signed(Some(percent(high)), 1)
        ),
    }
}

fn best(grid: &Grid<'_>, scene: &Scene<'_>) -> String {
    let name = &scene.name;
    let Some(best) = Grid::least(grid.contenders(scene), Quantity::TtftP95) else {
        return format!("{name}: no policy has a P95 TTFT over all of its seeds.");
    };
    let label = &best.cell.policy;
    let ms = |cell: &GridCell<'_>| {
        cell.mean(Quantity::TtftP95).map_or_else(|| "-".to_owned(), time_text)
    };
    let against = match grid.baseline_of(scene) {
        None => "there is no baseline to compare with".to_owned(),
        Some(baseline) if std::ptr::eq(baseline, best) => "it is the baseline".to_owned(),
        Some(baseline) => {
            let of = &baseline.cell.policy;
            match grid.against_baseline(best).and_then(|compared| compared.relative) {
                Some(relative) => {
                    format!("against {of} ({}) that is {}", ms(baseline), change(relative))
                }
                None => format!("{of} has none to compare with"),
            }
        }
    };
    let hits = best.mean(Quantity::HitRate).map_or_else(String::new, |rate| {
        let bound = best.mean(Quantity::InfiniteHitRate).map_or_else(String::new, |bound| {
            format!(" (an infinite cache: {} %)", fixed(Some(bound), 1))
        });
        format!(" Its hit rate is {} %{bound}.", fixed(Some(rate), 1))
    });
    format!("{name}: {label} has the least P95 TTFT, {}; {against}.{hits}", ms(best))
}

/// Which policy is best where: a sentence for each workload, the largest gain first.
fn bests(grid: &Grid<'_>, scenes: &[&Scene<'_>]) -> Vec<String> {
    let mut workloads: Vec<(&str, Vec<&Scene<'_>>)> = Vec::new();
    for scene in scenes {
        let workload = scene.cell.workload.as_str();
        match workloads.iter_mut().find(|(known, _)| *known == workload) {
            Some((_, of_workload)) => of_workload.push(scene),
            None => workloads.push((workload, vec![scene])),
        }
    }
    let mut found: Vec<(f64, String)> = workloads
        .into_iter()
        .map(|(workload, scenes)| {
            let sentence = match scenes.as_slice() {
                [scene] => best(grid, scene),
                _ => bests_of_workload(grid, workload, &scenes),
            };
            let changes = scenes.iter().filter_map(|scene| best_against(grid, scene));
            (changes.map(|relative| relative.value).fold(0.0, f64::min), sentence)
        })
        .collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.into_iter().map(|(_, sentence)| sentence).collect()
}

/// The best policy of a scene against the baseline; `None` where it is the baseline.
fn best_against(grid: &Grid<'_>, scene: &Scene<'_>) -> Option<Estimate> {
    let best = Grid::least(grid.contenders(scene), Quantity::TtftP95)?;
    grid.against_baseline(best)?.relative
}

fn bests_of_workload(grid: &Grid<'_>, workload: &str, scenes: &[&Scene<'_>]) -> String {
    let label = |scene: &Scene<'_>| {
        let best = Grid::least(grid.contenders(scene), Quantity::TtftP95);
        best.map_or_else(|| "none".to_owned(), |cell| cell.cell.policy.clone())
    };
    let labels: BTreeSet<String> = scenes.iter().map(|scene| label(scene)).collect();
    let of_workload = |scene: &Scene<'_>| {
        let name = scene.name.strip_prefix(workload).unwrap_or(&scene.name);
        name.trim_start_matches(", ").to_owned()
    };
    let mut text = match labels.first() {
        Some(one) if labels.len() == 1 => format!(
            "{workload}: {one} has the least P95 TTFT in {} scenes ({}).",
            if scenes.len() == 2 { "both".to_owned() } else { format!("all {}", scenes.len()) },
            span(scenes)
        ),
        _ => format!(
            "{workload}: the policy with the least P95 TTFT is {}.",
            runs(scenes, &label, &of_workload)
        ),
    };
    let changes = scenes.iter().filter_map(|scene| Some((*scene, best_against(grid, scene)?)));
    let mut changes: Vec<(&Scene<'_>, Estimate)> = changes.collect();
    changes.sort_by(|a, b| b.1.value.total_cmp(&a.1.value));
    if let (Some((least_at, least)), Some((most_at, most))) = (changes.first(), changes.last()) {
        let baseline = grid.baseline_of(most_at).map_or("", |cell| &cell.cell.policy);
        let placed = |relative: Estimate, scene: &Scene<'_>| {
            format!("{}; {})", change(relative).trim_end_matches(')'), of_workload(scene))
        };
        let most = placed(*most, most_at);
        let that = if changes.len() > 1 {
            format!("from {} to {most}", placed(*least, least_at))
        } else {
            most
        };
        // Writing to a string cannot fail; so below.
        let _ = write!(text, " Against {baseline} that is {that}.");
        let others = scenes.len() - changes.len();
        if others > 0 {
            let _ =
                write!(text, " In {others} of {} scenes it is the baseline itself.", scenes.len());
        }
    }
    text
}

/// Where each label is, along the loads and numbers of instances.
fn runs(
    scenes: &[&Scene<'_>],
    label: &dyn Fn(&Scene<'_>) -> String,
    name: &dyn Fn(&Scene<'_>) -> String,
) -> String {
    let is_condition = scenes.iter().any(|scene| !scene.cell.condition.sweep.is_empty());
    let load = |scene: &Scene<'_>| load_number(&scene.cell.load).map_or(0.0, |(value, _)| value);
    let Some(unit) = common_load_unit(scenes).filter(|_| !is_condition) else {
        return listed(scenes, label, name);
    };
    let sizes: BTreeSet<u32> = scenes.iter().map(|scene| scene.cell.instances).collect();
    let loads = |size: u32| {
        let mut of_size: Vec<_> =
            scenes.iter().filter(|scene| scene.cell.instances == size).copied().collect();
        of_size.sort_by(|a, b| load(a).total_cmp(&load(b)));
        of_size
    };
    // One load for each size: along the sizes.
    if sizes.iter().all(|size| loads(*size).len() == 1) {
        let along: Vec<_> = sizes
            .iter()
            .flat_map(|size| loads(*size))
            .map(|scene| (label(scene), scene.cell.instances.to_string()))
            .collect();
        return stretches(&along, "with ", " instances");
    }
    let mut of_sizes: Vec<(String, Vec<u32>)> = Vec::new();
    for size in sizes {
        let along: Vec<_> =
            loads(size).into_iter().map(|scene| (label(scene), short(load(scene)))).collect();
        let text = stretches(&along, "at ", unit.suffix());
        match of_sizes.iter_mut().find(|(known, _)| *known == text) {
            Some((_, same)) => same.push(size),
            None => of_sizes.push((text, vec![size])),
        }
    }
    if let [(text, _)] = of_sizes.as_slice() {
        return text.clone();
    }
    let of_size = |(text, sizes): &(String, Vec<u32>)| {
        let sizes: Vec<_> = sizes.iter().map(u32::to_string).collect();
        format!("with {} instances {text}", sizes.join(" and "))
    };
    of_sizes.iter().map(of_size).collect::<Vec<_>>().join("; ")
}

/// `jsq at 50 to 70 and 90 %, p2c at 80 %`, of labels along a line.
fn stretches(along: &[(String, String)], before: &str, after: &str) -> String {
    let mut of_labels: Vec<(&str, Vec<(&str, &str)>)> = Vec::new();
    let mut last = None;
    for (label, value) in along {
        let place = of_labels.iter().position(|(known, _)| known == label).unwrap_or_else(|| {
            of_labels.push((label, Vec::new()));
            of_labels.len() - 1
        });
        let stretches = &mut of_labels[place].1;
        match stretches.last_mut() {
            Some(stretch) if last == Some(label) => stretch.1 = value,
            _ => stretches.push((value, value)),
        }
        last = Some(label);
    }
    let text = |(label, stretches): &(&str, Vec<(&str, &str)>)| {
        let each = stretches.iter().map(|(from, to)| {
            if from == to { (*from).to_owned() } else { format!("{from} to {to}") }
        });
        format!("{label} {before}{}{after}", each.collect::<Vec<_>>().join(" and "))
    };
    of_labels.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// `jsq in 3 of 4 scenes, p2c in 1 (…)`, where scenes are along no line.
fn listed(
    scenes: &[&Scene<'_>],
    label: &dyn Fn(&Scene<'_>) -> String,
    name: &dyn Fn(&Scene<'_>) -> String,
) -> String {
    const NAMED_MAX: usize = 3;
    let mut of_labels: Vec<(String, Vec<String>)> = Vec::new();
    for scene in scenes {
        let label = label(scene);
        match of_labels.iter_mut().find(|(known, _)| *known == label) {
            Some((_, names)) => names.push(name(scene)),
            None => of_labels.push((label, vec![name(scene)])),
        }
    }
    of_labels.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    let text = |(label, names): &(String, Vec<String>)| {
        let named = if names.len() <= NAMED_MAX {
            format!(" ({})", names.join("; "))
        } else {
            String::new()
        };
        format!("{label} in {} of {} scenes{named}", names.len(), scenes.len())
    };
    of_labels.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// Loads and numbers of instances of some scenes, from the least to the most.
fn span(scenes: &[&Scene<'_>]) -> String {
    let mut parts = Vec::new();
    let loads = scenes.iter().filter_map(|scene| load_number(&scene.cell.load));
    let loads: Vec<f64> = loads.map(|(value, _)| value).collect();
    let ends = |values: &[f64]| {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if least < most { format!("{} to {}", short(least), short(most)) } else { short(least) }
    };
    if let Some(unit) = common_load_unit(scenes) {
        parts.push(format!("{}{}", ends(&loads), unit.suffix()));
    }
    let mut sweeps: Vec<(&str, Vec<&str>)> = Vec::new();
    for condition in scenes.iter().map(|scene| &scene.cell.condition) {
        let label = condition.label.as_str();
        match sweeps.iter_mut().find(|(known, _)| *known == condition.sweep) {
            Some((_, labels)) if labels.contains(&label) => {}
            Some((_, labels)) => labels.push(label),
            None => sweeps.push((&condition.sweep, vec![label])),
        }
    }
    if sweeps.iter().map(|(_, labels)| labels.len()).sum::<usize>() > 1 {
        let of_sweep =
            |(sweep, labels): &(&str, Vec<&str>)| format!("{sweep} {}", labels.join(" and "));
        return sweeps.iter().map(of_sweep).collect::<Vec<_>>().join(", ");
    }
    let sizes: Vec<f64> = scenes.iter().map(|scene| f64::from(scene.cell.instances)).collect();
    parts.push(format!("{} instances", ends(&sizes)));
    parts.join("; ")
}

/// Where knowing the caches does harm: a sentence for each kind of policy, the worst first.
fn harm(grid: &Grid<'_>, found: &Losses) -> Vec<String> {
    if found.sure.is_empty() {
        let none = "No cache-aware policy, under any of its settings, has a P95 TTFT that is surely above that of round-robin or \
                    jsq in any scene.";
        return if found.is_judged { vec![none.to_owned()] } else { Vec::new() };
    }
    of_kinds(grid, &found.sure)
        .into_iter()
        .map(|kind| {
            let worst = kind.worst;
            let cell = &grid.cells[worst.cell];
            let scene = &grid.scenes[cell.scene];
            let (low, high) = worst.interval;
            let by = if worst.share < 9.0 {
                let percent = |share: f64| fixed(Some(100.0 * share), 1);
                format!(
                    "{} % above {} (95 % interval: {} to {} %)",
                    percent(worst.share),
                    worst.against,
                    percent(low),
                    percent(high)
                )
            } else {
                let times = |share: f64| short((1.0 + share).round());
                format!(
                    "{} times that of {} (95 % interval: {} to {} times)",
                    times(worst.share),
                    worst.against,
                    times(low),
                    times(high)
                )
            };
            let which = if kind.settings > 1 {
                format!("{} on {}", cell.cell.policy, scene.name)
            } else {
                scene.name.clone()
            };
            let head = if kind.settings > 1 {
                format!(
                    "{}: settings whose P95 TTFT is surely above that of round-robin or jsq",
                    kind.kind
                )
            } else {
                format!("{}: P95 TTFT surely above that of round-robin or jsq", kind.kind)
            };
            format!("{head}: {}. The worst is {which}, {by}.", kind.places.join("; "))
        })
        .collect()
}

fn robust_region(grid: &Grid<'_>, map: &AlphaBeta) -> Vec<String> {
    const NAMED_MAX: usize = 12;
    let Some((safest, worst)) = map.safest() else {
        return vec!["No setting of α and β was measured in every scene.".to_owned()];
    };
    let robust = map.robust();
    let of_variant =
        if map.variant.is_empty() { String::new() } else { format!(" ({})", map.variant) };
    let scenes = map.scenes.len();
    let everywhere = if scenes == 1 {
        "of the best setting".to_owned()
    } else {
        format!("of the best setting in each of {scenes} scenes")
    };
    let least = format!(
        "The safest is {}, at worst {} % above the best{}.",
        map.weights(safest),
        fixed(Some(100.0 * worst), 1),
        worst_at(grid, map, safest)
    );
    if robust.is_empty() {
        return vec![format!(
            "load-cache{of_variant}: no setting of α and β is within 5 % {everywhere}. {least}"
        )];
    }
    let named: Vec<_> =
        robust.iter().take(NAMED_MAX).map(|setting| map.weights(*setting)).collect();
    let more = robust.len() - named.len();
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    vec![format!(
        "load-cache{of_variant}: the robust region, settings with a P95 TTFT within 5 % {everywhere}, is {} of {} settings: \
         {}{more}. {least}",
        robust.len(),
        map.worst.len(),
        named.join("; ")
    )]
}

/// Where a setting costs most, if there is more than one place.
fn worst_at(grid: &Grid<'_>, map: &AlphaBeta, setting: super::maps::Setting) -> String {
    let shares = map.scenes.iter().zip(&map.regrets);
    let shares =
        shares.filter_map(|(scene, of_scene)| Some((*scene, of_scene.get(&setting)?.share)));
    let most = shares.max_by(|a, b| a.1.total_cmp(&b.1));
    match most {
        Some((scene, share)) if map.scenes.len() > 1 && share > 0.0 => {
            format!(" ({})", grid.scenes[scene].name)
        }
        _ => String::new(),
    }
}

/// Where cache-aware routing gains and where it loses.
fn factors(grid: &Grid<'_>, gains: &[Gain<'_>]) -> Vec<String> {
    if gains.is_empty() {
        return Vec::new();
    }
    let sure = |is: &dyn Fn(f64) -> bool| {
        gains.iter().filter(|gain| gain.share.is_nonzero() && is(gain.share.value)).count()
    };
    let (better, worse) = (sure(&|gain| gain > 0.0), sure(&|gain| gain < 0.0));
    let mut sentences = vec![format!(
        "Over {} points of the factor grid the best cache-aware policy has a lower P95 TTFT than the best load-only one in \
         {better}, a higher one in {worse}, and no difference that the seeds show in {}.",
        gains.len(),
        gains.len() - better - worse
    )];
    let at = |gain: &Gain<'_>| {
        let factors: Vec<_> =
            gain.factors.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let scene = &grid.scenes[gain.scene].name;
        if factors.is_empty() { scene.clone() } else { factors.join(", ") }
    };
    let by = |a: &&Gain<'_>, b: &&Gain<'_>| a.share.value.total_cmp(&b.share.value);
    let extremes = [
        ("largest gain", gains.iter().max_by(by).filter(|gain| gain.share.value > 0.0)),
        ("largest loss", gains.iter().min_by(by).filter(|gain| gain.share.value < 0.0)),
    ];
    for (what, gain) in extremes {
        if let Some(gain) = gain {
            sentences.push(format!(
                "The {what} is at {}: {} against {}, P95 TTFT {}.",
                at(gain),
                gain.cache_aware,
                gain.load_only,
                change(Estimate {
                    value: -gain.share.value,
                    interval: gain.share.interval.map(|(low, high)| (-high, -low)),
                    ..gain.share
                })
            ));
        }
    }
    sentences
}

fn warnings(results: &ExperimentResults, grid: &Grid<'_>, plain: &[&Scene<'_>]) -> Vec<String> {
    let mut warnings = Vec::new();
    let few = grid.cells.iter().filter(|cell| cell.runs.len() < SEEDS_MIN).count();
    if few > 0 {
        warnings.push(format!(
            "{few} of {} cells have fewer than {SEEDS_MIN} seeds: their intervals are wide or missing.",
            grid.cells.len()
        ));
    }
    if grid.repeated > 0 {
        warnings.push(format!(
            "{} runs were left out: their cell and seed were there already.",
            grid.repeated
        ));
    }
    let failed: u64 = results.runs.iter().map(|run| run.result.failed).sum();
    if failed > 0 {
        let requests: u64 = results.runs.iter().map(|run| run.result.requests).sum();
        let most = grid.cells.iter().max_by_key(|cell| cell.failed());
        let most = most.map_or_else(String::new, |cell| {
            let scene = &grid.scenes[cell.scene].name;
            format!("; most of one cell: {} ({}, {scene})", cell.failed(), cell.cell.policy)
        });
        warnings.push(format!(
            "{failed} of {requests} requests failed. They have no latency and miss the SLO{most}."
        ));
    }
    let unmeasured =
        grid.cells.iter().filter(|cell| cell.mean(Quantity::TtftP95).is_none()).count();
    if unmeasured > 0 {
        warnings.push(format!(
            "{unmeasured} cells have a seed without any TTFT: they have no mean and are in no comparison."
        ));
    }
    let not_steady = results.runs.iter().filter(|run| !is_steady(run)).count();
    if not_steady > 0 {
        warnings.push(format!(
            "{not_steady} of {} runs were not seen to be steady when their warm-up ended: their figures may still move with \
             the length of the run. They are {}.",
            results.runs.len(),
            unsteady_places(results)
        ));
    }
    let without = grid.scenes.iter().filter(|scene| scene.baseline.is_none()).count();
    if without > 0 {
        warnings.push(format!(
            "{without} scenes have no run of the baseline {}: nothing is compared there.",
            results.about.baseline
        ));
    }
    warnings.extend(small_effects(grid, plain));
    warnings
}

/// Where runs were not steady: by workload and load, most first; by load alone where there are many workloads.
fn unsteady_places(results: &ExperimentResults) -> String {
    const NAMED_MAX: usize = 8;
    const WORKLOADS_MAX: usize = 8;
    let workloads: BTreeSet<&str> =
        results.runs.iter().map(|run| run.cell.workload.as_str()).collect();
    let mut places: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for run in &results.runs {
        let load = load_text(&run.cell.load);
        let place = match load {
            Some(load) if workloads.len() > WORKLOADS_MAX => format!("at {load}"),
            Some(load) => format!("{} at {load}", run.cell.workload),
            None => run.cell.workload.clone(),
        };
        let count = places.entry(place).or_default();
        count.0 += usize::from(!is_steady(run));
        count.1 += 1;
    }
    let mut places: Vec<_> =
        places.into_iter().filter(|(_, (unsteady, _))| *unsteady > 0).collect();
    places.sort_by_key(|(_, (unsteady, _))| std::cmp::Reverse(*unsteady));
    let named = places.iter().take(NAMED_MAX);
    let named: Vec<String> =
        named.map(|(place, (unsteady, all))| format!("{place} {unsteady} of {all}")).collect();
    let rest: usize = places.iter().skip(NAMED_MAX).map(|(_, (unsteady, _))| unsteady).sum();
    let rest = if rest > 0 { format!("; elsewhere {rest}") } else { String::new() };
    format!("{}{rest}", named.join("; "))
}

/// Effects that may be chance, by policy.
fn small_effects(grid: &Grid<'_>, scenes: &[&Scene<'_>]) -> Option<String> {
    const NAMED_MAX: usize = 2;
    let mut small: Vec<(&str, Vec<&str>)> = Vec::new();
    for scene in scenes {
        for cell in grid.one_of_each_kind(scene) {
            let Some(compared) = grid.against_baseline(cell) else { continue };
            let is_unsure =
                compared.difference.interval.is_some() && !compared.difference.is_nonzero();
            if compared.is_within_seed_spread || is_unsure {
                let label = cell.cell.policy.as_str();
                match small.iter_mut().find(|(known, _)| *known == label) {
                    Some((_, names)) => names.push(&scene.name),
                    None => small.push((label, vec![&scene.name])),
                }
            }
        }
    }
    small.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    let named = small.iter().map(|(label, names)| {
        if names.len() <= NAMED_MAX {
            format!("{label} on {}", names.join(" and "))
        } else {
            format!("{label} in {} of {} scenes", names.len(), scenes.len())
        }
    });
    let named: Vec<_> = named.take(SENTENCES_MAX).collect();
    (!small.is_empty()).then(|| {
        format!(
            "Differences of P95 TTFT from the baseline that are smaller than its spread from seed to seed, or whose interval \
             includes 0: {}.",
            named.join("; ")
        )
    })
}
