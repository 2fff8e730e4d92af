//! Fixed answers, for measurements of what is in front of the server.

use std::sync::Arc;

use bytes::Bytes;
use hyper::HeaderMap;
use kvroute_engine::FinishReason;

use crate::answer::Answer;
use crate::call::{Api, Call};
use crate::config::{MockConfig, ZeroDelay};
use crate::reply::{Reply, ReplyHeader};

/// The answers of [`ZeroDelay`], made once.
#[derive(Debug)]
pub(crate) struct ZeroAnswers {
    chat: Fixed,
    completion: Fixed,
}

#[derive(Debug)]
struct Fixed {
    body: Bytes,
    events: Arc<[Bytes]>,
}

/// An answer that is ready.
#[derive(Debug)]
pub(crate) enum ZeroAnswer {
    Body(Bytes),
    Events(Arc<[Bytes]>),
}

impl ZeroAnswers {
    pub(crate) fn new(config: &MockConfig, zero: ZeroDelay, system_fingerprint: &str) -> Self {
        let fixed = |api| Fixed::new(api, config, zero.events.max(1), system_fingerprint);
        Self { chat: fixed(Api::Chat), completion: fixed(Api::Completion) }
    }

    pub(crate) fn answer(&self, api: Api, request: &[u8]) -> ZeroAnswer {
        let fixed = match api {
            Api::Chat => &self.chat,
            Api::Completion => &self.completion,
        };
        if asks_to_stream(request) {
            ZeroAnswer::Events(Arc::clone(&fixed.events))
        } else {
            ZeroAnswer::Body(fixed.body.clone())
        }
    }
}

impl Fixed {
    fn new(api: Api, config: &MockConfig, tokens: u32, system_fingerprint: &str) -> Self {
        let (mut frames, mut none) = (Vec::new(), Vec::new());
        let mut streamed = reply(api, config, tokens, system_fingerprint, true);
        let mut whole = reply(api, config, tokens, system_fingerprint, false);
        for token in 1..=tokens {
            let finish = (token == tokens).then_some(FinishReason::Length);
            streamed.token(0, 0, finish, &mut frames);
            whole.token(0, 0, finish, &mut none);
        }
        Self { body: whole.body().into(), events: frames.into() }
    }
}

fn reply(api: Api, config: &MockConfig, tokens: u32, fingerprint: &str, stream: bool) -> Reply {
    let (id, input) = match api {
        Api::Chat => {
            ("chatcmpl-0000000000000000", r#""messages":[{"role":"user","content":"hello"}]"#)
        }
        Api::Completion => ("cmpl-0000000000000000", r#""prompt":"hello""#),
    };
    let stream =
        if stream { r#","stream":true,"stream_options":{"include_usage":true}"# } else { "" };
    let request = format!(r#"{{{input},"ignore_eos":true,"max_tokens":1{stream}}}"#);
    let mut config = config.clone();
    config.engine.max_model_len = config.engine.max_model_len.max(1_024);
    let mut call = Call::parse(api, &config, &HeaderMap::new(), request.as_bytes())
        .expect("a valid request of a few tokens");
    call.prompts[0].rules.max_tokens = tokens;
    let answer = Answer::draw(&call.prompts[0].rules, &call.prompts[0].tokens, 0);
    let header = ReplyHeader {
        id: id.to_owned(),
        created: 0,
        system_fingerprint: fingerprint.to_owned(),
        prompt_tokens_details: config.enable_prompt_tokens_details,
        cache_block_size: 0,
    };
    Reply::new(header, call, vec![answer])
}

/// Whether the body has `"stream": true` in it; cheaper than reading it as JSON.
fn asks_to_stream(body: &[u8]) -> bool {
    const KEY: &[u8] = b"\"stream\"";
    let mut rest = body;
    while let Some(at) = rest.windows(KEY.len()).position(|part| part == KEY) {
        rest = &rest[at + KEY.len()..];
        let value = rest.trim_ascii_start();
        let value = value.strip_prefix(b":").map(<[u8]>::trim_ascii_start);
        if value.is_some_and(|value| value.starts_with(b"true")) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streaming_is_seen_without_parsing() {
        assert!(asks_to_stream(br#"{"a":1,"stream": true}"#));
        assert!(asks_to_stream(br#"{"x":"stream","stream" :true}"#));
        assert!(!asks_to_stream(br#"{"stream":false,"stream_options":{}}"#));
        assert!(!asks_to_stream(b"{}"));
    }
}
