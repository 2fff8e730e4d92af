//! Two published crossovers of cache-aware routing, small: `docs/arena.md` has their sources and the whole experiments.

use std::num::NonZeroU32;

use super::*;

/// Times to first token, ascending, of requests that arrive after the first third of the time over which a closed loop
/// begins sessions, and before the last one begins.
fn steady_ttft_s(outcome: &SimOutcome) -> Vec<f64> {
    let starts = outcome.records.iter().filter(|record| record.turn == 0);
    let last = starts.map(|record| record.arrival).max().unwrap();
    let counted = Timestamp::from_nanos(last.as_nanos() / 3)..=last;
    let counted = outcome.records.iter().filter(|record| counted.contains(&record.arrival));
    let mut ttft: Vec<f64> = counted.map(ttft_s).collect();
    assert!(ttft.len() > 100);
    ttft.sort_by(f64::total_cmp);
    ttft
}

/// The value that `percent` of the values are not above.
fn percentile(sorted: &[f64], percent: usize) -> f64 {
    sorted[(sorted.len() * percent).div_ceil(100) - 1]
}

fn closed_loop(spec: ChatSpec, requests: u32, clients: u32) -> Workload {
    let workload = WorkloadSpec::Chat(spec).generate(SEED, requests).unwrap();
    workload.in_closed_loop(NonZeroU32::new(clients).unwrap())
}

/// Conversations of five turns on three instances of 16 sequences each. Far below the 48 of them together, staying where the
/// history is spares prefill. Near them, an instance gets more sessions than it can run, while another has room: whoever
/// waits there waits for a decode to end.
#[test]
fn sticky_sessions_are_better_far_from_the_batch_cap_and_worse_near_it() {
    let p95 = |policy: &str, clients: u32| {
        let spec = ChatSpec {
            system_prompts: 10,
            system_prompt_tokens: constant(370.0),
            turns: constant(5.0),
            user_message_tokens: constant(30.0),
            answer_tokens: Distribution::LogNormal { mean: 150.0, sigma: 0.12 },
            think_time_s: Distribution::Exponential { mean: 0.05 },
            ..ChatSpec::default()
        };
        let profile = LatencyProfile::builtin("h100-llama3.1-8b").unwrap();
        let mut config = SimConfig::new(3, policy.parse().unwrap(), profile, SEED);
        config.engine.max_num_seqs = 16;
        let outcome = run(&config, &closed_loop(spec, 1_200, clients));
        percentile(&steady_ttft_s(&outcome), 95)
    };
    let [far, near] =
        [15, 42].map(|clients| p95("session-affinity", clients) / p95("round-robin", clients));
    assert!(far < 0.9, "{far}");
    assert!(near > 3.0, "{near}");
}

/// Sessions of eight turns behind one long system prompt. With one for each instance, the longest match puts them all where
/// the first one went, and the least loaded instance is the session's own. With six, sessions that go by load alone now and
/// then change their instance and pay for it.
#[test]
fn the_least_loaded_is_better_with_a_session_for_each_instance_and_worse_with_six() {
    let steady = |policy: &str, clients: u32| {
        let spec = ChatSpec {
            system_prompt_tokens: constant(1_536.0),
            turns: constant(8.0),
            user_message_tokens: constant(300.0),
            answer_tokens: Distribution::LogNormal { mean: 56.0, sigma: 0.8 },
            think_time_s: constant(0.0),
            ..ChatSpec::default()
        };
        let profile = LatencyProfile::builtin("a100-llama3.1-8b").unwrap();
        let config = SimConfig::new(4, policy.parse().unwrap(), profile, SEED);
        steady_ttft_s(&run(&config, &closed_loop(spec, 1_200, clients)))
    };
    let (least_loaded, longest_match) =
        ("jsq:load=in-flight", "threshold:match_threshold=0.1,balance_abs=3,balance_rel=1");
    let p50 = |policy, clients| percentile(&steady(policy, clients), 50);
    assert!(p50(least_loaded, 4) < 0.8 * p50(longest_match, 4));
    // The median request finds all its history under either rule; what differs is how many do not.
    let mean = |policy, clients| {
        let ttft = steady(policy, clients);
        ttft.iter().sum::<f64>() / ttft.len() as f64
    };
    assert!(mean(least_loaded, 24) > 1.03 * mean(longest_match, 24));
}
