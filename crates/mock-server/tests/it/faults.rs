//! Faults, death and shutdown.

use std::time::Duration;

use kvroute_mock_server::{Faults, MetricsFault, MockConfig};
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::client::{JSON, config, get, open, post, start, until};

const SHORT: Duration = Duration::from_millis(30);

fn body(stream: bool) -> serde_json::Value {
    json!({"prompt": "a b c", "max_tokens": 6, "ignore_eos": true, "stream": stream})
}

#[tokio::test]
async fn errors_come_at_their_rate_and_the_same_every_time() {
    let run = async || {
        let faults = Faults { error_rate: 0.5, error_status: Some(503), ..Faults::default() };
        let cluster = start(MockConfig { faults, ..config() }).await;
        let mut statuses = Vec::new();
        for _ in 0..40 {
            statuses
                .push(post(cluster.addresses()[0], "/v1/completions", &body(false)).await.status);
        }
        statuses
    };
    let statuses = run().await;
    let errors = statuses.iter().filter(|&&status| status == 503).count();
    assert!((10..=30).contains(&errors), "{errors} of 40");
    assert!(statuses.iter().all(|status| [200, 503].contains(status)));
    assert_eq!(run().await, statuses);
}

#[tokio::test]
async fn streams_are_cut_or_fall_silent() {
    let cluster = start(config()).await;
    let (address, instance) = (cluster.addresses()[0], &cluster.instances()[0]);
    let cut = |after| Faults { cut_after_tokens: Some(after), ..Faults::default() };
    instance.set_faults(cut(3)).unwrap();
    let answer = post(address, "/v1/completions", &body(true)).await;
    assert_eq!((answer.status, answer.is_complete, answer.events().len()), (200, false, 3));
    let whole = post(address, "/v1/completions", &body(false)).await;
    assert_eq!((whole.status, whole.is_complete), (0, false), "cut before the headers");

    let silent = Faults { silent_after_tokens: Some(2), ..Faults::default() };
    instance.set_faults(silent).unwrap();
    let mut stream =
        open(address, "POST", "/v1/completions", &[JSON], &body(true).to_string()).await;
    let mut heard = Vec::new();
    let ended = timeout(SHORT, stream.read_to_end(&mut heard)).await;
    assert!(ended.is_err(), "it stays open");
    assert_eq!(String::from_utf8(heard).unwrap().matches("data: ").count(), 2);
    drop(stream);
    until(|| async { instance.in_flight() == 0 }).await;

    instance.set_faults(Faults::default()).unwrap();
    assert!(post(address, "/v1/completions", &body(true)).await.is_complete);
}

#[tokio::test]
async fn a_hanging_instance_answers_nothing_but_the_rest() {
    let faults = Faults { hang: true, health_status: Some(500), ..Faults::default() };
    let cluster = start(MockConfig { faults, ..config() }).await;
    let address = cluster.addresses()[0];
    let request = body(false);
    assert!(timeout(SHORT, post(address, "/v1/completions", &request)).await.is_err());
    assert_eq!(get(address, "/health").await.status, 500);
    assert_eq!(get(address, "/version").await.status, 200);
}

#[tokio::test]
async fn metrics_pages_can_be_wrong() {
    let cluster = start(config()).await;
    let (address, instance) = (cluster.addresses()[0], &cluster.instances()[0]);
    for (metrics, status, has_running) in [
        (MetricsFault::None, 200, true),
        (MetricsFault::Error, 500, false),
        (MetricsFault::Empty, 200, false),
        (MetricsFault::Garbage, 200, false),
        (MetricsFault::Foreign, 200, false),
        (MetricsFault::Truncated, 200, false),
    ] {
        instance.set_faults(Faults { metrics, ..Faults::default() }).unwrap();
        let page = get(address, "/metrics").await;
        let running = "vllm:num_requests_running{engine=\"0\",model_name=\"tiny\"} 0.0\n";
        assert_eq!(
            (page.status, page.body.contains(running)),
            (status, has_running),
            "{metrics:?}"
        );
    }
    instance.set_faults(Faults { metrics: MetricsFault::Hang, ..Faults::default() }).unwrap();
    assert!(timeout(SHORT, get(address, "/metrics")).await.is_err());
}

#[tokio::test]
async fn faults_are_set_over_http() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    let set = post(address, "/mock/faults", &json!({"error_rate": 1.0, "error_status": 429})).await;
    assert_eq!(set.status, 200);
    assert_eq!(get(address, "/mock/faults").await.json(), set.json());
    assert_eq!(post(address, "/v1/completions", &body(true)).await.status, 429);
    for wrong in [json!({"error_rate": 2.0}), json!({"no_such_fault": 1})] {
        let refused = post(address, "/mock/faults", &wrong).await;
        assert_eq!(refused.status, 400, "{}", refused.body);
    }
    post(address, "/mock/faults", &json!({})).await;
    assert_eq!(post(address, "/v1/completions", &body(true)).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn delays_hold_back_headers_or_tokens() {
    let cluster = start(MockConfig { time_scale: 1.0, ..config() }).await;
    let (address, instance) = (cluster.addresses()[0], &cluster.instances()[0]);
    let times = async || {
        let begun = Instant::now();
        let mut stream =
            open(address, "POST", "/v1/completions", &[JSON], &body(true).to_string()).await;
        let mut heard = Vec::new();
        let (mut headers, mut event) = (None, None);
        while event.is_none() {
            assert_ne!(stream.read_buf(&mut heard).await.unwrap(), 0, "it ended early");
            let text = String::from_utf8_lossy(&heard);
            if text.contains("\r\n\r\n") && headers.is_none() {
                headers = Some(begun.elapsed());
            }
            event = text.contains("data: ").then(|| begun.elapsed());
        }
        (headers.unwrap(), event.unwrap())
    };
    let second = Duration::from_secs(1);
    instance.set_faults(Faults { extra_delay_ms: 1_000, ..Faults::default() }).unwrap();
    let (headers, event) = times().await;
    assert!(headers < second && event >= second, "{headers:?} {event:?}");
    instance.set_faults(Faults { header_delay_ms: 1_000, ..Faults::default() }).unwrap();
    let (headers, _) = times().await;
    assert!(headers >= second, "{headers:?}");
}

#[tokio::test]
async fn a_killed_instance_is_gone_and_the_others_are_not() {
    let cluster = start(MockConfig { instances: 2, time_scale: 1.0, ..config() }).await;
    let address = cluster.addresses()[0];
    let long = json!({"prompt": "a", "max_tokens": 8000, "ignore_eos": true, "stream": true});
    let stream = post(address, "/v1/completions", &long);
    let death = async {
        until(|| async { cluster.instances()[0].gauges().await.unwrap().running == 1 }).await;
        cluster.instances()[0].kill();
    };
    let (answer, ()) = tokio::join!(stream, death);
    assert!(!answer.is_complete);
    until(|| async { TcpStream::connect(address).await.is_err() }).await;
    assert_eq!(get(cluster.addresses()[1], "/health").await.status, 200);
}

#[tokio::test]
async fn a_shutdown_waits_for_answers() {
    let cluster = start(MockConfig { time_scale: 10.0, ..config() }).await;
    let address = cluster.addresses()[0];
    let request = json!({"prompt": "a", "max_tokens": 50, "ignore_eos": true, "stream": true});
    let answer = tokio::spawn(async move { post(address, "/v1/completions", &request).await });
    until(|| async { cluster.instances()[0].in_flight() == 1 }).await;
    timeout(Duration::from_secs(10), cluster.shutdown()).await.unwrap();
    let answer = answer.await.unwrap();
    assert!(answer.is_complete);
    assert_eq!(answer.json_events().len(), 50);
    assert!(TcpStream::connect(address).await.is_err());
}
