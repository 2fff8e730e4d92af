//! Flags that describe the simulated cluster.

use std::fs;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use kvroute_experiment::{ClusterSettings, RefreshText, Span};
use kvroute_policy::PolicyConfig;
use kvroute_profile::LatencyProfile;
use kvroute_router::{DirectorySource, Refresh};
use kvroute_sim::SimConfig;

use crate::failure::Failure;
use crate::values;

/// Engine sizes, latency profile and signals of a cluster.
#[derive(Clone, Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Latency profile: a built-in name (see `kvroute profiles`) or a TOML file.
    #[arg(
        long,
        value_name = "NAME|FILE",
        default_value = "h100-llama3.1-8b",
        help_heading = "Cluster"
    )]
    profile: String,

    /// KV blocks of an instance, vLLM's null block included [default: the profile's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..), help_heading = "Cluster")]
    kv_blocks: Option<u32>,

    /// Tokens per KV block [default: the profile's].
    #[arg(long, value_name = "B", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Cluster")]
    block_size: Option<u32>,

    /// Longest sequence, tokens [default: the profile's, or what --kv-blocks can hold].
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    max_model_len: Option<u32>,

    /// Token budget of one step [default: the profile's].
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    max_num_batched_tokens: Option<u32>,

    /// Most requests that run at once on an instance [default: the profile's].
    #[arg(long, value_name = "N", help_heading = "Cluster")]
    max_num_seqs: Option<u32>,

    /// Instances that share one device and slow each other down [default: the profile's].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Cluster")]
    instances_per_device: Option<u32>,

    /// How fast the instances are against the profile, in turn: 1,0.5 makes every second one half as fast [default: 1].
    #[arg(long, value_name = "X,…", value_delimiter = ',', help_heading = "Cluster")]
    speeds: Vec<f64>,

    /// Schedule step k+1 only after step k, as vLLM with async scheduling off.
    #[arg(long, help_heading = "Cluster")]
    sync_scheduling: bool,

    /// Turn the engines' prefix cache off.
    #[arg(long, help_heading = "Cluster")]
    no_prefix_caching: bool,

    /// One-way delay between gateway and instances.
    #[arg(long, value_name = "D", default_value = "0", value_parser = values::duration, help_heading = "Cluster")]
    network_delay: Duration,

    /// From what the cache directory knows what instances hold: history (of what was routed there) or events (what they
    /// tell of their caches, exactly).
    #[arg(long, value_name = "SOURCE", default_value = "history", value_parser = values::directory, help_heading = "Cluster")]
    directory: DirectorySource,

    /// How often the cache directory is brought up to date: 0 for real time, a span of time, or never.
    #[arg(long, value_name = "D", default_value = "0", value_parser = values::refresh, help_heading = "Staleness")]
    index_refresh: Refresh,

    /// How often load is read from the instances: 0 for real time, a span of time, or never.
    #[arg(long, value_name = "D", default_value = "0", value_parser = values::refresh, help_heading = "Staleness")]
    load_refresh: Refresh,

    /// Delay of news for the cache directory.
    #[arg(long, value_name = "D", default_value = "0", value_parser = values::duration, help_heading = "Staleness")]
    index_delay: Duration,

    /// Delay of load readings.
    #[arg(long, value_name = "D", default_value = "0", value_parser = values::duration, help_heading = "Staleness")]
    load_delay: Duration,

    /// Share of news for the cache directory that is lost, 0 to 1.
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Staleness")]
    index_loss: f64,

    /// Share of load readings that is lost, 0 to 1.
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Staleness")]
    load_loss: f64,

    /// Age at which entries of the cache directory no longer count [default: never].
    #[arg(long, value_name = "D", value_parser = values::duration, help_heading = "Staleness")]
    index_expiry: Option<Duration>,

    /// Age at which load readings no longer count [default: never].
    #[arg(long, value_name = "D", value_parser = values::duration, help_heading = "Staleness")]
    load_expiry: Option<Duration>,
}

impl ClusterArgs {
    /// The cluster of `instances` instances under a policy and a seed.
    pub(crate) fn config(
        &self,
        profile: &LatencyProfile,
        policy: PolicyConfig,
        instances: u32,
        seed: u64,
    ) -> Result<SimConfig, Failure> {
        let config = self.settings().sim_config(profile, policy, instances, seed);
        config.map_err(Failure::usage)
    }

    fn settings(&self) -> ClusterSettings {
        let Self {
            profile,
            kv_blocks,
            block_size,
            max_model_len,
            max_num_batched_tokens,
            max_num_seqs,
            instances_per_device,
            speeds,
            sync_scheduling,
            no_prefix_caching,
            network_delay,
            directory,
            index_refresh,
            load_refresh,
            index_delay,
            load_delay,
            index_loss,
            load_loss,
            index_expiry,
            load_expiry,
        } = self.clone();
        ClusterSettings {
            profile,
            kv_blocks,
            block_size,
            max_model_len,
            max_num_batched_tokens,
            max_num_seqs,
            instances_per_device,
            speeds,
            sync_scheduling,
            no_prefix_caching,
            network_delay: Span(network_delay),
            directory,
            index_refresh: RefreshText(index_refresh),
            load_refresh: RefreshText(load_refresh),
            index_delay: Span(index_delay),
            load_delay: Span(load_delay),
            index_loss,
            load_loss,
            index_expiry: index_expiry.map(Span),
            load_expiry: load_expiry.map(Span),
            ..ClusterSettings::default()
        }
    }

    /// The latency profile: built in, or from a file.
    pub(crate) fn profile(&self) -> Result<LatencyProfile, Failure> {
        read_profile(&self.profile)
    }
}

/// A built-in profile by name, or one from a TOML file.
pub(crate) fn read_profile(name: &str) -> Result<LatencyProfile, Failure> {
    if !values::is_file(name) {
        return LatencyProfile::builtin(name).map_err(Failure::usage);
    }
    let read = || -> anyhow::Result<LatencyProfile> {
        Ok(LatencyProfile::from_toml(&fs::read_to_string(name)?)?)
    };
    read().with_context(|| format!("cannot read the profile {name}")).map_err(Failure::Usage)
}

/// The policies that one word stands for.
pub(crate) fn several(name: &str) -> Option<Vec<PolicyConfig>> {
    match name {
        "all" => Some(PolicyConfig::core().to_vec()),
        "arena" => Some(PolicyConfig::every()),
        _ => None,
    }
}

/// Those of [`several`] that a gateway can run.
pub(crate) fn several_live(name: &str) -> Option<Vec<PolicyConfig>> {
    let mut policies = several(name)?;
    policies.retain(|policy| !policy.is_simulation_only());
    Some(policies)
}

/// `NAME[:KEY=VALUE,…]…`; at their defaults, `all` is for the six policies, and `arena` for these, the rules of the field and
/// the oracle.
pub(crate) fn policies(names: &[String]) -> Result<Vec<PolicyConfig>, Failure> {
    named(names, several)
}

/// [`policies`] where a gateway's decisions are made: `arena` leaves out what only the simulator can run, and it is an error
/// to name it.
pub(crate) fn live_policies(names: &[String]) -> Result<Vec<PolicyConfig>, Failure> {
    let policies = named(names, several_live)?;
    for policy in &policies {
        policy.validate_live().map_err(Failure::usage)?;
    }
    Ok(policies)
}

fn named(
    names: &[String],
    several: impl Fn(&str) -> Option<Vec<PolicyConfig>>,
) -> Result<Vec<PolicyConfig>, Failure> {
    let mut policies = Vec::new();
    for name in names {
        match several(name) {
            Some(several) => policies.extend(several),
            None => policies.push(name.parse().map_err(Failure::usage)?),
        }
    }
    for (at, policy) in policies.iter().enumerate() {
        if policies[..at].contains(policy) {
            let again =
                anyhow!("policy {} is asked for twice with the same parameters", policy.name());
            return Err(Failure::Usage(again));
        }
    }
    Ok(policies)
}
