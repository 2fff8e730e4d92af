//! Prompts: the workload's content as request bodies, and conversations that hold what was really answered.

mod words;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Range;

use bytes::Bytes;
use kvroute_types::SessionId;
use kvroute_workload::{SegmentId, TokenStream, Workload, WorkloadRequest};
use serde::Serialize;

use crate::config::{PromptForm, Settings};
use words::WORDS;

/// Renders a workload's requests.
pub(crate) struct Prompts<'a> {
    workload: &'a Workload,
    settings: &'a Settings,
    stream: TokenStream,
    /// By each session's first segment: whether several sessions begin with it.
    first_segments: BTreeMap<SegmentId, FirstSegment>,
}

#[derive(Clone, Copy)]
struct FirstSegment {
    session: SessionId,
    is_shared: bool,
}

/// The prompt of one request, ready to be extended by its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Messages(Vec<Message>),
    TokenIds(Vec<u32>),
}

impl Default for Prompt {
    fn default() -> Self {
        Self::TokenIds(Vec::new())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Message {
    role: &'static str,
    content: String,
}

/// What was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AnswerContent {
    pub(crate) text: String,
    pub(crate) token_ids: Vec<u32>,
}

/// A request body; the fields of both APIs.
#[derive(Serialize)]
struct Body<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a [u32]>,
    max_tokens: u32,
    /// Greedy, so that the same run gets the same answers.
    temperature: f32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_eos: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    return_token_ids: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    priority: Option<i32>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> Prompts<'a> {
    pub(crate) fn new(workload: &'a Workload, settings: &'a Settings) -> Self {
        let vocabulary = match settings.prompt_form {
            PromptForm::Text {} => const { NonZeroU32::new(256).expect("256 is not 0") },
            PromptForm::TokenIds { vocabulary } => vocabulary,
        };
        let mut first_segments: BTreeMap<SegmentId, FirstSegment> = BTreeMap::new();
        for request in workload.requests().iter().filter(|request| request.turn == 0) {
            if let Some(segment) = workload.segments(request).first() {
                let session = request.session;
                first_segments
                    .entry(segment.id)
                    .and_modify(|first| first.is_shared |= first.session != session)
                    .or_insert(FirstSegment { session, is_shared: false });
            }
        }
        Self {
            workload,
            settings,
            stream: TokenStream::new(vocabulary, settings.salt),
            first_segments,
        }
    }

    /// The path that requests go to.
    pub(crate) fn path(&self) -> String {
        self.settings.target.path(match self.settings.prompt_form {
            PromptForm::Text {} => "/v1/chat/completions",
            PromptForm::TokenIds { .. } => "/v1/completions",
        })
    }

    /// The prompt as the workload plans it.
    pub(crate) fn planned(&self, request: &WorkloadRequest) -> Prompt {
        let prompt_tokens = request.prompt_tokens.0;
        match self.settings.prompt_form {
            PromptForm::TokenIds { .. } => {
                Prompt::TokenIds(self.tokens(request, 0..prompt_tokens).collect())
            }
            PromptForm::Text {} => {
                let system = self.system_tokens(request);
                let parts = [("system", 0..system), ("user", system..prompt_tokens)];
                let mut messages = Vec::new();
                for (role, range) in parts {
                    self.push_message(&mut messages, role, request, range);
                }
                Prompt::Messages(messages)
            }
        }
    }

    /// Whether the content of `next` begins with prompt and answer of `previous`.
    pub(crate) fn extends(&self, previous: &WorkloadRequest, next: &WorkloadRequest) -> bool {
        let (before, after) = (self.workload.segments(previous), self.workload.segments(next));
        total_tokens(previous) <= next.prompt_tokens.0 && after.starts_with(before)
    }

    /// The prompt of `next`, whose content begins with that of `previous`: the conversation so far, then what is new.
    /// Without an answer, or with one of unknown token ids where ids are needed, the planned one stands in; the flag
    /// tells if the real one is in.
    pub(crate) fn extended(
        &self,
        mut conversation: Prompt,
        previous: &WorkloadRequest,
        answer: Option<AnswerContent>,
        next: &WorkloadRequest,
    ) -> (Prompt, bool) {
        let planned_answer = previous.prompt_tokens.0..total_tokens(previous);
        let new = total_tokens(previous)..next.prompt_tokens.0;
        let is_real = match &mut conversation {
            Prompt::Messages(messages) => {
                let real = answer.map(|answer| answer.text).filter(|text| !text.is_empty());
                let is_real = real.is_some();
                let content = real.unwrap_or_else(|| self.text(next, planned_answer));
                messages.push(Message { role: "assistant", content });
                self.push_message(messages, "user", next, new);
                is_real
            }
            Prompt::TokenIds(ids) => {
                let real = answer.map(|answer| answer.token_ids).filter(|ids| !ids.is_empty());
                let is_real = real.is_some();
                match real {
                    Some(real) => ids.extend(real),
                    None => ids.extend(self.tokens(next, planned_answer)),
                }
                ids.extend(self.tokens(next, new));
                is_real
            }
        };
        (conversation, is_real)
    }

    /// The body of a request. `keeps_answer` says that the answer goes into a later prompt.
    pub(crate) fn body(
        &self,
        request: &WorkloadRequest,
        prompt: &Prompt,
        keeps_answer: bool,
    ) -> Bytes {
        let Settings { model, stream, max_output_tokens, vllm_fields, .. } = self.settings;
        let (messages, prompt) = match prompt {
            Prompt::Messages(messages) => (Some(&messages[..]), None),
            Prompt::TokenIds(ids) => (None, Some(&ids[..])),
        };
        let body = Body {
            model: model.as_deref(),
            messages,
            prompt,
            max_tokens: request.output_tokens.0.min(*max_output_tokens),
            temperature: 0.0,
            stream: *stream,
            stream_options: stream.then_some(StreamOptions { include_usage: true }),
            ignore_eos: vllm_fields.then_some(true),
            return_token_ids: (*vllm_fields && keeps_answer && prompt.is_some()).then_some(true),
            priority: (*vllm_fields && request.priority != 0).then_some(request.priority),
        };
        serde_json::to_vec(&body).expect("a body has only string keys").into()
    }

    /// Length of the system message: the first segment, where several sessions begin with it and more follows.
    fn system_tokens(&self, request: &WorkloadRequest) -> u32 {
        let Some(segment) = self.workload.segments(request).first() else { return 0 };
        let is_shared = self.first_segments.get(&segment.id).is_some_and(|first| first.is_shared);
        if is_shared && segment.tokens < request.prompt_tokens.0 { segment.tokens } else { 0 }
    }

    /// Adds a message, unless it is empty.
    fn push_message(
        &self,
        messages: &mut Vec<Message>,
        role: &'static str,
        request: &WorkloadRequest,
        range: Range<u32>,
    ) {
        if !range.is_empty() {
            messages.push(Message { role, content: self.text(request, range) });
        }
    }

    /// Tokens as words, one space between.
    fn text(&self, request: &WorkloadRequest, range: Range<u32>) -> String {
        let mut text = String::with_capacity(range.len() * 5);
        for token in self.tokens(request, range) {
            if !text.is_empty() {
                text.push(' ');
            }
            text.push_str(WORDS[token as usize % WORDS.len()]);
        }
        text
    }

    fn tokens(&self, request: &WorkloadRequest, range: Range<u32>) -> impl Iterator<Item = u32> {
        let Range { start, end } = range;
        self.workload.tokens(request, &self.stream).take(end as usize).skip(start as usize)
    }
}

fn total_tokens(request: &WorkloadRequest) -> u32 {
    request.prompt_tokens.0.saturating_add(request.output_tokens.0)
}

#[cfg(test)]
mod tests {
    use kvroute_workload::WorkloadSpec;

    use super::*;
    use crate::config::LoadConfig;

    fn chat() -> Workload {
        let spec = "kind = \"chat\"\nsystem_prompt_tokens = { kind = \"constant\", value = 8 }\n\
            user_message_tokens = { kind = \"constant\", value = 5 }\n\
            answer_tokens = { kind = \"constant\", value = 3 }\n\
            turns = { kind = \"constant\", value = 3 }";
        toml::from_str::<WorkloadSpec>(spec).unwrap().generate(1, 6).unwrap()
    }

    fn settings(prompt_form: PromptForm) -> Settings {
        LoadConfig { prompt_form, ..LoadConfig::default() }.try_into().unwrap()
    }

    fn ids() -> PromptForm {
        PromptForm::TokenIds { vocabulary: NonZeroU32::new(1000).unwrap() }
    }

    fn messages(prompt: &Prompt) -> Vec<(&'static str, usize)> {
        let Prompt::Messages(messages) = prompt else { panic!("not messages") };
        let words = |message: &Message| message.content.split(' ').count();
        messages.iter().map(|message| (message.role, words(message))).collect()
    }

    #[test]
    fn words_are_short_and_all_different() {
        let mut words = WORDS.to_vec();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), 256);
        assert!(words.iter().all(|word| (2..=4).contains(&word.len())));
    }

    #[test]
    fn text_has_one_word_per_token_and_a_shared_system_message() {
        let (workload, settings) = (chat(), settings(PromptForm::Text {}));
        let prompts = Prompts::new(&workload, &settings);
        let first = |session: u32| {
            workload.requests().iter().find(|r| r.session.0 == session && r.turn == 0).unwrap()
        };
        let (one, other) = (prompts.planned(first(0)), prompts.planned(first(1)));
        assert_eq!(messages(&one), [("system", 8), ("user", 5)]);
        let (Prompt::Messages(one), Prompt::Messages(other)) = (one, other) else { panic!() };
        assert_eq!(one[0], other[0]);
        assert_ne!(one[1], other[1]);
    }

    #[test]
    fn a_conversation_holds_the_real_answer_else_the_planned_one() {
        let (workload, settings) = (chat(), settings(PromptForm::Text {}));
        let prompts = Prompts::new(&workload, &settings);
        let [first, second] = [&workload.requests()[0], &workload.requests()[1]];
        assert!(prompts.extends(first, second));
        assert!(!prompts.extends(second, first));
        let answer = AnswerContent { text: "Yes, really".into(), token_ids: Vec::new() };
        let (grown, is_real) =
            prompts.extended(prompts.planned(first), first, Some(answer), second);
        assert!(is_real);
        let roles = [("system", 8), ("user", 5), ("assistant", 2), ("user", 5)];
        assert_eq!(messages(&grown), roles);
        let (planned, is_real) = prompts.extended(prompts.planned(first), first, None, second);
        assert!(!is_real);
        assert_eq!(messages(&planned)[2], ("assistant", 3));
    }

    #[test]
    fn token_ids_are_those_of_the_workload() {
        let (workload, settings) = (chat(), settings(ids()));
        let prompts = Prompts::new(&workload, &settings);
        let [first, second] = [&workload.requests()[0], &workload.requests()[1]];
        let stream = TokenStream::new(NonZeroU32::new(1000).unwrap(), 0);
        let plan: Vec<u32> = workload.tokens(second, &stream).take(21).collect();
        let (grown, _) = prompts.extended(prompts.planned(first), first, None, second);
        assert_eq!(grown, Prompt::TokenIds(plan));
        let answer = AnswerContent { text: String::new(), token_ids: vec![7, 7, 7] };
        let (grown, is_real) =
            prompts.extended(prompts.planned(first), first, Some(answer), second);
        let Prompt::TokenIds(grown) = grown else { panic!() };
        assert!(is_real);
        assert_eq!((grown.len(), &grown[13..16]), (21, &[7, 7, 7][..]));
    }

    #[test]
    fn bodies_hold_what_the_api_needs() {
        let (workload, settings) = (chat(), settings(ids()));
        let prompts = Prompts::new(&workload, &settings);
        let request = &workload.requests()[0];
        let body = prompts.body(request, &Prompt::TokenIds(vec![1, 2]), true);
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            r#"{"prompt":[1,2],"max_tokens":3,"temperature":0.0,"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,"return_token_ids":true}"#
        );
        assert_eq!(prompts.path(), "/v1/completions");
    }
}
