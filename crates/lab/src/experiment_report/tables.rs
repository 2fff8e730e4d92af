//! Tables as Markdown, CSV, LaTeX and HTML, and what is in them.

use std::fmt::Write as _;

use super::ReportTable;
use super::groups::{Grid, GridCell, Quantity, is_near, load_text};
use super::losses::Loss;
use super::maps::AlphaBeta;
use crate::columns::{finite, fixed};
use crate::report::{escaped, signed};
use crate::{Capacity, Cell, EXACT_SEEDS_MAX, Estimate, ExperimentRun};

/// Resamples that the intervals of the table of cells may take altogether: a few seconds. Beyond it the figures that
/// matter less have no interval.
const RESAMPLES_MAX: f64 = 4e7;

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: Vec<Heading>,
    pub(super) rows: Vec<Vec<Datum>>,
}

/// What a column holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Heading {
    /// To be read, with its unit.
    pub(super) text: String,
    /// In CSV, the unit last.
    pub(super) key: String,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Number,
    /// A number with its bounds.
    Estimate,
}

/// What stands in a field.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Datum {
    Text(String),
    Number(Number),
}

/// A number that may not have been measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Number {
    pub(super) value: Option<f64>,
    pub(super) interval: Option<(f64, f64)>,
    pub(super) decimals: usize,
    /// Whether it is a change, and so begins with a sign.
    pub(super) is_change: bool,
}

impl Heading {
    pub(super) fn new(text: impl Into<String>, key: impl Into<String>, kind: Kind) -> Self {
        Self { text: text.into(), key: key.into(), kind }
    }

    pub(super) fn text(text: &str) -> Self {
        Self::new(text, text.replace(' ', "_"), Kind::Text)
    }
}

impl Datum {
    pub(super) fn number(value: Option<f64>, decimals: usize) -> Self {
        Self::Number(Number { value: finite(value), decimals, ..Number::default() })
    }

    pub(super) fn estimate(estimate: Option<Estimate>, decimals: usize) -> Self {
        Self::Number(Number {
            value: estimate.and_then(|estimate| finite(Some(estimate.value))),
            interval: estimate.and_then(|estimate| estimate.interval),
            decimals,
            is_change: false,
        })
    }

    /// A relative change, in percent.
    pub(super) fn change(relative: Option<Estimate>) -> Self {
        Self::Number(Number {
            value: relative.and_then(|relative| finite(Some(100.0 * relative.value))),
            interval: relative
                .and_then(|relative| relative.interval)
                .map(|(low, high)| (100.0 * low, 100.0 * high)),
            decimals: 1,
            is_change: true,
        })
    }

    /// A difference in the figure's own unit.
    pub(super) fn difference(difference: Option<Estimate>, decimals: usize) -> Self {
        match Self::estimate(difference, decimals) {
            Self::Number(number) => Self::Number(Number { is_change: true, ..number }),
            text @ Self::Text(_) => text,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(Number { value, interval, decimals, is_change }) => {
                let one = |value: f64| {
                    let shown = if *is_change { signed } else { fixed };
                    shown(Some(value), *decimals)
                };
                match (value, interval) {
                    (None, _) => "-".to_owned(),
                    (Some(value), None) => one(*value),
                    (Some(value), Some((low, high))) => {
                        format!("{} [{}, {}]", one(*value), one(*low), one(*high))
                    }
                }
            }
        }
    }

    /// Fields of CSV: all digits, nothing for what was not measured.
    fn fields(&self, kind: Kind) -> Vec<String> {
        let all = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
        match self {
            Self::Text(text) => vec![text.clone()],
            Self::Number(number) if kind == Kind::Estimate => {
                let (low, high) = number.interval.unzip();
                [number.value, low, high].map(all).to_vec()
            }
            Self::Number(number) => vec![all(number.value)],
        }
    }
}

impl Table {
    pub(super) fn into_report(self) -> ReportTable {
        ReportTable {
            name: self.name.to_owned(),
            markdown: self.markdown(),
            csv: self.csv(),
            latex: self.latex(),
        }
    }

    /// Columns that are read: not those of text that no row has.
    fn read(&self) -> Vec<(usize, &Heading)> {
        let is_empty = |nth: usize| {
            self.rows.iter().all(|row| matches!(&row[nth], Datum::Text(text) if text.is_empty()))
        };
        let columns = self.columns.iter().enumerate();
        columns.filter(|(nth, _)| self.rows.is_empty() || !is_empty(*nth)).collect()
    }

    fn markdown(&self) -> String {
        let line = |fields: Vec<String>| {
            let fields: Vec<_> = fields.iter().map(|field| field.replace('|', "\\|")).collect();
            format!("| {} |\n", fields.join(" | "))
        };
        let columns = self.read();
        let rule = |kind: Kind| if kind == Kind::Text { "---" } else { "---:" };
        let mut text = line(columns.iter().map(|(_, column)| column.text.clone()).collect());
        text += &line(columns.iter().map(|(_, column)| rule(column.kind).to_owned()).collect());
        for row in &self.rows {
            text += &line(columns.iter().map(|(nth, _)| row[*nth].shown()).collect());
        }
        text
    }

    fn csv(&self) -> String {
        let header = self.columns.iter().flat_map(|column| match column.kind {
            Kind::Text | Kind::Number => vec![column.key.clone()],
            Kind::Estimate => {
                let bound = |bound| format!("{}_{bound}", column.key);
                vec![column.key.clone(), bound("low"), bound("high")]
            }
        });
        let rows = self.rows.iter().map(|row| {
            let fields = row.iter().zip(&self.columns);
            fields.flat_map(|(datum, column)| datum.fields(column.kind)).collect()
        });
        csv_text(header.collect(), rows)
    }

    fn latex(&self) -> String {
        let line = |fields: Vec<String>| {
            let fields: Vec<_> = fields.iter().map(|field| latex_escaped(field)).collect();
            format!("{} \\\\\n", fields.join(" & "))
        };
        let columns = self.read();
        let alignment: String = columns
            .iter()
            .map(|(_, column)| if column.kind == Kind::Text { 'l' } else { 'r' })
            .collect();
        let mut text = format!(
            "% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{{alignment}}}\n\\toprule\n"
        );
        text += &line(columns.iter().map(|(_, column)| column.text.clone()).collect());
        text += "\\midrule\n";
        for row in &self.rows {
            text += &line(columns.iter().map(|(nth, _)| row[*nth].shown()).collect());
        }
        text.push_str("\\bottomrule\n\\end{tabular}\n");
        text
    }

    /// The first rows, in a box of their own that scrolls.
    pub(super) fn html(&self, rows_max: usize) -> String {
        let mut html = "<div class=\"wide\" tabindex=\"0\">\n<table>\n<thead><tr>".to_owned();
        let class = |kind: Kind| if kind == Kind::Text { " class=\"name\"" } else { "" };
        let columns = self.read();
        for (_, Heading { text, kind, .. }) in &columns {
            // Writing to a string cannot fail; so below.
            let _ = write!(html, "<th scope=\"col\"{}>{}</th>", class(*kind), escaped(text));
        }
        html.push_str("</tr></thead>\n<tbody>\n");
        for row in self.rows.iter().take(rows_max) {
            html.push_str("<tr>");
            for (nth, column) in &columns {
                let shown = escaped(&row[*nth].shown());
                let _ = write!(html, "<td{}>{shown}</td>", class(column.kind));
            }
            html.push_str("</tr>\n");
        }
        html.push_str("</tbody>\n</table>\n</div>\n");
        html
    }
}

/// RFC 4180, but `\n` ends a line.
pub(super) fn csv_text(header: Vec<String>, rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in [header].into_iter().chain(rows) {
        writer.write_record(row).expect("rows are as long as the header, and memory takes them");
    }
    let bytes = writer.into_inner().expect("memory takes what is left");
    String::from_utf8(bytes).expect("strings were written")
}

/// `text` for LaTeX, outside mathematics.
fn latex_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\textbackslash{}"),
            '_' | '%' | '&' | '#' | '$' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(c);
            }
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '<' => escaped.push_str("\\textless{}"),
            '>' => escaped.push_str("\\textgreater{}"),
            'α' => escaped.push_str("$\\alpha$"),
            'β' => escaped.push_str("$\\beta$"),
            '≤' => escaped.push_str("$\\leq$"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Columns that say which cell a row is of.
fn place_headings() -> Vec<Heading> {
    vec![
        Heading::text("workload"),
        Heading::text("factors"),
        Heading::new("instances", "instances", Kind::Number),
        Heading::text("load"),
        Heading::text("condition"),
    ]
}

fn place_data(cell: &Cell) -> Vec<Datum> {
    let Cell { workload, factors, instances, load, condition, policy: _ } = cell;
    let factors: Vec<_> = factors.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let condition = if condition.sweep.is_empty() {
        String::new()
    } else {
        format!("{} {}", condition.sweep, condition.label)
    };
    vec![
        Datum::Text(workload.clone()),
        Datum::Text(factors.join(" ")),
        Datum::number(Some(f64::from(*instances)), 0),
        Datum::Text(load_text(load).unwrap_or_default()),
        Datum::Text(condition),
    ]
}

/// Every cell, all its figures.
pub(super) fn cells(grid: &Grid<'_>) -> Table {
    const RELATIVE: (&str, &str) = ("P95 TTFT against baseline, %", "ttft_p95_relative_percent");
    const OVER_ORACLE: (&str, &str) = ("P95 TTFT / oracle's", "p95_vs_oracle");
    let has_oracle = grid.scenes.iter().any(|scene| scene.oracle.is_some());
    let is_known = |quantity: &Quantity| {
        !quantity.is_new() || grid.cells.iter().any(|cell| cell.mean(*quantity).is_some())
    };
    let quantities: Vec<Quantity> = Quantity::ALL.into_iter().filter(is_known).collect();
    let mut columns = place_headings();
    columns.push(Heading::text("policy"));
    columns.push(Heading::new("seeds", "seeds", Kind::Number));
    columns.push(Heading::new(RELATIVE.0, RELATIVE.1, Kind::Estimate));
    for &quantity in &quantities {
        let text = format!("{}, {}", quantity.name(), quantity.unit());
        columns.push(Heading::new(text, quantity.key(), Kind::Estimate));
    }
    for (text, key) in
        [("requests", "requests"), ("failed", "failed"), ("runs not steady", "runs_not_steady")]
    {
        columns.push(Heading::new(text, key, Kind::Number));
    }
    if has_oracle {
        columns.push(Heading::new(OVER_ORACLE.0, OVER_ORACLE.1, Kind::Estimate));
    }
    let resamples: f64 = grid.cells.iter().map(|cell| resamples(cell.runs.len())).sum();
    let mut left = RESAMPLES_MAX - resamples;
    let mut has_room = || {
        left -= resamples;
        left >= 0.0
    };
    let quantities: Vec<_> =
        quantities.into_iter().map(|quantity| (quantity, has_room())).collect();
    let is_oracle_compared = has_oracle && has_room();
    let row = |cell: &GridCell<'_>| {
        let mut row = place_data(cell.cell);
        row.push(Datum::Text(cell.cell.policy.clone()));
        row.push(Datum::number(Some(cell.runs.len() as f64), 0));
        let relative = if resamples <= RESAMPLES_MAX {
            Datum::change(grid.against_baseline(cell).and_then(|compared| compared.relative))
        } else {
            Datum::number(relative_mean(grid, cell), 1)
        };
        row.push(relative);
        for &(quantity, has_interval) in &quantities {
            row.push(if has_interval {
                Datum::estimate(cell.estimate(quantity), quantity.decimals())
            } else {
                Datum::number(cell.mean(quantity), quantity.decimals())
            });
        }
        let count = |of: &dyn Fn(&ExperimentRun) -> u64| {
            let all: u64 = cell.runs.iter().map(|run| of(run)).sum();
            Datum::number(Some(all as f64), 0)
        };
        row.push(count(&|run| run.result.requests));
        row.push(count(&|run| run.result.failed));
        row.push(count(&|run| u64::from(!is_steady(run))));
        if is_oracle_compared {
            row.push(Datum::estimate(grid.over_oracle(cell), 2));
        } else if has_oracle {
            let oracle = grid.scenes[cell.scene].oracle.map(|index| &grid.cells[index]);
            row.push(Datum::number(oracle.and_then(|oracle| over_mean(cell, oracle)), 2));
        }
        row
    };
    Table { name: "cells", columns, rows: grid.cells.iter().map(row).collect() }
}

/// Whether a run had become steady when its warm-up ended.
pub(super) fn is_steady(run: &ExperimentRun) -> bool {
    run.steady_from_s.is_some_and(|from| from <= run.warm_up_s)
}

/// Change of the mean P95 TTFT against the baseline, in percent, without an interval.
fn relative_mean(grid: &Grid<'_>, cell: &GridCell<'_>) -> Option<f64> {
    let baseline = grid.baseline_of(&grid.scenes[cell.scene])?;
    Some(100.0 * (over_mean(cell, baseline)? - 1.0))
}

/// Mean P95 TTFT over another cell's.
fn over_mean(cell: &GridCell<'_>, other: &GridCell<'_>) -> Option<f64> {
    let other = other.mean(Quantity::TtftP95)?;
    let ratio = cell.mean(Quantity::TtftP95)? / other;
    (other > 0.0).then_some(ratio)
}

/// How many resamples an interval over so many seeds takes.
fn resamples(seeds: usize) -> f64 {
    const DRAWN: f64 = 20_000.0;
    if seeds > EXACT_SEEDS_MAX {
        return DRAWN;
    }
    // Multisets of n out of n: (2n - 1)! / (n! (n - 1)!).
    (1..seeds).map(|k| (seeds + k) as f64 / k as f64).product()
}

/// The best policy of each scene; the oracle is none.
pub(super) fn best(grid: &Grid<'_>) -> Table {
    let mut columns = place_headings();
    columns.push(Heading::text("best policy"));
    columns.push(Heading::new("P95 TTFT, ms", "ttft_p95_ms", Kind::Estimate));
    columns.push(Heading::new("against baseline, %", "ttft_p95_relative_percent", Kind::Estimate));
    columns.push(Heading::text("highest hit rate"));
    columns.push(Heading::new("hit rate, %", "hit_rate_percent", Kind::Estimate));
    columns.push(Heading::text("highest goodput"));
    columns.push(Heading::new("goodput, req/s", "goodput_rps", Kind::Estimate));
    let rows = grid.scenes.iter().map(|scene| {
        let mut row = place_data(scene.cell);
        let most = |quantity: Quantity| {
            let measured = grid.contenders(scene).filter_map(|c| Some((c, c.mean(quantity)?)));
            measured.min_by(|a, b| b.1.total_cmp(&a.1)).map(|(cell, _)| cell)
        };
        let mut push = |cell: Option<&GridCell<'_>>, quantity: Quantity| {
            let label = cell.map_or_else(|| "-".to_owned(), |cell| cell.cell.policy.clone());
            row.push(Datum::Text(label));
            let estimate = cell.and_then(|cell| cell.estimate(quantity));
            row.push(Datum::estimate(estimate, quantity.decimals()));
            if quantity == Quantity::TtftP95 {
                let compared = cell.and_then(|cell| grid.against_baseline(cell));
                row.push(Datum::change(compared.and_then(|compared| compared.relative)));
            }
        };
        push(Grid::least(grid.contenders(scene), Quantity::TtftP95), Quantity::TtftP95);
        push(most(Quantity::HitRate), Quantity::HitRate);
        push(most(Quantity::Goodput), Quantity::Goodput);
        row
    });
    Table { name: "best", columns, rows: rows.collect() }
}

/// Where knowing the caches does harm.
pub(super) fn losses(grid: &Grid<'_>, losses: &[Loss]) -> Table {
    let mut columns = place_headings();
    columns.extend([
        Heading::text("policy"),
        Heading::new("P95 TTFT, ms", "ttft_p95_ms", Kind::Number),
        Heading::text("against"),
        Heading::new("above it, %", "above_percent", Kind::Estimate),
    ]);
    let rows = losses.iter().map(|loss| {
        let cell = &grid.cells[loss.cell];
        let mut row = place_data(cell.cell);
        row.push(Datum::Text(cell.cell.policy.clone()));
        row.push(Datum::number(cell.mean(Quantity::TtftP95), 0));
        row.push(Datum::Text(loss.against.to_owned()));
        row.push(Datum::change(Some(Estimate {
            value: loss.share,
            interval: Some(loss.interval),
            seeds: cell.runs.len(),
        })));
        row
    });
    Table { name: "losses", columns, rows: rows.collect() }
}

/// What the baseline bears.
pub(super) fn capacity(capacities: &[Capacity]) -> Table {
    let columns = vec![
        Heading::text("workload"),
        Heading::new("instances", "instances", Kind::Number),
        Heading::text("policy"),
        Heading::new("borne, req/s", "requests_per_s", Kind::Number),
        Heading::new("too much, req/s", "too_much_requests_per_s", Kind::Number),
        Heading::new("SLO attainment asked for, %", "attainment_min_percent", Kind::Number),
        Heading::new("rates tried", "rates_tried", Kind::Number),
    ];
    let rows = capacities.iter().map(|capacity| {
        vec![
            Datum::Text(capacity.workload.clone()),
            Datum::number(Some(f64::from(capacity.instances)), 0),
            Datum::Text(capacity.policy.clone()),
            Datum::number(Some(capacity.requests_per_s), 2),
            Datum::number(Some(capacity.too_much_requests_per_s), 2),
            Datum::number(Some(100.0 * capacity.attainment_min), 1),
            Datum::number(Some(capacity.tried.len() as f64), 0),
        ]
    });
    Table { name: "capacity", columns, rows: rows.collect() }
}

/// What each setting of the weights costs.
pub(super) fn regret(grid: &Grid<'_>, maps: &[AlphaBeta]) -> Table {
    let mut columns = place_headings();
    columns.extend([
        Heading::text("variant"),
        Heading::new("α", "alpha", Kind::Number),
        Heading::new("β", "beta", Kind::Number),
        Heading::new("P95 TTFT, ms", "ttft_p95_ms", Kind::Number),
        Heading::new("above the best, %", "regret_percent", Kind::Number),
        Heading::new("worst above the best, anywhere, %", "regret_worst_percent", Kind::Number),
        Heading::text("robust"),
    ]);
    let mut rows = Vec::new();
    for map in maps {
        for (scene, of_scene) in map.scenes.iter().zip(&map.regrets) {
            for (setting, regret) in of_scene {
                let (alpha, beta) = (map.alphas[setting.0], map.betas[setting.1]);
                let mut row = place_data(grid.scenes[*scene].cell);
                let worst = map.worst.get(setting).copied();
                row.push(Datum::Text(map.variant.clone()));
                row.push(Datum::number(Some(alpha), 2));
                row.push(Datum::number(Some(beta), 2));
                row.push(Datum::number(Some(regret.p95_ms), 0));
                row.push(Datum::number(Some(100.0 * regret.share), 1));
                row.push(Datum::number(worst.map(|worst| 100.0 * worst), 1));
                let is_robust = worst.is_some_and(is_near);
                row.push(Datum::Text(if is_robust { "yes" } else { "no" }.to_owned()));
                rows.push(row);
            }
        }
    }
    Table { name: "regret", columns, rows }
}

/// When the runs became steady, by workload.
pub(super) fn warm_up(grid: &Grid<'_>) -> Table {
    let columns = vec![
        Heading::text("workload"),
        Heading::new("runs", "runs", Kind::Number),
        Heading::new("warm-up, s [least, most]", "warm_up_s", Kind::Estimate),
        Heading::new("steady by its end", "runs_steady", Kind::Number),
        Heading::new("steady later", "runs_steady_later", Kind::Number),
        Heading::new("never seen steady", "runs_never_steady", Kind::Number),
    ];
    let mut workloads: Vec<(&str, Vec<&ExperimentRun>)> = Vec::new();
    let mut places = std::collections::BTreeMap::new();
    for cell in &grid.cells {
        let place = *places.entry(cell.cell.workload.as_str()).or_insert_with(|| {
            workloads.push((&cell.cell.workload, Vec::new()));
            workloads.len() - 1
        });
        workloads[place].1.extend(&cell.runs);
    }
    let rows = workloads.into_iter().map(|(workload, runs)| {
        let count = |is: &dyn Fn(&ExperimentRun) -> bool| {
            Datum::number(Some(runs.iter().filter(|run| is(run)).count() as f64), 0)
        };
        let least = runs.iter().map(|run| run.warm_up_s).fold(f64::INFINITY, f64::min);
        let most = runs.iter().map(|run| run.warm_up_s).fold(f64::NEG_INFINITY, f64::max);
        let warm_up_s = runs.iter().map(|run| run.warm_up_s).sum::<f64>() / runs.len() as f64;
        vec![
            Datum::Text(workload.to_owned()),
            count(&|_| true),
            Datum::Number(Number {
                value: finite(Some(warm_up_s)),
                interval: (least < most).then_some((least, most)),
                decimals: 1,
                is_change: false,
            }),
            count(&is_steady),
            count(&|run| run.steady_from_s.is_some() && !is_steady(run)),
            count(&|run| run.steady_from_s.is_none()),
        ]
    });
    Table { name: "warm-up", columns, rows: rows.collect() }
}
