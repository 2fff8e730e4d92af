//! Made-up results of every shape that the report knows. No number here was measured; they are only plausible, so that
//! figures can be looked at and the page weighed.

use std::collections::BTreeMap;

use kvroute_lab::{
    About, CacheResult, Capacity, Cell, Condition, ExperimentResults, ExperimentRun, IndexResult,
    InstanceResult, InstanceTimeline, LoadPoint, LoadResult, Machine, Manifest, Mode, Quantiles,
    RunResult, Slo, Summary, Timeline,
};
use kvroute_types::InstanceId;
use serde_json::json;

/// Hit rate, imbalance and time of a request without a queue in ms, for each policy.
const POLICIES: [(&str, f64, f64, f64); 6] = [
    ("round-robin", 0.24, 1.06, 230.0),
    ("jsq", 0.26, 1.02, 220.0),
    ("p2c", 0.25, 1.04, 224.0),
    ("session-affinity", 0.61, 1.46, 160.0),
    ("prefix-affinity", 0.66, 1.38, 150.0),
    ("load-cache", 0.63, 1.12, 145.0),
];

/// Names of the shapes.
pub(crate) const SHAPES: [&str; 7] =
    ["policies", "alpha-beta", "staleness", "scaling", "factors", "large", "one-seed"];

/// Results of a shape; `None` for a name that is not in [`SHAPES`].
pub(crate) fn results(shape: &str) -> Option<ExperimentResults> {
    let (runs, title, question) = match shape {
        "policies" => (
            policies(5),
            "Six policies under chat and RAG",
            "Which policy is the fastest at which load?",
        ),
        "alpha-beta" => (
            alpha_beta(3, 11, 5),
            "Weights of load-cache",
            "Which weights are good on every workload?",
        ),
        "staleness" => (staleness(), "Stale signals", "How fresh must the signals be?"),
        "scaling" => (scaling(), "More instances", "Does cache-aware routing scale?"),
        "factors" => (
            factors(),
            "When cache-aware routing pays",
            "For which workloads does knowing the caches pay?",
        ),
        "large" => (alpha_beta(40, 16, 5), "Ten thousand cells", "Does the page open?"),
        "one-seed" => (policies(1), "A single seed", "What if there is one seed?"),
        _ => return None,
    };
    let seeds = runs.iter().map(|run| run.result.seed).max().unwrap_or(1);
    Some(ExperimentResults {
        manifest: Manifest {
            kvroute_version: "0.1.0".to_owned(),
            git_commit: None,
            command: ["kvroute", "experiment", "run", shape].map(str::to_owned).to_vec(),
            config: json!({}),
            seeds: (1..=seeds).collect(),
            machine: Machine { os: "linux".to_owned(), arch: "x86_64".to_owned(), cpus: Some(2) },
            inputs: Vec::new(),
            started_at: None,
        },
        about: About {
            name: shape.to_owned(),
            title: format!("{title} (synthetic)"),
            question: question.to_owned(),
            baseline: "round-robin".to_owned(),
            warm_up: "The first 300 s of each run are not counted; MSER-5 puts the steady state earlier in nearly all runs."
                .to_owned(),
            references: BTreeMap::new(),
        },
        capacities: vec![Capacity {
            workload: "chat".to_owned(),
            instances: 8,
            policy: "round-robin".to_owned(),
            requests_per_s: 24.0,
            too_much_requests_per_s: 25.5,
            attainment_min: 0.95,
            tried: vec![(16.0, 1.0), (32.0, 0.4), (24.0, 0.96), (25.5, 0.93)],
        }],
        runs,
    })
}

/// Where a made-up run is.
#[derive(Clone)]
struct Place {
    workload: String,
    /// What the workload makes of hits, and of time.
    hits: f64,
    time: f64,
    factors: BTreeMap<String, f64>,
    instances: u32,
    utilisation: f64,
    condition: Condition,
    /// 0 is fresh, 1 is blind.
    staleness: f64,
}

impl Place {
    fn new(workload: &str, hits: f64, time: f64) -> Self {
        Self {
            workload: workload.to_owned(),
            hits,
            time,
            factors: BTreeMap::new(),
            instances: 8,
            utilisation: 0.7,
            condition: Condition {
                sweep: String::new(),
                label: String::new(),
                value: None,
                unit: String::new(),
            },
            staleness: 0.0,
        }
    }
}

fn policies(seeds: u64) -> Vec<ExperimentRun> {
    let mut runs = Vec::new();
    for (workload, hits, time) in [("chat", 1.0, 1.0), ("rag", 0.7, 2.4)] {
        for utilisation in [0.3, 0.5, 0.7, 0.85] {
            let place = Place { utilisation, ..Place::new(workload, hits, time) };
            for (name, ..) in POLICIES {
                for seed in 1..=seeds {
                    let mut run = run(&place, name, name, (0.7, 0.3), seed);
                    let is_kept = utilisation > 0.8 && workload == "chat";
                    if seed == 1 && is_kept && ["jsq", "load-cache"].contains(&name) {
                        run.timeline = Some(timeline(name == "jsq"));
                    }
                    runs.push(run);
                }
            }
        }
    }
    runs
}

fn alpha_beta(scenes: u32, steps: u32, seeds: u64) -> Vec<ExperimentRun> {
    let mut runs = Vec::new();
    for scene in 0..scenes {
        let (workload, hits) =
            (["chat", "rag", "mixed"][scene as usize % 3], 1.0 - 0.25 * f64::from(scene % 3));
        let workload =
            if scene < 3 { workload.to_owned() } else { format!("{workload}-{}", scene / 3) };
        let place = Place::new(&workload, hits, 1.0 + f64::from(scene % 5));
        for (name, ..) in &POLICIES[..5] {
            runs.extend((1..=seeds).map(|seed| run(&place, name, name, (0.7, 0.3), seed)));
        }
        for alpha in 0..steps {
            for beta in 0..steps {
                let of = |step: u32| (f64::from(step) * 1e3 / f64::from(steps - 1)).round() / 1e3;
                let label = format!("load-cache:alpha={},beta={}", of(alpha), of(beta));
                let weights = (of(alpha), of(beta));
                runs.extend(
                    (1..=seeds).map(|seed| run(&place, "load-cache", &label, weights, seed)),
                );
            }
        }
    }
    runs
}

fn staleness() -> Vec<ExperimentRun> {
    let mut runs = Vec::new();
    let values = [
        ("0 s", Some(0.0), 0.0),
        ("0.1 s", Some(0.1), 0.01),
        ("0.5 s", Some(0.5), 0.03),
        ("1 s", Some(1.0), 0.06),
        ("5 s", Some(5.0), 0.2),
        ("10 s", Some(10.0), 0.35),
        ("60 s", Some(60.0), 0.8),
        ("never", None, 1.0),
    ];
    for sweep in ["index refresh", "load refresh"] {
        for (label, value, staleness) in values {
            let condition = Condition {
                sweep: sweep.to_owned(),
                label: label.to_owned(),
                value,
                unit: "s".to_owned(),
            };
            let staleness = if sweep == "index refresh" { staleness } else { 0.5 * staleness };
            let place = Place { condition, staleness, ..Place::new("chat", 1.0, 1.0) };
            for (name, ..) in POLICIES {
                runs.extend((1..=5).map(|seed| run(&place, name, name, (0.7, 0.3), seed)));
            }
        }
    }
    runs
}

fn scaling() -> Vec<ExperimentRun> {
    let mut runs = Vec::new();
    for instances in [2, 4, 8, 16, 32, 64] {
        let place = Place { instances, ..Place::new("chat", 1.0, 1.0) };
        for (name, ..) in POLICIES {
            runs.extend((1..=5).map(|seed| run(&place, name, name, (0.7, 0.3), seed)));
        }
    }
    runs
}

fn factors() -> Vec<ExperimentRun> {
    let mut runs = Vec::new();
    for share in [0.0, 0.25, 0.5, 0.75] {
        for tokens in [1024.0, 4096.0, 16384.0] {
            for utilisation in [0.5, 0.7, 0.85] {
                let hits = share * (0.4 + 0.2 * f64::log2(tokens / 512.0) / 5.0) * 1.6;
                let mut place =
                    Place::new(&format!("shared-{share}-{tokens}"), hits, tokens / 4096.0);
                place.utilisation = utilisation;
                place.factors.insert("shared prefix share".to_owned(), share);
                place.factors.insert("prompt tokens".to_owned(), tokens);
                for (name, ..) in POLICIES {
                    runs.extend((1..=5).map(|seed| run(&place, name, name, (0.7, 0.3), seed)));
                }
            }
        }
    }
    runs
}

#[expect(clippy::too_many_lines, reason = "nearly all of it is one literal")]
fn run(place: &Place, kind: &str, label: &str, weights: (f64, f64), seed: u64) -> ExperimentRun {
    let Some((index, (_, hit, imbalance, time_ms))) =
        POLICIES.into_iter().enumerate().find(|(_, (name, ..))| *name == kind)
    else {
        unreachable!("the policies are listed above")
    };
    let mut hit = hit * place.hits;
    let mut imbalance = imbalance + 0.04 * f64::from(place.instances).log2();
    if kind == "load-cache" {
        let ratio = weights.0 / (weights.0 + weights.1 + 0.05);
        hit *= 0.45 + 0.55 * ratio.sqrt();
        imbalance += 0.8 * ratio.powi(6);
    }
    let is_aware = index > 2;
    if is_aware {
        hit *= 1.0 - 0.55 * place.staleness;
        imbalance += 0.3 * place.staleness;
    }
    // The same requests under the same seed: their part of the noise is common to all policies.
    let common = 0.08 * noise(seed, place.workload.len() as u64);
    let own = 0.02 * noise(seed, label.bytes().map(u64::from).sum::<u64>() + index as u64 * 977);
    let busy = (place.utilisation * imbalance * (1.15 - 0.5 * hit)).min(0.97);
    let p50 = time_ms * place.time * (1.0 - 0.6 * hit) * (1.0 + common + own);
    let p95 = p50 * (1.6 + 1.8 * busy / (1.0 - busy));
    let rate = 24.0 * place.utilisation * f64::from(place.instances) / 8.0;
    let quantile = |share: f64| {
        let tail = (p95 / p50).ln() / 2.94;
        p50 * (tail * (share.clamp(0.002, 0.998) / (1.0 - share.clamp(0.002, 0.998))).ln()).exp()
    };
    let summary = |middle: f64, tail: f64| Summary {
        mean: Some(middle * 1.2),
        p50: Some(middle),
        p90: Some(middle.midpoint(tail)),
        p95: Some(tail),
        p99: Some(tail * 1.5),
        max: Some(tail * 2.2),
    };
    let requests: u32 = 6_000;
    let failed = if busy > 0.96 { 4 } else { 0 };
    let of_instance = |instance: u32| {
        let share = 1.0 + (imbalance - 1.0) * noise(u64::from(instance), index as u64 + 7 * seed);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "made up")]
        let requests = (share * f64::from(requests) / f64::from(place.instances)) as u64;
        InstanceResult {
            instance: InstanceId(instance),
            requests,
            prompt_tokens: requests * 2_000,
            cached_tokens: None,
            hit_rate: Some(hit),
            queue_depth_mean: Some(busy),
            queue_depth_max: Some(4),
            kv_cache_usage_mean: Some(0.6),
            ttft_ms: summary(p50, p95),
        }
    };
    let reasons: &[(&str, u64)] = match kind {
        "round-robin" => &[("next-in-turn", 6_000)],
        "jsq" => &[("least-loaded", 6_000)],
        "p2c" => &[("less-loaded-of-two", 6_000)],
        "session-affinity" => &[("home", 5_600), ("home-unavailable", 400)],
        "prefix-affinity" => &[("home", 4_700), ("overloaded", 1_300)],
        _ => &[("prefix-hit", 3_900), ("load", 1_500), ("tie", 600)],
    };
    ExperimentRun {
        cell: Cell {
            workload: place.workload.clone(),
            factors: place.factors.clone(),
            instances: place.instances,
            load: LoadPoint {
                of_capacity: Some(place.utilisation),
                requests_per_s: Some(rate),
                concurrency: None,
            },
            condition: place.condition.clone(),
            policy: label.to_owned(),
        },
        result: RunResult {
            policy: kind.to_owned(),
            policy_config: if kind == "load-cache" {
                json!({"kind": kind, "alpha": weights.0, "beta": weights.1, "affinity": "blocks"})
            } else {
                json!({"kind": kind})
            },
            workload: place.workload.clone(),
            instances: place.instances,
            seed,
            mode: Mode::Sim,
            requests: u64::from(requests),
            completed: u64::from(requests) - failed,
            failed,
            duration_s: Some(f64::from(requests) / rate),
            offered_rps: Some(rate),
            completed_rps: Some(rate * (1.0 - 0.2 * (busy - 0.8).max(0.0))),
            output_tokens_per_s: Some(rate * 200.0),
            ttft_ms: Summary {
                p50: Some(quantile(0.5)),
                p95: Some(quantile(0.95)),
                p99: Some(quantile(0.99)),
                ..summary(p50, p95)
            },
            tpot_ms: summary(9.0 + 4.0 * busy, 14.0 + 9.0 * busy),
            itl_ms: summary(9.0, 15.0),
            e2e_ms: summary(1_900.0, 5_200.0),
            queue_time_ms: summary(2.0, 40.0 * busy),
            slo: Slo { ttft_ms: 2_000.0, tpot_ms: 100.0 },
            goodput_rps: Some(rate * (1.0 - (busy - 0.7).max(0.0))),
            cache: CacheResult {
                prompt_tokens: u64::from(requests) * 2_000,
                cached_tokens: None,
                hit_rate: Some(hit + 0.01 * noise(seed, 3 + index as u64)),
                kv_computed_tokens: None,
                hit_rate_infinite_cache: Some(0.74 * place.hits),
                hit_rate_pooled_lru: Some(0.66 * place.hits),
                hit_rate_pooled_belady: Some(0.71 * place.hits),
            },
            load: LoadResult {
                imbalance_max_over_mean: Some(imbalance + 0.03 * noise(seed, index as u64)),
                imbalance_max_over_min: Some(imbalance * 1.4),
                cov_in_flight: Some(0.2),
                queue_depth_mean: Some(
                    3.0 * busy * busy + 0.1 * noise(seed, 11 + index as u64).abs(),
                ),
                queue_depth_max: Some(9),
            },
            preemptions: Some(0),
            per_instance: (0..place.instances).map(of_instance).collect(),
            index: IndexResult { precision: Some(0.97), recall: Some(0.95) },
            reasons: reasons.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect(),
            decision_log_hash: None,
            wall_s: 0.2,
        },
        ttft_quantiles: Some(Quantiles {
            ms: (0..=100).map(|percent| quantile(f64::from(percent) / 100.0)).collect(),
        }),
        timeline: None,
        steady_from_s: (seed != 3 || index != 3).then_some(120.0),
        warm_up_s: 300.0,
    }
}

fn timeline(is_even: bool) -> Timeline {
    let instance = |instance: u32| {
        let step = |at: u32| {
            let wave = (f64::from(at) / 40.0 + f64::from(instance)).sin();
            let burst =
                if !is_even && instance == 2 && (300..420).contains(&at) { 14.0 } else { 0.0 };
            12.0 + 4.0 * wave + burst + 2.0 * noise(u64::from(at), u64::from(instance))
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "made up")]
        let of =
            |each: &dyn Fn(f64) -> f64| (0..600).map(|at| each(step(at)).max(0.0) as u32).collect();
        InstanceTimeline {
            waiting: of(&|load| load - 16.0),
            running: of(&|load| load.min(16.0)),
            kv_cache_usage: (0..600).map(|at| (step(at) / 30.0).clamp(0.05, 1.0)).collect(),
        }
    };
    Timeline { step_s: 2.0, instances: (0..8).map(instance).collect() }
}

/// A number in `-1.0..=1.0`, the same for the same arguments (the finaliser of `SplitMix64`).
fn noise(a: u64, b: u64) -> f64 {
    let mut z =
        a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b.wrapping_mul(0xbf58_476d_1ce4_e5b9));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
}
