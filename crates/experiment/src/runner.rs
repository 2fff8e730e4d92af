//! Runs what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use kvroute_lab::{
    About, Capacity, Cell, ExperimentResults, HitRateBounds, Manifest, MeasurementWindow,
    RunResult, Slo,
};
use kvroute_rows::{RunKey, WriteRowsError, write_requests, write_samples};
use kvroute_sim::SimConfig;
use kvroute_types::{RequestRecord, mix64};
use kvroute_workload::Workload;

use crate::capacity::{Search, capacity};
use crate::plan::{Plan, PlannedCondition, PlannedLoad, RunId, Scene};
use crate::scene::{
    Finished, Prepared, config, experiment_run, last_start_of_run, run_cold, run_kept,
};
use crate::spec::{LabelledPolicy, SpecFault, WarmUpSettings};
use crate::store::{Shard, Store, StoreFault};

/// How an experiment is run.
pub struct Options<'a> {
    /// Runs at the same time; simulated results do not depend on it.
    pub threads: usize,
    /// Which part of it.
    pub shard: Shard,
    /// Makes runs live instead of simulating them.
    pub live: Option<&'a dyn Live>,
    /// Which cells to run; all of them if empty. A cell is run if it fits one of these.
    pub only: Vec<CellFilter>,
}

/// Makes runs over HTTP, in real time.
pub trait Live: Sync {
    /// Plays the workload at fresh instances behind a fresh gateway.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn run(&self, run: &LiveRun<'_>) -> Result<LiveOutcome, String>;
}

/// A run to be made live.
#[derive(Clone, Copy, Debug)]
pub struct LiveRun<'a> {
    /// What is asked.
    pub workload: &'a Workload,
    /// The cluster, policy and seed, as for a simulation.
    pub config: &'a SimConfig,
    /// Which requests count.
    pub window: MeasurementWindow,
    /// The objective.
    pub slo: Slo,
    /// Hit rates of one cache for all instances.
    pub hit_rate_bounds: HitRateBounds,
}

/// A run that was made live.
#[derive(Debug)]
pub struct LiveOutcome {
    /// Its figures.
    pub result: RunResult,
    /// Its requests.
    pub records: Vec<RequestRecord>,
}

/// Cells whose parts contain what is asked for: `workload=chat,policy=jsq,instances=4,load=0.7`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CellFilter {
    parts: Vec<(String, String)>,
}

impl std::str::FromStr for CellFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const KEYS: [&str; 6] = ["workload", "policy", "instances", "load", "sweep", "value"];
        let mut parts = Vec::new();
        for pair in text.split(';') {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(format!("`{pair}` is not KEY=VALUE; separate several by `;`"));
            };
            if !KEYS.contains(&key) {
                return Err(format!(
                    "no part of a cell is called `{key}`; known: {}",
                    KEYS.join(", ")
                ));
            }
            parts.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self { parts })
    }
}

impl CellFilter {
    pub(crate) fn fits(&self, cell: &Cell) -> bool {
        self.parts.iter().all(|(key, value)| {
            let is = match key.as_str() {
                "workload" => cell.workload.clone(),
                "policy" => cell.policy.clone(),
                "instances" => cell.instances.to_string(),
                "load" => cell
                    .load
                    .of_capacity
                    .or(cell.load.requests_per_s)
                    .or(cell.load.concurrency)
                    .map_or_else(String::new, |load| load.to_string()),
                "sweep" => cell.condition.sweep.clone(),
                _ => cell.condition.label.clone(),
            };
            is == *value
        })
    }
}

/// A run that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum RunFault {
    /// In the experiment file, seen only now.
    #[error(transparent)]
    Spec(SpecFault),
    /// A workload that cannot be cut into blocks.
    #[error("workload {workload}: {what}")]
    Workload {
        /// Its name.
        workload: String,
        /// What is wrong.
        what: String,
    },
    /// A simulation that cannot be.
    #[error("{what}")]
    Simulation {
        /// What is wrong.
        what: String,
    },
    /// Runs on the same instances that ran into each other.
    #[error(
        "a run of {policy} was not over when the next began; lower the load, or use cold caches"
    )]
    Overlap {
        /// Its policy.
        policy: String,
    },
    /// No rate is low enough, or none too high.
    #[error(
        "{workload} on {instances} instances: {policy} has no capacity to speak of: at {rate} requests/s a share of \
         {attainment} meets the SLO; change [slo], or give load.requests_per_s"
    )]
    Capacity {
        /// The workload.
        workload: String,
        /// How many.
        instances: u32,
        /// The baseline.
        policy: String,
        /// The last rate that was tried.
        rate: f64,
        /// What it gave.
        attainment: f64,
    },
    /// A live run.
    #[error("live run of {policy} on {workload}: {what}")]
    Live {
        /// The policy.
        policy: String,
        /// The workload.
        workload: String,
        /// What went wrong.
        what: String,
    },
    /// In the run directory.
    #[error(transparent)]
    Store(#[from] StoreFault),
    /// Requests or samples that could not be written.
    #[error("cannot write {path}", path = path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: WriteRowsError,
    },
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The capacities of so many workloads are known, of so many to be known.
    Capacities {
        /// Known.
        known: usize,
        /// All.
        of: usize,
    },
    /// So many runs of this part are done, of so many.
    Runs {
        /// Done, those found in the directory included.
        done: usize,
        /// All of this part.
        of: usize,
    },
}

/// What is simulated together: one scene, seed by seed, or all seeds where caches are kept.
#[derive(Clone, Debug)]
struct Unit {
    scene: usize,
    /// `None`: all of them, for the condition whose caches are kept.
    seed: Option<u64>,
    /// Missing runs: condition and policy.
    missing: Vec<(usize, usize)>,
}

/// Runs what is missing of this part, and keeps it in the store as it comes.
///
/// # Errors
/// The first run that cannot be made, or kept. What was finished before is in the store.
pub fn run(
    plan: &Plan,
    store: &mut Store,
    options: &Options<'_>,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<(), RunFault> {
    let wanted = plan.wanted(&options.only);
    if options.live.is_some() {
        check_live(plan, &wanted)?;
    }
    let of_part = |scene: usize, seed: u64| {
        options
            .shard
            .has(scene * plan.spec().seeds as usize + usize_of(seed - plan.spec().first_seed))
    };
    let rates = rates(plan, store, options, &wanted, progress)?;
    let units = units(plan, store, options, &rates, &wanted, &of_part);
    // Runs on kept caches are all made again if one of them is missing, whichever were asked for.
    let is_made_again = |scene: usize, condition: usize| {
        units.iter().any(|unit| {
            unit.seed.is_none() && (unit.scene, unit.missing[0].0) == (scene, condition)
        })
    };
    let cells = wanted.iter().filter(|(scene, condition, _)| !is_made_again(*scene, *condition));
    let found: usize = cells
        .map(|&(scene, condition, policy)| {
            let cell = plan.cell_number(scene, condition, policy);
            let is_here = |seed: &u64| {
                let is_of_part = if plan.keeps_caches(condition) {
                    options.shard.has(scene)
                } else {
                    of_part(scene, *seed)
                };
                is_of_part && store.done().contains_key(&RunId { cell, seed: *seed })
            };
            plan.seeds().filter(is_here).count()
        })
        .sum();
    let all = found + units.iter().map(|unit| unit_runs(plan, unit)).sum::<usize>();
    let done = AtomicUsize::new(found);
    progress(Progress::Runs { done: found, of: all });

    let store = Mutex::new(store);
    let keep = |finished: Finished| -> Result<(), RunFault> {
        write_parquet(plan, &store, &finished)?;
        lock(&store).add(finished.id, finished.run)?;
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        progress(Progress::Runs { done, of: all });
        Ok(())
    };
    for_each(options.threads, &units, |unit| run_unit(plan, options, unit, &rates, &keep))
}

/// Refuses policies that only the simulator can run, before anything is run.
fn check_live(plan: &Plan, wanted: &[(usize, usize, usize)]) -> Result<(), RunFault> {
    for &(scene, _, policy) in wanted {
        let LabelledPolicy { config, label } = &plan.policies[policy];
        config.validate_live().map_err(|fault| RunFault::Live {
            policy: label.clone(),
            workload: plan.sources[plan.scenes[scene].source].name.clone(),
            what: format!("{fault}, or leave its cells out with --only"),
        })?;
    }
    Ok(())
}

/// All results, in the order of the plan; those that are missing are left out.
pub fn results(plan: &Plan, store: &Store, manifest: Manifest) -> ExperimentResults {
    let mut capacities = store.capacities().to_vec();
    let order = |capacity: &Capacity| {
        let at = plan.sources.iter().position(|source| source.name == capacity.workload);
        (at, capacity.instances)
    };
    capacities.sort_by_key(order);
    capacities.dedup();
    ExperimentResults {
        manifest,
        about: about(plan),
        capacities,
        runs: store.done().values().cloned().collect(),
    }
}

fn about(plan: &Plan) -> About {
    let spec = plan.spec();
    About {
        name: plan.name().to_owned(),
        title: spec.title.clone(),
        question: spec.question.clone(),
        baseline: spec.baseline.clone(),
        warm_up: warm_up_text(spec.warm_up),
        references: spec
            .sweeps
            .iter()
            .map(|sweep| (sweep.name.clone(), sweep.reference_label()))
            .collect(),
    }
}

fn warm_up_text(warm_up: WarmUpSettings) -> String {
    let WarmUpSettings { share, counts_tail } = warm_up;
    let end = if counts_tail { "the last answer" } else { "the last one begins" };
    if counts_tail && share == 0.0 {
        return "All requests count, from the first to the last.".to_owned();
    }
    format!(
        "Requests count from {} % of the time over which sessions begin until {end}; the rest is served but not counted.",
        tidy_percent(share)
    )
}

fn tidy_percent(share: f64) -> f64 {
    (share * 1e4).round() / 100.0
}

/// The rate of every scene that is asked for; capacities are found on the way.
fn rates(
    plan: &Plan,
    store: &mut Store,
    options: &Options<'_>,
    wanted: &[(usize, usize, usize)],
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<BTreeMap<usize, Option<f64>>, RunFault> {
    let scenes: BTreeSet<usize> = wanted.iter().map(|(scene, ..)| *scene).collect();
    let mut searches: Vec<(usize, u32)> = Vec::new();
    for &number in &scenes {
        let scene = &plan.scenes[number];
        let key = (scene.source, measured_with(plan, scene));
        if matches!(scene.load, PlannedLoad::OfCapacity(_)) && !searches.contains(&key) {
            searches.push(key);
        }
    }
    let is_known = |store: &Store, (source, instances): (usize, u32)| {
        known_capacity(plan, store, source, instances).is_some()
    };
    let all = searches.len();
    searches.retain(|key| !is_known(store, *key));
    // The long ones first, so that no thread is left alone with one at the end.
    searches.sort_by_key(|(_, instances)| std::cmp::Reverse(*instances));
    let known = AtomicUsize::new(all - searches.len());
    if all > 0 {
        progress(Progress::Capacities { known: all - searches.len(), of: all });
    }
    let shared = Mutex::new(&mut *store);
    for_each(options.threads, &searches, |&(source, instances)| {
        let found = capacity(plan, &Search { source, instances })?;
        lock(&shared).add_capacity(found)?;
        let known = known.fetch_add(1, Ordering::Relaxed) + 1;
        progress(Progress::Capacities { known, of: all });
        Ok(())
    })?;
    Ok(scenes
        .into_iter()
        .map(|number| {
            let scene = &plan.scenes[number];
            let rate = match scene.load {
                PlannedLoad::Own | PlannedLoad::Concurrency(_) => None,
                PlannedLoad::Rate(rate) => Some(rate),
                PlannedLoad::OfCapacity(share) => {
                    let measured_with = measured_with(plan, scene);
                    let scale = f64::from(scene.instances) / f64::from(measured_with);
                    known_capacity(plan, store, scene.source, measured_with)
                        .map(|capacity| share * scale * capacity.requests_per_s)
                }
            };
            (number, rate)
        })
        .collect())
}

/// Number of instances with which the capacity behind a scene's load is measured.
fn measured_with(plan: &Plan, scene: &Scene) -> u32 {
    plan.spec().capacity.instances.unwrap_or(scene.instances)
}

fn known_capacity<'a>(
    plan: &Plan,
    store: &'a Store,
    source: usize,
    instances: u32,
) -> Option<&'a Capacity> {
    let name = &plan.sources[source].name;
    store.capacities().iter().find(|known| known.workload == *name && known.instances == instances)
}

/// What is missing, the long ones first.
fn units(
    plan: &Plan,
    store: &Store,
    options: &Options<'_>,
    rates: &BTreeMap<usize, Option<f64>>,
    wanted: &[(usize, usize, usize)],
    of_part: &dyn Fn(usize, u64) -> bool,
) -> Vec<Unit> {
    let mut cold: BTreeMap<(usize, u64), Vec<(usize, usize)>> = BTreeMap::new();
    let mut kept: BTreeSet<(usize, usize)> = BTreeSet::new();
    for &(scene, condition, policy) in wanted {
        let cell = plan.cell_number(scene, condition, policy);
        for seed in plan.seeds() {
            if store.done().contains_key(&RunId { cell, seed }) {
                continue;
            }
            if plan.keeps_caches(condition) {
                if options.shard.has(scene) {
                    kept.insert((scene, condition));
                }
            } else if of_part(scene, seed) {
                cold.entry((scene, seed)).or_default().push((condition, policy));
            }
        }
    }
    let cold = cold.into_iter().map(|((scene, seed), mut missing)| {
        // In an order of no meaning, so that a drift of the machine favours no policy of a live run.
        missing.sort_by_key(|(condition, policy)| {
            let cell = plan.cell_number(scene, *condition, *policy);
            mix64(cell as u64 ^ mix64(seed))
        });
        Unit { scene, seed: Some(seed), missing }
    });
    let kept = kept.into_iter().map(|(scene, condition)| {
        let policies = 0..plan.policies.len();
        Unit { scene, seed: None, missing: policies.map(|policy| (condition, policy)).collect() }
    });
    let mut units: Vec<Unit> = kept.chain(cold).collect();
    units.sort_by_key(|unit| {
        let scene = &plan.scenes[unit.scene];
        let rate = rates.get(&unit.scene).copied().flatten();
        let requests = u64::from(plan.sources[scene.source].requests(rate));
        std::cmp::Reverse(requests * unit_runs(plan, unit) as u64)
    });
    units
}

fn unit_runs(plan: &Plan, unit: &Unit) -> usize {
    match unit.seed {
        Some(_) => unit.missing.len(),
        None => unit.missing.len() * plan.spec().seeds as usize,
    }
}

fn run_unit(
    plan: &Plan,
    options: &Options<'_>,
    unit: &Unit,
    rates: &BTreeMap<usize, Option<f64>>,
    keep: &(dyn Fn(Finished) -> Result<(), RunFault> + Sync),
) -> Result<(), RunFault> {
    let scene = &plan.scenes[unit.scene];
    let rate = rates.get(&unit.scene).copied().flatten();
    let prepare = |condition: &PlannedCondition, seed| {
        let block_size = block_size(plan, condition, scene)?;
        Prepared::new(plan, scene, seed, rate, block_size)
    };
    let Some(seed) = unit.seed else {
        let &(condition, _) = unit.missing.first().expect("a unit has runs");
        if options.live.is_some() {
            return Err(RunFault::Live {
                policy: "all".into(),
                workload: plan.sources[scene.source].name.clone(),
                what:
                    "caches = \"kept\" can only be simulated; leave the condition out with --only"
                        .into(),
            });
        }
        let seeds = plan.seeds().map(|seed| prepare(&plan.conditions[condition], seed));
        let prepared: Vec<_> = seeds.collect::<Result<_, _>>()?;
        for finished in run_kept(plan, &prepared, (unit.scene, scene), condition)? {
            keep(finished)?;
        }
        return Ok(());
    };
    // Conditions rarely differ in their block size.
    let mut prepared: Vec<(kvroute_types::BlockSize, Prepared)> = Vec::new();
    for &(condition, policy) in &unit.missing {
        let planned = &plan.conditions[condition];
        let size = block_size(plan, planned, scene)?;
        if prepared.iter().all(|(known, _)| *known != size) {
            prepared.push((size, prepare(planned, seed)?));
        }
        let prepared = prepared.iter_mut().find(|(known, _)| *known == size);
        let (_, prepared) = prepared.expect("it is there by now");
        let finished = match options.live {
            None => run_cold(plan, prepared, (unit.scene, scene), condition, policy)?,
            Some(live) => run_live(plan, prepared, (unit.scene, scene), condition, policy, live)?,
        };
        keep(finished)?;
    }
    Ok(())
}

fn run_live(
    plan: &Plan,
    prepared: &mut Prepared,
    (number, scene): (usize, &Scene),
    condition: usize,
    policy: usize,
    live: &dyn Live,
) -> Result<Finished, RunFault> {
    let planned = &plan.conditions[condition];
    let config = config(plan, planned, scene.instances, policy, prepared.seed)?;
    let window = plan.spec().warm_up.window(last_start_of_run(prepared, &config)?);
    let hit_rate_bounds = prepared.bounds(scene, &config.engine);
    let outcome = live.run(&LiveRun {
        workload: &prepared.workload,
        config: &config,
        window,
        slo: plan.slo(scene),
        hit_rate_bounds,
    });
    let LiveOutcome { result, records } = outcome.map_err(|what| RunFault::Live {
        policy: plan.policies[policy].label.clone(),
        workload: prepared.workload.name().to_owned(),
        what,
    })?;
    let cell = plan.cell(scene, condition, policy, prepared.rate);
    let run = experiment_run(plan, cell, result, &records, window, None);
    let id = RunId { cell: plan.cell_number(number, condition, policy), seed: prepared.seed };
    Ok(Finished { id, run, records, samples: Vec::new() })
}

fn block_size(
    plan: &Plan,
    condition: &PlannedCondition,
    scene: &Scene,
) -> Result<kvroute_types::BlockSize, RunFault> {
    let config = config(plan, condition, scene.instances, plan.baseline, plan.spec().first_seed)?;
    Ok(config.engine.block_size)
}

/// Requests and samples of a run, each in a file of its own: the directory is one data set.
fn write_parquet(
    plan: &Plan,
    store: &Mutex<&mut Store>,
    finished: &Finished,
) -> Result<(), RunFault> {
    let keep = plan.spec().keep;
    let directory = lock(store).directory().to_owned();
    let RunId { cell, seed } = finished.id;
    let name = format!("cell-{cell:06}-seed-{seed}.parquet");
    let key = RunKey { cell: u32::try_from(cell).unwrap_or(u32::MAX), seed };
    let write = |folder: &str, write: &dyn Fn(&mut Vec<u8>) -> Result<(), WriteRowsError>| {
        let path = directory.join(folder).join(&name);
        let fault = |source| RunFault::Parquet { path: path.clone(), source };
        let mut bytes = Vec::new();
        write(&mut bytes).map_err(fault)?;
        let made = std::fs::create_dir_all(directory.join(folder))
            .and_then(|()| crate::store::write_atomically(&path, &bytes));
        made.map_err(|source| StoreFault::Io { what: "write", path: path.clone(), source })?;
        Ok::<(), RunFault>(())
    };
    if keep.requests {
        write("requests.parquet", &|out| write_requests(key, &finished.records, out))?;
    }
    if keep.samples_every.is_some() && !finished.samples.is_empty() {
        write("samples.parquet", &|out| write_samples(key, &finished.samples, out))?;
    }
    Ok(())
}

/// Calls `work` for each, on several threads, in order of beginning; stops at the first error and returns it.
fn for_each<T: Sync>(
    threads: usize,
    all: &[T],
    work: impl Fn(&T) -> Result<(), RunFault> + Sync,
) -> Result<(), RunFault> {
    let next = AtomicUsize::new(0);
    let is_over = AtomicBool::new(false);
    let first: Mutex<Option<RunFault>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, all.len().max(1)) {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = all.get(at) else { return };
                    if let Err(fault) = work(item) {
                        is_over.store(true, Ordering::Relaxed);
                        lock(&first).get_or_insert(fault);
                    }
                }
            });
        }
    });
    match first.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
