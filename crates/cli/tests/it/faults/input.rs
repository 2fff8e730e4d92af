//! What clients may send, against real processes. (`crates/gateway` tests each error's form.)

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use super::mocks;
use crate::process::{Gateway, call, exchange};

const PATH: &str = "/v1/chat/completions";

fn post(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[test]
fn bad_input_is_refused_and_the_gateway_serves_on() {
    let mocks = mocks::<1>();
    let gateway = Gateway::start(&[&mocks[0]], "");
    let addr = &gateway.addr;
    let good = r#"{"model":"mock","messages":[{"role":"user","content":"hello"}],"max_tokens":2}"#;
    let serves = || assert_eq!(call(addr, "POST", PATH, good).0, 200);
    serves();

    for (status, method, path, body) in [
        (400, "POST", PATH, r#"{"model": "#),
        (400, "POST", PATH, "no json"),
        (400, "POST", PATH, ""),
        (400, "POST", PATH, "[]"),
        (400, "POST", PATH, r#"{"model":"mock"}"#),
        (400, "POST", PATH, r#"{"model":"mock","messages":"hello"}"#),
        (400, "POST", "/v1/completions", r#"{"model":"mock"}"#),
        (404, "POST", PATH, r#"{"model":"other","messages":[{"role":"user","content":"x"}]}"#),
        // vLLM serves its only model to those who name none.
        (200, "POST", PATH, r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":1}"#),
        (404, "GET", "/nothing", ""),
        (404, "GET", "/v1/nothing", ""),
        (405, "GET", PATH, ""),
        (405, "DELETE", "/health", ""),
    ] {
        let (got, answer) = call(addr, method, path, body);
        assert_eq!(got, status, "{method} {path} {body}: {answer}");
        serves();
    }

    let mut invalid_utf8 = good.to_owned().into_bytes();
    let hello = invalid_utf8.windows(5).position(|five| five == b"hello").unwrap();
    invalid_utf8[hello] = 0xff;
    let answer = exchange(addr, &post(&invalid_utf8));
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    serves();

    assert_eq!(gateway.ejections(&mocks[0]), 0.0, "no instance is blamed");
    gateway.comes_to_rest();
}

#[test]
fn a_body_of_20_mb_is_refused_and_the_client_hears_it() {
    let mocks = mocks::<1>();
    let gateway = Gateway::start(&[&mocks[0]], "");
    let huge = format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}}],"max_tokens":1}}"#,
        "x".repeat(20_000_000)
    );
    // As clients do: everything is written before the answer is read.
    for _ in 0..3 {
        let (status, answer) = call(&gateway.addr, "POST", PATH, &huge);
        assert!(status == 413 && answer.contains("16777216"), "{status}: {answer}");
    }
    let chunked = format!(
        "POST {PATH} HTTP/1.1\r\nhost: g\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{huge}\r\n0\r\n\r\n",
        huge.len()
    );
    let answer = exchange(&gateway.addr, chunked.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    gateway.comes_to_rest();
}

#[test]
fn half_a_body_and_a_client_that_goes_leave_nothing_behind() {
    let mocks = mocks::<1>();
    let gateway = Gateway::start(&[&mocks[0]], "");
    let whole = post(&[b'x'; 10_000]);
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&gateway.addr).unwrap();
        stream.write_all(&whole[..5_000]).unwrap();
        // One that ends its half, and still listens.
        stream.shutdown(Shutdown::Write).unwrap();
        let mut stream = TcpStream::connect(&gateway.addr).unwrap();
        stream.write_all(&whole[..5_000]).unwrap();
    }
    let connections = || gateway.metric("kvroute_connections", &[]);
    crate::process::eventually("their connections are closed", || connections() == 0.0);
    let body = r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":1}"#;
    assert_eq!(call(&gateway.addr, "POST", PATH, body).0, 200);
    gateway.comes_to_rest();
}
