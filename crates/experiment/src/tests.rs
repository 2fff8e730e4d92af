//! Experiments run from end to end, on small clusters.

use std::path::Path;
use std::sync::Mutex;

use kvroute_lab::{ExperimentResults, LoadPoint, Machine, Manifest};

use crate::{
    CellFilter, ExperimentSpec, Live, LiveOutcome, LiveRun, Options, Plan, Progress, Shard, Store,
    StoreFault, results, run,
};

const CHAT: &str = r#"
title = "Chat"
question = "Does it run?"
policies = ["round-robin", "jsq", { kind = "load-cache", alpha = [0.3, 0.7], beta = 0.5 }]
seeds = 2
requests = 150
[load]
of_capacity = [0.5, 0.9]
[slo]
ttft_ms = 300
[capacity]
seeds = 1
tolerance = 0.2
[cluster]
profile = "a100-llama3.1-8b"
load_refresh = "100ms"
[keep]
distributions = true
timelines = true
[[workloads]]
name = "chat"
spec = "chat"
set = { "think_time_s.mean" = 2, user_message_tokens = { kind = "constant", value = 800 } }
"#;

fn plan(text: &str, set: &[&str]) -> Plan {
    let set: Vec<String> = set.iter().map(|pair| (*pair).to_owned()).collect();
    let spec = ExperimentSpec::from_toml(text, false, &set).unwrap();
    Plan::new(spec, "test", Path::new(".")).unwrap()
}

fn manifest(plan: &Plan) -> Manifest {
    Manifest {
        kvroute_version: "0".into(),
        git_commit: None,
        command: Vec::new(),
        config: serde_json::to_value(plan.spec()).unwrap(),
        seeds: plan.seeds().collect(),
        machine: Machine { os: "os".into(), arch: "arch".into(), cpus: None },
        inputs: Vec::new(),
        started_at: None,
    }
}

fn options(threads: usize) -> Options<'static> {
    Options { threads, shard: Shard::WHOLE, live: None, only: Vec::new() }
}

/// Runs the plan in the directory and returns the results without what is of the machine.
fn run_in(plan: &Plan, directory: &Path, options: &Options<'_>) -> ExperimentResults {
    let manifest = manifest(plan);
    let mut store = Store::open(directory, options.shard, &manifest).unwrap();
    run(plan, &mut store, options, &|_| {}).unwrap();
    without_times(results(plan, &store, manifest))
}

fn without_times(mut results: ExperimentResults) -> ExperimentResults {
    for run in &mut results.runs {
        run.result.wall_s = 0.0;
    }
    results
}

#[test]
fn results_come_in_the_order_of_the_file_whatever_the_threads() {
    let plan = plan(CHAT, &[]);
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let results = run_in(&plan, one.path(), &options(1));
    assert_eq!(results, run_in(&plan, two.path(), &options(3)));

    let cells: Vec<_> = results
        .runs
        .iter()
        .map(|run| (run.cell.load.of_capacity.unwrap(), run.cell.policy.as_str(), run.result.seed))
        .collect();
    let policies =
        ["round-robin", "jsq", "load-cache:alpha=0.3,beta=0.5", "load-cache:alpha=0.7,beta=0.5"];
    let expected: Vec<_> = [0.5, 0.9]
        .into_iter()
        .flat_map(|load| policies.map(|policy| (load, policy)))
        .flat_map(|(load, policy)| [0, 1].map(|seed| (load, policy, seed)))
        .collect();
    assert_eq!(cells, expected);

    // The same requests for every policy, others under another seed.
    let prompts = |at: usize| results.runs[at].result.cache.prompt_tokens;
    assert_eq!(results.runs[0].result.requests, 150);
    assert_eq!(prompts(0), prompts(2));
    assert_ne!(prompts(0), prompts(1));
    // A distribution for each run, a timeline for the first seed.
    assert!(results.runs.iter().all(|run| run.ttft_quantiles.as_ref().unwrap().ms.len() == 101));
    assert!(results.runs.iter().all(|run| run.timeline.is_some() == (run.result.seed == 0)));
}

/// Fails a test that plays anything.
struct Unplayed;

impl Live for Unplayed {
    fn run(&self, run: &LiveRun<'_>) -> Result<LiveOutcome, String> {
        panic!("{} was played", run.config.policy.name())
    }
}

#[test]
fn a_live_run_of_what_only_the_simulator_can_run_is_refused_before_any_other() {
    let plan = plan(CHAT, &["policies=[\"round-robin\", \"oracle\"]"]);
    let directory = tempfile::tempdir().unwrap();
    let mut store = Store::open(directory.path(), Shard::WHOLE, &manifest(&plan)).unwrap();
    let live = Options { live: Some(&Unplayed), ..options(1) };
    let refused = run(&plan, &mut store, &live, &|_| panic!("something was run")).unwrap_err();
    let refused = refused.to_string();
    assert!(refused.contains("only a simulation knows"), "{refused}");
    assert!(refused.contains("--only"), "{refused}");
}

#[test]
fn the_capacity_is_borne_and_a_little_more_is_not() {
    let plan = plan(CHAT, &["load.of_capacity=[1.0]", "policies=[\"round-robin\"]"]);
    let directory = tempfile::tempdir().unwrap();
    let found = run_in(&plan, directory.path(), &options(2));
    let [capacity] = &found.capacities[..] else { panic!("{:?}", found.capacities) };
    assert!(capacity.too_much_requests_per_s / capacity.requests_per_s <= 1.2);
    let at = |rate: f64| capacity.tried.iter().find(|(tried, _)| tried.to_bits() == rate.to_bits());
    let share = |rate: f64| at(rate).unwrap().1;
    assert!(share(capacity.requests_per_s) >= 0.95);
    assert!(share(capacity.too_much_requests_per_s) < 0.95);
    assert_eq!(found.runs[0].cell.load.requests_per_s, Some(capacity.requests_per_s));
}

#[test]
fn a_closed_loop_keeps_as_many_sessions_under_way() {
    let closed = ["load={concurrency=[4,8]}", "policies=[\"round-robin\"]", "keep.timelines=false"];
    let counted_tokens = |results: &ExperimentResults| {
        results.runs.iter().map(|run| run.result.cache.prompt_tokens).collect::<Vec<_>>()
    };
    let plan = plan(CHAT, &closed);
    let directory = tempfile::tempdir().unwrap();
    let results = run_in(&plan, directory.path(), &options(2));
    assert!(results.capacities.is_empty());
    let loads: Vec<_> = results.runs.iter().map(|run| run.cell.load).collect();
    let load = |sessions: f64| LoadPoint {
        of_capacity: None,
        requests_per_s: None,
        concurrency: Some(sessions),
    };
    assert_eq!(loads, [4.0, 4.0, 8.0, 8.0].map(load));
    assert!(results.runs.iter().all(|run| run.result.requests == 150));
    // The warm-up is over before the last session begins.
    assert!(
        results.runs.iter().all(|run| run.warm_up_s > 0.0 && run.result.duration_s > Some(0.0))
    );

    // Without a warm-up and with the tail everything counts: the same tokens whatever the load.
    let all = [&closed[..], &["warm_up={share=0.0,counts_tail=true}"]].concat();
    let all = self::plan(CHAT, &all);
    let directory = tempfile::tempdir().unwrap();
    let all = counted_tokens(&run_in(&all, directory.path(), &options(2)));
    assert_eq!(all[..2], all[2..]);
    assert!(counted_tokens(&results).iter().zip(&all).all(|(part, all)| part < all));
}

#[test]
fn an_interrupted_experiment_goes_on_where_it_was() {
    let plan = plan(CHAT, &[]);
    let (whole, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected = run_in(&plan, whole.path(), &options(2));
    run_in(&plan, broken.path(), &options(2));
    // As if it had been killed in the middle of the seventh line.
    let path = broken.path().join("runs.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let six: usize = text.split_inclusive('\n').take(6).map(str::len).sum();
    std::fs::write(&path, &text[..six + 40]).unwrap();

    let seen = Mutex::new(Vec::new());
    let manifest = manifest(&plan);
    let mut store = Store::open(broken.path(), Shard::WHOLE, &manifest).unwrap();
    assert_eq!(store.done().len(), 6);
    run(&plan, &mut store, &options(1), &|now| seen.lock().unwrap().push(now)).unwrap();
    assert_eq!(without_times(results(&plan, &store, manifest)), expected);
    let seen = seen.into_inner().unwrap();
    let first = seen.iter().find(|now| matches!(now, Progress::Runs { .. }));
    assert_eq!(first, Some(&Progress::Runs { done: 6, of: 16 }));
    assert_eq!(seen.last(), Some(&Progress::Runs { done: 16, of: 16 }));
}

#[test]
fn parts_make_the_whole() {
    let plan = plan(CHAT, &[]);
    let manifest = manifest(&plan);
    let all = tempfile::tempdir().unwrap();
    let expected = run_in(&plan, &all.path().join("whole"), &options(2));
    let mut merged = Store::open(&all.path().join("merged"), Shard::WHOLE, &manifest).unwrap();
    let mut done = 0;
    for number in 1..=3 {
        let shard = Shard { number, of: 3 };
        let path = all.path().join(number.to_string());
        let part = run_in(&plan, &path, &Options { shard, ..options(2) });
        assert!(part.runs.len() < 16, "a part is not the whole");
        done += part.runs.len();
        merged.take_over(&path, &manifest).unwrap();
    }
    assert_eq!(done, 16, "no run is in two parts");
    assert!(merged.is_complete(&plan));
    assert_eq!(without_times(results(&plan, &merged, manifest)), expected);
}

#[test]
fn only_the_cells_that_are_asked_for_are_run() {
    let plan = plan(CHAT, &[]);
    let only: Vec<CellFilter> = vec!["policy=jsq;load=0.9".parse().unwrap()];
    let directory = tempfile::tempdir().unwrap();
    let found = run_in(&plan, directory.path(), &Options { only: only.clone(), ..options(2) });
    assert_eq!(plan.count(&only), 2);
    assert_eq!(found.runs.len(), 2);
    assert!(found.runs.iter().all(|run| run.cell.policy == "jsq"));
    assert!("colour=red".parse::<CellFilter>().unwrap_err().contains("known: workload"));
    // The rest comes when it is asked for.
    assert_eq!(run_in(&plan, directory.path(), &options(2)).runs.len(), 16);
}

#[test]
fn kept_caches_are_found_by_the_next_policy_and_cold_ones_are_not() {
    let text = r#"
        title = "Kept"
        question = "Who warms whom?"
        policies = ["round-robin", "jsq"]
        seeds = 2
        requests = 100
        instances = [2]
        warm_up = { share = 0.0 }
        cluster = { profile = "a100-llama3.1-8b" }
        load = { requests_per_s = [4.0] }
        [[workloads]]
        name = "chat"
        spec = "chat"
        set = { "think_time_s.mean" = 1 }
        [[sweeps]]
        name = "caches"
        set = ["caches"]
        values = ["kept", "cold"]
    "#;
    let plan = plan(text, &[]);
    let directory = tempfile::tempdir().unwrap();
    let found = run_in(&plan, directory.path(), &options(2));
    let hits = |caches: &str, policy: &str, seed: u64| {
        let run = found.runs.iter().find(|run| {
            run.cell.condition.label == caches
                && run.cell.policy == policy
                && run.result.seed == seed
        });
        run.unwrap().result.cache.hit_rate.unwrap()
    };
    for seed in [0, 1] {
        // The first policy finds nothing that is not its own; another seed is other content.
        let (kept, cold) = (hits("kept", "round-robin", seed), hits("cold", "round-robin", seed));
        assert!((kept - cold).abs() < 0.02, "{kept} {cold}");
        let (kept, cold) = (hits("kept", "jsq", seed), hits("cold", "jsq", seed));
        assert!(kept > cold + 0.1, "{kept} {cold}");
    }
    // One of them cannot be made without those before it.
    let directory = tempfile::tempdir().unwrap();
    let only = vec!["policy=jsq;value=kept".parse().unwrap()];
    assert_eq!(run_in(&plan, directory.path(), &Options { only, ..options(2) }).runs.len(), 4);
}

#[test]
fn a_directory_is_of_one_experiment_and_one_process() {
    let chat = plan(CHAT, &[]);
    let other = plan(CHAT, &["seeds=3"]);
    let directory = tempfile::tempdir().unwrap();
    let open = |plan: &Plan, shard| Store::open(directory.path(), shard, &manifest(plan));
    let store = open(&chat, Shard::WHOLE).unwrap();
    assert!(matches!(open(&chat, Shard::WHOLE), Err(StoreFault::Busy { .. })));
    assert!(open(&chat, Shard { number: 1, of: 2 }).is_ok(), "a part has its own file");
    drop(store);
    assert!(matches!(open(&other, Shard::WHOLE), Err(StoreFault::OtherExperiment { .. })));
    let newer = Manifest { kvroute_version: "1".into(), ..manifest(&chat) };
    let error = Store::open(directory.path(), Shard::WHOLE, &newer).unwrap_err().to_string();
    assert!(error.contains("holds runs of kvroute 0"), "{error}");

    let path = directory.path().join("runs.jsonl");
    std::fs::write(&path, "{\"cell\":0}\n").unwrap();
    let error = open(&chat, Shard::WHOLE).unwrap_err().to_string();
    assert!(error.contains("line 1 is damaged") && error.contains("remove the line"), "{error}");
}

#[test]
fn hit_rates_stand_beside_what_one_cache_for_all_would_serve() {
    // Absolute arrivals, so that the bounds are of the very order in which the requests come.
    let set = [
        "workloads=[{ name = \"rag\", spec = \"rag\" }]",
        "sweeps=[{ name = \"blocks\", set = [\"kv_blocks\"], values = [1500, 100000] }]",
        "load.of_capacity=[]",
        "load.requests_per_s=[0.5]",
        "warm_up.share=0",
        "instances=[1, 3]",
        "cluster.max_model_len=16384",
        "seeds=1",
    ];
    let plan = plan(CHAT, &set);
    let directory = tempfile::tempdir().unwrap();
    let results = run_in(&plan, directory.path(), &options(1));
    assert_eq!(results.runs.len(), 16);
    for run in &results.runs {
        let cache = run.result.cache;
        let [hits, lru, belady, infinite] = [
            cache.hit_rate,
            cache.hit_rate_pooled_lru,
            cache.hit_rate_pooled_belady,
            cache.hit_rate_infinite_cache,
        ]
        .map(Option::unwrap);
        let cell = &run.cell;
        assert!(lru <= belady && belady <= infinite, "{cell:?}");
        assert!(hits <= belady, "{cell:?}: {hits} of {belady}");
        let is_ample = cell.condition.value == Some(100_000.0);
        assert_eq!(is_ample, (lru - infinite).abs() < 1e-12, "{cell:?}: {lru} of {infinite}");
        if is_ample && cell.instances == 1 {
            // Nothing is evicted, and one instance sees every request.
            assert!((hits - infinite).abs() < 0.01, "{cell:?}: {hits} of {infinite}");
        }
    }
}
