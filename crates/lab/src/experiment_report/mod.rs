//! The report of an experiment: one page with figures and tables, and each of them as a file.
//!
//! What is drawn follows from the data: a section is there if some cells have what it shows (several loads, weights of
//! cache and load, a sweep, several numbers of instances, factors, timelines). All intervals are of 95 % over seeds
//! ([`crate::mean`], [`crate::compare`]); a figure that one seed lacks is missing, not the mean of the others. The output
//! depends on the results alone.

mod axis;
mod canvas;
mod compare;
mod groups;
mod heat;
mod html;
mod lines;
mod losses;
mod maps;
mod png;
mod ranking;
mod ratios;
mod rows;
mod scatter;
mod scene_figures;
mod strips;
mod sweep_words;
mod sweeps;
mod tables;
mod words;

use std::collections::BTreeSet;

use crate::ExperimentResults;
use canvas::Looks;
pub use compare::experiment_comparison;
use groups::Grid;
use maps::AlphaBeta;
pub use png::{PngError, svg_to_png};
use ranking::Ranking;
use words::Words;

/// Figures that a section draws at most; the tables have every number.
const FIGURES_MAX: usize = 240;
/// Scenes that have figures of their own at most.
const SCENES_MAX: usize = 40;

/// A report, as it is written to files.
#[derive(Clone, Debug, PartialEq)]
pub struct ExperimentReport {
    /// The page: needs no other file and no network.
    pub html: String,
    /// Every figure, those that the page has no room for too.
    pub figures: Vec<ReportFigure>,
    /// Every table.
    pub tables: Vec<ReportTable>,
    /// What was found, as plain text for a terminal.
    pub summary: String,
}

/// A figure and its data.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportFigure {
    /// Unique; of `a-z`, `0-9` and `-`, so that it can name a file.
    pub name: String,
    /// An image that stands for itself; [`svg_to_png`] makes a picture of it.
    pub svg: String,
    /// What is drawn, as CSV (RFC 4180, but `\n` ends a line); the header names columns with their units.
    pub csv: String,
}

/// A table in the forms that papers and notebooks want.
#[derive(Clone, Debug, PartialEq)]
pub struct ReportTable {
    /// Unique; of `a-z` and `-`, so that it can name a file.
    pub name: String,
    /// To be read; an interval stands behind its figure: `812 [790, 840]`.
    pub markdown: String,
    /// All digits, bounds of intervals in columns of their own; empty means unmeasured.
    pub csv: String,
    /// A `tabular` that needs the package `booktabs`.
    pub latex: String,
}

/// The report of an experiment.
pub fn experiment_report(results: &ExperimentResults) -> ExperimentReport {
    let grid = Grid::new(results);
    let looks = Looks::new(&grid);
    let maps = AlphaBeta::all(&grid);
    let gains = maps::gains(&grid);
    let losses = losses::losses(&grid);
    let words = Words::new(results, &grid, &losses, &maps, &gains);

    let ranking = Ranking::of(&grid);
    let mut sections = sections(&grid, &looks, &maps, &gains, ranking.as_ref());
    name_apart(&mut sections);
    let mut tables = vec![tables::best(&grid), tables::cells(&grid), tables::warm_up(&grid)];
    tables.extend(ranking.as_ref().map(Ranking::table));
    tables.extend(ranking.as_ref().and_then(Ranking::parts_table));
    if !losses.sure.is_empty() {
        tables.push(tables::losses(&grid, &losses.sure));
    }
    if !maps.is_empty() {
        tables.push(tables::regret(&grid, &maps));
    }
    if !results.capacities.is_empty() {
        tables.push(tables::capacity(&results.capacities));
    }
    ExperimentReport {
        html: html::page(&html::Page {
            title: &results.about.title,
            question: &results.about.question,
            words: &words,
            sections: &sections,
            tables: &tables,
            warm_up: &results.about.warm_up,
            manifests: &[("", &results.manifest)],
        }),
        figures: figures(sections),
        tables: tables.into_iter().map(tables::Table::into_report).collect(),
        summary: words.plain(&results.about.title, &results.about.question),
    }
}

/// A figure as it is drawn.
struct Drawn {
    name: String,
    svg: String,
    csv: String,
}

/// Figures that belong together.
struct Section {
    id: &'static str,
    title: &'static str,
    /// How to read them.
    intro: &'static str,
    /// Each under a heading, which may be empty.
    groups: Vec<(String, Vec<Drawn>)>,
    /// What was not drawn; empty for nothing.
    omitted: String,
}

impl Section {
    fn new(
        id: &'static str,
        title: &'static str,
        intro: &'static str,
        figures: Vec<Drawn>,
    ) -> Self {
        let mut figures = figures;
        let more = figures.len().saturating_sub(FIGURES_MAX);
        figures.truncate(FIGURES_MAX);
        let omitted = if more > 0 {
            format!("{more} more are not drawn; tables/cells.csv has their numbers.")
        } else {
            String::new()
        };
        Self { id, title, intro, groups: vec![(String::new(), figures)], omitted }
    }

    fn is_empty(&self) -> bool {
        self.groups.iter().all(|(_, figures)| figures.is_empty())
    }
}

fn sections(
    grid: &Grid<'_>,
    looks: &Looks,
    maps: &[AlphaBeta],
    gains: &[maps::Gain<'_>],
    ranking: Option<&Ranking>,
) -> Vec<Section> {
    let plain = words::plain_scenes(grid);
    let drawn = || plain.iter().take(SCENES_MAX);
    let mut scenes = Section {
        groups: drawn()
            .map(|scene| (scene.name.clone(), scene_figures::of_scene(grid, looks, scene)))
            .collect(),
        ..Section::new(
            "scenes",
            "Policies side by side",
            "Every policy met the same requests at the same times, seed by seed.",
            Vec::new(),
        )
    };
    if plain.len() > SCENES_MAX {
        scenes.omitted = format!(
            "{} more scenes are not drawn; tables/cells.csv has their numbers.",
            plain.len() - SCENES_MAX
        );
    }
    if !scenes.is_empty() {
        let silent = "What would say nothing is not drawn: queues where no policy's is above 0.1 requests, reasons where each \
                      policy has a single one.";
        let omitted = format!("{silent} {}", scenes.omitted);
        omitted.trim_end().clone_into(&mut scenes.omitted);
    }
    let mut weights = ratios::ratios(grid, maps);
    weights.extend(maps.iter().filter_map(maps::worst_regret));
    weights.extend(maps::alpha_beta(grid, maps));
    let mut factors = maps::factor_maps(gains);
    factors.extend(maps::factor_lines(gains));
    let fronts = drawn().flat_map(|scene| scene_figures::fronts(grid, looks, scene)).collect();
    let timelines =
        grid.scenes.iter().filter_map(|scene| scene_figures::timelines(grid, scene)).collect();
    // What the experiment varies comes first.
    let mut sections = vec![
        Section::new(
            "weights",
            "Weights of cache and load",
            "load-cache scores an instance by α times the share of the prompt that it has cached, less β times its relative \
             load. Only their ratio decides: settings on a line through the origin are one policy, but for ties that rounding \
             breaks.",
            weights,
        ),
        Section::new(
            "staleness",
            "One setting at a time",
            "What changes when one setting of the cluster is another and all others stay.",
            sweeps::staleness(grid, looks),
        ),
        Section::new(
            "scaling",
            "Number of instances",
            "The same load for each instance, on more of them.",
            sweeps::scaling(grid, looks),
        ),
        Section::new(
            "factors",
            "Where cache-aware routing pays",
            "The gain of the best cache-aware policy over the best load-only one (round-robin, jsq, p2c), by the workload's factors.",
            factors,
        ),
        Section::new(
            "load",
            "Latency and goodput over load",
            "How much load each policy bears before its latency climbs. A failed request misses the SLO.",
            sweeps::loads(grid, looks),
        ),
        Section::new(
            "ranking",
            "Policies over all scenes",
            "How far each policy is from the best one, scene by scene: a rule that is best on the average may still be a bad one somewhere.",
            ranking.map(Ranking::figure).into_iter().collect(),
        ),
        scenes,
        Section::new(
            "fronts",
            "What a hit rate costs",
            "A policy may buy hits with an uneven load. On the front, no other policy has both more hits and less of the cost.",
            fronts,
        ),
        Section::new(
            "timelines",
            "Instances over time",
            "How queues build up and empty, of the runs whose timeline was kept. Where strips hardly differ, policies do not.",
            timelines,
        ),
    ];
    sections.retain(|section| !section.is_empty());
    sections
}

/// Makes the figures' names different from each other.
fn name_apart(sections: &mut [Section]) {
    let mut names = BTreeSet::new();
    let groups = sections.iter_mut().flat_map(|section| &mut section.groups);
    for figure in groups.flat_map(|(_, figures)| figures) {
        let stem = figure.name.clone();
        let mut nth = 1;
        while !names.insert(figure.name.clone()) {
            nth += 1;
            figure.name = format!("{stem}-{nth}");
        }
    }
}

fn figures(sections: Vec<Section>) -> Vec<ReportFigure> {
    let groups = sections.into_iter().flat_map(|section| section.groups);
    let drawn = groups.flat_map(|(_, figures)| figures);
    drawn.map(|Drawn { name, svg, csv }| ReportFigure { name, svg, csv }).collect()
}

/// A value with its bounds: what an axis must hold.
fn extent(
    value: Option<f64>,
    interval: Option<(f64, f64)>,
) -> impl Iterator<Item = f64> + Clone + use<> {
    let (low, high) = interval.unzip();
    [value, low, high].into_iter().flatten()
}

/// A number as a field of CSV: all digits, nothing for none.
fn optional(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

#[cfg(test)]
mod tests;
