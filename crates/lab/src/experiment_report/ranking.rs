//! How policies do over all scenes: ranks, distance from the best, the worst case; and over a part of them.

use std::collections::BTreeSet;

use super::Drawn;
use super::axis::Axis;
use super::canvas::{Anchor, CHARACTER, Canvas, GRID, Look, WIDTH};
use super::groups::{Grid, GridCell, Quantity, Scene, condition_text, instances_text, load_text};
use super::losses::BLIND;
use super::tables::{Datum, Heading, Kind, Table, csv_text};
use crate::columns::shortened;
use crate::report::slug;
use crate::run_result::mean;

/// As good as the best: no more than this above it.
const NEAR: f64 = 1.05;
/// A collapse: this many times the best.
const COLLAPSE: f64 = 10.0;

/// Left and right of the strips of a figure, its rows' height, and that of a strip.
const LEFT: f64 = 10.0;
const RIGHT: f64 = WIDTH - 10.0;
const ROW: f64 = 31.0;
const STRIP: f64 = 10.0;
/// A scene, and the mean over all.
const STROKES: Look = Look::plain(2);
const MEAN: Look = Look::plain(0);

/// Policies by the geometric mean of their P95 TTFT over the best one's of each scene, the oracle's not counted as one.
///
/// A rank is 1 for the best; equals share the mean of their ranks. Scenes in which a policy has no P95 TTFT count as collapses
/// and as ranks behind all others, and are left out of means and of the worst case.
pub(super) struct Ranking {
    /// Each with its label, the best first.
    policies: Vec<(String, OverScenes)>,
    parts: Vec<Part>,
    has_oracle: bool,
}

/// Scenes that have something in common that others have not.
struct Part {
    /// What it is.
    name: String,
    scenes: BTreeSet<String>,
}

impl Part {
    /// By workload, number of instances, load and condition, where there are several, in the order of the file.
    fn all(grid: &Grid<'_>) -> Vec<Self> {
        let by = [
            |scene: &Scene<'_>| Some(scene.cell.workload.clone()),
            |scene: &Scene<'_>| Some(instances_text(scene.cell)),
            |scene: &Scene<'_>| load_text(&scene.cell.load),
            |scene: &Scene<'_>| condition_text(scene.cell),
        ];
        let mut all = Vec::new();
        for name_of in by {
            let mut parts: Vec<Self> = Vec::new();
            for scene in &grid.scenes {
                let Some(name) = name_of(scene) else { continue };
                let known = parts.iter().position(|part| part.name == name);
                let at = known.unwrap_or_else(|| {
                    parts.push(Self { name, scenes: BTreeSet::new() });
                    parts.len() - 1
                });
                parts[at].scenes.insert(scene.name.clone());
            }
            if parts.len() > 1 {
                all.append(&mut parts);
            }
        }
        all
    }
}

impl Ranking {
    /// `None` unless there are several scenes and policies that are in all of them.
    pub(super) fn of(grid: &Grid<'_>) -> Option<Self> {
        let scenes: Vec<Ranked> =
            grid.scenes.iter().filter_map(|scene| Ranked::of(grid, scene)).collect();
        let first = grid.scenes.first()?;
        let labels: Vec<&str> =
            first.cells.iter().map(|cell| grid.cells[*cell].cell.policy.as_str()).collect();
        let is_whole = scenes.len() == grid.scenes.len()
            && grid.scenes.iter().all(|scene| scene.cells.len() == labels.len());
        if !is_whole || scenes.len() < 2 || labels.len() < 3 {
            return None;
        }
        let mut policies: Vec<(String, OverScenes)> = labels
            .iter()
            .map(|label| ((*label).to_owned(), OverScenes::of(grid, &scenes, label)))
            .collect();
        let over_best = |it: &OverScenes| it.over_best.unwrap_or(f64::INFINITY);
        policies.sort_by(|a, b| over_best(&a.1).total_cmp(&over_best(&b.1)));
        let has_oracle = scenes.iter().any(|scene| scene.oracle_ms.is_some());
        Some(Self { policies, parts: Part::all(grid), has_oracle })
    }

    /// A row for each policy.
    pub(super) fn table(&self) -> Table {
        let mut columns = vec![
            Heading::text("policy"),
            Heading::new("mean rank, P95 TTFT", "mean_rank_ttft_p95", Kind::Number),
            Heading::new("mean rank, goodput", "mean_rank_goodput", Kind::Number),
            Heading::new("P95 over best, geometric mean", "ttft_p95_over_best", Kind::Number),
            Heading::new("worst", "ttft_p95_over_best_worst", Kind::Number),
            Heading::text("worst at"),
            Heading::new("within 5 % of best, % of scenes", "near_best_percent", Kind::Number),
            Heading::new(
                "more than 5 % above the better of round-robin and jsq, scenes",
                "above_blind_scenes",
                Kind::Number,
            ),
            Heading::new("more than 10 times the best, scenes", "collapsed_scenes", Kind::Number),
        ];
        if self.has_oracle {
            columns.push(Heading::new(
                "P95 over oracle, geometric mean",
                "ttft_p95_over_oracle",
                Kind::Number,
            ));
        }
        let rows = self.policies.iter().map(|(label, over)| over.row(label, self.has_oracle));
        Table { name: "ranking", columns, rows: rows.collect() }
    }

    /// A row for each policy and a column for each part of the scenes: the geometric mean of P95 TTFT over the best
    /// policy's of each scene. `None` if the scenes have no parts.
    pub(super) fn parts_table(&self) -> Option<Table> {
        let headings =
            self.parts.iter().map(|part| Heading::new(&part.name, slug(&part.name), Kind::Number));
        let columns: Vec<Heading> = [Heading::text("policy")].into_iter().chain(headings).collect();
        let rows = self.policies.iter().map(|(label, over)| {
            let numbers = self.parts.iter().map(|part| Datum::number(over.over_best_in(part), 2));
            [Datum::Text(label.clone())].into_iter().chain(numbers).collect()
        });
        let rows = rows.collect();
        (columns.len() > 1).then_some(Table { name: "ranking-parts", columns, rows })
    }

    /// A strip for each policy, with a stroke for each scene.
    pub(super) fn figure(&self) -> Drawn {
        let all = self.policies.iter().flat_map(|(_, over)| over.shares());
        let axis = Axis::excess("P95 TTFT above the best policy of the scene", all);
        let mut canvas = Canvas::new("Every scene of every policy");
        canvas.note(
            "A thin stroke is a scene, the tall one the geometric mean, named with the worst. From 5 % on, equal steps \
             are equal ratios.",
        );
        if self.has_oracle {
            canvas.note(
                "The oracle is no policy; where it is below the best one, it stands at best.",
            );
        }
        let place = |share: f64| LEFT + (RIGHT - LEFT) * axis.at(share);
        let top = canvas.height + 8.0;
        let bottom = top + ROW * self.policies.len() as f64;
        let mut free = 0.0;
        for (share, label) in &axis.ticks {
            let x = place(*share);
            canvas.rule(GRID, (x, top), (x, bottom));
            let width = CHARACTER * label.chars().count() as f64;
            let (anchor, left) =
                if *share > 0.0 { (Anchor::Middle, x - width / 2.0) } else { (Anchor::Start, x) };
            // Where ratios are large, small ones stand close together: the line is enough.
            if left >= free {
                canvas.text(x, bottom + 14.0, anchor, label);
                free = left + width;
            }
        }
        canvas.text(f64::midpoint(LEFT, RIGHT), bottom + 30.0, Anchor::Middle, &axis.name);
        for (row, (label, over)) in self.policies.iter().enumerate() {
            let y = top + ROW * row as f64;
            canvas.text(LEFT, y + 12.0, Anchor::Start, &shortened(label, 40));
            let strip = y + 17.0;
            for share in over.shares() {
                canvas.bar(STROKES, 0.45, (place(share) - 0.8, strip), (1.6, STRIP));
            }
            let (Some(mean), Some((worst, _))) = (over.over_best, over.worst()) else { continue };
            let x = place(mean - 1.0);
            canvas.stroke(MEAN, 2.4, (x, strip - 2.0), (x, strip + STRIP + 2.0));
            let told = format!("{mean:.2}, worst {}", times(worst));
            canvas.text(RIGHT, y + 12.0, Anchor::End, &told);
        }
        canvas.height = bottom + 38.0;
        let header = ["policy", "scene", "ttft_p95_over_best"].map(str::to_owned).to_vec();
        let rows = self.policies.iter().flat_map(|(label, over)| {
            let row = |(scene, ratio): &(String, f64)| {
                vec![label.clone(), scene.clone(), ratio.to_string()]
            };
            over.ratios.iter().map(row)
        });
        Drawn { name: "ranking".to_owned(), svg: canvas.into_svg(), csv: csv_text(header, rows) }
    }
}

/// A ratio to read: two decimals while that says something.
fn times(ratio: f64) -> String {
    if ratio < 9.995 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}

/// A scene, and what its policies are measured by.
struct Ranked {
    name: String,
    cells: Vec<usize>,
    /// P95 TTFT of the best policy but the oracle, ms.
    best_ms: f64,
    /// Of the better of round-robin and jsq, if it has one, ms.
    blind_ms: Option<f64>,
    oracle_ms: Option<f64>,
}

impl Ranked {
    fn of(grid: &Grid<'_>, scene: &Scene<'_>) -> Option<Self> {
        let p95 = |cell: &GridCell<'_>| cell.mean(Quantity::TtftP95).filter(|ms| *ms > 0.0);
        let all = || grid.contenders(scene);
        let blind = all().filter(|cell| BLIND.contains(&cell.kind));
        Some(Self {
            name: scene.name.clone(),
            cells: scene.cells.clone(),
            best_ms: Grid::least(all(), Quantity::TtftP95).and_then(p95)?,
            blind_ms: Grid::least(blind, Quantity::TtftP95).and_then(p95),
            oracle_ms: scene.oracle.and_then(|oracle| p95(&grid.cells[oracle])),
        })
    }

    /// Rank of a policy's figure among those of the scene, the oracle left out; `ascending` if less is better.
    fn rank(
        &self,
        grid: &Grid<'_>,
        cell: &GridCell<'_>,
        quantity: Quantity,
        ascending: bool,
    ) -> f64 {
        let key = |cell: &GridCell<'_>| {
            let value = cell.mean(quantity);
            if ascending { value.unwrap_or(f64::INFINITY) } else { -value.unwrap_or(0.0) }
        };
        let own = key(cell);
        let others = self.cells.iter().map(|index| &grid.cells[*index]);
        let others =
            others.filter(|other| !other.is_oracle() && other.cell.policy != cell.cell.policy);
        let (mut better, mut equal) = (0_u32, 0_u32);
        for other in others {
            match key(other).total_cmp(&own) {
                std::cmp::Ordering::Less => better += 1,
                std::cmp::Ordering::Equal => equal += 1,
                std::cmp::Ordering::Greater => {}
            }
        }
        1.0 + f64::from(better) + f64::from(equal) / 2.0
    }
}

fn geometric_mean(values: &[f64]) -> Option<f64> {
    let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
    mean(&logarithms).map(f64::exp)
}

/// A policy over all scenes.
#[derive(Default)]
struct OverScenes {
    rank_p95: Option<f64>,
    rank_goodput: Option<f64>,
    over_best: Option<f64>,
    /// P95 TTFT over the best policy's, with the scene's name.
    ratios: Vec<(String, f64)>,
    near: usize,
    above_blind: usize,
    collapsed: usize,
    over_oracle: Option<f64>,
    scenes: usize,
}

impl OverScenes {
    fn of(grid: &Grid<'_>, scenes: &[Ranked], policy: &str) -> Self {
        let mut found = Self { scenes: scenes.len(), ..Self::default() };
        let (mut ranks, mut ranks_goodput) = (Vec::new(), Vec::new());
        let mut over_oracle = Vec::new();
        for scene in scenes {
            let mut cells = scene.cells.iter().map(|index| &grid.cells[*index]);
            let Some(cell) = cells.find(|cell| cell.cell.policy == policy) else { continue };
            if !cell.is_oracle() {
                ranks.push(scene.rank(grid, cell, Quantity::TtftP95, true));
                ranks_goodput.push(scene.rank(grid, cell, Quantity::Goodput, false));
            }
            let Some(p95_ms) = cell.mean(Quantity::TtftP95) else {
                found.collapsed += 1;
                continue;
            };
            let ratio = p95_ms / scene.best_ms;
            found.ratios.push((scene.name.clone(), ratio));
            over_oracle.extend(scene.oracle_ms.map(|oracle_ms| p95_ms / oracle_ms));
            found.near += usize::from(ratio <= NEAR);
            found.above_blind +=
                usize::from(scene.blind_ms.is_some_and(|blind_ms| p95_ms > NEAR * blind_ms));
            found.collapsed += usize::from(ratio > COLLAPSE);
        }
        found.rank_p95 = mean(&ranks);
        found.rank_goodput = mean(&ranks_goodput);
        let over_best: Vec<f64> = found.ratios.iter().map(|(_, ratio)| *ratio).collect();
        found.over_best = geometric_mean(&over_best);
        found.over_oracle = geometric_mean(&over_oracle);
        found
    }

    /// Geometric mean of P95 TTFT over the best policy's in a part of the scenes; `None` if it has none in any.
    fn over_best_in(&self, part: &Part) -> Option<f64> {
        let ratios = self.ratios.iter().filter(|(scene, _)| part.scenes.contains(scene));
        geometric_mean(&ratios.map(|(_, ratio)| *ratio).collect::<Vec<_>>())
    }

    /// P95 TTFT above the best policy's, as a share of it.
    fn shares(&self) -> impl Iterator<Item = f64> {
        self.ratios.iter().map(|(_, ratio)| ratio - 1.0)
    }

    /// The largest ratio and its scene.
    fn worst(&self) -> Option<(f64, &str)> {
        let worst = self.ratios.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        worst.map(|(scene, ratio)| (*ratio, scene.as_str()))
    }

    fn row(&self, policy: &str, has_oracle: bool) -> Vec<Datum> {
        let count = |n: usize| Datum::number(Some(n as f64), 0);
        let (worst, worst_at) = self.worst().unzip();
        let mut row = vec![
            Datum::Text(policy.to_owned()),
            Datum::number(self.rank_p95, 1),
            Datum::number(self.rank_goodput, 1),
            Datum::number(self.over_best, 2),
            Datum::number(worst, 2),
            Datum::Text(worst_at.unwrap_or("-").to_owned()),
            Datum::number(Some(100.0 * self.near as f64 / self.scenes as f64), 0),
            count(self.above_blind),
            count(self.collapsed),
        ];
        if has_oracle {
            row.push(Datum::number(self.over_oracle, 2));
        }
        row
    }
}
