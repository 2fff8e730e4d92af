//! `serve` in front of `mock`, as processes; and what `serve` says of bad configuration.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::bad_input::{complaint, says};
use crate::stdout;

/// A process that is stopped when the test ends, however it ends.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    fn start(args: &[&str]) -> Self {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin!("kvroute"));
        command.args(args).env("KVROUTE_LOG", "off");
        Self(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Mock instances on free ports, and their URLs.
    pub(crate) fn mock(flags: &[&str]) -> (Self, Vec<String>) {
        let mut mock = Self::start(&[&["mock", "--port", "0"], flags].concat());
        let count = flags.iter().position(|flag| *flag == "--instances");
        let count = count.map_or(1, |at| flags[at + 1].parse().unwrap());
        let lines = BufReader::new(mock.0.stdout.take().unwrap()).lines();
        let urls = lines.take(count).map(Result::unwrap).collect();
        (mock, urls)
    }

    /// Asks it to stop, as a service manager does, and returns its exit status.
    fn terminate(mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.0.wait().unwrap().code()
    }
}

fn post(addr: &str, path: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nhost: {addr}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_conversation_goes_back_to_the_instance_that_knows_it() {
    let (mock, urls) = Running::mock(&["--instances", "2", "--time-scale", "50"]);
    let any_port = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let mut serve =
        Running::start(&[&["serve", "--instance", &urls[0], &urls[1]], &any_port[..]].concat());
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

    let out = tempfile::tempdir().unwrap();
    let target = format!("http://{addr}");
    let load =
        ["load", "--target", &target, "--workload", "rag", "--requests", "20", "--rate", "100"];
    let more = [
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
    let reasons = run["reasons"].as_object().unwrap();
    assert!(reasons.keys().all(|reason| ["cache-score", "load-score"].contains(&reason.as_str())));
    let requests = std::fs::read_to_string(out.path().join("requests.jsonl")).unwrap();
    assert_eq!(requests.lines().count(), 20);
    assert!(out.path().join("results.json").exists());

    assert_eq!(serve.terminate(), Some(0));
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
    says(&complaint(&["mock", "--faults", "{\"hangs\": true}"]), &["hangs", "hang"]);
    says(&complaint(&["mock", "--time-scale", "0"]), &["time_scale", "0"]);
    assert!(stdout(&["serve", "--print-config"]).contains("probe_interval_s"));
}
