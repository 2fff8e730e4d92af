//! The runs put in order: a cell with its seeds, a scene with its policies.
//!
//! A *scene* is all that a policy meets: workload, factors, instances, load and condition. Its cells differ in the policy
//! alone, so that they may be compared; seeds are matched by their number, in whatever order the runs arrived.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::columns::{finite, fixed};
use crate::report::slug;
use crate::{
    Cell, Comparison, Condition, Estimate, ExperimentResults, ExperimentRun, LoadPoint, RunResult,
    compare, mean,
};

/// The policy with a weight for the cache and one for the load.
const LOAD_CACHE: &str = "load-cache";
/// The policy that knows the TTFT that each instance would give.
const ORACLE: &str = "oracle";
/// Policies that know nothing of caches; all others do.
const LOAD_ONLY: [&str; 3] = ["round-robin", "jsq", "p2c"];

/// A figure of a run, one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Quantity {
    TtftP95,
    HitRate,
    Imbalance,
    Goodput,
    TtftP50,
    TtftP99,
    TpotP95,
    Completed,
    QueueDepth,
    InfiniteHitRate,
    PooledLru,
    PooledBelady,
}

impl Quantity {
    /// In the order in which they matter.
    pub(super) const ALL: [Self; 12] = [
        Self::TtftP95,
        Self::HitRate,
        Self::Imbalance,
        Self::Goodput,
        Self::TtftP50,
        Self::TtftP99,
        Self::TpotP95,
        Self::Completed,
        Self::QueueDepth,
        Self::InfiniteHitRate,
        Self::PooledLru,
        Self::PooledBelady,
    ];

    /// Hit rates of one cache for all instances: what it is and its rate.
    pub(super) const BOUNDS: [(&'static str, Self); 3] = [
        ("pooled LRU", Self::PooledLru),
        ("Belady", Self::PooledBelady),
        ("infinite cache", Self::InfiniteHitRate),
    ];

    /// Whether results from before there was this figure are without it.
    pub(super) const fn is_new(self) -> bool {
        matches!(self, Self::PooledLru | Self::PooledBelady)
    }

    pub(super) fn of(self, run: &RunResult) -> Option<f64> {
        let percent = |share: Option<f64>| share.map(|share| 100.0 * share);
        finite(match self {
            Self::TtftP50 => run.ttft_ms.p50,
            Self::TtftP95 => run.ttft_ms.p95,
            Self::TtftP99 => run.ttft_ms.p99,
            Self::TpotP95 => run.tpot_ms.p95,
            Self::HitRate => percent(run.cache.hit_rate),
            Self::InfiniteHitRate => percent(run.cache.hit_rate_infinite_cache),
            Self::PooledLru => percent(run.cache.hit_rate_pooled_lru),
            Self::PooledBelady => percent(run.cache.hit_rate_pooled_belady),
            Self::Imbalance => run.load.imbalance_max_over_mean,
            Self::QueueDepth => run.load.queue_depth_mean,
            Self::Goodput => run.goodput_rps,
            Self::Completed => {
                percent(run.completed_rps.zip(run.offered_rps).map(|(done, asked)| done / asked))
            }
        })
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::TtftP50 => "P50 TTFT",
            Self::TtftP95 => "P95 TTFT",
            Self::TtftP99 => "P99 TTFT",
            Self::TpotP95 => "P95 TPOT",
            Self::HitRate => "hit rate",
            Self::InfiniteHitRate => "hit rate of an infinite cache",
            Self::PooledLru => "hit rate of a pooled LRU",
            Self::PooledBelady => "hit rate of a pooled Belady cache",
            Self::Imbalance => "imbalance",
            Self::QueueDepth => "queue depth",
            Self::Goodput => "goodput",
            Self::Completed => "completed / offered",
        }
    }

    pub(super) const fn unit(self) -> &'static str {
        match self {
            Self::TtftP50 | Self::TtftP95 | Self::TtftP99 | Self::TpotP95 => "ms",
            Self::HitRate
            | Self::InfiniteHitRate
            | Self::PooledLru
            | Self::PooledBelady
            | Self::Completed => "%",
            Self::Imbalance => "max/mean",
            Self::QueueDepth => "requests",
            Self::Goodput => "req/s",
        }
    }

    /// Name of a column of CSV, the unit last.
    pub(super) const fn key(self) -> &'static str {
        match self {
            Self::TtftP50 => "ttft_p50_ms",
            Self::TtftP95 => "ttft_p95_ms",
            Self::TtftP99 => "ttft_p99_ms",
            Self::TpotP95 => "tpot_p95_ms",
            Self::HitRate => "hit_rate_percent",
            Self::InfiniteHitRate => "hit_rate_infinite_cache_percent",
            Self::PooledLru => "hit_rate_pooled_lru_percent",
            Self::PooledBelady => "hit_rate_pooled_belady_percent",
            Self::Imbalance => "imbalance_max_over_mean",
            Self::QueueDepth => "queue_depth_mean",
            Self::Goodput => "goodput_rps",
            Self::Completed => "completed_over_offered_percent",
        }
    }

    /// Digits after the point.
    pub(super) const fn decimals(self) -> usize {
        match self {
            Self::TtftP50 | Self::TtftP95 | Self::TtftP99 => 0,
            Self::HitRate
            | Self::InfiniteHitRate
            | Self::PooledLru
            | Self::PooledBelady
            | Self::Completed => 1,
            Self::TpotP95 | Self::Imbalance | Self::QueueDepth | Self::Goodput => 2,
        }
    }

    /// What an axis says.
    pub(super) fn axis(self) -> String {
        match self {
            Self::Imbalance => "imbalance: busiest / mean instance".to_owned(),
            _ => format!("{}, {}", self.name(), self.unit()),
        }
    }
}

/// A cell with its runs.
pub(super) struct GridCell<'a> {
    pub(super) cell: &'a Cell,
    /// One for each seed, ascending; at least one.
    pub(super) runs: Vec<&'a ExperimentRun>,
    /// Index of its scene.
    pub(super) scene: usize,
    /// Name of the policy without its parameters.
    pub(super) kind: &'a str,
    /// What figures call it: its kind, with what tells it from others of that kind.
    pub(super) name: String,
    estimates: [OnceCell<Option<Estimate>>; Quantity::ALL.len()],
    against_baseline: OnceCell<Option<Comparison>>,
}

impl<'a> GridCell<'a> {
    fn new(cell: &'a Cell, first: &'a ExperimentRun, scene: usize) -> Self {
        let kind = first.result.policy_config.get("kind").and_then(serde_json::Value::as_str);
        let label = cell.policy.split(':').next().unwrap_or_default();
        Self {
            cell,
            runs: vec![first],
            scene,
            kind: kind.unwrap_or(label),
            name: String::new(),
            estimates: Default::default(),
            against_baseline: OnceCell::new(),
        }
    }

    /// The figure of each seed; `None` unless every seed has it.
    pub(super) fn values(&self, quantity: Quantity) -> Option<Vec<f64>> {
        self.runs.iter().map(|run| quantity.of(&run.result)).collect()
    }

    /// Mean over the seeds, if every seed has it.
    pub(super) fn mean(&self, quantity: Quantity) -> Option<f64> {
        let sum: f64 = self.runs.iter().map(|run| quantity.of(&run.result)).sum::<Option<_>>()?;
        finite(Some(sum / self.runs.len() as f64))
    }

    /// Mean over the seeds with its interval, if every seed has it.
    pub(super) fn estimate(&self, quantity: Quantity) -> Option<Estimate> {
        let index = Quantity::ALL.iter().position(|other| *other == quantity)?;
        *self.estimates[index].get_or_init(|| mean(&self.values(quantity)?))
    }

    /// This cell against another, over the seeds that both have; `None` if one of those was not measured.
    pub(super) fn against(&self, other: &Self, quantity: Quantity) -> Option<Comparison> {
        let (mut values, mut reference) = (Vec::new(), Vec::new());
        for (run, other) in self.pairs(other) {
            values.push(quantity.of(&run.result)?);
            reference.push(quantity.of(&other.result)?);
        }
        compare(&values, &reference)
    }

    /// Runs of both under the same seed.
    pub(super) fn pairs(&self, other: &Self) -> Vec<(&'a ExperimentRun, &'a ExperimentRun)> {
        let of = |run: &&'a ExperimentRun| {
            let at = other.runs.binary_search_by_key(&run.result.seed, |run| run.result.seed);
            at.ok().map(|at| (*run, other.runs[at]))
        };
        self.runs.iter().filter_map(of).collect()
    }

    /// Weights of cache and load, if it is the policy that has them.
    pub(super) fn alpha_beta(&self) -> Option<(f64, f64)> {
        let config = &self.runs[0].result.policy_config;
        let weight = |name| finite(config.get(name)?.as_f64());
        (self.kind == LOAD_CACHE).then_some(())?;
        Some((weight("alpha")?, weight("beta")?))
    }

    /// Weight of the cache over that of the load, all that its choice depends on; 0 without a weight of the cache, since then
    /// the load decides, be it as the score or between equal ones.
    pub(super) fn ratio(&self) -> Option<f64> {
        let (alpha, beta) = self.alpha_beta()?;
        Some(if alpha == 0.0 { 0.0 } else { alpha / beta })
    }

    /// The policy's settings but for its two weights, as text; what an alpha/beta map has in common.
    pub(super) fn variant(&self) -> String {
        let mut config = self.runs[0].result.policy_config.clone();
        if let Some(settings) = config.as_object_mut() {
            for known in ["kind", "alpha", "beta"] {
                settings.remove(known);
            }
        }
        config.to_string()
    }

    /// Its settings by their names.
    fn parameters(&self) -> impl Iterator<Item = (&'a str, &'a serde_json::Value)> + use<'a> {
        let settings = self.runs[0].result.policy_config.as_object();
        let all = settings.into_iter().flatten();
        all.map(|(name, value)| (name.as_str(), value)).filter(|(name, _)| *name != "kind")
    }

    pub(super) fn is_oracle(&self) -> bool {
        self.kind == ORACLE
    }

    pub(super) fn is_load_only(&self) -> bool {
        LOAD_ONLY.contains(&self.kind)
    }

    pub(super) fn failed(&self) -> u64 {
        self.runs.iter().map(|run| run.result.failed).sum()
    }
}

/// Cells that differ in the policy alone.
pub(super) struct Scene<'a> {
    /// One of its cells: all that they have in common.
    pub(super) cell: &'a Cell,
    /// Indices of its cells, in the order of the file.
    pub(super) cells: Vec<usize>,
    /// Index of the cell that others are compared with.
    pub(super) baseline: Option<usize>,
    /// Index of the oracle's cell, the first if there are several.
    pub(super) oracle: Option<usize>,
    /// What tells it from the other scenes.
    pub(super) name: String,
    /// The same as part of a file name, unique.
    pub(super) slug: String,
}

/// The whole experiment.
pub(super) struct Grid<'a> {
    /// In the order of the file.
    pub(super) cells: Vec<GridCell<'a>>,
    /// In the order of the file.
    pub(super) scenes: Vec<Scene<'a>>,
    /// Runs left out because their cell and seed were there already.
    pub(super) repeated: usize,
    /// Label of each sweep's reference, by the sweep's name.
    references: &'a BTreeMap<String, String>,
}

impl<'a> Grid<'a> {
    pub(super) fn new(results: &'a ExperimentResults) -> Self {
        let mut grid = Self {
            cells: Vec::new(),
            scenes: Vec::new(),
            repeated: 0,
            references: &results.about.references,
        };
        let (mut scenes, mut cells) = (BTreeMap::new(), BTreeMap::new());
        for run in &results.runs {
            let cell = &run.cell;
            let scene = *scenes.entry(SceneKey::new(cell)).or_insert_with(|| {
                grid.scenes.push(Scene {
                    cell,
                    cells: Vec::new(),
                    baseline: None,
                    oracle: None,
                    name: String::new(),
                    slug: String::new(),
                });
                grid.scenes.len() - 1
            });
            let key = (scene, cell.policy.as_str());
            if let Some(index) = cells.get(&key) {
                let known: &mut GridCell<'a> = &mut grid.cells[*index];
                known.runs.push(run);
            } else {
                cells.insert(key, grid.cells.len());
                grid.scenes[scene].cells.push(grid.cells.len());
                let new = GridCell::new(cell, run, scene);
                if new.kind == ORACLE {
                    grid.scenes[scene].oracle.get_or_insert(grid.cells.len());
                }
                grid.cells.push(new);
            }
        }
        for cell in &mut grid.cells {
            let all = cell.runs.len();
            cell.runs.sort_by_key(|run| run.result.seed);
            cell.runs.dedup_by_key(|run| run.result.seed);
            grid.repeated += all - cell.runs.len();
        }
        grid.find_baselines(&results.about.baseline);
        grid.name_scenes();
        grid.name_cells();
        grid
    }

    /// A policy is called by its kind and by those of its parameters that are not as in the kind's defaults, or that vary if
    /// those were not run, so that its name fits beside a line.
    fn name_cells(&mut self) {
        let mut values: BTreeMap<(&str, &str), BTreeSet<String>> = BTreeMap::new();
        for cell in &self.cells {
            for (parameter, value) in cell.parameters() {
                values.entry((cell.kind, parameter)).or_default().insert(value.to_string());
            }
        }
        let defaults: BTreeMap<&str, BTreeMap<&str, String>> = self
            .cells
            .iter()
            .filter(|cell| cell.cell.policy == cell.kind)
            .map(|cell| {
                let all = cell.parameters().map(|(name, value)| (name, value.to_string()));
                (cell.kind, all.collect())
            })
            .collect();
        let name = |cell: &GridCell<'_>| {
            let mut name = cell.kind.to_owned();
            for (parameter, value) in cell.parameters() {
                let says_nothing = match defaults.get(cell.kind) {
                    Some(defaults) => defaults.get(parameter) == Some(&value.to_string()),
                    None => values[&(cell.kind, parameter)].len() < 2,
                };
                if says_nothing {
                    continue;
                }
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let sign = match parameter {
                    "alpha" => "α ",
                    "beta" => "β ",
                    _ => "",
                };
                // Writing to a string cannot fail.
                let _ = write!(name, " {sign}{value}");
            }
            name
        };
        let names: Vec<String> = self.cells.iter().map(name).collect();
        let mut labels: BTreeMap<&str, &str> = BTreeMap::new();
        let mut ambiguous: BTreeSet<&str> = BTreeSet::new();
        for (name, cell) in names.iter().zip(&self.cells) {
            if *labels.entry(name).or_insert(&cell.cell.policy) != cell.cell.policy {
                ambiguous.insert(name);
            }
        }
        let ambiguous: BTreeSet<String> = ambiguous.into_iter().map(str::to_owned).collect();
        for (cell, name) in self.cells.iter_mut().zip(names) {
            cell.name = if ambiguous.contains(&name) { cell.cell.policy.clone() } else { name };
        }
    }

    /// The scene that those of a sweep are compared with: that of its reference, else the first.
    pub(super) fn reference<'g>(&self, scenes: &[&'g Scene<'a>]) -> Option<&'g Scene<'a>> {
        let first = *scenes.first()?;
        let label = self.references.get(&first.cell.condition.sweep);
        let is_reference = |scene: &&&Scene<'_>| Some(&scene.cell.condition.label) == label;
        Some(scenes.iter().find(is_reference).copied().unwrap_or(first))
    }

    fn find_baselines(&mut self, baseline: &str) {
        for scene in &mut self.scenes {
            let find = |is: &dyn Fn(&GridCell<'_>) -> bool| {
                scene.cells.iter().copied().find(|index| is(&self.cells[*index]))
            };
            scene.baseline = find(&|cell| cell.cell.policy == baseline)
                .or_else(|| find(&|cell| cell.kind == baseline));
        }
    }

    fn name_scenes(&mut self) {
        // The same share of another capacity is the same load.
        let loads: BTreeSet<_> = self.scenes.iter().map(|s| load_text(&s.cell.load)).collect();
        let sizes: BTreeSet<_> = self.scenes.iter().map(|s| s.cell.instances).collect();
        let mut slugs = BTreeSet::new();
        for scene in &mut self.scenes {
            let mut parts = vec![scene.cell.workload.clone()];
            if loads.len() > 1 {
                parts.extend(load_text(&scene.cell.load));
            }
            if sizes.len() > 1 {
                parts.push(instances_text(scene.cell));
            }
            parts.extend(condition_text(scene.cell));
            scene.name = parts.join(", ");
            let slug = slug(&scene.name);
            let mut unique = slug.clone();
            let mut nth = 1;
            while !slugs.insert(unique.clone()) {
                nth += 1;
                unique = format!("{slug}-{nth}");
            }
            scene.slug = unique;
        }
    }

    pub(super) fn cells_of<'g>(
        &'g self,
        scene: &'g Scene<'a>,
    ) -> impl Iterator<Item = &'g GridCell<'a>> {
        scene.cells.iter().map(|index| &self.cells[*index])
    }

    /// Those of a scene that a gateway could be: all but the oracle's.
    pub(super) fn contenders<'g>(
        &'g self,
        scene: &'g Scene<'a>,
    ) -> impl Iterator<Item = &'g GridCell<'a>> {
        self.cells_of(scene).filter(|cell| !cell.is_oracle())
    }

    pub(super) fn baseline_of(&self, scene: &Scene<'a>) -> Option<&GridCell<'a>> {
        scene.baseline.map(|index| &self.cells[index])
    }

    /// P95 TTFT of a cell against its scene's baseline; `None` of the baseline itself.
    pub(super) fn against_baseline(&self, cell: &GridCell<'a>) -> Option<Comparison> {
        *cell.against_baseline.get_or_init(|| {
            let baseline = self.baseline_of(&self.scenes[cell.scene])?;
            let is_other = baseline.cell.policy != cell.cell.policy;
            is_other.then(|| cell.against(baseline, Quantity::TtftP95))?
        })
    }

    /// P95 TTFT of a cell over that of its scene's oracle, 1 of the oracle itself; `None` without an oracle.
    pub(super) fn over_oracle(&self, cell: &GridCell<'a>) -> Option<Estimate> {
        let oracle = &self.cells[self.scenes[cell.scene].oracle?];
        let Estimate { value, interval, seeds } =
            cell.against(oracle, Quantity::TtftP95)?.relative?;
        let interval = interval.map(|(low, high)| (1.0 + low, 1.0 + high));
        Some(Estimate { value: 1.0 + value, interval, seeds })
    }

    /// The cell with the least mean of `quantity`, the first of equals.
    pub(super) fn least<'g>(
        cells: impl Iterator<Item = &'g GridCell<'a>>,
        quantity: Quantity,
    ) -> Option<&'g GridCell<'a>>
    where
        'a: 'g,
    {
        let measured = cells.filter_map(|cell| Some((cell, cell.mean(quantity)?)));
        measured.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(cell, _)| cell)
    }

    /// One cell for each kind of policy: the one with its defaults, or else the one with the least P95 TTFT.
    pub(super) fn one_of_each_kind<'g>(&'g self, scene: &'g Scene<'a>) -> Vec<&'g GridCell<'a>> {
        let mut kinds: Vec<&str> = Vec::new();
        for cell in self.cells_of(scene) {
            if !kinds.contains(&cell.kind) {
                kinds.push(cell.kind);
            }
        }
        let chosen = |kind: &&str| {
            let of_kind = || self.cells_of(scene).filter(|cell| cell.kind == *kind);
            let default = of_kind().find(|cell| cell.cell.policy == *kind);
            default
                .or_else(|| Self::least(of_kind(), Quantity::TtftP95))
                .or_else(|| of_kind().next())
        };
        kinds.iter().filter_map(chosen).collect()
    }

    /// All cells of a scene if they can be shown one below the other, else one of each kind.
    pub(super) fn shown<'g>(&'g self, scene: &'g Scene<'a>) -> Vec<&'g GridCell<'a>> {
        const ROWS_MAX: usize = 12;
        if scene.cells.len() <= ROWS_MAX {
            self.cells_of(scene).collect()
        } else {
            self.one_of_each_kind(scene)
        }
    }

    /// Scenes that differ from each other in what `key` leaves out alone, in the order of the file.
    pub(super) fn scenes_by<K: Ord>(
        &self,
        key: impl Fn(&'a Cell) -> Option<K>,
    ) -> Vec<Vec<&Scene<'a>>> {
        let mut places = BTreeMap::new();
        let mut groups: Vec<Vec<&Scene<'a>>> = Vec::new();
        for scene in &self.scenes {
            let Some(key) = key(scene.cell) else { continue };
            let place = *places.entry(key).or_insert_with(|| {
                groups.push(Vec::new());
                groups.len() - 1
            });
            groups[place].push(scene);
        }
        groups
    }
}

/// What makes a scene, as something that can be ordered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SceneKey<'a> {
    workload: &'a str,
    factors: Vec<(&'a str, u64)>,
    instances: u32,
    load: [Option<u64>; 3],
    condition: (&'a str, &'a str),
}

impl<'a> SceneKey<'a> {
    pub(super) fn new(cell: &'a Cell) -> Self {
        let factors = cell.factors.iter().map(|(name, value)| (name.as_str(), value.to_bits()));
        Self {
            workload: &cell.workload,
            factors: factors.collect(),
            instances: cell.instances,
            load: load_key(&cell.load),
            condition: (&cell.condition.sweep, &cell.condition.label),
        }
    }

    /// The same at any load.
    pub(super) fn without_load(self) -> Self {
        Self { load: [None; 3], ..self }
    }

    /// The same with any number of instances: the same share of the capacity, or the same rate or concurrency for each
    /// instance.
    pub(super) fn without_instances(self) -> Self {
        let [share, rate, concurrency] = self.load;
        let of_each = |of_all: u64| {
            (f64::from_bits(of_all) / f64::from(self.instances) * 1e6).round().to_bits()
        };
        let rate = rate.filter(|_| share.is_none());
        let load = [share, rate.map(of_each), concurrency.map(of_each)];
        Self { instances: 0, load, ..self }
    }

    /// The same under any condition.
    pub(super) fn without_condition(self) -> Self {
        Self { condition: ("", ""), ..self }
    }

    /// The same under any value of its sweep.
    pub(super) fn without_value(self) -> Self {
        Self { condition: (self.condition.0, ""), ..self }
    }

    /// The same load in two experiments: the share of the capacity if it was given like that, although the capacity they
    /// found may differ.
    pub(super) fn without_found_capacity(self) -> Self {
        let [share, rate, concurrency] = self.load;
        Self { load: [share, rate.filter(|_| share.is_none()), concurrency], ..self }
    }
}

fn load_key(load: &LoadPoint) -> [Option<u64>; 3] {
    let LoadPoint { of_capacity, requests_per_s, concurrency } = *load;
    [of_capacity, requests_per_s, concurrency].map(|value| value.map(f64::to_bits))
}

/// The load as a number and its unit, as it was given: a share of the capacity in percent, requests per second, or
/// sessions at once; `None` if the workload keeps its own times.
pub(super) fn load_number(load: &LoadPoint) -> Option<(f64, LoadUnit)> {
    let LoadPoint { of_capacity, requests_per_s, concurrency } = *load;
    let share = of_capacity.map(|share| (100.0 * share, LoadUnit::PercentOfCapacity));
    let rate = requests_per_s.map(|rate| (rate, LoadUnit::RequestsPerS));
    share.or(rate).or(concurrency.map(|sessions| (sessions, LoadUnit::Sessions)))
}

/// What the loads of all these scenes are counted in, if that is one thing.
pub(super) fn common_load_unit(scenes: &[&Scene<'_>]) -> Option<LoadUnit> {
    let mut units = scenes.iter().map(|scene| load_number(&scene.cell.load).map(|(_, unit)| unit));
    let first = units.next()??;
    units.all(|unit| unit == Some(first)).then_some(first)
}

/// What a load is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoadUnit {
    /// Percent of the baseline's capacity.
    PercentOfCapacity,
    /// Requests per second over all instances.
    RequestsPerS,
    /// Sessions under way at once over all instances.
    Sessions,
}

impl LoadUnit {
    /// Behind a number.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::PercentOfCapacity => " % of capacity",
            Self::RequestsPerS => " req/s",
            Self::Sessions => " sessions at once",
        }
    }

    /// At an axis, and as the head of a column.
    pub(super) fn axis(self) -> (&'static str, &'static str) {
        match self {
            Self::PercentOfCapacity => {
                ("offered load, % of the baseline's capacity", "load_percent_of_capacity")
            }
            Self::RequestsPerS => ("offered load, requests/s", "load_requests_per_s"),
            Self::Sessions => ("sessions at once (closed loop)", "load_concurrency"),
        }
    }
}

/// Whether a figure that is this share above the best is as good as the best: up to 5 %.
pub(super) fn is_near(share: f64) -> bool {
    // A quotient is rounded.
    share <= 0.05 + 1e-9
}

/// A number of instances to read.
pub(super) fn instances_text(cell: &Cell) -> String {
    format!("{} instances", cell.instances)
}

/// A condition to read; `None` if there is none.
pub(super) fn condition_text(cell: &Cell) -> Option<String> {
    let Condition { sweep, label, .. } = &cell.condition;
    (!sweep.is_empty()).then(|| format!("{sweep} {label}"))
}

/// A load to read; `None` if the workload keeps its own times.
pub(super) fn load_text(load: &LoadPoint) -> Option<String> {
    let (value, unit) = load_number(load)?;
    let decimals = if unit == LoadUnit::RequestsPerS { 2 } else { 0 };
    Some(format!("{}{}", fixed(Some(value), decimals), unit.suffix()))
}

/// Cells that no other beats in both: `points` are (more is better, less is better), the result is indices by the first
/// ascending. Of equal points the first counts.
pub(super) fn pareto_front(points: &[(f64, f64)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|a, b| {
        let (a_point, b_point) = (points[*a], points[*b]);
        b_point.0.total_cmp(&a_point.0).then(a_point.1.total_cmp(&b_point.1)).then(a.cmp(b))
    });
    let mut front = Vec::new();
    let mut least = f64::INFINITY;
    for index in order {
        if points[index].1 < least {
            least = points[index].1;
            front.push(index);
        }
    }
    front.reverse();
    front
}
