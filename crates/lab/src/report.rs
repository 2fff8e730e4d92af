//! Live runs beside simulated ones: a text table for the terminal, figures, and one HTML page.
//!
//! A [`Pair`] is one run made twice. Runs of the same workload, number of instances and seed are compared
//! with each other (a [`Scenario`]); nothing is compared across scenarios but live with simulated. With
//! `live` and `sim` the two values of a figure:
//!
//! ```text
//! error, %           = 100 (sim - live) / live          (times, rates)
//! difference, points = 100 (sim - live)                 (hit rates, which are shares)
//! ```
//!
//! What was not measured is `-`, and so is a comparison with it. The output depends on the pairs alone, in
//! their order: no clock, no locale, no random ids.

mod html;
mod plot;
mod svg;
mod words;

use std::collections::BTreeSet;

use crate::RunResult;
use crate::columns::{Column, Layout, finite, fixed, shortened};
pub(crate) use html::{opening as html_opening, unbroken};
pub use plot::{Mark, Panel, Series, latency_figure, panels_svg};
pub(crate) use svg::tick_step;
use svg::{Chart, Group};

/// Fits in 120 columns, unless its numbers are absurd; a workload's or policy's name keeps 8.
const LAYOUT: Layout = Layout { names: 2, width: 120, name_width_min: 8 };
/// Lines of a heading: quantity and unit, statistic, which run.
const HEADING_LINES: usize = 3;

/// One run, live and simulated: the same policy, workload, instances and seed. Its name and setting are read from
/// the live one.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The run over HTTP, in real time.
    pub live: RunResult,
    /// The run in the simulator, once or more often with timings that differ by what cannot be known of the live run.
    /// A simulated figure is their mean.
    pub sims: Vec<RunResult>,
}

impl Pair {
    /// `figure` of the live run and of the simulated one.
    fn both(&self, figure: Figure) -> [Option<f64>; 2] {
        [figure(&self.live), self.sim(figure)]
    }

    /// `figure` simulated: the mean over the runs, if it was measured in each.
    fn sim(&self, figure: Figure) -> Option<f64> {
        let sum: f64 = self.sims.iter().map(figure).sum::<Option<_>>()?;
        finite(Some(sum / self.sims.len() as f64))
    }

    /// Standard deviation of the simulated `figure` from run to run; `None` for fewer than two runs.
    fn spread(&self, figure: Figure) -> Option<f64> {
        let mean = self.sim(figure)?;
        let squares: f64 = self
            .sims
            .iter()
            .map(|run| figure(run).map(|value| (value - mean).powi(2)))
            .sum::<Option<_>>()?;
        let others = self.sims.len().checked_sub(1).filter(|others| *others > 0)?;
        finite(Some((squares / others as f64).sqrt()))
    }

    /// How far the simulated `figure` is above the live one, in percent of the live one.
    fn error_percent(&self, figure: Figure) -> Option<f64> {
        let [live, sim] = self.both(figure);
        error_percent(live, sim)
    }

    /// How far the simulated `figure` is above the live one, in its own unit.
    fn difference(&self, figure: Figure) -> Option<f64> {
        let [live, sim] = self.both(figure);
        finite(Some(sim? - live?))
    }
}

/// The comparison as a table to read in a terminal, one row for each pair, in the order given; at most
/// 120 columns wide unless its numbers are absurd. `±` is the standard deviation of the simulated figure before it
/// from run to run, `-` stands for unmeasured.
///
/// Where a workload was run with several numbers of instances or seeds, its name is followed by them.
pub fn comparison_table(pairs: &[Pair]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let scenarios = Scenario::all(pairs);
    // A row goes where its pair is in the list, although scenarios may be interleaved.
    let workload = |pair: &Pair| {
        scenarios
            .iter()
            .find(|scenario| scenario.holds(pair))
            .map_or_else(String::new, Scenario::short_name)
    };
    let column = |heading: [&'static str; HEADING_LINES], cell: &dyn Fn(&Pair) -> String| {
        Column::new(heading, pairs.iter().map(cell))
    };
    let live = |figure: Figure, decimals| move |pair: &Pair| fixed(figure(&pair.live), decimals);
    let sim = |figure: Figure, decimals| move |pair: &Pair| fixed(pair.sim(figure), decimals);
    let spread = |figure: Figure| move |pair: &Pair| fixed(pair.spread(figure), 1);
    LAYOUT.table(vec![
        column(["workload", "", ""], &workload),
        column(["policy", "", ""], &|pair| pair.live.policy.clone()),
        column(["TTFT ms", "mean", "live"], &live(ttft_mean_ms, 1)),
        column(["TTFT ms", "mean", "sim"], &sim(ttft_mean_ms, 1)),
        column(["", "", "±"], &spread(ttft_mean_ms)),
        column(["", "error", "%"], &|pair| signed(pair.error_percent(ttft_mean_ms), 1)),
        column(["TTFT ms", "p95", "live"], &live(ttft_p95_ms, 1)),
        column(["TTFT ms", "p95", "sim"], &sim(ttft_p95_ms, 1)),
        column(["hits", "%", "live"], &live(hit_percent, 1)),
        column(["hits", "%", "sim"], &sim(hit_percent, 1)),
        column(["", "", "±"], &spread(hit_percent)),
        column(["", "diff.", "points"], &|pair| signed(pair.difference(hit_percent), 1)),
        column(["imbal-", "ance", "live"], &live(imbalance, 2)),
        column(["imbal-", "ance", "sim"], &sim(imbalance, 2)),
        column(["failed", "", "live"], &|pair| pair.live.failed.to_string()),
    ])
}

/// The comparison as one HTML page that needs nothing else: no network, no script. `command` is the
/// command line that made the runs; the version is this crate's.
///
/// All texts are escaped, so they may hold anything.
pub fn comparison_html(title: &str, command: &str, pairs: &[Pair]) -> String {
    html::page(title, command, &Scenario::all(pairs))
}

/// The figures of the comparison, each as a file name (`….svg`, unique, of `a-z`, `0-9` and `-`) and an
/// SVG image that stands for itself. Three for each workload: mean TTFT, hit rate, imbalance.
pub fn figures(pairs: &[Pair]) -> Vec<(String, String)> {
    let scenarios = Scenario::all(pairs);
    let mut stems = BTreeSet::new();
    let mut files = Vec::new();
    for scenario in &scenarios {
        let slug = slug(&scenario.short_name());
        let mut stem = slug.clone();
        let mut nth = 1;
        while !stems.insert(stem.clone()) {
            nth += 1;
            stem = format!("{slug}-{nth}");
        }
        for (name, svg) in scenario.charts() {
            files.push((format!("{stem}-{name}.svg"), svg));
        }
    }
    files
}

/// A figure of a run, finite if it was measured.
type Figure = fn(&RunResult) -> Option<f64>;

fn ttft_mean_ms(run: &RunResult) -> Option<f64> {
    finite(run.ttft_ms.mean)
}

fn ttft_p95_ms(run: &RunResult) -> Option<f64> {
    finite(run.ttft_ms.p95)
}

fn hit_percent(run: &RunResult) -> Option<f64> {
    percent(run.cache.hit_rate)
}

fn infinite_cache_percent(run: &RunResult) -> Option<f64> {
    percent(run.cache.hit_rate_infinite_cache)
}

fn imbalance(run: &RunResult) -> Option<f64> {
    finite(run.load.imbalance_max_over_mean)
}

/// Pairs that may be compared with each other: one workload, number of instances and seed.
struct Scenario<'a> {
    workload: &'a str,
    instances: u32,
    seed: u64,
    /// Whether the workload has other scenarios too, so that its name alone does not tell them apart.
    one_of_several: bool,
    /// In the order given; at least one.
    pairs: Vec<&'a Pair>,
}

impl<'a> Scenario<'a> {
    /// The scenarios in the order in which they first occur.
    fn all(pairs: &'a [Pair]) -> Vec<Self> {
        let mut scenarios: Vec<Self> = Vec::new();
        for pair in pairs {
            if let Some(scenario) = scenarios.iter_mut().find(|scenario| scenario.holds(pair)) {
                scenario.pairs.push(pair);
                continue;
            }
            let RunResult { workload, instances, seed, .. } = &pair.live;
            let mut one_of_several = false;
            for other in scenarios.iter_mut().filter(|other| other.workload == workload) {
                other.one_of_several = true;
                one_of_several = true;
            }
            scenarios.push(Self {
                workload,
                instances: *instances,
                seed: *seed,
                one_of_several,
                pairs: vec![pair],
            });
        }
        scenarios
    }

    fn holds(&self, pair: &Pair) -> bool {
        let RunResult { workload, instances, seed, .. } = &pair.live;
        (self.workload, self.instances, self.seed) == (workload, *instances, *seed)
    }

    /// The workload's name, with as much more as tells it from the other scenarios.
    fn short_name(&self) -> String {
        let Self { workload, instances, seed, .. } = self;
        if self.one_of_several {
            format!("{workload} N={instances} seed={seed}")
        } else {
            (*workload).to_owned()
        }
    }

    /// The figures, each with the last part of its file name.
    fn charts(&self) -> [(&'static str, String); 3] {
        let groups = |figure: Figure, reference: Figure| -> Vec<Group<'_>> {
            let group = |pair: &&'a Pair| Group {
                name: &pair.live.policy,
                bars: pair.both(figure),
                reference: reference(&pair.live).or_else(|| pair.sim(reference)),
            };
            self.pairs.iter().map(group).collect()
        };
        let name = self.short_name();
        let ttft = Chart {
            title: format!("Mean time to first token, {name}"),
            axis: "mean TTFT, ms (less is better)",
            decimals: 1,
            groups: groups(ttft_mean_ms, |_| None),
            reference: None,
        };
        let hits = Chart {
            title: format!("Hit rate, {name}"),
            axis: "cached prompt tokens / prompt tokens, % (more is better)",
            decimals: 1,
            groups: groups(hit_percent, infinite_cache_percent),
            reference: Some("infinite cache"),
        };
        let imbalance = Chart {
            title: format!("Imbalance, {name}"),
            axis: "largest / mean requests in flight of an instance (1 is even)",
            decimals: 2,
            groups: groups(imbalance, |_| Some(1.0)),
            reference: Some("even"),
        };
        [
            ("ttft-mean", ttft.to_svg()),
            ("hit-rate", hits.to_svg()),
            ("imbalance", imbalance.to_svg()),
        ]
    }
}

fn percent(share: Option<f64>) -> Option<f64> {
    finite(share.map(|share| 100.0 * share))
}

/// `None` if there is no live value to divide by.
fn error_percent(live: Option<f64>, sim: Option<f64>) -> Option<f64> {
    let live = live.filter(|live| *live > 0.0)?;
    finite(Some(100.0 * (sim? - live) / live))
}

/// [`fixed`], with `+` before a number that is above zero as it is shown.
pub(crate) fn signed(value: Option<f64>, decimals: usize) -> String {
    let text = fixed(value, decimals);
    let plus = !text.starts_with('-') && text.contains(|c: char| c.is_ascii_digit() && c != '0');
    if plus { format!("+{text}") } else { text }
}

/// `name` as part of a file name.
pub(crate) fn slug(name: &str) -> String {
    let mut slug = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
    }
    let slug = slug.trim_end_matches('-');
    if slug.is_empty() { "workload".to_owned() } else { slug.to_owned() }
}

/// `text` for HTML and XML, in content or in a quoted attribute. Characters that XML cannot hold become
/// U+FFFD.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' | '\t' => escaped.push(c),
            '\u{FFFE}' | '\u{FFFF}' => escaped.push('\u{FFFD}'),
            c if c.is_control() => escaped.push('\u{FFFD}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
pub(crate) mod tests;
