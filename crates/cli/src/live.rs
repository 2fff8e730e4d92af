//! A workload at live instances: straight at one, through an embedded gateway at several.

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use kvroute_gateway::{Gateway, GatewayConfig, InstanceConfig, prefix_key_of_ids, session_key};
use kvroute_load::{InstanceTarget, LoadConfig, LoadOutcome, PromptForm, Target};
use kvroute_policy::PolicyConfig;
use kvroute_router::DirectorySource;
use kvroute_types::BlockSize;
use kvroute_workload::{TokenStream, Workload};

use crate::failure::Failure;

/// Where and how a workload is played.
pub(crate) struct LiveRun<'a> {
    /// Base URLs of the instances.
    pub(crate) instances: &'a [String],
    /// How the embedded gateway routes between several.
    pub(crate) policy: PolicyConfig,
    /// Seconds between two load readings of the embedded gateway.
    pub(crate) load_refresh_s: f64,
    /// From what the embedded gateway knows what an instance holds.
    pub(crate) directory: DirectorySource,
    /// Blocks of an instance, and tokens in each.
    pub(crate) kv_blocks: u32,
    pub(crate) block_size: BlockSize,
    /// Model to ask for; an instance's only one if `None`.
    pub(crate) model: Option<String>,
    /// Prompts are token ids below this.
    pub(crate) vocabulary: NonZeroU32,
    /// Of the prompts' content, so that a run does not find what another left in the caches.
    pub(crate) salt: u64,
    pub(crate) seed: u64,
}

impl LiveRun<'_> {
    /// Plays the workload in the open loop and waits for every answer; progress goes to standard error.
    pub(crate) async fn play(&self, workload: &Workload) -> Result<LoadOutcome, Failure> {
        let mut config = self.load_config()?;
        let mut gateway = None;
        if self.instances.len() > 1 {
            let started = Gateway::start(self.gateway_config()).map_err(Failure::usage)?;
            wait_until_ready(&started).await?;
            if self.directory == DirectorySource::Events {
                wait_until_believed(&started, self.instances.len()).await?;
            }
            config.target = target(&format!("http://{}", started.addr()))?;
            gateway = Some(started);
        }
        let style =
            ProgressStyle::with_template("{bar:30} {pos} of {len} answered, {msg}, {elapsed} gone");
        let progress = ProgressBar::new(workload.requests().len() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let outcome = kvroute_load::run(config, workload, |now| {
            progress.set_position(now.completed + now.failed);
            progress.set_message(format!("{} failed", now.failed));
        });
        let outcome = outcome.await.map_err(Failure::usage)?;
        progress.finish_and_clear();
        if let Some(gateway) = gateway {
            gateway.shutdown().await;
        }
        for (kind, failures) in &outcome.failures {
            eprintln!(
                "{} requests failed ({kind}), the first: {}",
                failures.count, failures.example
            );
        }
        let late = outcome.late_sends;
        eprintln!(
            "sends were late by {:?} (median), {:?} (p99), {:?} (most)",
            late.p50, late.p99, late.max
        );
        Ok(outcome)
    }

    /// The workload under the keys that the gateway reads from its requests, so that both route by the same hashes.
    pub(crate) fn as_routed(&self, workload: Workload) -> Workload {
        as_routed(workload, &TokenStream::new(self.vocabulary, self.salt))
    }

    fn load_config(&self) -> Result<LoadConfig, Failure> {
        let instances: Vec<InstanceTarget> = self
            .instances
            .iter()
            .map(|url| target(url).map(InstanceTarget::new))
            .collect::<Result<_, _>>()?;
        let first =
            instances.first().ok_or_else(|| Failure::Usage(anyhow!("no instance's URL")))?;
        Ok(LoadConfig {
            target: first.url.clone(),
            model: self.model.clone(),
            prompt_form: PromptForm::TokenIds { vocabulary: self.vocabulary },
            salt: self.salt,
            instances,
            ..LoadConfig::default()
        })
    }

    fn gateway_config(&self) -> GatewayConfig {
        let urls = self.instances.iter().cloned();
        let mut config = embedded_gateway(urls, self.policy, self.seed);
        config.index.capacity_blocks = Some(self.kv_blocks);
        config.kv_events.enabled = self.directory == DirectorySource::Events;
        config.kv_events.block_size = self.block_size.get();
        config.load.refresh_s = Some(self.load_refresh_s);
        config
    }
}

/// A gateway in this process before these instances, on free loopback ports; it ends as soon as it is told.
pub(crate) fn embedded_gateway(
    urls: impl Iterator<Item = String>,
    policy: PolicyConfig,
    seed: u64,
) -> GatewayConfig {
    let any_port: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
    let mut config = GatewayConfig {
        listen: any_port,
        admin_listen: any_port,
        threads: Some(1),
        instances: urls.map(InstanceConfig::new).collect(),
        policy,
        seed,
        ..GatewayConfig::default()
    };
    config.timeouts.lame_duck_s = 0.001;
    config
}

/// A base URL.
pub(crate) fn target(url: &str) -> Result<Target, Failure> {
    Target::try_from(url.to_owned()).map_err(Failure::usage)
}

/// A workload under the keys that the gateway reads from prompts of these token ids.
pub(crate) fn as_routed(workload: Workload, stream: &TokenStream) -> Workload {
    workload.with_keys(|workload, request| {
        let prompt = workload.tokens(request, stream).take(request.prompt_tokens.0 as usize);
        let session = format!("{:016x}", request.session_key);
        (
            session_key(session.as_bytes()),
            prefix_key_of_ids(prompt, &GatewayConfig::default().prompt),
        )
    })
}

/// Waits until a gateway knows of a healthy instance.
pub(crate) async fn wait_until_ready(gateway: &Gateway) -> Result<(), Failure> {
    wait_until(|| gateway.is_ready(), "the gateway found no healthy instance within 5 s").await
}

/// Waits until a gateway routes by what all instances tell of their caches.
async fn wait_until_believed(gateway: &Gateway, instances: usize) -> Result<(), Failure> {
    let complaint = "the gateway did not hear all instances' KV events within 5 s; start vLLM with --kv-events-config";
    wait_until(|| gateway.believed_instances() == instances, complaint).await
}

async fn wait_until(is_so: impl Fn() -> bool, complaint: &'static str) -> Result<(), Failure> {
    let begun = Instant::now();
    while !is_so() {
        if begun.elapsed() > Duration::from_secs(5) {
            return Err(Failure::Run(anyhow!(complaint)));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
