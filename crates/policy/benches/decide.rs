//! Time of one decision, and of one change in the table, by number of candidates.
//!
//! `cargo bench -p kvroute-policy`. Inputs are drawn from a fixed seed. The request has keys and 8,192
//! full blocks (131,072 tokens in blocks of 16); no score is kept. `rule` measures every rule that there is, `-- rule`
//! alone them.

use std::sync::LazyLock;

use divan::{Bencher, black_box};
use kvroute_policy::{
    BlockNames, Candidate, Event, LeastLoaded, LoadSignal, Policy, PolicyConfig, RequestView,
    Scores,
};
use kvroute_types::{BlockHash, InstanceId, LoadSnapshot, RequestId, Timestamp, TokenCount, mix64};

const CANDIDATES: [usize; 5] = [2, 16, 64, 256, 1_024];
static PROMPT: LazyLock<Vec<BlockHash>> =
    LazyLock::new(|| (0..8_192).map(|nth| BlockHash(mix64(nth))).collect());

fn main() {
    divan::main();
}

/// A pseudo-random number below `n`, from a counter.
fn below(n: u32, counter: u64) -> u32 {
    u32::try_from(mix64(counter) % u64::from(n)).unwrap_or(0)
}

/// A table of busy instances with some of the prompt on each.
fn table(len: usize) -> Vec<Candidate> {
    (0_u32..)
        .zip(0_u64..)
        .take(len)
        .map(|(id, i)| Candidate {
            load: Some(LoadSnapshot {
                waiting: below(4, 3 * i),
                running: below(64, 3 * i + 1),
                kv_cache_usage: 0.5,
                as_of: Timestamp::ZERO,
            }),
            // In balance by every rule's measure: the branch that looks at matches is the longer one.
            in_flight: 30 + below(8, 3 * i + 1),
            in_flight_uncached_tokens: u64::from(below(65_536, 3 * i)),
            prefill_left: u64::from(below(65_536, 3 * i)),
            prefill_speed: 0.5 + f64::from(below(8, 3 * i)) / 8.0,
            in_flight_prompt_tokens: 65_536 + u64::from(below(262_144, 3 * i + 1)),
            in_flight_decoding: below(32, 3 * i + 1),
            in_flight_decoding_tokens: 65_536,
            matched_blocks: below(8_192, 3 * i + 2),
            matched_tokens: 16 * below(8_192, 3 * i + 2),
            last_chosen: i + 1,
            ..Candidate::new(InstanceId(id))
        })
        .collect()
}

fn request(key: u64) -> RequestView<'static> {
    RequestView {
        id: RequestId(0),
        session_key: Some(mix64(key)),
        prefix_key: Some(mix64(key / 8)),
        prompt_blocks: &PROMPT,
        block_names: BlockNames::Engine,
        prompt_tokens: TokenCount(131_072),
        max_output_tokens: None,
        priority: 0,
    }
}

/// The policy, told of the table.
fn policy(spec: &str, candidates: &[Candidate]) -> Box<dyn Policy> {
    let mut policy = spec
        .parse::<PolicyConfig>()
        .map(|config| config.build(1))
        .expect("the spec parses")
        .expect("and is valid");
    policy.observe(Event::MembershipChanged { candidates });
    policy
}

/// Decisions over a table that stands still, 1 ms apart.
fn choose(bencher: Bencher<'_, '_>, spec: &str, len: usize) {
    let candidates = table(len);
    let mut policy = policy(spec, &candidates);
    let mut scores = Scores::new(false);
    let mut key = 0;
    bencher.bench_local(|| {
        key += 1;
        policy.choose(
            Timestamp::from_nanos(1_000_000 * key),
            &request(black_box(key)),
            black_box(candidates.as_slice()),
            &mut scores,
        )
    });
}

/// Every rule that a gateway can run, at its defaults, at 64 and 1,024 instances.
#[divan::bench(args = rules())]
fn rule(bencher: Bencher<'_, '_>, rule: &Rule) {
    choose(bencher, rule.name, rule.len);
}

/// A rule and a number of instances.
struct Rule {
    name: &'static str,
    len: usize,
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.name, self.len)
    }
}

fn rules() -> Vec<Rule> {
    let rules = PolicyConfig::every_live().into_iter();
    rules.flat_map(|rule| [64, 1_024].map(|len| Rule { name: rule.name(), len })).collect()
}

#[divan::bench(args = CANDIDATES)]
fn round_robin(bencher: Bencher<'_, '_>, len: usize) {
    choose(bencher, "round-robin", len);
}

#[divan::bench(args = CANDIDATES)]
fn jsq(bencher: Bencher<'_, '_>, len: usize) {
    choose(bencher, "jsq", len);
}

#[divan::bench(args = CANDIDATES)]
fn p2c(bencher: Bencher<'_, '_>, len: usize) {
    choose(bencher, "p2c", len);
}

#[divan::bench(args = CANDIDATES)]
fn session_affinity(bencher: Bencher<'_, '_>, len: usize) {
    choose(bencher, "session-affinity", len);
}

#[divan::bench(args = CANDIDATES)]
fn prefix_affinity(bencher: Bencher<'_, '_>, len: usize) {
    choose(bencher, "prefix-affinity", len);
}

#[divan::bench(args = CANDIDATES)]
fn load_cache(bencher: Bencher<'_, '_>, len: usize) {
    choose(bencher, "load-cache", len);
}

/// `jsq` on a table it was never told of: a scan.
#[divan::bench(args = CANDIDATES)]
fn jsq_unobserved(bencher: Bencher<'_, '_>, len: usize) {
    let known = table(len);
    let mut policy = policy("jsq", &known);
    let candidates = known.clone();
    let mut scores = Scores::new(false);
    bencher.bench_local(|| {
        policy.choose(Timestamp::ZERO, &request(0), black_box(candidates.as_slice()), &mut scores)
    });
}

/// `jsq` at work: choose, send there, report that, and report one finished request elsewhere.
#[divan::bench(args = CANDIDATES)]
fn jsq_dispatch_cycle(bencher: Bencher<'_, '_>, len: usize) {
    let mut candidates = table(len);
    let mut policy = policy("jsq", &candidates);
    let mut scores = Scores::new(false);
    let mut sequence = len as u64;
    bencher.bench_local(|| {
        sequence += 1;
        let chosen =
            policy.choose(Timestamp::ZERO, &request(sequence), &candidates, &mut scores)?.position;
        candidates[chosen].unseen_in_flight += 1;
        candidates[chosen].last_chosen = sequence;
        policy.observe(Event::CandidateChanged { candidates: &candidates, position: chosen });
        let ended = usize::try_from(mix64(sequence)).unwrap_or(0) % len;
        candidates[ended].unseen_in_flight = candidates[ended].unseen_in_flight.saturating_sub(1);
        policy.observe(Event::CandidateChanged { candidates: &candidates, position: ended });
        Some(chosen)
    });
}

/// One reported change of load at a random position.
#[divan::bench(args = CANDIDATES)]
fn least_loaded_update(bencher: Bencher<'_, '_>, len: usize) {
    let mut candidates = table(len);
    let mut tree = LeastLoaded::new(LoadSignal::Total);
    tree.observe(Event::MembershipChanged { candidates: &candidates });
    let mut counter = 0_u64;
    bencher.bench_local(|| {
        counter += 1;
        let random = mix64(counter);
        let position = usize::try_from(random).unwrap_or(0) % len;
        candidates[position].unseen_in_flight = u32::try_from(random >> 58).unwrap_or(0);
        tree.observe(Event::CandidateChanged { candidates: &candidates, position });
        tree.winner()
    });
}

/// A new membership.
#[divan::bench(args = CANDIDATES)]
fn least_loaded_rebuild(bencher: Bencher<'_, '_>, len: usize) {
    let candidates = table(len);
    let mut tree = LeastLoaded::new(LoadSignal::Total);
    bencher.bench_local(|| {
        tree.observe(Event::MembershipChanged { candidates: black_box(&candidates) });
        tree.winner()
    });
}
