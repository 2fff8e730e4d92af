//! `serve` in front of `mock`, as processes; and what `serve` says of bad configuration.

use std::io::{BufRead, BufReader};

use crate::bad_input::{complaint, says};
use crate::process::{Running, exchange};
use crate::stdout;

fn post(addr: &str, path: &str, body: &str) -> String {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n"
    );
    exchange(addr, (head + body).as_bytes())
}

#[test]
fn a_conversation_goes_back_to_the_instance_that_knows_it() {
    let (mock, urls) = Running::mock(&["--instances", "2", "--time-scale", "50"]);
    let out = tempfile::tempdir().unwrap();
    let log = out.path().join("decisions.jsonl");
    let log = log.to_str().unwrap();
    let logged = ["--decision-log", log];
    let any_port = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let mut serve = Running::start(
        &[&["serve", "--instance", &urls[0], &urls[1]], &any_port[..], &logged].concat(),
    );
    let mut line = String::new();
    BufReader::new(serve.0.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let addr = line.split("http://").nth(1).unwrap().split(',').next().unwrap().to_owned();

    let content = "a long story ".repeat(200);
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"{content}"}}],"max_tokens":3,"stream":true,
            "stream_options":{{"include_usage":true}}}}"#
    );
    let header = |answer: &str, name: &str| {
        let line = answer.lines().find(|line| line.starts_with(name)).expect("a receipt header");
        line.split(": ").nth(1).unwrap().to_owned()
    };
    let first = post(&addr, "/v1/chat/completions", &body);
    let again = post(&addr, "/v1/chat/completions", &body);
    for answer in [&first, &again] {
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("data: [DONE]"), "{answer}");
    }
    assert_eq!(header(&again, "x-kvroute-instance"), header(&first, "x-kvroute-instance"));
    assert_eq!(header(&again, "x-kvroute-reason"), "cache-score");
    assert_ne!(header(&again, "x-kvroute-predicted-cached-tokens"), "0");
    assert!(!again.contains("\"cached_tokens\":0"), "the engine hit its cache: {again}");

    let target = format!("http://{addr}");
    let admin = line.split("admin on ").nth(1).unwrap().trim().to_owned();
    let load =
        ["load", "--target", &target, "--workload", "rag", "--requests", "20", "--rate", "100"];
    let more = [
        "--admin",
        &admin,
        "--instance",
        &urls[0],
        &urls[1],
        "--out",
        out.path().to_str().unwrap(),
        "--format",
        "json",
    ];
    let report = crate::json(&[&load[..], &more[..]].concat());
    let run = &report["runs"][0];
    assert_eq!((&run["completed"], &run["failed"]), (&20.into(), &0.into()));
    assert!(run["cache"]["hit_rate"].as_f64().is_some() && run["preemptions"].as_u64().is_some());
    assert_eq!(
        (&run["policy"], &run["policy_config"]["kind"]),
        (&"load-cache".into(), &"load-cache".into())
    );
    let wrong = ["load", "--target", &target, "--workload", "rag", "--admin", &target];
    says(&complaint(&wrong), &["no policy from", "404", "admin API"]);
    let reasons = run["reasons"].as_object().unwrap();
    assert!(reasons.keys().all(|reason| ["cache-score", "load-score"].contains(&reason.as_str())));
    let requests = std::fs::read_to_string(out.path().join("requests.jsonl")).unwrap();
    assert_eq!(requests.lines().count(), 20);
    assert!(out.path().join("results.json").exists());

    assert_eq!(serve.terminate(), Some(0));
    let replay = crate::json(&["replay", log, "--policy", "all", "--format", "json"]);
    assert_eq!(
        (&replay["log"]["decisions"], &replay["log"]["reproduced"]),
        (&22.into(), &22.into())
    );
    assert_eq!(replay["policies"][5]["policy"], "load-cache");
    assert_eq!(replay["policies"][5]["differing"], 0, "the policy of the log itself");
    assert!(replay["policies"][0]["differing"].as_u64() > Some(0));
    assert!(replay["recorded"]["predicted_cached_tokens"].as_u64() > Some(0));
    let table = stdout(&["replay", log, "--policy", "jsq"]);
    assert!(table.contains("recorded") && table.contains("jsq"), "{table}");

    // A log that was tampered with, one that is cut, and what is no log.
    let text = std::fs::read_to_string(log).unwrap();
    let reason = text.split("\"reason\":\"").nth(1).unwrap().split('"').next().unwrap();
    std::fs::write(
        log,
        text.replacen(&format!("\"reason\":\"{reason}"), "\"reason\":\"rotation", 1),
    )
    .unwrap();
    let output = crate::kvroute(&["replay", log]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    says(&errors, &["21 of 22 decisions reproduced", "recorded instance", "rotation"]);
    std::fs::write(log, &text[..text.len() - 3]).unwrap();
    let output = crate::kvroute(&["replay", log]);
    assert!(output.status.success());
    says(&String::from_utf8(output.stderr).unwrap(), &["is cut off", "22 of 22"]);
    std::fs::write(log, "{}\n").unwrap();
    says(&complaint(&["replay", log]), &["line 1", "--decision-log"]);

    assert_eq!(mock.terminate(), Some(0));
}

#[test]
fn bad_configuration_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    let says_of = |text: &str, parts: &[&str]| {
        std::fs::write(&path, text).unwrap();
        says(&complaint(&["serve", "--config", path.to_str().unwrap()]), parts);
    };
    says_of("polcy = 3", &["gateway.toml", "polcy", "policy"]);
    says_of("", &["no instances", "--instance"]);
    let twice = "[[instances]]\nurl = \"http://a:1\"\n[[instances]]\nurl = \"http://a:1\"\n";
    says_of(twice, &["a:1"]);
    says_of("[[instances]]\nurl = \"ftp://a\"\n", &["ftp://a", "http://"]);
    says(&complaint(&["serve", "--instance", "http://a:1", "--policy", "jqs"]), &["jqs", "jsq"]);
    says_of(
        "[tracing]\notlp_endpoint = \"https://a:4318\"\n[[instances]]\nurl = \"http://a:1\"\n",
        &["otlp_endpoint", "http://HOST:PORT"],
    );
    let mut exported = assert_cmd::Command::cargo_bin("kvroute").unwrap();
    exported
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318")
        .args(["serve", "--print-config"]);
    let printed = String::from_utf8(exported.output().unwrap().stdout).unwrap();
    assert!(printed.contains("otlp_endpoint = \"http://collector:4318\""), "{printed}");
    let one = "[[instances]]\nurl = \"http://a:1\"\n";
    let events = "[kv_events]\nenabled = true\n";
    let wildcard = "kv_events = { endpoint = \"tcp://*:5557\" }\n";
    says_of(
        &format!("{events}{one}{wildcard}"),
        &["http://a:1", "tcp://*:5557", "host in place of"],
    );
    says_of(&format!("{events}hash_algo = \"xxhash\"\n{one}"), &["xxhash", "sha256_cbor"]);
    says_of(&format!("{events}block_size = 0\n{one}"), &["kv_events.block_size is 0"]);
    says_of(&format!("{events}[kv_events.audit]\nrecall_min = 2.0\n{one}"), &["recall_min is 2"]);
    let stale = "snapshot = \"x\"\n[index.signal]\ndelay_s = 1.0\n";
    says_of(&format!("{events}{stale}{one}"), &["kv_events.snapshot", "index.signal"]);
    says_of(&format!("{events}[index]\nbudget_bytes = 100000\n{one}"), &["index.budget_bytes"]);
    let flags = ["serve", "--instance", "http://a:1"];
    let with = |more: &[&str]| complaint(&[&flags[..], more].concat());
    says(&with(&["--tokenizer", "x"]), &["--tokenizer", "--kv-events"]);
    says(
        &with(&["--kv-events", "--tokenizer", dir.path().to_str().unwrap()]),
        &["prompt.tokenizer", "tokenizer.json"],
    );
    says(&with(&["--kv-events", "--prefix-caching-hash-algo", "md5"]), &["md5", "sha256_cbor"]);
    says(&complaint(&["mock", "--faults", "{\"hangs\": true}"]), &["hangs", "hang"]);
    says(&complaint(&["mock", "--time-scale", "0"]), &["time_scale", "0"]);
    assert!(stdout(&["serve", "--print-config"]).contains("probe_interval_s"));
}
