//! `kvroute serve`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use kvroute_gateway::{Gateway, GatewayConfig, InstanceConfig};
use kvroute_vllm_wire::HashAlgo;
use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Run the gateway in front of vLLM instances.
///
/// SIGTERM or Ctrl-C drains and stops it; SIGHUP reads the configuration file again without dropping a request.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Configuration file (TOML); flags override it. `--print-config` shows its form.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Base URL of an instance, http://HOST:PORT; several for several. Replaces those of the configuration file.
    #[arg(long, value_name = "URL", num_args = 1..)]
    instance: Vec<String>,

    /// Routing policy: a name with optional parameters, as load-cache:alpha=0.5,beta=0.5.
    #[arg(long, value_name = "NAME")]
    policy: Option<String>,

    /// Where clients connect [default: 127.0.0.1:8000].
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,

    /// Where the admin API and metrics are served; no authentication, so keep it on loopback [default: 127.0.0.1:8001].
    #[arg(long, value_name = "ADDR")]
    admin_listen: Option<SocketAddr>,

    /// Append every decision, with its scores, signal ages and everything else it was made from, to this file, one JSON
    /// object a line. `kvroute replay` reads it.
    #[arg(long, value_name = "FILE")]
    decision_log: Option<PathBuf>,

    /// Route by what the instances hold by their own account: vLLM's KV events. Each instance is asked where it publishes
    /// (`GET /kv_event_sources`) unless the configuration file names it.
    #[arg(long)]
    kv_events: bool,

    /// Directory of the instances' model, with tokenizer.json and its chat template: prompts of text can then be looked up
    /// in what the instances tell (prompts of token ids need no tokenizer).
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,

    /// Tokens per KV block: the instances' --block-size [default: 16].
    #[arg(long, value_name = "TOKENS")]
    block_size: Option<u32>,

    /// The instances' --prefix-caching-hash-algo: `sha256` or `sha256_cbor` [default: sha256].
    #[arg(long, value_name = "NAME")]
    prefix_caching_hash_algo: Option<HashAlgo>,

    /// File that keeps what the instances have told over a restart of the gateway.
    #[arg(long, value_name = "FILE")]
    index_snapshot: Option<PathBuf>,

    /// Print the configuration in effect and exit.
    #[arg(long)]
    print_config: bool,
}

pub(crate) fn run(args: &ServeArgs) -> Result<(), Failure> {
    let config = config(args)?;
    if args.print_config {
        let text = toml::to_string_pretty(&config).context("cannot show the configuration");
        print!("{}", text.map_err(Failure::Run)?);
        return Ok(());
    }
    crate::log::init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args, config))
}

async fn serve(args: &ServeArgs, config: GatewayConfig) -> Result<(), Failure> {
    // Signals are caught before anyone can know that the gateway is up.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let gateway = Gateway::start(config).map_err(Failure::usage)?;
    eprintln!("gateway on http://{}, admin on http://{}", gateway.addr(), gateway.admin_addr());
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => reload(args, &gateway),
        }
    }
    tokio::select! {
        () = gateway.shutdown() => {}
        // Whoever asks twice is in a hurry.
        _ = interrupt.recv() => return Err(Failure::Run(anyhow!("stopped without waiting for requests"))),
    }
    Ok(())
}

fn reload(args: &ServeArgs, gateway: &Gateway) {
    let result = config(args).and_then(|config| gateway.reload(config).map_err(Failure::usage));
    match result {
        Ok(()) => eprintln!("configuration reloaded"),
        Err(failure) => eprintln!("configuration kept: {failure:#}"),
    }
}

/// The configuration file, with the flags over it.
fn config(args: &ServeArgs) -> Result<GatewayConfig, Failure> {
    let mut config = match &args.config {
        Some(path) => read(path).map_err(Failure::Usage)?,
        None => GatewayConfig::default(),
    };
    if !args.instance.is_empty() {
        config.instances = args.instance.iter().map(InstanceConfig::new).collect();
    }
    if let Some(policy) = &args.policy {
        config.policy = policy.parse().map_err(Failure::usage)?;
    }
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(admin_listen) = args.admin_listen {
        config.admin_listen = admin_listen;
    }
    if config.tracing.otlp_endpoint.is_none() {
        // What OpenTelemetry's own settings say; the configuration file goes first.
        let endpoint = std::env::var("OTEL_EXPORTER_OTLP_ENDPOINT").ok();
        config.tracing.otlp_endpoint = endpoint.filter(|endpoint| !endpoint.is_empty());
    }
    config.kv_events.enabled |= args.kv_events;
    if let Some(tokenizer) = &args.tokenizer {
        config.prompt.tokenizer = Some(tokenizer.clone());
    }
    if let Some(block_size) = args.block_size {
        config.kv_events.block_size = block_size;
    }
    if let Some(algo) = args.prefix_caching_hash_algo {
        config.kv_events.hash_algo = algo;
    }
    if let Some(snapshot) = &args.index_snapshot {
        config.kv_events.snapshot = Some(snapshot.clone());
    }
    let is_for_nothing = [
        ("--tokenizer", args.tokenizer.is_some()),
        ("--block-size", args.block_size.is_some()),
        ("--prefix-caching-hash-algo", args.prefix_caching_hash_algo.is_some()),
        ("--index-snapshot", args.index_snapshot.is_some()),
    ];
    if let Some((flag, _)) = is_for_nothing.into_iter().find(|(_, is_given)| *is_given)
        && !config.kv_events.enabled
    {
        return Err(Failure::Usage(anyhow!("{flag} does nothing without --kv-events; add that")));
    }
    if let Some(log) = &args.decision_log {
        config.receipts.log = Some(log.clone());
    }
    if config.instances.is_empty() && !args.print_config {
        return Err(Failure::Usage(anyhow!(
            "no instances; give --instance URL or a --config file with [[instances]]"
        )));
    }
    config.validate().context("the gateway's configuration is wrong").map_err(Failure::Usage)?;
    Ok(config)
}

fn read(path: &Path) -> anyhow::Result<GatewayConfig> {
    let read =
        || -> anyhow::Result<GatewayConfig> { Ok(toml::from_str(&fs::read_to_string(path)?)?) };
    read().with_context(|| format!("cannot read the configuration {}", path.display()))
}
