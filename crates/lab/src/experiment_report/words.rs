//! What the numbers say, in sentences.

use super::groups::{Grid, GridCell, Quantity, Scene, is_near};
use super::maps::{AlphaBeta, Gain};
use super::sweeps;
use super::tables::is_steady;
use crate::columns::fixed;
use crate::report::signed;
use crate::{Estimate, ExperimentResults};

/// Seeds that an interval should stand on.
const SEEDS_MIN: usize = 5;
/// Sentences of one sort that are written out.
const SENTENCES_MAX: usize = 24;

/// Sentences under headings; not escaped.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Words {
    /// What was found.
    pub(super) findings: Vec<String>,
    /// What to be careful with.
    pub(super) warnings: Vec<String>,
}

impl Words {
    pub(super) fn new(
        results: &ExperimentResults,
        grid: &Grid<'_>,
        maps: &[AlphaBeta],
        gains: &[Gain<'_>],
    ) -> Self {
        if grid.cells.is_empty() {
            return Self { findings: vec!["There are no runs.".to_owned()], warnings: Vec::new() };
        }
        let mut findings = Vec::new();
        let plain: Vec<&Scene<'_>> = plain_scenes(grid);
        findings
            .extend(capped(plain.iter().map(|scene| best(grid, scene)).collect(), "tables/best"));
        findings.extend(losses(grid, &plain));
        findings.extend(maps.iter().flat_map(robust_region));
        findings.extend(capped(staleness(grid), "tables/cells"));
        findings.extend(factors(grid, gains));
        Self { findings, warnings: warnings(results, grid, &plain) }
    }

    /// For a terminal.
    pub(super) fn plain(&self, title: &str, question: &str) -> String {
        let mut lines = vec![title.to_owned()];
        lines.extend((!question.is_empty()).then(|| question.to_owned()));
        lines.push(String::new());
        lines.extend(self.findings.iter().map(|sentence| format!("- {sentence}")));
        if !self.warnings.is_empty() {
            lines.extend([String::new(), "Warnings".to_owned()]);
            lines.extend(self.warnings.iter().map(|sentence| format!("- {sentence}")));
        }
        lines.join("\n") + "\n"
    }
}

/// Scenes that are worth a sentence and figures of their own: not each point of a sweep or of a grid of factors.
pub(super) fn plain_scenes<'g, 'a>(grid: &'g Grid<'a>) -> Vec<&'g Scene<'a>> {
    let is_plain =
        |scene: &&Scene<'_>| scene.cell.factors.is_empty() && scene.cell.condition.sweep.is_empty();
    let plain: Vec<_> = grid.scenes.iter().filter(is_plain).collect();
    if !plain.is_empty() {
        return plain;
    }
    // Sweeps alone: where each begins.
    sweeps::sweeps(grid).into_iter().filter_map(|scenes| scenes.first().copied()).collect()
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
fn change(relative: Estimate) -> String {
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
    let Some(best) = Grid::least(grid.cells_of(scene), Quantity::TtftP95) else {
        return format!("{name}: no policy has a P95 TTFT over all of its seeds.");
    };
    let label = &best.cell.policy;
    let ms = |cell: &GridCell<'_>| fixed(cell.mean(Quantity::TtftP95), 0);
    let against = match grid.baseline_of(scene) {
        None => "there is no baseline to compare with".to_owned(),
        Some(baseline) if std::ptr::eq(baseline, best) => "it is the baseline".to_owned(),
        Some(baseline) => {
            let of = &baseline.cell.policy;
            match grid.against_baseline(best).and_then(|compared| compared.relative) {
                Some(relative) => {
                    format!("against {of} ({} ms) that is {}", ms(baseline), change(relative))
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
    format!("{name}: {label} has the least P95 TTFT, {} ms; {against}.{hits}", ms(best))
}

/// Where knowing the caches does harm: a sentence for each scene.
fn losses(grid: &Grid<'_>, scenes: &[&Scene<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    let mut is_any_sure = false;
    for scene in scenes {
        let cells = grid.one_of_each_kind(scene);
        let blind = cells.iter().filter(|cell| matches!(cell.kind, "round-robin" | "jsq"));
        let mut of_scene = Vec::new();
        for other in blind {
            for cell in cells.iter().filter(|cell| !cell.is_load_only()) {
                let compared = cell.against(other, Quantity::TtftP95);
                let relative = compared.and_then(|compared| compared.relative);
                let Some((relative, (low, high))) = relative.and_then(|r| Some((r, r.interval?)))
                else {
                    continue;
                };
                is_any_sure = true;
                if low > 0.0 {
                    of_scene.push(format!(
                        "{} than {} by {} % ({} to {} %)",
                        cell.cell.policy,
                        other.cell.policy,
                        fixed(Some(100.0 * relative.value), 1),
                        fixed(Some(100.0 * low), 1),
                        fixed(Some(100.0 * high), 1),
                    ));
                }
            }
        }
        if !of_scene.is_empty() {
            found.push(format!(
                "{}: higher P95 TTFT although it knows the caches: {}.",
                scene.name,
                of_scene.join(", ")
            ));
        }
    }
    if found.is_empty() && is_any_sure {
        return vec![
            "No cache-aware policy has a P95 TTFT that is surely above that of round-robin or jsq."
                .to_owned(),
        ];
    }
    capped(found, "tables/cells")
}

fn robust_region(map: &AlphaBeta) -> Vec<String> {
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
        "The safest is {}, at worst {} % above the best.",
        map.weights(safest),
        fixed(Some(100.0 * worst), 1)
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

/// The largest value of each sweep at which a policy is still as good as at its first.
fn staleness(grid: &Grid<'_>) -> Vec<String> {
    let mut sentences = Vec::new();
    for scenes in sweeps::sweeps(grid) {
        let mut scenes = scenes;
        // None is more than any number: `never`.
        scenes.sort_by(|a, b| {
            let of = |scene: &Scene<'_>| scene.cell.condition.value.unwrap_or(f64::INFINITY);
            of(a).total_cmp(&of(b))
        });
        let Some(first) = scenes.first().copied() else { continue };
        if scenes.iter().all(|scene| scene.cell.condition.value.is_none()) {
            sentences.extend(scenes[1..].iter().map(|scene| against(grid, first, scene)));
            continue;
        }
        let mut borne: Vec<String> = Vec::new();
        for cell in grid.one_of_each_kind(first) {
            let Some(reference) = cell.mean(Quantity::TtftP95) else { continue };
            let label = cell.cell.policy.as_str();
            let is_borne = |scene: &&&Scene<'_>| {
                let cell = grid.cells_of(scene).find(|cell| cell.cell.policy == label);
                let p95 = cell.and_then(|cell| cell.mean(Quantity::TtftP95));
                p95.is_some_and(|p95| is_near(p95 / reference - 1.0))
            };
            let last = scenes.iter().take_while(is_borne).last().copied().unwrap_or(first);
            let is_all = scenes.last().is_some_and(|scene| std::ptr::eq(*scene, last));
            borne.push(if is_all {
                format!("{label} at every value")
            } else {
                format!("{label} up to {}", last.cell.condition.label)
            });
        }
        let condition = &first.cell.condition;
        let of_value = format!(", {} {}", condition.sweep, condition.label);
        let what = first.name.replacen(&of_value, "", 1);
        sentences.push(format!(
            "{}, {what}: P95 TTFT stays within 5 % of that at {}: {}.",
            condition.sweep,
            condition.label,
            borne.join(", ")
        ));
    }
    sentences
}

/// Two conditions that are no numbers, side by side.
fn against(grid: &Grid<'_>, first: &Scene<'_>, other: &Scene<'_>) -> String {
    let changes = grid.one_of_each_kind(first).into_iter().filter_map(|cell| {
        let label = cell.cell.policy.as_str();
        let same = grid.cells_of(other).find(|cell| cell.cell.policy == label)?;
        let figure = |quantity| Some((cell.mean(quantity)?, same.mean(quantity)?));
        let ((p95, p95_there), (hits, hits_there)) =
            (figure(Quantity::TtftP95)?, figure(Quantity::HitRate)?);
        Some(format!(
            "{label} {p95:.0} ms and {p95_there:.0} ms ({hits:.1} % and {hits_there:.1} % hits)"
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
             the length of the run.",
            results.runs.len()
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

/// Effects that may be chance.
fn small_effects(grid: &Grid<'_>, scenes: &[&Scene<'_>]) -> Option<String> {
    const NAMED_MAX: usize = 6;
    let mut small = Vec::new();
    for scene in scenes {
        for cell in grid.one_of_each_kind(scene) {
            let Some(compared) = grid.against_baseline(cell) else { continue };
            let is_unsure =
                compared.difference.interval.is_some() && !compared.difference.is_nonzero();
            if compared.is_within_seed_spread || is_unsure {
                small.push(format!("{} on {}", cell.cell.policy, scene.name));
            }
        }
    }
    let more = small.len().saturating_sub(NAMED_MAX);
    let named = small.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join("; ");
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    (!small.is_empty()).then(|| {
        format!(
            "Differences of P95 TTFT from the baseline that are smaller than its spread from seed to seed, or whose interval \
             includes 0: {named}{more}."
        )
    })
}
