//! The simulator's decisions, taken again by the gateway.
//!
//! A simulated run tells what happened when: which request came, got its first token, and ended, in which order. The test
//! plays that order to a gateway over HTTP, before instances that answer when they are told to. Both then know the same
//! at each decision, so they must decide the same: instance, reason and predicted hits, under each policy.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use kvroute_gateway::{Gateway, PromptConfig, prefix_key_of_ids, session_key};
use kvroute_policy::PolicyConfig;
use kvroute_profile::LatencyProfile;
use kvroute_router::Refresh;
use kvroute_sim::{SimConfig, simulate};
use kvroute_types::{RequestRecord, Timestamp};
use kvroute_workload::{Plan, TokenStream, Workload, WorkloadRequest, WorkloadSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::client::get;
use crate::start;
use crate::toy::{Act, Held, Toy, header};

const INSTANCES: u32 = 3;
const KV_BLOCKS: u32 = 1_200;
const REQUESTS: u32 = 150;
const SEED: u64 = 5;

/// Conversations, documents and strangers, fast enough to queue.
const WORKLOAD: &str = r#"
kind = "mixed"
[[parts]]
kind = "chat"
requests_per_s = 60.0
turns = { kind = "constant", value = 3 }
system_prompts = 2
system_prompt_tokens = { kind = "constant", value = 200 }
user_message_tokens = { kind = "log-normal", mean = 200, sigma = 0.8 }
answer_tokens = { kind = "log-normal", mean = 24, sigma = 0.4 }
think_time_s = { kind = "exponential", mean = 0.1 }
[[parts]]
kind = "rag"
requests_per_s = 60.0
documents = 12
document_tokens = { kind = "log-normal", mean = 900, sigma = 0.3 }
answer_tokens = { kind = "log-normal", mean = 16, sigma = 0.4 }
[[parts]]
kind = "uniform"
requests_per_s = 30.0
prompt_tokens = { kind = "log-normal", mean = 500, sigma = 0.5 }
output_tokens = { kind = "log-normal", mean = 24, sigma = 0.4 }
"#;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    FirstToken,
    End,
    Arrival,
}

#[tokio::test]
async fn the_gateway_decides_as_the_simulator_does() {
    let stream = TokenStream::new(NonZeroU32::new(1_000).unwrap(), 0);
    let workload = WorkloadSpec::from_toml(WORKLOAD).unwrap().generate(SEED, REQUESTS).unwrap();
    let as_routed = workload.clone().with_keys(|workload, request| {
        let ids = prompt(workload, request, &stream);
        (session_key(session(request).as_bytes()), prefix_key_of_ids(ids, &PromptConfig::default()))
    });
    let mut reasons = BTreeMap::new();
    // What is played here takes other times than it was simulated with. `preble` goes by what the last minutes brought, and
    // who asks what is left to prefill by how long it has been under way; those decisions are held by decision logs.
    let goes_by_time = |policy: &PolicyConfig| {
        policy.name() == "preble" || policy.build(SEED).unwrap().needs().prefill_left
    };
    for policy in PolicyConfig::every_live().into_iter().filter(|it| !goes_by_time(it)) {
        let profile = LatencyProfile::builtin("a100-llama3.1-8b").unwrap();
        let mut config = SimConfig::new(INSTANCES, policy, profile, SEED).with_kv_blocks(KV_BLOCKS);
        config.engine.max_model_len = 8_192;
        config.router.load.refresh = Refresh::Never;
        config.router.always_index = true;
        let plan = Plan::new(&as_routed, config.engine.block_size).unwrap();
        let outcome = simulate(&config, &as_routed, &plan, |_| {}).unwrap();
        for record in &outcome.records {
            *reasons.entry(record.reason).or_insert(0) += 1;
        }
        play(policy, &workload, &stream, &outcome.records).await;
    }
    // The scenario reaches every rule.
    for reason in ["fallback", "prefix-home", "session-home", "cache-score", "load-score"] {
        assert!(reasons.get(reason).is_some_and(|count| *count > 5), "{reason} in {reasons:?}");
    }
}

fn prompt(workload: &Workload, request: &WorkloadRequest, stream: &TokenStream) -> Vec<u32> {
    workload.tokens(request, stream).take(request.prompt_tokens.0 as usize).collect()
}

fn session(request: &WorkloadRequest) -> String {
    format!("{:016x}", request.session_key)
}

/// Everything that happened, in order.
fn timeline(records: &[RequestRecord]) -> Vec<(Timestamp, Happening, usize)> {
    let mut timeline: Vec<_> = records
        .iter()
        .flat_map(|record| {
            [
                (record.arrival, Happening::Arrival, record.id.index()),
                (record.first_token.unwrap(), Happening::FirstToken, record.id.index()),
                (record.end, Happening::End, record.id.index()),
            ]
        })
        .collect();
    timeline.sort_unstable();
    // Requests of one step end together, and in which order makes no difference; an arrival must have its place.
    for pair in timeline.windows(2) {
        let arrives = pair.iter().any(|(_, what, _)| *what == Happening::Arrival);
        assert!(!arrives || pair[0].0 < pair[1].0, "{pair:?}");
    }
    timeline
}

async fn play(
    policy: PolicyConfig,
    workload: &Workload,
    stream: &TokenStream,
    records: &[RequestRecord],
) {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let mut toys = Vec::new();
    for instance in 0..INSTANCES {
        toys.push(Toy::start(Act::Held { instance, arrived: arrived.clone() }).await);
    }
    let toys: Vec<&Toy> = toys.iter().collect();
    let gateway = start(&toys, |config| {
        config.policy = policy;
        config.seed = SEED;
        config.load.refresh_s = None;
        config.index.capacity_blocks = Some(KV_BLOCKS);
        config.timeouts.first_byte_s = 60.0;
        config.health.silence_s = None;
        config.limits.instance_in_flight = None;
    })
    .await;
    all_are_up(&gateway).await;

    let mut under_way: BTreeMap<usize, (Client, Held)> = BTreeMap::new();
    for (_, what, number) in timeline(records) {
        match what {
            Happening::Arrival => {
                let request = &workload.requests()[number];
                let ids = prompt(workload, request, stream);
                let client = Client::send(&gateway, &ids, &session(request)).await;
                let held: Held = in_time(arrivals.recv()).await.unwrap();
                let chosen = records[number].instance.unwrap().0;
                assert_eq!(held.instance, chosen, "{policy:?}, request {number}");
                under_way.insert(number, (client, held));
            }
            Happening::FirstToken => {
                let (client, held) = under_way.get_mut(&number).unwrap();
                held.go_on.send(()).unwrap();
                client.read_until("data: ").await;
                let record = &records[number];
                assert_eq!(
                    client.header("x-kvroute-reason"),
                    record.reason,
                    "{policy:?}, {number}"
                );
                let predicted = record.predicted_cached_tokens.unwrap().0.to_string();
                let got = client.header("x-kvroute-predicted-cached-tokens");
                assert_eq!(got, predicted, "{policy:?}, request {number}");
            }
            Happening::End => {
                let (mut client, held) = under_way.remove(&number).unwrap();
                held.go_on.send(()).unwrap();
                client.read_until("0\r\n\r\n").await;
                let is_released = async {
                    while gateway.in_flight() != under_way.len() {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                };
                in_time(is_released).await;
            }
        }
    }
    assert!(under_way.is_empty());
    gateway.shutdown().await;
}

async fn all_are_up(gateway: &Gateway) {
    let up = async || {
        let page = get(gateway.admin_addr(), "/metrics").await;
        page.text().matches("kvroute_instance_up{").count() == INSTANCES as usize
            && !page
                .text()
                .lines()
                .any(|l| l.starts_with("kvroute_instance_up{") && l.ends_with(" 0"))
    };
    crate::eventually("all instances are up", up).await;
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(20), future).await.expect("within 20 s")
}

/// One request under way.
struct Client {
    stream: TcpStream,
    seen: String,
}

impl Client {
    async fn send(gateway: &Gateway, ids: &[u32], session: &str) -> Self {
        let body = format!(r#"{{"model":"m","stream":true,"prompt":{ids:?}}}"#);
        let length = body.len();
        let raw = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nx-session-id: {session}\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        let mut stream = TcpStream::connect(gateway.addr()).await.unwrap();
        stream.write_all(raw.as_bytes()).await.unwrap();
        Self { stream, seen: String::new() }
    }

    async fn read_until(&mut self, text: &str) {
        let mut chunk = [0; 4096];
        while !self.seen.contains(text) {
            let count = in_time(self.stream.read(&mut chunk)).await.unwrap();
            assert_ne!(count, 0, "no {text:?} in {}", self.seen);
            self.seen.push_str(std::str::from_utf8(&chunk[..count]).unwrap());
        }
    }

    fn header(&self, name: &str) -> &str {
        let head = self.seen.split("\r\n\r\n").next().unwrap();
        header(head, name).unwrap_or_else(|| panic!("no {name} in {head}"))
    }
}
