//! One answer: its frames, stamped and added up.

use kvroute_types::Timestamp;
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::failure::{Failure, FailureKind};

/// Ends a stream.
const DONE: &[u8] = b"[DONE]";

/// What has come of an answer so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer {
    /// When the first and the latest frame with content came.
    pub(crate) first_token: Option<Timestamp>,
    pub(crate) last_token: Option<Timestamp>,
    /// Times between frames with content.
    pub(crate) gaps_ns: Vec<u64>,
    /// Frames with content. One token each, unless the server joins tokens (speculative decoding, stream intervals).
    pub(crate) content_frames: u32,
    /// Text, and ids of the tokens if the server tells them.
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) usage: Option<Usage>,
    pub(crate) finish_reason: Option<String>,
    /// `[DONE]` has come, or the body of an answer in one piece.
    pub(crate) is_done: bool,
}

/// The server's own count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: Option<u32>,
    pub(crate) completion_tokens: Option<u32>,
    prompt_tokens_details: Option<PromptTokensDetails>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
struct PromptTokensDetails {
    cached_tokens: Option<u32>,
}

impl Usage {
    /// Prompt tokens served from the prefix cache; `None` if the server does not tell (vLLM without
    /// `--enable-prompt-tokens-details`).
    pub(crate) fn cached_tokens(&self) -> Option<u32> {
        self.prompt_tokens_details?.cached_tokens
    }
}

/// A frame of a stream, or an answer in one piece. Fields of both APIs; the rest is passed over.
#[derive(Deserialize)]
struct Frame {
    choices: Option<Vec<Choice>>,
    usage: Option<Usage>,
    error: Option<ErrorBody>,
    /// `"error"` where older vLLM releases put an error at the top level.
    object: Option<String>,
    message: Option<String>,
}

impl Frame {
    /// What went wrong, if the frame says that something did.
    fn take_error(&mut self) -> Option<String> {
        if let Some(error) = self.error.take() {
            return Some(error.into_message());
        }
        let is_error = self.object.as_deref() == Some("error");
        is_error.then(|| self.message.take().unwrap_or_default())
    }
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: u32,
    /// Chat: a piece, or the whole.
    #[serde(alias = "message")]
    delta: Option<Delta>,
    /// Completions.
    text: Option<String>,
    token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    role: Option<IgnoredAny>,
    content: Option<String>,
    // Some servers send both names, so this is no alias.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<IgnoredAny>>,
}

/// An error as vLLM puts it; some servers send a bare string.
#[derive(Deserialize)]
#[serde(untagged)]
enum ErrorBody {
    Object { message: String },
    Text(String),
    Other(serde_json::Value),
}

impl ErrorBody {
    fn into_message(self) -> String {
        match self {
            Self::Object { message } | Self::Text(message) => message,
            Self::Other(value) => value.to_string(),
        }
    }
}

impl Choice {
    /// Whether it carries a token. The role frame does not: vLLM sends it with empty content. An empty piece without a
    /// role is a token whose text is held back (half a character, an end-of-sequence token).
    fn has_content(&self) -> bool {
        let is_text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
        let in_delta = |delta: &Delta| {
            is_text(&delta.content)
                || is_text(&delta.reasoning)
                || is_text(&delta.reasoning_content)
                || delta.tool_calls.as_ref().is_some_and(|calls| !calls.is_empty())
                || (delta.content.is_some() && delta.role.is_none())
        };
        self.text.is_some()
            || self.token_ids.as_ref().is_some_and(|ids| !ids.is_empty())
            || self.delta.as_ref().is_some_and(in_delta)
    }
}

impl Answer {
    /// Takes the data of one event that came at `at`.
    pub(crate) fn take_event(&mut self, at: Timestamp, data: &[u8]) -> Result<(), Failure> {
        if data == DONE {
            self.is_done = true;
            return self.check_finish();
        }
        self.take_frame(at, data)
    }

    /// Takes the body of an answer in one piece. All its tokens come at `at`.
    pub(crate) fn take_body(&mut self, at: Timestamp, body: &[u8]) -> Result<(), Failure> {
        self.take_frame(at, body)?;
        if self.content_frames == 0 && self.finish_reason.is_none() {
            return Err(Failure::new(FailureKind::Malformed, "the answer has no choice"));
        }
        self.is_done = true;
        self.check_finish()
    }

    /// Whether the answer ended as it should.
    pub(crate) fn ended(&self) -> Result<(), Failure> {
        if self.is_done {
            return Ok(());
        }
        Err(Failure::new(FailureKind::Truncated, "the stream ended without [DONE]"))
    }

    fn take_frame(&mut self, at: Timestamp, data: &[u8]) -> Result<(), Failure> {
        let mut frame: Frame = serde_json::from_slice(data).map_err(|error| {
            let shown = String::from_utf8_lossy(&data[..data.len().min(80)]);
            Failure::new(FailureKind::Malformed, format_args!("{error} in {shown:?}"))
        })?;
        if let Some(message) = frame.take_error() {
            return Err(Failure::new(FailureKind::InStream, message));
        }
        let Frame { choices, usage, .. } = frame;
        self.usage = usage.or(self.usage);
        // One choice is asked for; were there more, they would not be one sequence of tokens.
        if let Some(choice) = choices.into_iter().flatten().find(|choice| choice.index == 0) {
            self.take_choice(at, choice);
        }
        Ok(())
    }

    fn take_choice(&mut self, at: Timestamp, choice: Choice) {
        if choice.has_content() {
            self.gaps_ns.extend(self.last_token.map(|last| at.nanos_since(last)));
            self.first_token.get_or_insert(at);
            self.last_token = Some(at);
            self.content_frames += 1;
        }
        let Choice { delta, text, token_ids, finish_reason, .. } = choice;
        let content = delta.and_then(|delta| delta.content);
        for text in [text, content].into_iter().flatten() {
            self.text.push_str(&text);
        }
        self.token_ids.extend(token_ids.into_iter().flatten());
        self.finish_reason = finish_reason.or(self.finish_reason.take());
    }

    /// vLLM ends an answer that it gave up in good order, and says so only in the finish reason.
    fn check_finish(&self) -> Result<(), Failure> {
        match self.finish_reason.as_deref() {
            Some(reason @ ("abort" | "error")) => Err(Failure::new(
                FailureKind::InStream,
                format_args!("the engine ended the answer with finish_reason {reason:?}"),
            )),
            _ => Ok(()),
        }
    }
}

/// The message in the body of an error answer, or its beginning.
pub(crate) fn error_message(body: &[u8]) -> String {
    let told = serde_json::from_slice(body).ok().and_then(|mut frame: Frame| frame.take_error());
    told.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::SseParser;

    /// Events at 1, 2, 3, ... ns.
    fn fold(events: &[&str]) -> (Answer, Result<(), Failure>) {
        let mut answer = Answer::default();
        for (at, event) in (1..).zip(events) {
            let taken = answer.take_event(Timestamp::from_nanos(at), event.as_bytes());
            if taken.is_err() {
                return (answer, taken);
            }
        }
        let ended = answer.ended();
        (answer, ended)
    }

    const ROLE: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"prompt_token_ids":null}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":29,"total_tokens":37,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":16,"created_cache_tokens":0}}}"#;

    #[test]
    fn the_role_frame_is_no_token() {
        let (answer, ended) = fold(&[
            ROLE,
            r#"{"choices":[{"index":0,"delta":{"content":"Imp"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"ort"},"finish_reason":"length"}]}"#,
            USAGE,
            "[DONE]",
        ]);
        assert_eq!(ended, Ok(()));
        assert_eq!(answer.first_token, Some(Timestamp::from_nanos(2)));
        assert_eq!((answer.gaps_ns, answer.content_frames), (vec![1], 2));
        assert_eq!(
            (answer.text.as_str(), answer.finish_reason.as_deref()),
            ("Import", Some("length"))
        );
        assert_eq!(answer.usage.unwrap().cached_tokens(), Some(16));
    }

    #[test]
    fn completions_tell_token_ids_and_may_not_tell_cached_tokens() {
        let (answer, ended) = fold(&[
            r#"{"choices":[{"index":0,"text":"a","token_ids":[5],"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"text":"","token_ids":[6,7],"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":3,"prompt_tokens_details":null}}"#,
            "[DONE]",
        ]);
        assert_eq!(ended, Ok(()));
        assert_eq!(answer.token_ids, [5, 6, 7]);
        assert_eq!(answer.usage.unwrap().cached_tokens(), None);
    }

    #[test]
    fn an_answer_of_nothing_but_the_end_has_a_first_token() {
        let end = r#"{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}"#;
        let (answer, ended) = fold(&[ROLE, end, "[DONE]"]);
        assert_eq!(ended, Ok(()));
        assert_eq!(answer.first_token, Some(Timestamp::from_nanos(2)));
    }

    #[test]
    fn errors_and_early_ends_are_failures() {
        let token = r#"{"choices":[{"index":0,"text":"a","finish_reason":null}]}"#;
        let error = r#"{"error": {"message": "EngineCore died", "code": 500}}"#;
        let (answer, ended) = fold(&[token, error, "[DONE]"]);
        assert_eq!(ended.unwrap_err().to_string(), "in-stream: EngineCore died");
        assert_eq!(answer.content_frames, 1);
        assert_eq!(fold(&[token]).1.unwrap_err().kind, FailureKind::Truncated);
        assert_eq!(fold(&["{"]).1.unwrap_err().kind, FailureKind::Malformed);
        let old = r#"{"object":"error","message":"too long","code":400}"#;
        assert_eq!(fold(&[token, old]).1.unwrap_err().to_string(), "in-stream: too long");
        let aborted = r#"{"choices":[{"index":0,"text":"","finish_reason":"abort"}]}"#;
        assert_eq!(fold(&[aborted, "[DONE]"]).1.unwrap_err().kind, FailureKind::InStream);
    }

    #[test]
    fn an_answer_in_one_piece_is_one_frame() {
        let body = r#"{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"x y","reasoning":null},"finish_reason":"length","token_ids":null}],"usage":{"prompt_tokens":5,"total_tokens":7,"completion_tokens":2}}"#;
        let mut answer = Answer::default();
        answer.take_body(Timestamp::from_nanos(9), body.as_bytes()).unwrap();
        assert_eq!(answer.first_token, answer.last_token);
        assert_eq!(answer.text, "x y");
        assert!(Answer::default().take_body(Timestamp::ZERO, b"{}").is_err());
    }

    #[test]
    fn what_vllm_sent_is_understood() {
        let stream = include_bytes!("../tests/data/chat_stream.sse");
        let mut parser = SseParser::new(1 << 16);
        parser.push(stream).unwrap();
        let mut answer = Answer::default();
        while let Some(event) = parser.next_event() {
            answer.take_event(Timestamp::ZERO, &event).unwrap();
        }
        assert_eq!(answer.content_frames, 8);
        assert_eq!(answer.usage.unwrap().completion_tokens, Some(8));
        assert!(answer.is_done);
    }
}
