//! What a run is told to do.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Configuration of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LoadConfig {
    /// Base URL of the endpoint. Default `http://127.0.0.1:8000`, where vLLM listens.
    pub target: Target,
    /// Value of `model` in requests; left out if `None`, which vLLM takes as its only model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// When requests are sent.
    pub mode: Mode,
    /// How prompts are rendered, and so which API is called.
    pub prompt_form: PromptForm,
    /// Whether answers are streamed. Without it the first token is only seen with the last: TTFT equals e2e and time
    /// per output token means nothing.
    pub stream: bool,
    /// Time from sending a request after which it is given up, wall-clock seconds. Default 600.
    pub request_timeout_s: f64,
    /// Seconds of workload time per wall-clock second, for a mock server that runs as much faster (its `time_scale`).
    /// All times of the outcome are in workload time unless they say otherwise. Default 1.
    pub time_scale: f64,
    /// Upper bound on the output tokens asked for; `None` asks for what the workload says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_output_tokens: Option<NonZeroU32>,
    /// Whether to send vLLM's own fields: `ignore_eos`, without which answers end before their planned length,
    /// `return_token_ids` for conversations by token ids, and `priority`. An endpoint that refuses unknown fields
    /// needs `false`. Default true.
    pub vllm_fields: bool,
    /// Further header fields of each request, such as `authorization`.
    pub headers: BTreeMap<String, String>,
    /// Requests of the first so many seconds (of workload time, by intended arrival) are not counted in
    /// `LoadOutcome::inter_token_ns`; their records are kept for the lab to leave out by the same rule. Default 0.
    pub warm_up_s: f64,
    /// Changes the content of every prompt but not what prompts share, so that runs against one server do not find
    /// each other's cache entries. Default 0.
    pub salt: u64,
    /// Time between two readings of an instance's gauges, wall-clock seconds. Default 1.
    pub metrics_interval_s: f64,
    /// The instances behind the target in the order of their `InstanceId`s: their names are looked for in
    /// `x-kvroute-instance`, and their `/metrics` pages are read. None by default.
    pub instances: Vec<InstanceTarget>,
}

impl Default for LoadConfig {
    fn default() -> Self {
        Self {
            target: Target::local(8000),
            model: None,
            mode: Mode::default(),
            prompt_form: PromptForm::default(),
            stream: true,
            request_timeout_s: 600.0,
            time_scale: 1.0,
            max_output_tokens: None,
            vllm_fields: true,
            headers: BTreeMap::new(),
            warm_up_s: 0.0,
            salt: 0,
            metrics_interval_s: 1.0,
            instances: Vec::new(),
        }
    }
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Mode {
    /// Each at its intended time, whatever the server does.
    OpenLoop {},
    /// So many clients at most. Each plays a session from its first turn to its last, a turn as soon as the one before
    /// has ended and its think time (if the workload has any) is over, and then takes the next session that nobody has;
    /// arrival times of the workload only give the order of sessions. (`Workload::in_closed_loop` deals the sessions out
    /// beforehand, for runs that are compared with a simulation.)
    ClosedLoop {
        /// Number of clients.
        concurrency: NonZeroU32,
    },
}

impl Default for Mode {
    fn default() -> Self {
        Self::OpenLoop {}
    }
}

/// How prompts are rendered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PromptForm {
    /// Messages to `/v1/chat/completions`. Each planned token is one of 256 short, common English words, which stands
    /// as one token (with the space before it) in most vocabularies; the chat template adds its own. So lengths are
    /// close to the plan but not exact: records hold the length that the server reports.
    Text {},
    /// Token ids to `/v1/completions`, exact in length and content.
    TokenIds {
        /// Ids are drawn from `0..vocabulary`; not above the size of the model's. (A trace that has ids of its own
        /// keeps them.)
        vocabulary: NonZeroU32,
    },
}

impl Default for PromptForm {
    fn default() -> Self {
        Self::Text {}
    }
}

/// An instance behind the target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceTarget {
    /// Its base URL, where `/metrics` is read.
    pub url: Target,
    /// Its name in `x-kvroute-instance`; `HOST:PORT` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl InstanceTarget {
    /// An unnamed instance.
    pub const fn new(url: Target) -> Self {
        Self { url, name: None }
    }

    /// The name it goes by.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.url.authority)
    }
}

/// A base URL: `http://HOST[:PORT][/PATH]`. A last path segment `v1` is dropped, since clients differ on whether it
/// belongs to the base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Target {
    /// `HOST:PORT`, with the port always there.
    pub(crate) authority: String,
    /// Empty, or begins with `/` and does not end with it.
    path: String,
}

/// Not a base URL.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{url:?} is no base URL: {problem}; write http://HOST:PORT")]
pub struct InvalidUrl {
    /// What was given.
    pub url: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Target {
    /// `http://127.0.0.1:PORT`.
    pub fn local(port: u16) -> Self {
        Self { authority: format!("127.0.0.1:{port}"), path: String::new() }
    }

    /// The path of an endpoint under the base, such as `/v1/completions`.
    pub(crate) fn path(&self, endpoint: &str) -> String {
        format!("{}{endpoint}", self.path)
    }
}

impl TryFrom<String> for Target {
    type Error = InvalidUrl;

    fn try_from(url: String) -> Result<Self, InvalidUrl> {
        match parse(&url) {
            Ok(target) => Ok(target),
            Err(problem) => Err(InvalidUrl { url, problem }),
        }
    }
}

impl std::str::FromStr for Target {
    type Err = InvalidUrl;

    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        url.to_owned().try_into()
    }
}

impl From<Target> for String {
    fn from(target: Target) -> Self {
        target.to_string()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

fn parse(url: &str) -> Result<Target, &'static str> {
    let uri: http::Uri = url.parse().map_err(|_| "it is not a URL")?;
    if uri.scheme_str() != Some("http") {
        return Err("its scheme is not http (TLS is not supported)");
    }
    if uri.query().is_some() {
        return Err("it has a query");
    }
    let authority = uri.authority().ok_or("it has no host")?;
    if authority.as_str().contains('@') {
        return Err("it has a user name; give an authorization header instead");
    }
    if authority.host().is_empty() {
        return Err("it has no host");
    }
    let authority = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let path = uri.path().trim_end_matches('/');
    let path = path.strip_suffix("/v1").unwrap_or(path).trim_end_matches('/').to_owned();
    Ok(Target { authority, path })
}

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum InvalidConfig {
    /// A number out of range.
    #[error("{field} is {value}; give {expected}")]
    OutOfRange {
        /// The setting.
        field: &'static str,
        /// What was given.
        value: f64,
        /// What makes sense.
        expected: &'static str,
    },
    /// A header field that HTTP cannot carry, or that the driver sets itself.
    #[error("header {name:?} cannot be sent; {expected}")]
    Header {
        /// Its name.
        name: String,
        /// What to change.
        expected: &'static str,
    },
    /// Two instances of one name.
    #[error("two instances are named {name:?}; give each a name of its own")]
    SameName {
        /// The name.
        name: String,
    },
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) target: Target,
    pub(crate) model: Option<String>,
    pub(crate) mode: Mode,
    pub(crate) prompt_form: PromptForm,
    pub(crate) stream: bool,
    pub(crate) request_timeout: Duration,
    pub(crate) time_scale: f64,
    pub(crate) max_output_tokens: u32,
    pub(crate) vllm_fields: bool,
    pub(crate) headers: HeaderMap,
    pub(crate) measured_from: Timestamp,
    pub(crate) salt: u64,
    pub(crate) metrics_interval: Duration,
    pub(crate) instance_names: Vec<String>,
    pub(crate) instances: Vec<InstanceTarget>,
}

/// Fields that the driver, or HTTP, sets itself.
const OWN_HEADERS: [&str; 6] =
    ["content-length", "content-type", "host", "transfer-encoding", "connection", "x-session-id"];

impl TryFrom<LoadConfig> for Settings {
    type Error = InvalidConfig;

    fn try_from(config: LoadConfig) -> Result<Self, InvalidConfig> {
        let LoadConfig {
            target,
            model,
            mode,
            prompt_form,
            stream,
            request_timeout_s,
            time_scale,
            max_output_tokens,
            vllm_fields,
            headers,
            warm_up_s,
            salt,
            metrics_interval_s,
            instances,
        } = config;
        in_range("time_scale", time_scale, 1e-3, 1e6, "a number from 0.001 to 1,000,000")?;
        // Bounded so that it fits a Duration and a timer: 1e7 s are 115 days.
        in_range("request_timeout_s", request_timeout_s, 1e-3, 1e7, "a number from 0.001 to 1e7")?;
        in_range("warm_up_s", warm_up_s, 0.0, 1e9, "a number from 0 to 1e9")?;
        in_range(
            "metrics_interval_s",
            metrics_interval_s,
            1e-3,
            1e6,
            "a number from 0.001 to 1e6",
        )?;
        let mut instance_names: Vec<String> = Vec::with_capacity(instances.len());
        for instance in &instances {
            let name = instance.name().to_owned();
            if instance_names.contains(&name) {
                return Err(InvalidConfig::SameName { name });
            }
            instance_names.push(name);
        }
        Ok(Self {
            target,
            model,
            mode,
            prompt_form,
            stream,
            request_timeout: Duration::from_secs_f64(request_timeout_s),
            time_scale,
            max_output_tokens: max_output_tokens.map_or(u32::MAX, NonZeroU32::get),
            vllm_fields,
            headers: header_map(headers)?,
            measured_from: Timestamp::from_secs_f64(warm_up_s),
            salt,
            metrics_interval: Duration::from_secs_f64(metrics_interval_s),
            instance_names,
            instances,
        })
    }
}

fn in_range(
    field: &'static str,
    value: f64,
    least: f64,
    most: f64,
    expected: &'static str,
) -> Result<(), InvalidConfig> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(InvalidConfig::OutOfRange { field, value, expected })
}

fn header_map(headers: BTreeMap<String, String>) -> Result<HeaderMap, InvalidConfig> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let expected = match (HeaderName::try_from(&name), HeaderValue::try_from(value)) {
            (Ok(key), Ok(_)) if OWN_HEADERS.contains(&key.as_str()) => {
                "leave it out, the driver sets it itself"
            }
            (Ok(key), Ok(value)) => {
                map.append(key, value);
                continue;
            }
            (Err(_), _) => "give a name of letters, digits and dashes",
            (_, Err(_)) => "give a value of visible characters",
        };
        return Err(InvalidConfig::Header { name, expected });
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Result<String, &'static str> {
        text.parse::<Target>().map(|t| t.path("/v1/x")).map_err(|error| error.problem)
    }

    #[test]
    fn base_urls_are_understood_with_and_without_v1() {
        assert_eq!(url("http://h:1"), Ok("/v1/x".into()));
        assert_eq!(url("http://h:1/v1/"), Ok("/v1/x".into()));
        assert_eq!(url("http://h/base/v1"), Ok("/base/v1/x".into()));
        assert_eq!("http://h".parse::<Target>().unwrap().to_string(), "http://h:80");
        assert_eq!("http://[::1]:8".parse::<Target>().unwrap().authority, "[::1]:8");
        assert_eq!(url("https://h"), Err("its scheme is not http (TLS is not supported)"));
        assert_eq!(url("localhost:8000"), Err("its scheme is not http (TLS is not supported)"));
        assert_eq!(url("http://h?x"), Err("it has a query"));
    }

    #[test]
    fn toml_round_trips_and_refuses_strangers() {
        let config = LoadConfig {
            mode: Mode::ClosedLoop { concurrency: NonZeroU32::MIN },
            prompt_form: PromptForm::TokenIds { vocabulary: NonZeroU32::MIN },
            instances: vec![InstanceTarget::new(Target::local(1))],
            ..LoadConfig::default()
        };
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<LoadConfig>(&text).unwrap(), config, "{text}");
        assert_eq!(toml::from_str::<LoadConfig>("").unwrap(), LoadConfig::default());
        assert!(toml::from_str::<LoadConfig>("targets = \"http://h\"").is_err());
        assert!(toml::from_str::<LoadConfig>("mode = { kind = \"open-loop\", x = 1 }").is_err());
    }

    #[test]
    fn impossible_settings_are_named() {
        let error = |config: LoadConfig| Settings::try_from(config).unwrap_err().to_string();
        let config = LoadConfig { time_scale: f64::NAN, ..LoadConfig::default() };
        assert_eq!(error(config), "time_scale is NaN; give a number from 0.001 to 1,000,000");
        let headers = BTreeMap::from([("Host".into(), "x".into())]);
        let config = LoadConfig { headers, ..LoadConfig::default() };
        assert!(error(config).contains("leave it out"));
        let instances = vec![InstanceTarget::new(Target::local(1)); 2];
        let config = LoadConfig { instances, ..LoadConfig::default() };
        assert!(error(config).contains("\"127.0.0.1:1\""));
    }
}
