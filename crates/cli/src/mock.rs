//! `kvroute mock`.

use std::net::IpAddr;

use anyhow::anyhow;
use clap::Args;
use kvroute_mock_server::{
    Faults, KvEventsConfig, MockCluster, MockConfig, MockInstance, StartError, ZeroDelay,
};
use kvroute_types::BlockSize;
use kvroute_vllm_wire::HashAlgo;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster_args::read_profile;
use crate::failure::Failure;

/// Run simulated vLLM instances behind vLLM's HTTP API, in real time.
///
/// Prints one base URL a line, with `--kv-events` followed by the endpoints of KV events and replays. SIGTERM or Ctrl-C stops it. `POST /mock/faults` on an instance makes it misbehave.
#[derive(Debug, Args)]
pub(crate) struct MockArgs {
    /// Number of instances.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    instances: u32,

    /// Port of the first instance, the others follow; 0 takes free ones.
    #[arg(long, value_name = "P", default_value_t = 8100)]
    port: u16,

    /// Address to listen at.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1")]
    host: IpAddr,

    /// Latency profile: a built-in name (see `kvroute profiles`) or a TOML file.
    #[arg(long, value_name = "NAME|FILE", default_value = "rtx4090-llama3.1-8b")]
    profile: String,

    /// Served model name; several are aliases.
    #[arg(long, value_name = "NAME", num_args = 1.., default_value = "mock")]
    model: Vec<String>,

    /// KV blocks of an instance, vLLM's null block included [default: the profile's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    kv_blocks: Option<u32>,

    /// Tokens per KV block [default: the profile's].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..))]
    block_size: Option<u32>,

    /// How fast the instances are against the profile, in turn: 1,0.5 makes every second one half as fast [default: 1].
    #[arg(long, value_name = "X,…", value_delimiter = ',')]
    speeds: Vec<f64>,

    /// Model seconds in a real second.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    time_scale: f64,

    /// Seed of answers and faults.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,

    /// Publish KV-cache events over ZMQ as vLLM does, each instance at an endpoint of its own; `GET /kv_event_sources`
    /// tells it too.
    #[arg(long)]
    kv_events: bool,

    /// Port of the first instance's KV events; the others follow, then the replay endpoints in the same order; 0 takes
    /// free ones.
    #[arg(long, value_name = "P", default_value_t = 0, requires = "kv_events")]
    kv_events_port: u16,

    /// First frame of each message of KV events.
    #[arg(long, value_name = "TOPIC", default_value = "", requires = "kv_events")]
    kv_events_topic: String,

    /// Which hashes name blocks in KV events: `sha256` or `sha256_cbor`.
    #[arg(long, value_name = "ALGO", default_value = "sha256", requires = "kv_events")]
    prefix_caching_hash_algo: HashAlgo,

    /// From what the hashes of blocks begin in KV events, as by `PYTHONHASHSEED`; unset by default.
    #[arg(long, value_name = "SEED", requires = "kv_events")]
    pythonhashseed: Option<String>,

    /// Answer at once with N token events, without an engine: a plain upstream for measuring what is in front of it.
    #[arg(long, value_name = "N")]
    zero_delay: Option<u32>,

    /// What goes wrong from the start, as JSON (the form of `GET /mock/faults`).
    #[arg(long, value_name = "JSON")]
    faults: Option<String>,
}

pub(crate) fn run(args: &MockArgs) -> Result<(), Failure> {
    let config = config(args)?;
    crate::log::init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let cluster = MockCluster::start(config).await.map_err(|error| match error {
            StartError::Listen { .. } => Failure::Run(error.into()),
            _ => Failure::usage(error),
        })?;
        for instance in cluster.instances() {
            println!("{}", line(instance));
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        // Answers under way end, unless whoever stops us asks twice.
        tokio::select! {
            () = cluster.shutdown() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    })
}

/// What is printed of an instance.
fn line(instance: &MockInstance) -> String {
    match instance.kv_events() {
        Some(at) => format!("{} tcp://{} tcp://{}", instance.url(), at.events, at.replay),
        None => instance.url(),
    }
}

fn config(args: &MockArgs) -> Result<MockConfig, Failure> {
    let mut config = MockConfig::new(read_profile(&args.profile)?);
    if let Some(block_size) = args.block_size.and_then(BlockSize::new) {
        config.engine.block_size = block_size;
    }
    if let Some(kv_blocks) = args.kv_blocks {
        config.engine.kv_blocks = kv_blocks;
    }
    kvroute_experiment::fit_model_len(&mut config.engine);
    let faults = match &args.faults {
        Some(json) => serde_json::from_str::<Faults>(json).map_err(|error| {
            Failure::Usage(anyhow!("--faults is not of the form of GET /mock/faults: {error}"))
        })?,
        None => Faults::default(),
    };
    Ok(MockConfig {
        instances: args.instances,
        host: args.host,
        port: args.port,
        models: args.model.clone(),
        speeds: args.speeds.clone(),
        time_scale: args.time_scale,
        seed: args.seed,
        kv_events: args.kv_events.then(|| KvEventsConfig {
            port: args.kv_events_port,
            topic: args.kv_events_topic.clone(),
            hash_algo: args.prefix_caching_hash_algo,
            pythonhashseed: args.pythonhashseed.clone(),
            ..KvEventsConfig::default()
        }),
        zero_delay: args.zero_delay.map(|events| ZeroDelay { events }),
        faults,
        ..config
    })
}
