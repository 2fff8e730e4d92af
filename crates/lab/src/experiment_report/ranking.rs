//! How policies do over all scenes: ranks, distance from the best, the worst case.

use super::groups::{Grid, GridCell, Quantity, Scene};
use super::losses::BLIND;
use super::tables::{Datum, Heading, Kind, Table};

/// As good as the best: no more than this above it.
const NEAR: f64 = 1.05;
/// A collapse: this many times the best.
const COLLAPSE: f64 = 10.0;

/// Policies by the geometric mean of their P95 TTFT over the best one's of each scene, the oracle's not counted as one; `None`
/// unless there are several scenes and policies that are in all of them.
///
/// A rank is 1 for the best; equals share the mean of their ranks. Scenes in which a policy has no P95 TTFT count as collapses
/// and as ranks behind all others, and are left out of means and of the worst case.
pub(super) fn ranking(grid: &Grid<'_>) -> Option<Table> {
    let scenes: Vec<Ranked> =
        grid.scenes.iter().filter_map(|scene| Ranked::of(grid, scene)).collect();
    let first = grid.scenes.first()?;
    let policies: Vec<&str> =
        first.cells.iter().map(|cell| grid.cells[*cell].cell.policy.as_str()).collect();
    let is_whole = scenes.len() == grid.scenes.len()
        && grid.scenes.iter().all(|scene| scene.cells.len() == policies.len());
    if !is_whole || scenes.len() < 2 || policies.len() < 3 {
        return None;
    }
    let has_oracle = scenes.iter().any(|scene| scene.oracle_ms.is_some());
    let mut rows: Vec<(f64, Vec<Datum>)> = policies
        .iter()
        .map(|policy| {
            let of_policy = OverScenes::of(grid, &scenes, policy);
            (of_policy.over_best.unwrap_or(f64::INFINITY), of_policy.row(policy, has_oracle))
        })
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0));
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
    if has_oracle {
        columns.push(Heading::new(
            "P95 over oracle, geometric mean",
            "ttft_p95_over_oracle",
            Kind::Number,
        ));
    }
    Some(Table { name: "ranking", columns, rows: rows.into_iter().map(|(_, row)| row).collect() })
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
        let all = || grid.cells_of(scene).filter(|cell| !cell.is_oracle());
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

/// A policy over all scenes.
#[derive(Default)]
struct OverScenes {
    rank_p95: Option<f64>,
    rank_goodput: Option<f64>,
    over_best: Option<f64>,
    worst: Option<(f64, String)>,
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
        let (mut over_best, mut over_oracle) = (Vec::new(), Vec::new());
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
            over_best.push(ratio);
            over_oracle.extend(scene.oracle_ms.map(|oracle_ms| p95_ms / oracle_ms));
            found.near += usize::from(ratio <= NEAR);
            found.above_blind +=
                usize::from(scene.blind_ms.is_some_and(|blind_ms| p95_ms > NEAR * blind_ms));
            found.collapsed += usize::from(ratio > COLLAPSE);
            if found.worst.as_ref().is_none_or(|(worst, _)| ratio > *worst) {
                found.worst = Some((ratio, scene.name.clone()));
            }
        }
        let mean = |values: &[f64]| {
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let geometric = |values: &[f64]| {
            let logarithms: Vec<f64> = values.iter().map(|value| value.ln()).collect();
            mean(&logarithms).map(f64::exp)
        };
        found.rank_p95 = mean(&ranks);
        found.rank_goodput = mean(&ranks_goodput);
        found.over_best = geometric(&over_best);
        found.over_oracle = geometric(&over_oracle);
        found
    }

    fn row(&self, policy: &str, has_oracle: bool) -> Vec<Datum> {
        let count = |n: usize| Datum::number(Some(n as f64), 0);
        let (worst, worst_at) = self.worst.clone().unzip();
        let mut row = vec![
            Datum::Text(policy.to_owned()),
            Datum::number(self.rank_p95, 1),
            Datum::number(self.rank_goodput, 1),
            Datum::number(self.over_best, 2),
            Datum::number(worst, 2),
            Datum::Text(worst_at.unwrap_or_else(|| "-".to_owned())),
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
