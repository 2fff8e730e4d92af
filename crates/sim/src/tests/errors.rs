//! A simulation that cannot be run says what to change.

use kvroute_router::Refresh;
use kvroute_types::BlockSize;

use super::*;

/// The error and its sources, as a user reads them.
fn error(config: &SimConfig) -> String {
    error_on(config, &uniform(3, 1.0, 1.0), BlockSize::default())
}

fn error_on(config: &SimConfig, workload: &Workload, block_size: BlockSize) -> String {
    let plan = Plan::new(workload, block_size).unwrap();
    let error = simulate(config, workload, &plan, |_| ()).unwrap_err();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn restarts(at_s: [f64; 2]) -> Vec<RouterRestart> {
    at_s.map(|at_s| RouterRestart { at_s, policy: None }).to_vec()
}

#[test]
fn every_error_names_the_remedy() {
    let ok = cluster(2, "load-cache");
    let other = BlockSize::new(32).unwrap();
    let long = by_hand(&[(0, 100, 5, 1), (1, 5_000, 5, 2)]);
    let alpha = kvroute_policy::LoadCacheConfig { alpha: f64::NAN, ..Default::default() };
    let with = |change: fn(&mut SimConfig)| {
        let mut config = ok.clone();
        change(&mut config);
        error(&config)
    };
    let errors = [
        with(|config| config.instances = 0),
        with(|config| config.instances_per_device = 0),
        with(|config| config.speeds = vec![1.0, 0.0]),
        with(|config| config.network_delay_s = f64::NAN),
        with(|config| config.network_delay_s = -1.0),
        with(|config| config.measure_from_s = f64::INFINITY),
        with(|config| config.sample_every_s = Some(0.0)),
        with(|config| config.router_restarts = restarts([1.0, -1.0])),
        with(|config| config.router_restarts = restarts([3.0, 2.0])),
        with(|config| *config = config.clone().with_kv_blocks(100)),
        error_on(&ok, &long, BlockSize::default()),
        error_on(&ok, &long, other),
        with(|config| config.router.block_size = BlockSize::new(32).unwrap()),
        with(|config| config.router.index.delay_s = f64::NAN),
        with(|config| config.router.load.refresh = Refresh::EveryS(0.0)),
        error(&SimConfig { policy: PolicyConfig::LoadCache(alpha), ..ok.clone() }),
    ];
    insta::assert_snapshot!(errors.join("\n"), @r"
    0 instances; give at least 1
    instances_per_device is 0; give 1, or the number of instances that share one device
    a speed is 0; give positive numbers, 1 for an instance as fast as the profile
    network_delay_s is NaN; give 0 or a positive number of seconds
    network_delay_s is -1; give 0 or a positive number of seconds
    measure_from_s is inf; give 0 or a positive number of seconds
    sample_every_s is 0; give a positive number of seconds, or leave it out for no samples
    at_s of a router restart is -1; give 0 or a positive number of seconds
    the router restart at 2 s comes after the one at 3 s; sort router_restarts by at_s, each later than the one before
    in the engine settings: one sequence of max_model_len 4096 tokens needs 256 KV blocks of 16 tokens, but only 99 of 100 are usable; raise kv_blocks to 257 or lower max_model_len to 1584
    request 1 of the workload can never run: the prompt has 5000 tokens and max_model_len is 4096: no room for an output token; raise max_model_len (and kv_blocks with it) or shorten the prompt
    the plan cuts the workload into blocks of 32 tokens, but the engines use 16; make the plan for blocks of 16, or set the engines' block_size to 32
    the router counts in blocks of 32 tokens, but the engines use 16; set both to the same block_size
    in the router settings: in the index signal: delay_s is NaN; give 0 or a positive number of seconds
    in the router settings: in the load signal: refresh is 0 s; give a positive number of seconds
    in the policy: load-cache: `alpha` is NaN; give a finite number, at least 0
    ");
}
