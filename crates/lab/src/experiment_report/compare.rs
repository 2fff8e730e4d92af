//! Two experiments side by side: a simulation and a live run, or two versions of kvroute.
//!
//! Cells are matched by what was asked for: two loads that are the same share of the capacity match although the capacity
//! that was found differs. Where both have the same seeds the difference is taken seed by seed, else both are resampled,
//! each on its own, and the interval is widened as for the smaller of the two samples.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::axis::Axis;
use super::canvas::{Look, Looks};
use super::groups::{Grid, GridCell, Quantity, Scene, SceneKey};
use super::rows::{Marks, Row, Rows};
use super::tables::{Datum, Heading, Kind, Table, csv_text};
use super::words::Words;
use super::{
    Drawn, ExperimentReport, SCENES_MAX, Section, extent, figures, html, name_apart, optional,
};
use crate::columns::fixed;
use crate::report::signed;
use crate::statistics::interval_tail;
use crate::{Cell, Estimate, ExperimentResults};

/// What is compared.
const QUANTITIES: [Quantity; 5] = [
    Quantity::TtftP95,
    Quantity::TtftP50,
    Quantity::HitRate,
    Quantity::Imbalance,
    Quantity::Goodput,
];
/// Resamples of two samples that have no pairs.
const DRAWS: u32 = 4_000;

/// Two experiments side by side, each under a name: `("sim", …)`, `("live", …)`. A difference is the second less the first.
pub fn experiment_comparison(
    a: (&str, &ExperimentResults),
    b: (&str, &ExperimentResults),
) -> ExperimentReport {
    let names = [a.0, b.0];
    let grids = [Grid::new(a.1), Grid::new(b.1)];
    let matched = Matched::new(&grids);
    let words = words(names, &grids, &matched);
    let looks = Looks::new(&grids[0]);
    let mut sections = sections(names, &grids, &looks, &matched);
    name_apart(&mut sections);
    let title = format!("{}: {} against {}", a.1.about.title, b.0, a.0);
    let question = &a.1.about.question;
    let tables = vec![table(names, &grids, &matched)];
    ExperimentReport {
        html: html::page(&html::Page {
            title: &title,
            question,
            words: &words,
            sections: &sections,
            tables: &tables,
            warm_up: "",
            manifests: &[(a.0, &a.1.manifest), (b.0, &b.1.manifest)],
        }),
        figures: figures(sections),
        tables: tables.into_iter().map(Table::into_report).collect(),
        summary: words.plain(&title, question),
    }
}

/// Cells that both have.
struct Matched {
    /// Indices into the cells of the two, in the order of the first, with a comparison for each quantity.
    cells: Vec<([usize; 2], [Compared; QUANTITIES.len()])>,
    /// How many only one has.
    alone: [usize; 2],
}

/// One figure of a cell in both.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Compared {
    both: [Option<Estimate>; 2],
    /// The second less the first.
    difference: Option<Estimate>,
    verdict: Verdict,
}

/// What can be said of two figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Zero is in the interval of the difference.
    Agree,
    /// The second is surely lower.
    Lower,
    /// The second is surely higher.
    Higher,
    /// One has no interval; its value is in the other's.
    Inside,
    /// One has no interval; its value is not in the other's.
    Outside,
    /// Neither has an interval, or one was not measured.
    Unknown,
}

impl Verdict {
    const fn text(self) -> &'static str {
        match self {
            Self::Agree => "agree",
            Self::Lower => "lower",
            Self::Higher => "higher",
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Unknown => "-",
        }
    }
}

type CellKey<'a> = (SceneKey<'a>, &'a str);

fn key(cell: &Cell) -> CellKey<'_> {
    (SceneKey::new(cell).without_found_capacity(), &cell.policy)
}

impl Matched {
    fn new(grids: &[Grid<'_>; 2]) -> Self {
        let mut of_b: BTreeMap<CellKey<'_>, usize> = BTreeMap::new();
        for (index, cell) in grids[1].cells.iter().enumerate() {
            of_b.entry(key(cell.cell)).or_insert(index);
        }
        let mut cells = Vec::new();
        for (index, cell) in grids[0].cells.iter().enumerate() {
            // Each is matched once.
            let Some(other) = of_b.remove(&key(cell.cell)) else { continue };
            let compared =
                QUANTITIES.map(|quantity| compared(cell, &grids[1].cells[other], quantity));
            cells.push(([index, other], compared));
        }
        let alone = [0, 1].map(|which| grids[which].cells.len() - cells.len());
        Self { cells, alone }
    }

    /// The comparison of a cell of the first experiment.
    fn of(&self, index: usize) -> Option<&([usize; 2], [Compared; QUANTITIES.len()])> {
        let at = self.cells.binary_search_by_key(&index, |(cells, _)| cells[0]).ok()?;
        self.cells.get(at)
    }
}

fn compared(a: &GridCell<'_>, b: &GridCell<'_>, quantity: Quantity) -> Compared {
    let both = [a, b].map(|cell| cell.estimate(quantity));
    let seeds =
        |cell: &GridCell<'_>| -> Vec<u64> { cell.runs.iter().map(|run| run.result.seed).collect() };
    let difference = if seeds(a) == seeds(b) {
        b.against(a, quantity).map(|compared| compared.difference)
    } else {
        a.values(quantity).zip(b.values(quantity)).and_then(|(a, b)| unpaired(&a, &b))
    };
    Compared { both, difference, verdict: verdict(both, difference) }
}

fn verdict(both: [Option<Estimate>; 2], difference: Option<Estimate>) -> Verdict {
    let [Some(a), Some(b)] = both else { return Verdict::Unknown };
    if let Some((low, high)) = difference.and_then(|difference| difference.interval) {
        return if high < 0.0 {
            Verdict::Lower
        } else if low > 0.0 {
            Verdict::Higher
        } else {
            Verdict::Agree
        };
    }
    let (value, interval) = match (a.interval, b.interval) {
        (Some(interval), None) => (b.value, interval),
        (None, Some(interval)) => (a.value, interval),
        _ => return Verdict::Unknown,
    };
    if (interval.0..=interval.1).contains(&value) { Verdict::Inside } else { Verdict::Outside }
}

/// Whether two intervals have a value in common; `None` without two.
fn overlap(both: [Option<Estimate>; 2]) -> Option<bool> {
    let (a, b) = (both[0]?.interval?, both[1]?.interval?);
    Some(a.0 <= b.1 && b.0 <= a.1)
}

/// Difference of two means whose samples have no pairs; no interval if one of them is of too few seeds.
fn unpaired(a: &[f64], b: &[f64]) -> Option<Estimate> {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let seeds = a.len().min(b.len());
    if seeds == 0 {
        return None;
    }
    let interval = interval_tail(seeds).map(|tail| {
        let mut rng = ChaCha8Rng::seed_from_u64(seeds as u64);
        let mut resampled = |values: &[f64]| {
            let sum: f64 = values.iter().map(|_| values[rng.random_range(0..values.len())]).sum();
            sum / values.len() as f64
        };
        let mut draws: Vec<f64> = (0..DRAWS).map(|_| resampled(b) - resampled(a)).collect();
        draws.sort_by(f64::total_cmp);
        let bound = |level| crate::quantile(&draws, level).unwrap_or(f64::NAN);
        (bound(tail), bound(1.0 - tail))
    });
    Some(Estimate { value: mean(b) - mean(a), interval, seeds })
}

fn words(names: [&str; 2], grids: &[Grid<'_>; 2], matched: &Matched) -> Words {
    let [a, b] = names;
    let mut findings = Vec::new();
    let mut warnings = Vec::new();
    if matched.cells.is_empty() {
        findings.push(format!("{a} and {b} have no cell in common."));
    }
    for (nth, quantity) in QUANTITIES.into_iter().enumerate() {
        let of = |verdict: Verdict| {
            matched.cells.iter().filter(|(_, compared)| compared[nth].verdict == verdict).count()
        };
        let judged = matched.cells.len() - of(Verdict::Unknown);
        if judged == 0 {
            continue;
        }
        let (agree, lower, higher) = (of(Verdict::Agree), of(Verdict::Lower), of(Verdict::Higher));
        let (inside, outside) = (of(Verdict::Inside), of(Verdict::Outside));
        let mut parts = Vec::new();
        if agree + lower + higher > 0 {
            parts.push(format!(
                "no difference that the seeds show in {agree} of {} cells, {b} surely lower in {lower}, higher in {higher}",
                agree + lower + higher
            ));
        }
        if inside + outside > 0 {
            parts.push(format!(
                "of {} cells where one has a single seed, its value is inside the other's interval in {inside}",
                inside + outside
            ));
        }
        let size = |compared: &Compared| {
            let (difference, reference) = (compared.difference?, compared.both[0]?);
            let relative = difference.value / reference.value;
            relative.is_finite().then_some((relative, difference, reference))
        };
        let sized = matched
            .cells
            .iter()
            .filter_map(|(cells, compared)| Some((cells[0], size(&compared[nth])?, compared[nth])));
        let largest = sized.max_by(|x, y| x.1.0.abs().total_cmp(&y.1.0.abs()));
        let largest = largest.map_or_else(String::new, |(index, (relative, ..), compared)| {
            let cell = &grids[0].cells[index];
            format!(
                " The largest is {} % ({}, {}: {} against {} {}).",
                signed(Some(100.0 * relative), 1),
                cell.cell.policy,
                grids[0].scenes[cell.scene].name,
                fixed(compared.both[1].map(|estimate| estimate.value), quantity.decimals()),
                fixed(compared.both[0].map(|estimate| estimate.value), quantity.decimals()),
                quantity.unit(),
            )
        });
        findings.push(format!("{}: {}.{largest}", quantity.name(), parts.join("; ")));
    }
    findings.extend(same_winner(names, grids, matched));
    for (name, alone) in names.into_iter().zip(matched.alone) {
        if alone > 0 {
            warnings.push(format!("{alone} cells are in {name} alone and not compared."));
        }
    }
    let failed = |grid: &Grid<'_>| grid.cells.iter().map(GridCell::failed).sum::<u64>();
    for (name, grid) in names.into_iter().zip(grids) {
        if failed(grid) > 0 {
            warnings.push(format!("{} requests failed in {name}.", failed(grid)));
        }
    }
    let rates = matched.cells.iter().filter(|(cells, _)| {
        let rate = |which: usize| {
            grids[which].cells[cells[which]].cell.load.requests_per_s.map(f64::to_bits)
        };
        rate(0) != rate(1)
    });
    let rates = rates.count();
    if rates > 0 {
        warnings.push(format!(
            "{rates} cells have the same share of the capacity, but another rate: the capacity that was found differs."
        ));
    }
    Words { findings, warnings, ..Words::default() }
}

/// Whether the same policy is the fastest in both.
fn same_winner(names: [&str; 2], grids: &[Grid<'_>; 2], matched: &Matched) -> Option<String> {
    let mut scenes = 0;
    let mut others = Vec::new();
    for scene in &grids[0].scenes {
        let of_scene: Vec<_> = scene
            .cells
            .iter()
            .filter_map(|index| matched.of(*index))
            .map(|(cells, _)| *cells)
            .collect();
        let least = |which: usize| {
            let cells = of_scene.iter().map(|cells| &grids[which].cells[cells[which]]);
            Grid::least(cells, Quantity::TtftP95).map(|cell| cell.cell.policy.as_str())
        };
        let (Some(a), Some(b)) = (least(0), least(1)) else { continue };
        if of_scene.len() < 2 {
            continue;
        }
        scenes += 1;
        if a != b {
            others.push(format!("{}: {a} in {}, {b} in {}", scene.name, names[0], names[1]));
        }
    }
    if scenes == 0 {
        return None;
    }
    let same = scenes - others.len();
    let others =
        if others.is_empty() { String::new() } else { format!(" ({})", others.join("; ")) };
    Some(format!(
        "The policy with the least P95 TTFT is the same in {same} of {scenes} scenes{others}."
    ))
}

fn sections(
    names: [&str; 2],
    grids: &[Grid<'_>; 2],
    looks: &Looks,
    matched: &Matched,
) -> Vec<Section> {
    let with_cells =
        |scene: &&Scene<'_>| scene.cells.iter().any(|index| matched.of(*index).is_some());
    let scenes: Vec<_> = grids[0].scenes.iter().filter(with_cells).collect();
    let mut section = Section::new(
        "side-by-side",
        "Side by side",
        "Each figure in both experiments with its 95 % interval over seeds, then the relative difference.",
        Vec::new(),
    );
    section.groups = scenes
        .iter()
        .take(SCENES_MAX)
        .map(|scene| {
            let side =
                [Quantity::TtftP95, Quantity::HitRate, Quantity::Goodput].into_iter().filter_map(
                    |quantity| side_by_side(names, &grids[0], looks, matched, scene, quantity),
                );
            (scene.name.clone(), side.collect())
        })
        .collect();
    if scenes.len() > SCENES_MAX {
        section.omitted = format!(
            "{} more scenes are not drawn; tables/comparison.csv has their numbers.",
            scenes.len() - SCENES_MAX
        );
    }
    if section.is_empty() { Vec::new() } else { vec![section] }
}

fn side_by_side(
    names: [&str; 2],
    grid: &Grid<'_>,
    looks: &Looks,
    matched: &Matched,
    scene: &Scene<'_>,
    quantity: Quantity,
) -> Option<Drawn> {
    let nth = QUANTITIES.iter().position(|other| *other == quantity)?;
    let shown: Vec<&str> = grid.shown(scene).iter().map(|cell| cell.cell.policy.as_str()).collect();
    let of_scene = scene.cells.iter().filter_map(|index| matched.of(*index));
    let cells: Vec<(&str, Compared)> = of_scene
        .map(|(cells, compared)| (grid.cells[cells[0]].cell.policy.as_str(), compared[nth]))
        .filter(|(label, _)| shown.contains(label))
        .collect();
    let values: Vec<f64> = cells
        .iter()
        .flat_map(|(_, compared)| compared.both)
        .flatten()
        .flat_map(|estimate| extent(Some(estimate.value), estimate.interval))
        .collect();
    if values.is_empty() {
        return None;
    }
    let decimals = quantity.decimals();
    let mut rows = Vec::new();
    for (label, compared) in &cells {
        for (which, (name, estimate)) in names.into_iter().zip(compared.both).enumerate() {
            let verdict = match (which, compared.verdict) {
                (0, _) | (_, Verdict::Unknown) => String::new(),
                (_, verdict @ (Verdict::Lower | Verdict::Higher | Verdict::Outside)) => {
                    format!(" {}", verdict.text())
                }
                (_, Verdict::Agree | Verdict::Inside) => " ≈".to_owned(),
            };
            let value = fixed(estimate.map(|estimate| estimate.value), decimals);
            rows.push(Row {
                name: if which == 0 { format!("{label} {name}") } else { name.to_owned() },
                look: Look { dash: 0, ..looks.of(label) },
                marks: estimate.map_or(Marks::Nothing, |estimate| {
                    Marks::Dot(estimate.value, estimate.interval)
                }),
                label: format!("{value}{verdict}"),
            });
        }
    }
    let [a, b] = names;
    let figure = Rows {
        title: format!("{a} and {b}: {}, {}", quantity.name(), scene.name),
        note: format!(
            "Mean over seeds with its 95 % interval. ≈: no difference that the seeds show; lower, higher: {b} surely is. Where one has a single \
             seed: ≈ or outside the interval of the other."
        ),
        axis: Axis::from_zero(quantity.axis(), values),
        entries: rows,
        references: Vec::new(),
        parts: Vec::new(),
    };
    let data = cells.iter().map(|(label, compared)| {
        let mut row = vec![(*label).to_owned()];
        for estimate in [compared.both[0], compared.both[1], compared.difference] {
            let (low, high) = estimate.and_then(|estimate| estimate.interval).unzip();
            row.extend([estimate.map(|estimate| estimate.value), low, high].map(optional));
        }
        row.push(compared.verdict.text().to_owned());
        row
    });
    let mut header = vec!["policy".to_owned()];
    for what in [a, b, "difference"] {
        let stem = format!("{what}_{}", quantity.key());
        header.extend([stem.clone(), format!("{stem}_low"), format!("{stem}_high")]);
    }
    header.push("verdict".to_owned());
    Some(Drawn {
        name: format!("{}-{}", scene.slug, crate::report::slug(quantity.name())),
        svg: figure.to_svg(),
        csv: csv_text(header, data),
    })
}

fn table(names: [&str; 2], grids: &[Grid<'_>; 2], matched: &Matched) -> Table {
    let [a, b] = names;
    let mut columns = vec![
        Heading::text("scene"),
        Heading::text("policy"),
        Heading::text("figure"),
        Heading::text("unit"),
        Heading::new(a, "first", Kind::Estimate),
        Heading::new(b, "second", Kind::Estimate),
        Heading::new(format!("{b} less {a}"), "difference", Kind::Estimate),
        Heading::new("relative, %", "relative_percent", Kind::Number),
    ];
    columns.push(Heading::text("intervals overlap"));
    columns.push(Heading::new(format!("{b} is"), "verdict", Kind::Text));
    let mut rows = Vec::new();
    for (cells, of_cell) in &matched.cells {
        let cell = &grids[0].cells[cells[0]];
        for (quantity, compared) in QUANTITIES.into_iter().zip(of_cell) {
            let decimals = quantity.decimals();
            let reference = compared.both[0].filter(|estimate| estimate.value > 0.0);
            let relative = compared.difference.zip(reference);
            let relative = relative.map(|(difference, of)| 100.0 * difference.value / of.value);
            let overlap = match overlap(compared.both) {
                None => "-",
                Some(true) => "yes",
                Some(false) => "no",
            };
            rows.push(vec![
                Datum::Text(grids[0].scenes[cell.scene].name.clone()),
                Datum::Text(cell.cell.policy.clone()),
                Datum::Text(quantity.name().to_owned()),
                Datum::Text(quantity.unit().to_owned()),
                Datum::estimate(compared.both[0], decimals),
                Datum::estimate(compared.both[1], decimals),
                Datum::difference(compared.difference, decimals),
                Datum::number(relative, 1),
                Datum::Text(overlap.to_owned()),
                Datum::Text(compared.verdict.text().to_owned()),
            ]);
        }
    }
    Table { name: "comparison", columns, rows }
}
