//! Caching, lengths, cancellation and counting.

use std::collections::BTreeSet;

use kvroute_mock_server::{MockConfig, StartError, ZeroDelay};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::client::{
    JSON, config, config_with_blocks, get, metric, open, post, send, start, until,
};

fn prompt(start: u32, tokens: u32) -> Value {
    json!((start..start + tokens).collect::<Vec<_>>())
}

fn completion(prompt: &Value, max_tokens: u32) -> Value {
    json!({"prompt": prompt, "max_tokens": max_tokens, "ignore_eos": true})
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn a_repeated_prompt_hits_all_blocks_but_the_last_token() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    for (number, length) in (0..).zip([1, 31, 32, 33, 64, 65, 100, 1_000, 2_049]) {
        let body = completion(&prompt(1_000 + number * 4_000, length), 1);
        let cold = post(address, "/v1/completions", &body).await.json();
        let warm = post(address, "/v1/completions", &body).await.json();
        assert_eq!(cached(&cold), 0, "{length}");
        assert_eq!(cached(&warm), u64::from((length - 1) / 32 * 32), "{length}");
        assert_eq!(cold["choices"], warm["choices"], "the same answer");
    }
}

#[tokio::test]
async fn salts_keep_caches_apart() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    let mut body = completion(&prompt(500, 100), 1);
    body["cache_salt"] = json!("a");
    post(address, "/v1/completions", &body).await;
    assert_eq!(cached(&post(address, "/v1/completions", &body).await.json()), 96);
    body["cache_salt"] = json!("b");
    assert_eq!(cached(&post(address, "/v1/completions", &body).await.json()), 0);
    body["cache_salt"] = json!("a/b");
    let refused = post(address, "/v1/completions", &body).await;
    assert_eq!((refused.status, &refused.json()["error"]["param"]), (400, &json!("cache_salt")));
}

#[tokio::test]
async fn a_conversation_hits_its_previous_prompt_and_answer() {
    let cluster = start(config_with_blocks(16)).await;
    let address = cluster.addresses()[0];
    let mut messages =
        vec![json!({"role": "system", "content": "You are a terse assistant. ".repeat(10)})];
    let mut previous = 0;
    for turn in 0..4 {
        messages
            .push(json!({"role": "user", "content": format!("Question number {turn}, please.")}));
        let body = json!({"messages": messages, "max_tokens": 50, "ignore_eos": true});
        let answer = post(address, "/v1/chat/completions", &body).await.json();
        // Prompt and answer of the turn before, whose last token was never computed.
        assert_eq!(cached(&answer), if turn == 0 { 0 } else { (previous - 1) / 16 * 16 });
        previous = answer["usage"]["total_tokens"].as_u64().unwrap();
        let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(content, content.trim(), "nothing to trim");
        messages.push(json!({"role": "assistant", "content": content}));
    }
}

#[tokio::test]
async fn a_completion_sent_back_hits_too() {
    let cluster = start(config_with_blocks(16)).await;
    let address = cluster.addresses()[0];
    let text = "Once upon a time there were ";
    let body = completion(&json!(text), 60);
    let first = post(address, "/v1/completions", &body).await.json();
    let more = text.to_owned() + first["choices"][0]["text"].as_str().unwrap();
    let second = post(address, "/v1/completions", &completion(&json!(more), 1)).await.json();
    let total = first["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(second["usage"]["prompt_tokens"], total);
    assert_eq!(cached(&second), (total - 1) / 16 * 16);
}

#[tokio::test]
async fn streamed_and_whole_answers_are_the_same() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    let mut body = json!({
        "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 30, "min_tokens": 10,
        "return_token_ids": true, "n": 2, "seed": 5,
    });
    let whole = post(address, "/v1/chat/completions", &body).await.json();
    body["stream"] = json!(true);
    let events = post(address, "/v1/chat/completions", &body).await.json_events();
    for index in 0..2 {
        let choices = || {
            events
                .iter()
                .map(|event| &event["choices"][0])
                .filter(|choice| choice["index"] == index)
        };
        let text: String =
            choices().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        let ids: Vec<Value> = choices()
            .filter_map(|choice| choice["token_ids"].as_array())
            .flatten()
            .cloned()
            .collect();
        let whole = &whole["choices"][index];
        assert_eq!(whole["message"]["content"], text);
        assert_eq!(whole["token_ids"], json!(ids));
        let detokenized = post(address, "/detokenize", &json!({"tokens": ids})).await.json();
        assert_eq!(detokenized["prompt"].as_str().unwrap().trim_end_matches("<|im_end|>"), text);
        assert!(ids.len() > 10, "min_tokens");
    }
}

#[tokio::test]
async fn tokenize_gives_the_prompt_of_a_chat() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    let messages = json!([{"role": "user", "content": "Hi there"}]);
    let tokens = post(address, "/tokenize", &json!({"messages": messages})).await.json();
    let body = json!({"messages": messages, "max_tokens": 1, "return_token_ids": true});
    let answer = post(address, "/v1/chat/completions", &body).await.json();
    assert_eq!(tokens["tokens"], answer["prompt_token_ids"]);
    assert_eq!(tokens["count"], answer["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn n_children_share_the_prompt() {
    // R52: P=40, B=16, n=3.
    let cluster = start(config_with_blocks(16)).await;
    let address = cluster.addresses()[0];
    let mut body = completion(&prompt(700, 40), 4);
    body["n"] = json!(3);
    let answer = post(address, "/v1/completions", &body).await.json();
    let texts: BTreeSet<&str> =
        answer["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts.len(), 3, "different answers");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    for (series, value) in [
        ("prefix_cache_queries_total", 120.0),
        ("prefix_cache_hits_total", 64.0),
        ("request_params_n_sum", 3.0),
        ("request_params_n_count", 1.0),
        ("request_max_num_generation_tokens_sum", 4.0),
        ("request_generation_tokens_count", 3.0),
    ] {
        assert!((metric(address, series).await - value).abs() < 1e-9, "{series}");
    }
}

#[tokio::test]
async fn metrics_count_as_in_r66() {
    let cluster = start(config_with_blocks(16)).await;
    let address = cluster.addresses()[0];
    let names = [
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
        r#"prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"}"#,
        r#"prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_cache_hit"}"#,
        "prompt_tokens_cached_total",
        "request_prefill_kv_computed_tokens_sum",
        "time_to_first_token_seconds_count",
        "inter_token_latency_seconds_count",
        "generation_tokens_total",
        r#"request_success_total{engine="0",finished_reason="length",model_name="tiny"}"#,
        "iteration_tokens_total_sum",
    ];
    let mut before = [0.0; 12];
    for expected in [
        [33.0, 0.0, 33.0, 33.0, 0.0, 0.0, 33.0, 1.0, 1.0, 2.0, 1.0, 35.0],
        [33.0, 32.0, 33.0, 1.0, 32.0, 32.0, 1.0, 1.0, 1.0, 2.0, 1.0, 3.0],
    ] {
        post(address, "/v1/completions", &completion(&prompt(100, 33), 2)).await;
        for ((name, before), expected) in names.iter().zip(&mut before).zip(expected) {
            let after = metric(address, name).await;
            assert!((after - *before - expected).abs() < 1e-9, "{name}: {before} to {after}");
            *before = after;
        }
    }
    let counters = cluster.instances()[0].counters().await.unwrap();
    assert_eq!((counters.prefix_cache_queries, counters.prefix_cache_hits), (66, 32));
}

#[tokio::test]
async fn a_client_that_goes_aborts_its_request() {
    let cluster = start(MockConfig { time_scale: 1.0, ..config() }).await;
    let (address, instance) = (cluster.addresses()[0], &cluster.instances()[0]);
    for stream in [true, false] {
        let mut body = completion(&prompt(10, 100), 8_000);
        body["stream"] = json!(stream);
        let mut connection =
            open(address, "POST", "/v1/completions", &[JSON], &body.to_string()).await;
        until(|| async { instance.gauges().await.unwrap().running == 1 }).await;
        assert_eq!(instance.in_flight(), 1);
        if stream {
            let mut some = [0; 400];
            connection.read_exact(&mut some).await.unwrap();
        }
        drop(connection);
        until(|| async { instance.gauges().await.unwrap().running == 0 }).await;
        until(|| async { instance.in_flight() == 0 }).await;
    }
    let counters = instance.counters().await.unwrap();
    assert_eq!((counters.aborted, counters.finished_length), (2, 0));
    assert!(
        metric(address, r#"request_success_total{engine="0",finished_reason="abort""#).await < 0.5
    );
    assert!(metric(address, "num_requests_running").await < 0.5);
}

#[tokio::test]
async fn answers_end_for_the_reason_given() {
    let cluster = start(MockConfig { eos_mean_tokens: 4.0, ..config() }).await;
    let address = cluster.addresses()[0];
    let body = json!({"prompt": prompt(50, 5), "max_tokens": 1000, "return_token_ids": true});
    let by_itself = post(address, "/v1/completions", &body).await.json();
    assert_eq!(by_itself["choices"][0]["finish_reason"], "stop");
    assert_eq!(by_itself["choices"][0]["stop_reason"], Value::Null);

    let mut body = completion(&prompt(50, 5), 20);
    body["return_token_ids"] = json!(true);
    let whole = post(address, "/v1/completions", &body).await.json();
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    let word = text.split(' ').nth(3).unwrap();
    body["stop"] = json!([word]);
    body["stream"] = json!(true);
    let events = post(address, "/v1/completions", &body).await.json_events();
    let last = &events.last().unwrap()["choices"][0];
    assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&json!("stop"), &json!(word)));
    let streamed: String =
        events.iter().filter_map(|event| event["choices"][0]["text"].as_str()).collect();
    assert_eq!(streamed, text[..text.find(word).unwrap()]);

    let mut body = completion(&prompt(50, 5), 20);
    let token = whole["choices"][0]["token_ids"][2].clone();
    body["stop_token_ids"] = json!([token]);
    let stopped = post(address, "/v1/completions", &body).await.json();
    assert_eq!(stopped["choices"][0]["stop_reason"], token);
    assert_eq!(stopped["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn usage_can_be_forced() {
    let cluster = start(MockConfig { enable_force_include_usage: true, ..config() }).await;
    let mut body = completion(&prompt(50, 5), 3);
    body["stream"] = json!(true);
    let events = post(cluster.addresses()[0], "/v1/completions", &body).await.json_events();
    assert_eq!(events.len(), 4);
    let totals: Vec<_> =
        events.iter().map(|e| e["usage"]["total_tokens"].as_u64().unwrap()).collect();
    assert_eq!(totals, [6, 7, 8, 8]);
}

#[tokio::test]
async fn a_reset_empties_the_cache() {
    let cluster = start(config()).await;
    let address = cluster.addresses()[0];
    let body = completion(&prompt(20, 100), 1);
    post(address, "/v1/completions", &body).await;
    let reset = post(address, "/reset_prefix_cache", &Value::Null).await;
    assert_eq!(reset.json(), json!({"success": true}));
    assert_eq!(cached(&post(address, "/v1/completions", &body).await.json()), 0);
    assert_eq!(cached(&post(address, "/v1/completions", &body).await.json()), 96);

    let cluster = start(MockConfig { dev_mode: false, ..config() }).await;
    let reset = post(cluster.addresses()[0], "/reset_prefix_cache", &Value::Null).await;
    assert_eq!(reset.status, 404);
}

#[tokio::test]
async fn memory_follows_the_cache_and_not_the_traffic() {
    let config = config_with_blocks(16);
    let mut engine = config.engine.clone();
    (engine.kv_blocks, engine.max_model_len) = (65, 512);
    let cluster = start(MockConfig { engine, ..config }).await;
    let address = cluster.addresses()[0];
    for number in 0..60 {
        post(address, "/v1/completions", &completion(&prompt(number * 1_000, 320), 10)).await;
    }
    let keys = get(address, "/mock/state").await.json()["block_keys"].as_u64().unwrap();
    assert!((1..=64 + 21).contains(&keys), "{keys} keys for 64 blocks");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_a_hundred_clients_half_of_whom_go() {
    let config = MockConfig { time_scale: 1.0, ..config_with_blocks(16) };
    let mut engine = config.engine.clone();
    // Little enough that requests wait and are preempted.
    (engine.kv_blocks, engine.max_model_len, engine.max_num_seqs) = (200, 1_024, 16);
    let cluster = start(MockConfig { engine, ..config }).await;
    let (address, instance) = (cluster.addresses()[0], &cluster.instances()[0]);
    let clients: Vec<_> = (0..100_u32)
        .map(|number| {
            tokio::spawn(async move {
                let mut body = completion(&prompt(number % 7 * 1_000, 100 + number), 200);
                body["stream"] = json!(number % 3 > 0);
                body["n"] = json!(1 + number % 2);
                let request = post(address, "/v1/completions", &body);
                if number % 2 == 0 {
                    let patience = std::time::Duration::from_millis(u64::from(number) * 60);
                    let _ = tokio::time::timeout(patience, request).await;
                } else {
                    assert!(request.await.is_complete);
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    until(|| async {
        let gauges = instance.gauges().await.unwrap();
        gauges.running + gauges.waiting == 0 && instance.in_flight() == 0
    })
    .await;
    let counters = instance.counters().await.unwrap();
    assert!(counters.aborted > 0 && counters.preemptions > 0, "{counters:?}");
    post(address, "/reset_prefix_cache", &Value::Null).await;
    // The reset is published with the next step; of its request only the cached block is left.
    post(address, "/v1/completions", &completion(&prompt(90_000, 20), 1)).await;
    assert_eq!(get(address, "/mock/state").await.json()["block_keys"], 1);
}

#[tokio::test]
async fn a_request_id_names_the_answer() {
    let cluster = start(config()).await;
    let body = completion(&prompt(20, 10), 1).to_string();
    let headers = [JSON, ("X-Request-Id", "seven")];
    let answer = send(cluster.addresses()[0], "POST", "/v1/completions", &headers, &body).await;
    assert_eq!(answer.json()["id"], "cmpl-seven");
}

#[tokio::test]
async fn zero_delay_answers_have_the_same_form() {
    let config = MockConfig { zero_delay: Some(ZeroDelay { events: 5 }), ..config() };
    let cluster = start(config).await;
    let address = cluster.addresses()[0];
    let body = json!({"messages": [], "stream": true, "anything": "goes"});
    let events = post(address, "/v1/chat/completions", &body).await.json_events();
    assert_eq!(events.len(), 1 + 5 + 1, "role, tokens, usage");
    assert_eq!(events[6]["usage"]["completion_tokens"], 5);
    let whole = post(address, "/v1/completions", &json!({"prompt": "x"})).await.json();
    assert_eq!(whole["usage"]["completion_tokens"], 5);
    assert_eq!(cluster.instances()[0].counters().await.unwrap().generation_tokens, 0);
}

#[tokio::test]
async fn unusable_settings_are_refused() {
    let refusal = async |config| kvroute_mock_server::MockCluster::start(config).await.err();
    let zero = refusal(MockConfig { instances: 0, ..config() }).await;
    assert!(matches!(zero, Some(StartError::Zero { key: "instances" })));
    let ports = refusal(MockConfig { instances: 3, port: 65_534, ..config() }).await;
    assert!(
        matches!(ports, Some(StartError::PortRange { .. } | StartError::Listen { .. })),
        "{ports:?}"
    );
    let slow = refusal(MockConfig { time_scale: 0.0, ..config() }).await;
    assert!(matches!(slow, Some(StartError::Number { key: "time_scale", .. })));
    let mut tight = config();
    tight.engine.kv_blocks = 10;
    assert!(matches!(refusal(tight).await, Some(StartError::Engine(_))));
}
