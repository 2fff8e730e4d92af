//! What the gateway costs: `cargo run --release -p kvroute-gateway --example proxy_cost`.
//!
//! Four upstreams that answer at once, the gateway, and nginx if it is installed run in processes of their own; this
//! process is the client. Parts, all of them if none is named:
//!
//! * `cost`: CPU time per request of the gateway's whole process (all threads, user and system) with 64 closed-loop
//!   connections, for three shapes: a 300 B chat; a 4 KB chat answered by 128 events, each written by itself; a 64 KB chat
//!   of one of 64 sessions, of which the last 2 KB are new.
//! * `latency`: what the gateway adds to the median and to the 99th percentile over going direct, at 200 requests a second.
//! * `memory`: resident memory while distinct 4 KB prompts pass through.
//! * `readers`: 1,000 endless streams whose clients read 4 KB a second, and what other clients see meanwhile.
//!
//! Systems take turns within each round; medians and the spread over rounds count, and ratios are of the same round.
//!
//! Settings: `--rounds 5`, `--seconds 2` (of one measurement), `--threads 2` (of the gateway, and nginx's workers),
//! `--policy load-cache`, `--prompts 1000000`, `--readers 1000`, `--buffer-bytes N`.

#![expect(clippy::print_stdout, reason = "it is a command")]

mod client;
mod cost;
mod latency;
mod memory;
mod nginx;
mod process;
mod readers;
mod upstream;

use std::net::SocketAddr;

use kvroute_gateway::{Gateway, GatewayConfig, InstanceConfig};
use process::Process;

type AnyError = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, AnyError>;

const UPSTREAMS: usize = 4;
const PARTS: [&str; 4] = ["cost", "latency", "memory", "readers"];

struct Settings {
    rounds: usize,
    seconds: f64,
    prompts: u64,
    readers: usize,
    config: GatewayConfig,
}

/// Something that requests can be sent to.
struct System {
    name: &'static str,
    addr: SocketAddr,
    process: Process,
}

fn main() -> Result<()> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("as-upstreams") => return upstream::run(UPSTREAMS),
        Some("as-gateway") => return run_gateway(&args.remove(1)),
        _ => {}
    }
    let (parts, mut settings) = parse(args)?;
    let upstreams = Process::start("as-upstreams", "")?;
    let upstream_addrs = upstreams.addrs.clone();
    let instance = |addr: &SocketAddr| InstanceConfig::new(format!("http://{addr}"));
    settings.config.instances = upstream_addrs.iter().map(instance).collect();
    let threads = settings.config.threads.unwrap_or(1);
    let nginx = nginx::start(&upstream_addrs, threads)?;
    facts(&settings, nginx.as_ref());
    for part in parts {
        let gateway = start_gateway(&settings.config)?;
        match part.as_str() {
            "cost" => cost::run(&settings, &gateway, nginx.as_ref())?,
            "latency" => latency::run(&settings, upstream_addrs[0], &gateway, nginx.as_ref())?,
            "memory" => memory::run(&settings, &gateway)?,
            _ => readers::run(&settings, &gateway, &upstreams)?,
        }
        println!("load average: {}", load_average()?);
    }
    Ok(())
}

fn parse(args: Vec<String>) -> Result<(Vec<String>, Settings)> {
    let mut config = GatewayConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        admin_listen: ([127, 0, 0, 1], 0).into(),
        threads: Some(2),
        ..GatewayConfig::default()
    };
    let (mut rounds, mut seconds, mut prompts, mut readers) = (5, 2.0, 1_000_000, 1_000);
    let mut parts = Vec::new();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if PARTS.contains(&arg.as_str()) {
            parts.push(arg);
            continue;
        }
        let value = args.next().ok_or_else(|| format!("{arg} needs a value, or is no part"))?;
        match arg.as_str() {
            "--rounds" => rounds = value.parse()?,
            "--seconds" => seconds = value.parse()?,
            "--threads" => config.threads = Some(value.parse()?),
            "--policy" => config.policy = value.parse()?,
            "--prompts" => prompts = value.parse()?,
            "--readers" => readers = value.parse()?,
            "--buffer-bytes" => config.limits.buffer_bytes = value.parse()?,
            _ => {
                return Err(
                    format!("unknown argument {arg}; parts are {}", PARTS.join(", ")).into()
                );
            }
        }
    }
    if parts.is_empty() {
        parts = PARTS.map(str::to_owned).to_vec();
    }
    Ok((parts, Settings { rounds, seconds, prompts, readers, config }))
}

/// Serves until the process that started this one is gone.
fn run_gateway(config: &str) -> Result<()> {
    let gateway = Gateway::start(toml::from_str(config)?)?;
    process::ready(&[gateway.addr()])?;
    process::wait_for_parent();
    Ok(())
}

fn start_gateway(config: &GatewayConfig) -> Result<System> {
    let process = Process::start("as-gateway", &toml::to_string(config)?)?;
    let addr = process.addrs[0];
    // The first probes and readings.
    std::thread::sleep(std::time::Duration::from_millis(700));
    Ok(System { name: "gateway", addr, process })
}

fn facts(settings: &Settings, nginx: Option<&System>) {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("processor: {}, {cores} cores", model.trim_start_matches(['\t', ':', ' ']));
    println!("kernel: {}", read("/proc/sys/kernel/osrelease").trim());
    let threads = settings.config.threads.unwrap_or(1);
    let policy = settings.config.policy.name();
    println!(
        "gateway: {threads} threads, policy {policy}, {UPSTREAMS} upstreams of one thread each"
    );
    match nginx {
        Some(_) => println!(
            "nginx: {}, {threads} workers, reuseport, least_conn, keepalive to upstreams, no access log, \
             proxy_buffering off, client_body_buffer_size 256k",
            nginx::version()
        ),
        None => println!("nginx: not installed, no comparison"),
    }
}

fn load_average() -> Result<String> {
    let line = std::fs::read_to_string("/proc/loadavg")?;
    Ok(line.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

/// The middle value; the spread in brackets is what `{min}..{max}` of it says.
fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

/// By the nearest rank.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn spread(values: &[f64]) -> String {
    format!("{:.1}..{:.1}", percentile(values, 0.0), percentile(values, 1.0))
}
