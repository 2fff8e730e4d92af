//! Time on a paused clock: nothing here sleeps.

use std::time::Duration;

use kvroute_mock_server::MockConfig;
use kvroute_profile::{LatencyProfile, StepLoad};
use serde_json::json;
use tokio::time::Instant;

use crate::client::{config, metric, post, start};

/// tokio's timers are that coarse, and the way from the engine to the client takes no time on a paused clock.
const TIMER: Duration = Duration::from_millis(2);

fn real_time() -> MockConfig {
    MockConfig { time_scale: 1.0, ..config() }
}

#[tokio::test(start_paused = true)]
async fn time_to_first_token_is_the_profiles() {
    let profile = LatencyProfile::builtin("cpu-tiny").unwrap();
    let cluster = start(real_time()).await;
    let address = cluster.addresses()[0];
    let prompt: Vec<u32> = (1_000..2_000).collect();
    let (mut sum, chunk) = (0.0, |cached: u32, tokens: u32| {
        profile.step_ns(&StepLoad::default().with_chunk(cached, tokens, true))
    });
    // Cold, then with 31 of its 32 blocks cached.
    for step_ns in [chunk(0, 1_000), chunk(992, 8)] {
        let model_ns = profile.request_overhead_ns(1_000) + step_ns;
        let begun = Instant::now();
        let body = json!({"prompt": prompt, "max_tokens": 1, "ignore_eos": true});
        assert_eq!(post(address, "/v1/completions", &body).await.status, 200);
        let (took, model) = (begun.elapsed(), Duration::from_nanos(model_ns));
        assert!(took >= model && took <= model + TIMER, "{took:?} for {model:?}");
        let before = sum;
        sum = metric(address, "time_to_first_token_seconds_sum").await;
        assert!((sum - before - model.as_secs_f64()).abs() < 1e-9, "to the nanosecond: {sum}");
    }
}

#[tokio::test(start_paused = true)]
async fn decode_steps_follow_each_other_without_drift() {
    let profile = LatencyProfile::builtin("cpu-tiny").unwrap();
    let cluster = start(real_time()).await;
    let body = json!({"prompt": [5, 6, 7], "max_tokens": 101, "ignore_eos": true});
    post(cluster.addresses()[0], "/v1/completions", &body).await;
    let steps =
        (4..=103).map(|context| profile.step_ns(&StepLoad::default().with_decodes(1, context)));
    let expected = Duration::from_nanos(steps.sum()).as_secs_f64();
    let decode = metric(cluster.addresses()[0], "request_decode_time_seconds_sum").await;
    assert!((decode - expected).abs() < 1e-6, "{decode} for {expected}");
}

#[tokio::test(start_paused = true)]
async fn a_faster_clock_takes_less_time() {
    let took = async |time_scale| {
        let cluster = start(MockConfig { time_scale, ..config() }).await;
        let body = json!({"prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": true});
        let begun = Instant::now();
        post(cluster.addresses()[0], "/v1/completions", &body).await;
        begun.elapsed()
    };
    let (slow, fast) = (took(1.0).await, took(10.0).await);
    assert!(slow > Duration::from_millis(800), "{slow:?}");
    assert!(fast * 10 >= slow && fast * 10 < slow + 20 * TIMER, "{fast:?} {slow:?}");
}

#[tokio::test(start_paused = true)]
async fn instances_on_one_device_slow_each_other_down() {
    let both = async |instances_per_device| {
        let config = MockConfig { instances: 2, instances_per_device, ..real_time() };
        let cluster = start(config).await;
        let body = json!({"prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": true});
        let begun = Instant::now();
        let [one, two] = [0, 1].map(|number| cluster.addresses()[number]);
        tokio::join!(post(one, "/v1/completions", &body), post(two, "/v1/completions", &body));
        begun.elapsed().as_secs_f64()
    };
    let (apart, shared) = (both(1).await, both(2).await);
    assert!((shared / apart - 2.0).abs() < 0.05, "{shared} s, {apart} s apart");
}
