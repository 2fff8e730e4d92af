//! What an instance says of its build and sizes: vLLM's `/version`, `/v1/models` and the cache line of `/metrics`.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::config::Target;
use crate::http::get;
use crate::metrics::{Gauge, Metrics, Sample, ScrapeError, read_page};

/// vLLM's gauge whose labels are the cache configuration.
const CACHE_CONFIG: &str = "vllm:cache_config_info";

/// What an instance tells; `None` where it does not. (vLLM tells neither `max_num_seqs` nor `max_num_batched_tokens`.)
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceFacts {
    /// Version of the server.
    pub version: Option<String>,
    /// First model that it serves.
    pub model: Option<String>,
    /// Longest sequence of that model, tokens.
    pub max_model_len: Option<u32>,
    /// Tokens per KV block.
    pub block_size: Option<u32>,
    /// KV blocks, the null block included (`num_gpu_blocks`).
    pub kv_blocks: Option<u32>,
    /// Whether the prefix cache is on.
    pub enable_prefix_caching: Option<bool>,
    /// Requests running or waiting at that moment.
    pub busy: Option<f64>,
}

/// Asks an instance.
///
/// # Errors
/// If its `/metrics` does not come within `timeout`. The other two may be missing.
pub async fn instance_facts(
    instance: &Target,
    timeout: Duration,
) -> Result<InstanceFacts, ScrapeError> {
    let mut facts = InstanceFacts::of_page(&read_page(instance, timeout).await?);
    facts.version = json(instance, "/version", timeout).await.map(|Version { version }| version);
    let models: Option<Models> = json(instance, "/v1/models", timeout).await;
    if let Some(model) = models.and_then(|models| models.data.into_iter().next()) {
        (facts.model, facts.max_model_len) = (Some(model.id), model.max_model_len);
    }
    Ok(facts)
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    max_model_len: Option<u32>,
}

async fn json<T: DeserializeOwned>(
    instance: &Target,
    endpoint: &str,
    timeout: Duration,
) -> Option<T> {
    let answer = tokio::time::timeout(timeout, get(instance, endpoint)).await.ok()?;
    let (status, body) = answer.ok()?;
    (status == StatusCode::OK).then(|| serde_json::from_slice(&body).ok())?
}

impl InstanceFacts {
    fn of_page(page: &str) -> Self {
        let metrics = Metrics::parse(page);
        let busy = metrics.gauge(Gauge::Running).zip(metrics.gauge(Gauge::Waiting));
        let line = page.lines().filter_map(Sample::parse).find(|line| line.name == CACHE_CONFIG);
        // What vLLM does not know is printed as "None".
        let label = |name: &str| line.and_then(|line| line.label(name));
        let number = |name: &str| label(name).and_then(|value| value.parse().ok());
        Self {
            block_size: number("block_size"),
            kv_blocks: number("num_gpu_blocks"),
            enable_prefix_caching: label("enable_prefix_caching").map(|value| value == "True"),
            busy: busy.map(|(running, waiting)| running + waiting),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_line_is_read() {
        // Of a page of vLLM 0.32.0, most labels cut out.
        let page = "vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 2.0\n\
            vllm:num_requests_waiting{engine=\"0\",model_name=\"tiny\"} 1.0\n\
            vllm:cache_config_info{_block_size_resolved=\"True\",block_size=\"32\",cache_dtype=\"auto\",\
            enable_prefix_caching=\"True\",engine=\"0\",kv_cache_dtype_skip_layers=\"[]\",mamba_block_size=\"None\",\
            num_cpu_blocks=\"None\",num_gpu_blocks=\"512\",user_specified_block_size=\"True\"} 1.0\n";
        let facts = InstanceFacts::of_page(page);
        assert_eq!((facts.block_size, facts.kv_blocks), (Some(32), Some(512)));
        assert_eq!((facts.enable_prefix_caching, facts.busy), (Some(true), Some(3.0)));
        let unknown = InstanceFacts::of_page(&page.replace("\"512\"", "\"None\""));
        assert_eq!((unknown.block_size, unknown.kv_blocks), (Some(32), None));
        assert_eq!(InstanceFacts::of_page(""), InstanceFacts::default());
    }
}
