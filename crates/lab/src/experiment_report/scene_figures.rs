//! Figures of one scene: its policies beside each other.

use std::collections::BTreeMap;

use super::axis::{Axis, short, time_text, time_unit};
use super::canvas::{Look, Looks};
use super::groups::{Grid, GridCell, Quantity, Scene, pareto_front};
use super::lines::{Labels, Line, Lines, Panel, Point};
use super::rows::{Marks, Row, Rows};
use super::scatter::{Dot, Scatter};
use super::strips::{Sample, Strip, Strips};
use super::tables::csv_text;
use super::{Drawn, extent, optional};
use crate::columns::fixed;
use crate::report::signed;
use crate::{ExperimentRun, quantile};

/// Reasons that are told apart; all others are one.
const REASONS_MAX: usize = 7;
/// Share of decisions from which on a reason is the only one.
const SINGLE_REASON: f64 = 0.995;
/// Names of points that are shown.
const NAMES_MAX: usize = 10;

/// Below so many requests in every queue there is nothing to see.
const QUEUE_MIN: f64 = 0.1;
/// Above this change, a factor is read more easily than a percentage.
const CHANGE_MAX: f64 = 4.0;

/// All figures that a scene has the data for, and that say something.
pub(super) fn of_scene(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Vec<Drawn> {
    let figures = [
        ttft_distribution(grid, looks, scene),
        relative_ttft(grid, looks, scene),
        hit_rate(grid, looks, scene),
        spread_over_instances(grid, looks, scene),
        queue_depth(grid, looks, scene),
        receipts(grid, looks, scene),
    ];
    figures.into_iter().flatten().collect()
}

fn header(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ttft_distribution(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Option<Drawn> {
    let mut curves: Vec<(&GridCell<'_>, Vec<f64>)> = grid
        .one_of_each_kind(scene)
        .into_iter()
        .filter_map(|cell| Some((cell, mean_quantiles(cell)?)))
        .collect();
    let p95 = |quantiles: &[f64]| quantile_at(quantiles, 0.95);
    curves.sort_by(|a, b| p95(&a.1).total_cmp(&p95(&b.1)));
    if curves.is_empty() {
        return None;
    }
    let shares = |quantiles: &[f64]| -> Vec<f64> {
        let last = (quantiles.len() - 1) as f64;
        (0..quantiles.len()).map(|nth| nth as f64 / last).collect()
    };
    let most_ms = curves.iter().filter_map(|(_, quantiles)| quantiles.last().copied());
    let (unit, per_ms) = time_unit(most_ms.fold(0.0, f64::max));
    let line = |(cell, quantiles): &(&GridCell<'_>, Vec<f64>)| Line {
        name: cell.name.clone(),
        look: looks.of(&cell.cell.policy),
        points: shares(quantiles)
            .into_iter()
            .zip(quantiles)
            // The slowest percent would stretch the axis.
            .filter(|(share, _)| *share < 0.995)
            .map(|(share, ms)| Point { x: per_ms * *ms, y: Some(100.0 * share), interval: None })
            .collect(),
    };
    let lines: Vec<_> = curves.iter().map(line).collect();
    let values: Vec<f64> =
        lines.iter().flat_map(|line| line.points.iter().map(|point| point.x)).collect();
    let y = Axis::from_zero("requests served up to that TTFT, %", [0.0, 100.0]);
    let mut panel = Panel::new(y, lines);
    panel.labels = Labels::Listed;
    panel.rules.push(95.0);
    let figure = Lines::new(
        format!("Distribution of TTFT, {}", scene.name),
        "Further left is faster. Dashed: 95 % of requests; policies are listed by the TTFT at which they reach it, the \
               fastest first. Mean of each quantile over the seeds, up to P99."
            .to_owned(),
        Axis::log_if_wide(format!("TTFT, {unit}"), values),
        vec![panel],
    );
    let rows = curves.iter().flat_map(|(cell, quantiles)| {
        shares(quantiles).into_iter().zip(quantiles).map(|(share, ms)| {
            vec![cell.cell.policy.clone(), fixed(Some(share), 2), ms.to_string()]
        })
    });
    Some(Drawn {
        name: format!("{}-ttft-cdf", scene.slug),
        svg: figure.to_svg(),
        csv: csv_text(header(&["policy", "share", "ttft_ms"]), rows),
    })
}

/// The mean over the seeds of each quantile; `None` unless every seed has as many.
fn mean_quantiles(cell: &GridCell<'_>) -> Option<Vec<f64>> {
    let of_seeds: Vec<&Vec<f64>> = cell
        .runs
        .iter()
        .map(|run| run.ttft_quantiles.as_ref().map(|quantiles| &quantiles.ms))
        .collect::<Option<_>>()?;
    let count = of_seeds.first()?.len();
    if count < 2 || of_seeds.iter().any(|ms| ms.len() != count) {
        return None;
    }
    let seeds = of_seeds.len() as f64;
    let mean = |nth: usize| of_seeds.iter().map(|ms| ms[nth]).sum::<f64>() / seeds;
    Some((0..count).map(mean).collect())
}

/// A quantile of a distribution that is given by its quantiles.
fn quantile_at(quantiles: &[f64], share: f64) -> f64 {
    quantile(quantiles, share).unwrap_or(f64::INFINITY)
}

fn relative_ttft(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Option<Drawn> {
    let baseline = grid.baseline_of(scene)?;
    let of_baseline = baseline.estimate(Quantity::TtftP95)?;
    let others: Vec<_> = grid
        .shown(scene)
        .into_iter()
        .filter(|cell| cell.cell.policy != baseline.cell.policy)
        .map(|cell| (cell, grid.against_baseline(cell).and_then(|compared| compared.relative)))
        .collect();
    if others.iter().all(|(_, relative)| relative.is_none()) {
        return None;
    }
    let values: Vec<f64> = others
        .iter()
        .filter_map(|(_, relative)| *relative)
        .flat_map(|relative| extent(Some(relative.value), relative.interval))
        .collect();
    // One that collapsed would hide what there is between the others.
    let is_factor = values.iter().any(|share| *share > CHANGE_MAX);
    let shown = |share: f64| if is_factor { 1.0 + share } else { 100.0 * share };
    let both = |(low, high): (f64, f64)| (shown(low), shown(high));
    let shown_values = values.iter().map(|share| shown(*share));
    let axis = if is_factor {
        Axis::log("times the baseline's P95 TTFT (less is better)", shown_values.chain([1.0]))
    } else {
        Axis::from_zero("change of P95 TTFT, % (less is better)", shown_values)
    };
    let row = |(cell, relative): &(&GridCell<'_>, Option<crate::Estimate>)| Row {
        name: cell.name.clone(),
        look: looks.of(&cell.cell.policy),
        marks: relative.map_or(Marks::Nothing, |relative| {
            Marks::Dot(shown(relative.value), relative.interval.map(both))
        }),
        label: relative.map_or_else(
            || "not measured".to_owned(),
            |relative| {
                if relative.value > CHANGE_MAX {
                    format!("× {}", short(1.0 + relative.value))
                } else {
                    format!("{} %", signed(Some(100.0 * relative.value), 1))
                }
            },
        ),
    };
    let label = &baseline.cell.policy;
    let figure = Rows {
        title: format!("P95 TTFT against {label}, {}", scene.name),
        note: "Change of the mean over seeds, with its 95 % interval over seeds met by both. An interval that crosses the \
               dashed line: no difference is shown."
            .to_owned(),
        axis,
        entries: others.iter().map(row).collect(),
        references: vec![(shown(0.0), format!("{label}: {}", time_text(of_baseline.value)))],
        parts: Vec::new(),
    };
    let rows = others.iter().map(|(cell, relative)| {
        let (low, high) = relative.and_then(|relative| relative.interval).unzip();
        let fields = [relative.map(|relative| relative.value), low, high];
        let fields = fields.map(|share| optional(share.map(|share| 100.0 * share)));
        let mut row = vec![cell.cell.policy.clone()];
        row.extend(fields);
        row
    });
    let names = [
        "policy",
        "ttft_p95_relative_percent",
        "ttft_p95_relative_percent_low",
        "ttft_p95_relative_percent_high",
    ];
    Some(Drawn {
        name: format!("{}-ttft-p95-relative", scene.slug),
        svg: figure.to_svg(),
        csv: csv_text(header(&names), rows),
    })
}

fn hit_rate(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Option<Drawn> {
    let bounds = Quantity::BOUNDS.into_iter().filter_map(|(name, quantity)| {
        let bound = grid.cells_of(scene).find_map(|cell| cell.mean(quantity))?;
        Some(Reference { name, key: quantity.key(), value: bound })
    });
    bars(
        (grid, looks, scene),
        Quantity::HitRate,
        "Hit rate",
        "Share of prompt tokens found in a prefix cache, with its 95 % interval over seeds; dashed: one cache that begins \
         empty and serves all instances, as large as theirs together or, the infinite one, without eviction.",
        &bounds.collect::<Vec<_>>(),
    )
}

/// Nothing where hardly any request waits.
fn queue_depth(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Option<Drawn> {
    let depths = grid.shown(scene).into_iter().filter_map(|cell| cell.mean(Quantity::QueueDepth));
    if depths.fold(0.0, f64::max) < QUEUE_MIN {
        return None;
    }
    bars(
        (grid, looks, scene),
        Quantity::QueueDepth,
        "Queue depth",
        "Requests that wait in an instance's queue, mean over time and instances, with its 95 % interval over seeds.",
        &[],
    )
}

/// What bars are compared with.
struct Reference {
    /// To be read.
    name: &'static str,
    /// In CSV.
    key: &'static str,
    value: f64,
}

/// References with what is said of them; those that look the same are told together.
fn told(references: &[Reference], unit: &str, decimals: usize) -> Vec<(f64, String)> {
    let mut told: Vec<(f64, String, String)> = Vec::new();
    for Reference { name, value, .. } in references {
        let shown = fixed(Some(*value), decimals);
        match told.iter_mut().find(|(.., known)| *known == shown) {
            Some((_, names, _)) => *names = format!("{names}, {name}"),
            None => told.push((*value, (*name).to_owned(), shown)),
        }
    }
    told.into_iter()
        .map(|(value, names, shown)| (value, format!("{names}: {shown}{unit}")))
        .collect()
}

/// A bar of one figure for each policy.
fn bars(
    (grid, looks, scene): (&Grid<'_>, &Looks, &Scene<'_>),
    quantity: Quantity,
    title: &str,
    note: &str,
    references: &[Reference],
) -> Option<Drawn> {
    let cells: Vec<_> =
        grid.shown(scene).into_iter().map(|cell| (cell, cell.estimate(quantity))).collect();
    if cells.iter().all(|(_, estimate)| estimate.is_none()) {
        return None;
    }
    let values = cells
        .iter()
        .filter_map(|(_, estimate)| *estimate)
        .flat_map(|estimate| extent(Some(estimate.value), estimate.interval));
    let values = values.chain(references.iter().map(|reference| reference.value));
    let unit = match quantity.unit() {
        "%" => " %",
        _ => "",
    };
    let row = |(cell, estimate): &(&GridCell<'_>, Option<crate::Estimate>)| Row {
        name: cell.name.clone(),
        look: looks.of(&cell.cell.policy),
        marks: estimate
            .map_or(Marks::Nothing, |estimate| Marks::Bar(estimate.value, estimate.interval)),
        label: estimate.map_or_else(
            || "not measured".to_owned(),
            |estimate| match estimate.value {
                value if value >= 100.0 && unit.is_empty() => short(value),
                value => format!("{}{unit}", fixed(Some(value), quantity.decimals())),
            },
        ),
    };
    let figure = Rows {
        title: format!("{title}, {}", scene.name),
        note: note.to_owned(),
        axis: Axis::from_zero(quantity.axis(), values),
        entries: cells.iter().map(row).collect(),
        references: told(references, unit, quantity.decimals()),
        parts: Vec::new(),
    };
    let rows = cells.iter().map(|(cell, estimate)| {
        let (low, high) = estimate.and_then(|estimate| estimate.interval).unzip();
        let value = estimate.map(|estimate| estimate.value);
        let mut row = vec![cell.cell.policy.clone()];
        row.extend([value, low, high].map(optional));
        row.extend(references.iter().map(|reference| optional(Some(reference.value))));
        row
    });
    let key = quantity.key();
    let (low, high) = (format!("{key}_low"), format!("{key}_high"));
    let mut names = vec!["policy", key, &low, &high];
    names.extend(references.iter().map(|reference| reference.key));
    Some(Drawn {
        name: format!("{}-{}", scene.slug, crate::report::slug(title)),
        svg: figure.to_svg(),
        csv: csv_text(header(&names), rows),
    })
}

/// How far instances are from their fair share, over instances and seeds.
fn spread_over_instances(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Option<Drawn> {
    let cells: Vec<_> = grid
        .shown(scene)
        .into_iter()
        .map(|cell| (cell, five_numbers(relative_requests(cell)), cell.mean(Quantity::Imbalance)))
        .collect();
    if cells.iter().all(|(_, five, imbalance)| five.is_none() && imbalance.is_none()) {
        return None;
    }
    let values = cells.iter().flat_map(|(_, five, imbalance)| {
        five.iter().flatten().copied().chain(*imbalance).collect::<Vec<_>>()
    });
    let row = |(cell, five, imbalance): &(&GridCell<'_>, Option<[f64; 5]>, Option<f64>)| Row {
        name: cell.name.clone(),
        look: looks.of(&cell.cell.policy),
        marks: five.map_or(Marks::Nothing, |five| Marks::Box(five, *imbalance)),
        label: format!("× {}", fixed(*imbalance, 2)),
    };
    let figure = Rows {
        title: format!("Imbalance, {}", scene.name),
        note: "Box: requests that an instance got, over the mean instance, for all instances and seeds (whiskers: least and \
               most). ×: time-mean requests in flight of the busiest instance over the mean one, mean over seeds."
            .to_owned(),
        axis: Axis::around("instance / mean instance (1 is even)", values.chain([0.9, 1.1])),
        entries: cells.iter().map(row).collect(),
        references: vec![(1.0, "even".to_owned())],
        parts: Vec::new(),
    };
    let rows = cells.iter().map(|(cell, five, imbalance)| {
        let five = five.map_or([None; 5], |five| five.map(Some));
        let mut row = vec![cell.cell.policy.clone()];
        row.extend(five.map(optional));
        row.push(optional(*imbalance));
        row
    });
    let names = [
        "policy",
        "requests_over_mean_min",
        "requests_over_mean_p25",
        "requests_over_mean_p50",
        "requests_over_mean_p75",
        "requests_over_mean_max",
        "imbalance_max_over_mean",
    ];
    Some(Drawn {
        name: format!("{}-imbalance", scene.slug),
        svg: figure.to_svg(),
        csv: csv_text(header(&names), rows),
    })
}

fn relative_requests(cell: &GridCell<'_>) -> Vec<f64> {
    let of_run = |run: &&ExperimentRun| {
        let requests = run.result.per_instance.iter().map(|instance| instance.requests);
        let requests: Vec<u64> = requests.collect();
        let mean = requests.iter().sum::<u64>() as f64 / requests.len() as f64;
        requests
            .into_iter()
            .filter(move |_| mean > 0.0)
            .map(move |count| count as f64 / mean)
            .collect::<Vec<_>>()
    };
    cell.runs.iter().flat_map(of_run).collect()
}

fn five_numbers(mut values: Vec<f64>) -> Option<[f64; 5]> {
    values.sort_by(f64::total_cmp);
    let at = |share| quantile(&values, share);
    Some([at(0.0)?, at(0.25)?, at(0.5)?, at(0.75)?, at(1.0)?])
}

/// Why the router chose as it did.
fn receipts(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Option<Drawn> {
    let cells: Vec<_> =
        grid.shown(scene).into_iter().map(|cell| (cell, counts_of_reasons(cell))).collect();
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in cells.iter().flat_map(|(_, counts)| counts) {
        *totals.entry(reason).or_default() += count;
    }
    // Nothing where each policy has a single reason: it is the policy's name in other words.
    let is_single = |counts: &BTreeMap<&str, u64>| {
        let all: u64 = counts.values().sum();
        let most = counts.values().max().copied().unwrap_or(0);
        most as f64 >= SINGLE_REASON * all as f64
    };
    if cells.iter().all(|(_, counts)| is_single(counts)) {
        return None;
    }
    let mut parts: Vec<&str> = totals.keys().copied().collect();
    parts.sort_by_key(|reason| std::cmp::Reverse(totals[reason]));
    // One alone has its name.
    let kept = if parts.len() == REASONS_MAX + 1 { parts.len() } else { REASONS_MAX };
    let others = parts.split_off(parts.len().min(kept));
    let place = |reason: &str| parts.iter().position(|part| *part == reason);
    let row = |(cell, counts): &(&GridCell<'_>, BTreeMap<&str, u64>)| {
        let all: u64 = counts.values().sum();
        let mut shares: BTreeMap<usize, f64> = BTreeMap::new();
        for (reason, count) in counts {
            let share = 100.0 * *count as f64 / all as f64;
            *shares.entry(place(reason).unwrap_or(parts.len())).or_default() += share;
        }
        Row {
            name: cell.name.clone(),
            look: looks.of(&cell.cell.policy),
            marks: if shares.is_empty() {
                Marks::Nothing
            } else {
                Marks::Parts(shares.into_iter().collect())
            },
            label: String::new(),
        }
    };
    let mut named: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
    if !others.is_empty() {
        named.push(format!("{} others", others.len()));
    }
    let figure = Rows {
        title: format!("Receipts by reason, {}", scene.name),
        note: "Why the policy chose the instance: share of all decisions, over seeds.".to_owned(),
        axis: Axis::from_zero("decisions, %", [0.0, 100.0]),
        entries: cells.iter().map(row).collect(),
        references: Vec::new(),
        parts: named,
    };
    let rows = cells.iter().flat_map(|(cell, counts)| {
        let all: u64 = counts.values().sum();
        counts.iter().map(move |(reason, count)| {
            let share = 100.0 * *count as f64 / all as f64;
            vec![
                cell.cell.policy.clone(),
                (*reason).to_owned(),
                count.to_string(),
                share.to_string(),
            ]
        })
    });
    Some(Drawn {
        name: format!("{}-receipts", scene.slug),
        svg: figure.to_svg(),
        csv: csv_text(header(&["policy", "reason", "decisions", "share_percent"]), rows),
    })
}

fn counts_of_reasons<'a>(cell: &GridCell<'a>) -> BTreeMap<&'a str, u64> {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for (reason, count) in cell.runs.iter().flat_map(|run| &run.result.reasons) {
        *counts.entry(reason.as_str()).or_default() += count;
    }
    counts
}

/// Hit rate against what it costs: imbalance, and P95 TTFT.
pub(super) fn fronts(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>) -> Vec<Drawn> {
    let against = [Quantity::Imbalance, Quantity::TtftP95];
    against.into_iter().filter_map(|cost| front(grid, looks, scene, cost)).collect()
}

fn front(grid: &Grid<'_>, looks: &Looks, scene: &Scene<'_>, cost: Quantity) -> Option<Drawn> {
    const CELLS_MIN: usize = 3;
    let cells: Vec<(&GridCell<'_>, (f64, f64))> = grid
        .cells_of(scene)
        .filter_map(|cell| Some((cell, (cell.mean(Quantity::HitRate)?, cell.mean(cost)?))))
        .collect();
    if cells.len() < CELLS_MIN {
        return None;
    }
    let points: Vec<_> = cells.iter().map(|(_, at)| *at).collect();
    let most = points.iter().map(|(_, cost)| *cost).fold(0.0, f64::max);
    let (unit, factor) =
        if cost == Quantity::TtftP95 { time_unit(most) } else { (cost.unit(), 1.0) };
    let front = pareto_front(&points);
    // With many settings only the front's ends and one policy of each kind have names.
    let named: Vec<&str> = if cells.len() <= NAMES_MAX {
        cells.iter().map(|(cell, _)| cell.cell.policy.as_str()).collect()
    } else {
        let of_kinds = grid.one_of_each_kind(scene);
        let mut named: Vec<_> = of_kinds.iter().map(|cell| cell.cell.policy.as_str()).collect();
        let ends = front.first().into_iter().chain(front.last());
        named.extend(ends.map(|nth| cells[*nth].0.cell.policy.as_str()));
        named
    };
    let dot = |(cell, at): &(&GridCell<'_>, (f64, f64))| {
        let label = &cell.cell.policy;
        let is_named = named.contains(&label.as_str());
        let interval = |quantity| cell.estimate(quantity).and_then(|estimate| estimate.interval);
        Dot {
            name: match is_named {
                true if cells.len() > NAMES_MAX => short_name(cell),
                true => cell.name.clone(),
                false => String::new(),
            },
            look: Look { dash: 0, ..looks.of(label) },
            at: (at.0, factor * at.1),
            x_interval: if is_named { interval(Quantity::HitRate) } else { None },
            y_interval: if is_named {
                interval(cost).map(|(low, high)| (factor * low, factor * high))
            } else {
                None
            },
        }
    };
    let dots: Vec<_> = cells.iter().map(dot).collect();
    let hits: Vec<_> = dots.iter().flat_map(|dot| extent(Some(dot.at.0), dot.x_interval)).collect();
    let costs: Vec<_> =
        dots.iter().flat_map(|dot| extent(Some(dot.at.1), dot.y_interval)).collect();
    let y_name = if cost == Quantity::TtftP95 {
        format!("{}, {unit} (less is better)", cost.name())
    } else {
        format!("{} (less is better)", cost.axis())
    };
    let (least, most) = (
        costs.iter().copied().fold(f64::INFINITY, f64::min),
        costs.iter().copied().fold(0.0, f64::max),
    );
    let is_wide = cost == Quantity::TtftP95 && most > 10.0 * least;
    let figure = Scatter {
        title: format!("Hit rate against {}, {}", cost.name(), scene.name),
        note: "Right and low is better. Dashed: the front, policies that no other beats in both. Bars: 95 % intervals over seeds."
            .to_owned(),
        x: Axis::around("hit rate, % (more is better)", hits),
        y: if is_wide { Axis::log(y_name, costs) } else { Axis::around(y_name, costs) },
        points: dots,
        front: front.clone(),
    };
    let rows = cells.iter().enumerate().map(|(nth, (cell, at))| {
        let is_on_front = front.contains(&nth);
        vec![cell.cell.policy.clone(), at.0.to_string(), at.1.to_string(), is_on_front.to_string()]
    });
    let columns = ["policy", Quantity::HitRate.key(), cost.key(), "is_on_front"];
    Some(Drawn {
        name: format!("{}-front-{}", scene.slug, crate::report::slug(cost.name())),
        svg: figure.to_svg(),
        csv: csv_text(header(&columns), rows),
    })
}

/// A policy's label, or its weights alone where those tell it apart.
fn short_name(cell: &GridCell<'_>) -> String {
    match cell.alpha_beta() {
        Some((alpha, beta)) if cell.cell.policy != cell.kind => {
            format!("α {} β {}", short(alpha), short(beta))
        }
        _ => cell.name.clone(),
    }
}

/// What the instances did over time under each policy, of the first seed whose timelines were kept.
pub(super) fn timelines(grid: &Grid<'_>, scene: &Scene<'_>) -> Option<Drawn> {
    let is_kept = |run: &&&ExperimentRun| {
        run.timeline.as_ref().is_some_and(|timeline| !timeline.instances.is_empty())
    };
    let cells = grid
        .shown(scene)
        .into_iter()
        .filter_map(|cell| Some((cell, cell.runs.iter().find(is_kept).copied()?)));
    let cells: Vec<(&GridCell<'_>, &ExperimentRun)> = cells.collect();
    let (_, first) = cells.first()?;
    let strip = |(cell, run): &(&GridCell<'_>, &ExperimentRun)| {
        Some(Strip::new(cell.name.clone(), run.timeline.as_ref()?))
    };
    let figure = Strips {
        title: format!("Instances over time, {} (seed {})", scene.name, first.result.seed),
        warm_up_s: first.warm_up_s,
        policies: cells.iter().filter_map(strip).collect(),
    };
    let rows = cells.iter().zip(&figure.policies).flat_map(|((cell, run), strip)| {
        strip.samples.iter().map(|sample| {
            let mut row = vec![cell.cell.policy.clone(), run.result.seed.to_string()];
            let Sample { time_s, running, waiting, busiest, usage } = sample;
            row.push(fixed(Some(*time_s), 2));
            row.extend([running, waiting, busiest, usage].map(|value| fixed(Some(*value), 3)));
            row
        })
    });
    let names = [
        "policy",
        "seed",
        "time_s",
        "running_mean",
        "waiting_mean",
        "in_flight_of_busiest_instance",
        "kv_cache_usage_mean",
    ];
    Some(Drawn {
        name: format!("{}-timeline", scene.slug),
        svg: figure.to_svg(),
        csv: csv_text(header(&names), rows),
    })
}
