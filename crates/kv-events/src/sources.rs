//! Where an instance publishes, as it says itself at `GET /kv_event_sources` (vLLM 0.32.0, R67).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::endpoint::InvalidEndpoint;
use crate::subscription::SourceConfig;

/// A publisher's settings, one entry of the answer of `GET /kv_event_sources`; keys in vLLM's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventSource {
    /// Whether anything is published.
    pub enable_kv_cache_events: bool,
    /// `zmq`, or `null` for a publisher that throws all away.
    pub publisher: String,
    /// What the PUB socket is bound to, `tcp://*:5557` for example. An endpoint without `*` is connected to, which a
    /// subscriber here cannot serve.
    pub endpoint: String,
    /// What the ROUTER socket for replays is bound to; none by default.
    #[serde(default)]
    pub replay_endpoint: Option<String>,
    /// Batches kept for replay.
    pub buffer_steps: u64,
    /// High-water mark of the PUB socket, messages.
    pub hwm: u64,
    /// Batches that may wait to be published.
    pub max_queue_size: u64,
    /// First frame of each message.
    pub topic: String,
}

/// The answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSources {
    /// Not of the form of `GET /kv_event_sources`.
    #[error("the answer is not that of vLLM's GET /kv_event_sources; name the endpoints instead")]
    Form(#[from] serde_json::Error),
    /// An endpoint that nobody can connect to.
    #[error("rank {rank} publishes at an endpoint that cannot be connected to")]
    Endpoint {
        /// The data-parallel rank.
        rank: String,
        /// What is wrong with it.
        #[source]
        source: InvalidEndpoint,
    },
}

/// Reads the answer of `GET /kv_event_sources`: what to subscribe to, by data-parallel rank. Ranks that publish
/// nothing are left out. `host` is the instance's, and stands in for `*`.
///
/// # Errors
/// [`InvalidSources`] if it is another answer, or names an endpoint of another form.
pub fn read_sources(
    body: &str,
    host: &str,
) -> Result<BTreeMap<String, SourceConfig>, InvalidSources> {
    let sources: BTreeMap<String, EventSource> = serde_json::from_str(body)?;
    let is_on = |source: &EventSource| source.enable_kv_cache_events && source.publisher == "zmq";
    let sources = sources.into_iter().filter(|(_, source)| is_on(source));
    sources
        .map(|(rank, source)| match config(&source, host) {
            Ok(config) => Ok((rank, config)),
            Err(source) => Err(InvalidSources::Endpoint { rank, source }),
        })
        .collect()
}

fn config(source: &EventSource, host: &str) -> Result<SourceConfig, InvalidEndpoint> {
    let host = if host.contains(':') && !host.starts_with('[') {
        format!("[{host}]")
    } else {
        host.to_owned()
    };
    let reachable = |endpoint: &str| match endpoint.strip_prefix("tcp://") {
        Some(address) => match address.rsplit_once(':') {
            Some(("*" | "0.0.0.0" | "[::]" | "::", port)) => format!("tcp://{host}:{port}").parse(),
            _ => endpoint.parse(),
        },
        None => endpoint.parse(),
    };
    let replay = source.replay_endpoint.as_deref().map(reachable).transpose()?;
    Ok(SourceConfig {
        // One that keeps no batch answers every replay as a server does that has just begun.
        replay: replay.filter(|_| source.buffer_steps > 0),
        topic: source.topic.clone(),
        ..SourceConfig::new(reachable(&source.endpoint)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Recorded from vLLM 0.32.0.
    const RECORDED: &str = r#"{"0":{"enable_kv_cache_events":true,"publisher":"zmq","endpoint":"tcp://*:8120","replay_endpoint":"tcp://*:8140","buffer_steps":10000,"hwm":100000,"max_queue_size":100000,"topic":"kv@0"}}"#;

    #[test]
    fn the_recorded_answer_is_read_and_written() {
        let sources = read_sources(RECORDED, "10.1.2.3").unwrap();
        assert_eq!(sources.len(), 1);
        let config = &sources["0"];
        assert_eq!(config.events.to_string(), "tcp://10.1.2.3:8120");
        assert_eq!(config.replay.as_ref().unwrap().to_string(), "tcp://10.1.2.3:8140");
        assert_eq!(config.topic, "kv@0");

        let sources: BTreeMap<String, EventSource> = serde_json::from_str(RECORDED).unwrap();
        assert_eq!(serde_json::to_string(&sources).unwrap(), RECORDED);
    }

    #[test]
    fn ranks_without_events_are_left_out_and_other_answers_refused() {
        let off = RECORDED.replace("true", "false");
        assert!(read_sources(&off, "h").unwrap().is_empty());
        let none = RECORDED.replace(r#""tcp://*:8140""#, "null");
        assert_eq!(read_sources(&none, "::1").unwrap()["0"].replay, None);
        let forgetful = RECORDED.replace(r#""buffer_steps":10000"#, r#""buffer_steps":0"#);
        assert_eq!(read_sources(&forgetful, "h").unwrap()["0"].replay, None);
        assert!(matches!(read_sources("{}{", "h"), Err(InvalidSources::Form(_))));
        let odd = RECORDED.replace("tcp://*:8120", "udp://*:1");
        assert!(matches!(read_sources(&odd, "h"), Err(InvalidSources::Endpoint { .. })));
    }
}
