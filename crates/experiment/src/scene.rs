//! A scene under one seed: what its runs meet, and how a run is made of it.

use std::time::Instant;

use kvroute_engine::EngineConfig;
use kvroute_lab::{
    Cell, ExperimentRun, HitRateBounds, InstanceTimeline, MeasurementWindow, Quantiles, Timeline,
};
use kvroute_lab::{RunResult, quantile, steady_from};
use kvroute_sim::{RouterRestart, SimConfig, SimOutcome, simulate};
use kvroute_types::{BlockSize, LoadSample, Outcome, RequestRecord, Timestamp};
use kvroute_workload::{Arrival, Plan as BlockPlan, Reuses, Workload};

use crate::RunFault;
use crate::measure::{Simulated, hit_rate_bounds};
use crate::plan::{Plan, PlannedCondition, RunId, Scene};
use crate::spec::WarmUpSettings;
use crate::workloads::one_line;

/// Points of a timeline.
const TIMELINE_POINTS: f64 = 60.0;
/// Most instances of which a timeline is kept.
const TIMELINE_INSTANCES_MAX: u32 = 16;
/// Time between two runs on the same instances, s: everything has ended, nothing is forgotten.
const PAUSE_S: f64 = 30.0;

/// A workload under one seed and rate, and what is known of it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) workload: Workload,
    pub(crate) blocks: BlockPlan,
    reuses: Reuses,
    /// Hit rates of one cache for all instances, by their number of blocks.
    bounds: Vec<(u32, HitRateBounds)>,
    /// When the last session begins, and which requests count, by the workload's own times. A closed loop has other ones:
    /// [`last_start_of_run`].
    pub(crate) last_start: Timestamp,
    pub(crate) window: MeasurementWindow,
    pub(crate) is_closed_loop: bool,
    pub(crate) rate: Option<f64>,
    pub(crate) seed: u64,
}

/// A finished run and what it leaves for the Parquet files.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) id: RunId,
    pub(crate) run: ExperimentRun,
    pub(crate) records: Vec<RequestRecord>,
    pub(crate) samples: Vec<LoadSample>,
}

impl Prepared {
    pub(crate) fn new(
        plan: &Plan,
        scene: &Scene,
        seed: u64,
        rate: Option<f64>,
        block_size: BlockSize,
    ) -> Result<Self, RunFault> {
        let source = &plan.sources[scene.source];
        let workload = source.load(seed, rate).map_err(RunFault::Spec)?;
        let warm_up = plan.spec.warm_up;
        let open = Self::of(workload, warm_up, seed, rate, block_size)?;
        let Some(clients) = scene.load.clients() else { return Ok(open) };
        // What a cache could serve hangs little on when sessions begin, and is best told of the same ones that count.
        let workload = open.workload.in_closed_loop(clients);
        let blocks = block_plan(&workload, block_size)?;
        let last_start = last_start(&workload);
        let window = warm_up.window(last_start);
        Ok(Self { workload, blocks, last_start, window, is_closed_loop: true, ..open })
    }

    fn of(
        workload: Workload,
        warm_up: WarmUpSettings,
        seed: u64,
        rate: Option<f64>,
        block_size: BlockSize,
    ) -> Result<Self, RunFault> {
        let blocks = block_plan(&workload, block_size)?;
        let last_start = last_start(&workload);
        let window = warm_up.window(last_start);
        let counted = window.from()..=window.until();
        let reuses = Reuses::new(&workload, &blocks, counted);
        Ok(Self {
            workload,
            blocks,
            reuses,
            bounds: Vec::new(),
            last_start,
            window,
            is_closed_loop: false,
            rate,
            seed,
        })
    }

    /// Hit rates of one cache for all instances of the scene, each with such an engine.
    pub(crate) fn bounds(&mut self, scene: &Scene, engine: &EngineConfig) -> HitRateBounds {
        if let Some((_, known)) = self.bounds.iter().find(|(blocks, _)| *blocks == engine.kv_blocks)
        {
            return *known;
        }
        let bounds = hit_rate_bounds(&self.reuses, scene.instances, engine);
        self.bounds.push((engine.kv_blocks, bounds));
        bounds
    }

    /// The bound that is known without a cluster.
    fn infinite_bound(&self) -> HitRateBounds {
        HitRateBounds {
            infinite_cache: Some(self.reuses.infinite_hit_rate()),
            ..HitRateBounds::default()
        }
    }
}

fn block_plan(workload: &Workload, block_size: BlockSize) -> Result<BlockPlan, RunFault> {
    BlockPlan::new(workload, block_size).map_err(|error| RunFault::Workload {
        workload: workload.name().to_owned(),
        what: one_line(&error),
    })
}

/// When the last session of a run begins.
///
/// In a closed loop that follows from the answers: the run is simulated once to find out, and what is measured is another
/// run of it, the same to the bit.
pub(crate) fn last_start_of_run(
    prepared: &Prepared,
    config: &SimConfig,
) -> Result<Timestamp, RunFault> {
    if !prepared.is_closed_loop {
        return Ok(prepared.last_start);
    }
    let outcome = simulate(config, &prepared.workload, &prepared.blocks, |_| {});
    let outcome = outcome.map_err(|error| RunFault::Simulation { what: one_line(&error) })?;
    let starts = outcome.records.iter().filter(|record| record.turn == 0);
    Ok(starts.map(|record| record.arrival).max().unwrap_or(Timestamp::ZERO))
}

/// The simulated cluster of a run.
pub(crate) fn config(
    plan: &Plan,
    condition: &PlannedCondition,
    instances: u32,
    policy: usize,
    seed: u64,
) -> Result<SimConfig, RunFault> {
    let policy = plan.policies[policy].config;
    let made = condition.cluster.sim_config(&condition.profile, policy, instances, seed);
    let mut config = made.map_err(|error| RunFault::Simulation { what: one_line(&error) })?;
    config.router.always_index = true;
    Ok(config)
}

/// Makes one run from cold caches.
pub(crate) fn run_cold(
    plan: &Plan,
    prepared: &mut Prepared,
    scene: (usize, &Scene),
    condition: usize,
    policy: usize,
) -> Result<Finished, RunFault> {
    let (number, scene) = scene;
    let planned = &plan.conditions[condition];
    let mut config = config(plan, planned, scene.instances, policy, prepared.seed)?;
    let last_start = last_start_of_run(prepared, &config)?;
    let window = plan.spec.warm_up.window(last_start);
    config.measure_from_s = window.from().as_secs_f64();
    let counts_tail = plan.spec.warm_up.counts_tail;
    config.measure_until_s = (!counts_tail).then(|| last_start.as_secs_f64());
    let latest_s = 2.0 * last_start.as_secs_f64() + 3_600.0;
    config.router_restarts = planned.cluster.router_restarts(latest_s);
    let keeps_timeline = plan.spec.keep.timelines
        && prepared.seed == plan.spec.first_seed
        && scene.instances <= TIMELINE_INSTANCES_MAX;
    let timeline_step_s = last_start.as_secs_f64() / TIMELINE_POINTS;
    config.sample_every_s = match plan.spec.keep.samples_every {
        Some(every) => Some(every.as_secs_f64()),
        None => (keeps_timeline && timeline_step_s > 0.0).then_some(timeline_step_s),
    };
    let began = Instant::now();
    let outcome = simulate(&config, &prepared.workload, &prepared.blocks, |_| {});
    let outcome = outcome.map_err(|error| RunFault::Simulation { what: one_line(&error) })?;
    let wall_s = began.elapsed().as_secs_f64();
    let hit_rate_bounds = prepared.bounds(scene, &config.engine);
    let run =
        Simulated { window, hit_rate_bounds, ..simulated(plan, prepared, scene, policy, wall_s) };
    let result = run.result(&outcome);
    let cell = plan.cell(scene, condition, policy, prepared.rate);
    let timeline = keeps_timeline.then(|| timeline(&outcome, config.sample_every_s));
    let run = experiment_run(plan, cell, result, &outcome.records, window, timeline);
    let id = RunId { cell: plan.cell_number(number, condition, policy), seed: prepared.seed };
    let SimOutcome { records, samples, .. } = outcome;
    Ok(Finished { id, run, records, samples })
}

/// Makes the runs of all policies and seeds one after the other on the same instances, whose caches stay; the router is a
/// new one for each. What one cache of their size would serve is not told: it would not begin empty either.
pub(crate) fn run_kept(
    plan: &Plan,
    prepared: &[Prepared],
    scene: (usize, &Scene),
    condition: usize,
) -> Result<Vec<Finished>, RunFault> {
    let (number, scene) = scene;
    let planned = &plan.conditions[condition];
    let mut config = config(plan, planned, scene.instances, 0, plan.spec.first_seed)?;
    let mut parts = Vec::new();
    let mut starts = Vec::new();
    let mut at_s = 0.0;
    for policy in 0..plan.policies.len() {
        for part in prepared {
            let start = Timestamp::from_secs_f64(at_s);
            if at_s > 0.0 {
                let policy = Some(plan.policies[policy].config);
                config.router_restarts.push(RouterRestart { at_s: start.as_secs_f64(), policy });
            }
            parts.push((part.workload.clone().with_salt(part.seed), start));
            starts.push((policy, part, start));
            at_s += longest_s(&part.workload) + PAUSE_S;
        }
    }
    let all = Workload::concat(parts);
    let all = all.map_err(|error| RunFault::Simulation { what: one_line(&error) })?;
    let blocks = BlockPlan::new(&all, config.engine.block_size);
    let blocks = blocks.map_err(|error| RunFault::Simulation { what: one_line(&error) })?;
    let began = Instant::now();
    let outcome = simulate(&config, &all, &blocks, |_| {});
    let mut outcome = outcome.map_err(|error| RunFault::Simulation { what: one_line(&error) })?;
    let wall_s = began.elapsed().as_secs_f64() / starts.len() as f64;
    // What is measured over the whole of it is nobody's.
    let all_records = std::mem::take(&mut outcome.records);
    let mut finished = Vec::new();
    for (at, &(policy, part, start)) in starts.iter().enumerate() {
        let end = starts.get(at + 1).map_or(Timestamp::MAX, |(.., next)| *next);
        let records: Vec<RequestRecord> = all_records
            .iter()
            .filter(|record| (start..end).contains(&record.arrival))
            .cloned()
            .collect();
        if records.len() != part.workload.requests().len() || records.iter().any(|r| r.end >= end) {
            return Err(RunFault::Overlap { policy: plan.policies[policy].label.clone() });
        }
        let shifted = |at: Timestamp| at.plus_nanos(start.as_nanos());
        let window =
            MeasurementWindow::between(shifted(part.window.from()), shifted(part.window.until()));
        let of_part = Simulated { window, ..simulated(plan, part, scene, policy, wall_s) };
        let result = of_part.result_of_records(&records, scene.instances);
        let cell = plan.cell(scene, condition, policy, part.rate);
        let mut run = experiment_run(plan, cell, result, &records, window, None);
        // Both count from the run's own beginning.
        run.warm_up_s -= start.as_secs_f64();
        run.steady_from_s = run.steady_from_s.map(|at| at - start.as_secs_f64());
        let id = RunId { cell: plan.cell_number(number, condition, policy), seed: part.seed };
        finished.push(Finished { id, run, records, samples: Vec::new() });
    }
    Ok(finished)
}

/// Share of the counted requests that meet the SLO when the baseline routes.
pub(crate) fn attainment(
    plan: &Plan,
    prepared: &Prepared,
    scene: &Scene,
    base: &PlannedCondition,
) -> Result<f64, RunFault> {
    let config = config(plan, base, scene.instances, plan.baseline, prepared.seed)?;
    let outcome = simulate(&config, &prepared.workload, &prepared.blocks, |_| {});
    let outcome = outcome.map_err(|error| RunFault::Simulation { what: one_line(&error) })?;
    let result = simulated(plan, prepared, scene, plan.baseline, 0.0).result(&outcome);
    let counted = outcome.records.iter().filter(|r| prepared.window.counts(r.arrival)).count();
    let good = result.goodput_rps.unwrap_or(0.0) * result.duration_s.unwrap_or(0.0);
    Ok(if counted == 0 { 0.0 } else { good / counted as f64 })
}

fn simulated<'a>(
    plan: &Plan,
    prepared: &'a Prepared,
    scene: &Scene,
    policy: usize,
    wall_s: f64,
) -> Simulated<'a> {
    Simulated {
        policy: plan.policies[policy].config,
        workload: prepared.workload.name(),
        instances: scene.instances,
        seed: prepared.seed,
        window: prepared.window,
        slo: plan.slo(scene),
        hit_rate_bounds: prepared.infinite_bound(),
        wall_s,
    }
}

/// What an experiment keeps of a run, from its figures and records.
pub(crate) fn experiment_run(
    plan: &Plan,
    cell: Cell,
    result: RunResult,
    records: &[RequestRecord],
    window: MeasurementWindow,
    timeline: Option<Timeline>,
) -> ExperimentRun {
    let mut by_arrival: Vec<(Timestamp, f64)> = records
        .iter()
        .filter(|record| record.outcome == Outcome::Completed && record.arrival <= window.until())
        .filter_map(|record| {
            let ms = record.first_token?.nanos_since(record.arrival) as f64 / 1e6;
            Some((record.arrival, ms))
        })
        .collect();
    by_arrival.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let series: Vec<f64> = by_arrival.iter().map(|(_, ms)| *ms).collect();
    let steady_from_s = steady_from(&series).map(|at| by_arrival[at].0.as_secs_f64());
    let ttft_quantiles = plan.spec.keep.distributions.then(|| {
        let counted = by_arrival.iter().filter(|(at, _)| window.counts(*at));
        let mut ms: Vec<f64> = counted.map(|(_, ms)| *ms).collect();
        ms.sort_by(f64::total_cmp);
        let at = |percent: u32| quantile(&ms, f64::from(percent) / 100.0).map(tidy);
        Quantiles { ms: (0..=100).filter_map(at).collect() }
    });
    ExperimentRun {
        cell,
        result,
        ttft_quantiles,
        timeline,
        steady_from_s,
        warm_up_s: window.from().as_secs_f64(),
    }
}

fn timeline(outcome: &SimOutcome, every_s: Option<f64>) -> Timeline {
    let mut instances = vec![InstanceTimeline::default(); outcome.instances.len()];
    for sample in &outcome.samples {
        let instance = &mut instances[sample.instance.index()];
        instance.waiting.push(sample.waiting);
        instance.running.push(sample.running);
        instance.kv_cache_usage.push((sample.kv_cache_usage * 1e3).round() / 1e3);
    }
    Timeline { step_s: every_s.unwrap_or_default(), instances }
}

/// To a microsecond: a picture needs no more.
fn tidy(ms: f64) -> f64 {
    (ms * 1e3).round() / 1e3
}

/// When the last session begins: from then on the load falls.
fn last_start(workload: &Workload) -> Timestamp {
    let starts = workload.requests().iter().filter_map(|request| match request.arrival {
        Arrival::At(at) => Some(at),
        Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => None,
    });
    starts.max().unwrap_or(Timestamp::ZERO)
}

/// Longest that a workload can go on if each answer takes at most a minute, s.
fn longest_s(workload: &Workload) -> f64 {
    const ANSWER_S: f64 = 60.0;
    let mut ends: Vec<f64> = vec![0.0; workload.sessions() as usize];
    for request in workload.requests() {
        let end = &mut ends[request.session.0 as usize];
        let pause_s = match request.arrival {
            Arrival::At(at) => {
                *end = end.max(at.as_secs_f64());
                0.0
            }
            Arrival::AfterPrevious { think: pause } | Arrival::Paced { interval: pause } => {
                pause.as_secs_f64()
            }
        };
        *end += pause_s + ANSWER_S;
    }
    ends.into_iter().fold(0.0, f64::max)
}
