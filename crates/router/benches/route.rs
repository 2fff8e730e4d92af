//! Time of a request's way through the router: routed, its first token seen, ended; by number of instances.
//!
//! `cargo bench -p kvroute-router`. Each instance has 8 prompts that have shown no first token; the request is 4,096 tokens in
//! blocks of 16 that one instance holds. What a rule asks for beside its own choice is in it: the directory for `lmetric` and
//! `adaptive`, and for `adaptive` what instances have left to prefill. No receipts.

use divan::Bencher;
use kvroute_policy::{BlockNames, PolicyConfig, RequestView};
use kvroute_router::{Router, RouterConfig};
use kvroute_types::{BlockHash, InstanceId, RequestId, Timestamp, TokenCount, mix64};

const INSTANCES: [u32; 2] = [64, 1_024];
/// Prompts without a first token on each instance.
const WAITING: u32 = 8;

fn main() {
    divan::main();
}

fn request(id: u32, blocks: &[BlockHash]) -> RequestView<'_> {
    RequestView {
        id: RequestId(id),
        session_key: Some(mix64(u64::from(id))),
        prefix_key: None,
        prompt_blocks: blocks,
        block_names: BlockNames::Engine,
        prompt_tokens: TokenCount(4_096),
        max_output_tokens: None,
        priority: 0,
    }
}

fn way(bencher: Bencher<'_, '_>, rule: &str, instances: u32) {
    let policy = rule.parse::<PolicyConfig>().expect("a rule").build(1).expect("and a valid one");
    let mut router = Router::new(RouterConfig::default(), policy, 1).expect("the defaults");
    for id in 0..instances {
        router.add_instance(InstanceId(id));
    }
    let mut id = instances * WAITING;
    let waiting = (0..id).map(|id| router.route(Timestamp::ZERO, &request(id, &[])));
    let _waiting: Vec<_> = waiting.collect();
    let blocks: Vec<BlockHash> = (0..256).map(|i| BlockHash(mix64(i))).collect();
    bencher.bench_local(|| {
        id += 1;
        let now = Timestamp::from_nanos(1_000_000 * u64::from(id));
        let sent = router.route(now, &request(id, &blocks)).expect("somebody is eligible");
        router.first_token(now, &sent.ticket);
        router.end(now, sent.ticket);
    });
}

#[divan::bench(args = INSTANCES)]
fn jsq(bencher: Bencher<'_, '_>, instances: u32) {
    way(bencher, "jsq", instances);
}

#[divan::bench(args = INSTANCES)]
fn lmetric(bencher: Bencher<'_, '_>, instances: u32) {
    way(bencher, "lmetric", instances);
}

#[divan::bench(args = INSTANCES)]
fn adaptive(bencher: Bencher<'_, '_>, instances: u32) {
    way(bencher, "adaptive", instances);
}
