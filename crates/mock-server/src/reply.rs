//! The reply to one call as it comes into being: events of its jobs in, frames or a body out.

use bytes::Bytes;
use kvroute_engine::FinishReason;
use serde::Serialize;

use crate::answer::Answer;
use crate::call::{Api, Call};
use crate::tokenizer::{VOCABULARY, detokenize};
use crate::wire::{
    ChatBody, ChatChoice, ChatChunkChoice, ChatMessage, Chunk, Delta, Logprobs,
    PromptTokensDetails, TextBody, TextChoice, TextChunkChoice, TokenLogprob, Usage,
};

/// What a reply says of its server.
#[derive(Clone, Debug)]
pub(crate) struct ReplyHeader {
    /// `chatcmpl-...` or `cmpl-...`
    pub(crate) id: String,
    /// Seconds since the Unix epoch.
    pub(crate) created: u64,
    pub(crate) system_fingerprint: String,
    /// Whether `usage` tells the cached tokens.
    pub(crate) prompt_tokens_details: bool,
    /// Tokens per block; 0 if nothing is cached.
    pub(crate) cache_block_size: u32,
}

/// A reply under way.
#[derive(Debug)]
pub(crate) struct Reply {
    header: ReplyHeader,
    call: Call,
    choices: Vec<Choice>,
    /// Prompt tokens found cached, of the job heard of last.
    cached_tokens: u32,
    has_begun: bool,
}

#[derive(Debug)]
struct Choice {
    answer: Answer,
    /// Tokens out.
    out: u32,
    finish: Option<FinishReason>,
}

impl Reply {
    /// A reply to the call; answers are in the order of prompts, then choices.
    pub(crate) fn new(header: ReplyHeader, call: Call, answers: Vec<Answer>) -> Self {
        let choices = answers.into_iter().map(|answer| Choice { answer, out: 0, finish: None });
        let choices = choices.collect();
        Self { header, call, choices, cached_tokens: 0, has_begun: false }
    }

    /// Whether all jobs have ended.
    pub(crate) fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    /// Notes a token; frames of a stream for it are appended to `frames`.
    pub(crate) fn token(
        &mut self,
        choice: u32,
        cached_tokens: u32,
        finish: Option<FinishReason>,
        frames: &mut impl Extend<Bytes>,
    ) {
        let streams = self.call.stream;
        if streams && !std::mem::replace(&mut self.has_begun, true) && self.call.api == Api::Chat {
            frames.extend((0..self.call.n).map(|index| self.role_frame(index)));
        }
        self.cached_tokens = cached_tokens;
        let state = &mut self.choices[choice as usize];
        let index = state.out;
        state.out += 1;
        state.finish = finish;
        if streams {
            let frame = match self.call.api {
                Api::Chat => self.chat_frame(choice, index),
                Api::Completion => self.text_frame(choice, index),
            };
            frames.extend([frame]);
            if self.is_complete() {
                frames.extend(self.call.include_usage.then(|| self.usage_frame()));
                frames.extend([Bytes::from_static(DONE.as_bytes())]);
            }
        }
    }

    /// The body of a reply that is not streamed, when it is complete.
    pub(crate) fn body(&self) -> String {
        match self.call.api {
            Api::Chat => self.chat_body(),
            Api::Completion => self.text_body(),
        }
    }

    fn prompt(&self, choice: u32) -> &[u32] {
        &self.call.prompts[(choice / self.call.n) as usize].tokens
    }

    fn prompt_ids(&self, choice: u32) -> Option<&[u32]> {
        self.call.return_token_ids.then(|| self.prompt(choice))
    }

    fn chunk<'a, C>(&'a self, choices: &'a [C], usage: Option<Usage>) -> Chunk<'a, C> {
        Chunk {
            id: &self.header.id,
            object: match self.call.api {
                Api::Chat => "chat.completion.chunk",
                Api::Completion => "text_completion",
            },
            created: self.header.created,
            model: &self.call.model,
            choices,
            usage,
            system_fingerprint: None,
            prompt_token_ids: None,
            prompt_text: None,
        }
    }

    fn role_frame(&self, index: u32) -> Bytes {
        let choice = ChatChunkChoice {
            index,
            delta: Delta { role: Some("assistant"), content: "" },
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        frame(&Chunk {
            prompt_token_ids: Some(self.prompt_ids(index)),
            prompt_text: Some(()),
            ..self.chunk(&[choice], self.running_usage(index))
        })
    }

    fn chat_frame(&self, index: u32, token: u32) -> Bytes {
        let Choice { answer, finish, .. } = &self.choices[index as usize];
        let choice = ChatChunkChoice {
            index,
            delta: Delta { role: None, content: answer.delta(token) },
            logprobs: self.logprobs(answer, token..token + 1),
            finish_reason: finish.map(finish_reason),
            stop_reason: finish.map(|_| answer.stop_reason.as_ref()),
            token_ids: Some(self.output_ids(answer, token)),
        };
        let fingerprint = self.final_fingerprint(*finish);
        frame(&Chunk {
            system_fingerprint: fingerprint,
            ..self.chunk(&[choice], self.running_usage(index))
        })
    }

    fn text_frame(&self, index: u32, token: u32) -> Bytes {
        let Choice { answer, finish, .. } = &self.choices[index as usize];
        let delta = if self.call.hide_output { "" } else { answer.delta(token) };
        let echoed;
        let text = if self.call.echo && token == 0 {
            echoed = self.echo(index) + delta;
            &echoed
        } else {
            delta
        };
        let choice = TextChunkChoice {
            index,
            text,
            logprobs: None,
            finish_reason: finish.map(finish_reason),
            stop_reason: finish.and(answer.stop_reason.as_ref()),
            prompt_token_ids: self.prompt_ids(index).filter(|_| token == 0),
            token_ids: self.output_ids(answer, token),
        };
        let fingerprint = self.final_fingerprint(*finish);
        frame(&Chunk {
            system_fingerprint: fingerprint,
            ..self.chunk(&[choice], self.running_usage(index))
        })
    }

    fn usage_frame(&self) -> Bytes {
        let usage = Usage {
            prompt_tokens_details: self.details().map(|cached_tokens| {
                Some(PromptTokensDetails {
                    cached_tokens,
                    created_cache_tokens: self.created().map(Some),
                    multimodal_tokens: None,
                })
            }),
            ..self.total_usage()
        };
        let no_choices: [(); 0] = [];
        frame(&Chunk {
            system_fingerprint: Some(&self.header.system_fingerprint),
            ..self.chunk(&no_choices, Some(usage))
        })
    }

    /// A stream without a usage event tells the fingerprint with its end.
    fn final_fingerprint(&self, finish: Option<FinishReason>) -> Option<&str> {
        let tells = finish.is_some() && !self.call.include_usage;
        tells.then_some(self.header.system_fingerprint.as_str())
    }

    fn output_ids<'a>(&self, answer: &'a Answer, token: u32) -> Option<&'a [u32]> {
        let token = token as usize;
        self.call.return_token_ids.then(|| &answer.tokens[token..=token])
    }

    fn running_usage(&self, choice: u32) -> Option<Usage> {
        self.call.continuous_usage.then(|| {
            let prompt_tokens = count(self.prompt(choice));
            let completion_tokens = self.choices[choice as usize].out;
            Usage {
                prompt_tokens,
                total_tokens: prompt_tokens + completion_tokens,
                completion_tokens,
                prompt_tokens_details: None,
                completion_tokens_details: Some(()),
            }
        })
    }

    /// Over all choices.
    fn total_usage(&self) -> Usage {
        let prompt_tokens = self.call.prompts.iter().map(|prompt| count(&prompt.tokens)).sum();
        let completion_tokens = self.choices.iter().map(|choice| choice.out).sum();
        Usage {
            prompt_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            completion_tokens,
            ..Usage::default()
        }
    }

    fn details(&self) -> Option<u32> {
        self.header.prompt_tokens_details.then_some(self.cached_tokens)
    }

    /// Prompt tokens in blocks that were not cached before; chat only (R77).
    fn created(&self) -> Option<u32> {
        (self.call.api == Api::Chat).then(|| {
            let full_blocks = count(self.prompt(0)).checked_div(self.header.cache_block_size);
            full_blocks.map_or(0, |blocks| {
                (blocks * self.header.cache_block_size).saturating_sub(self.cached_tokens)
            })
        })
    }

    fn body_usage(&self) -> Usage {
        Usage {
            prompt_tokens_details: Some(self.details().map(|cached_tokens| PromptTokensDetails {
                cached_tokens,
                created_cache_tokens: Some(self.created()),
                multimodal_tokens: Some(()),
            })),
            completion_tokens_details: Some(()),
            ..self.total_usage()
        }
    }

    fn chat_body(&self) -> String {
        let choices = (0..).zip(&self.choices).map(|(index, choice)| {
            let Choice { answer, finish, .. } = choice;
            ChatChoice {
                index,
                message: ChatMessage {
                    role: "assistant",
                    content: answer.text(),
                    refusal: None,
                    annotations: None,
                    audio: None,
                    function_call: None,
                    reasoning: None,
                },
                logprobs: self.logprobs(answer, 0..answer.len()),
                finish_reason: finish.map_or("length", finish_reason),
                stop_reason: answer.stop_reason.as_ref(),
                token_ids: self.call.return_token_ids.then_some(&answer.tokens),
                routed_experts: None,
            }
        });
        json(&ChatBody {
            id: &self.header.id,
            object: "chat.completion",
            created: self.header.created,
            model: &self.call.model,
            choices: choices.collect(),
            service_tier: None,
            system_fingerprint: &self.header.system_fingerprint,
            usage: self.body_usage(),
            prompt_logprobs: None,
            prompt_token_ids: self.prompt_ids(0),
            prompt_text: None,
            kv_transfer_params: None,
            ec_transfer_params: None,
            metrics: None,
        })
    }

    fn text_body(&self) -> String {
        let choices = (0..).zip(&self.choices).map(|(index, choice)| {
            let Choice { answer, finish, .. } = choice;
            let mut text = if self.call.echo { self.echo(index) } else { String::new() };
            if !self.call.hide_output {
                text.push_str(answer.text());
            }
            TextChoice {
                index,
                text,
                logprobs: None,
                finish_reason: finish.map_or("length", finish_reason),
                stop_reason: answer.stop_reason.as_ref(),
                token_ids: self.call.return_token_ids.then_some(&answer.tokens),
                prompt_logprobs: None,
                prompt_token_ids: self.prompt_ids(index),
                routed_experts: None,
            }
        });
        json(&TextBody {
            id: &self.header.id,
            object: "text_completion",
            created: self.header.created,
            model: &self.call.model,
            choices: choices.collect(),
            service_tier: None,
            system_fingerprint: &self.header.system_fingerprint,
            usage: self.body_usage(),
            kv_transfer_params: None,
            ec_transfer_params: None,
            metrics: None,
        })
    }

    /// The prompt as text, without the token that begins it.
    fn echo(&self, choice: u32) -> String {
        let prompt = self.prompt(choice);
        detokenize(prompt.strip_prefix(&[crate::tokenizer::BOS]).unwrap_or(prompt))
    }

    /// Made up: every token is as likely as any other, and the alternatives are the ids that follow.
    fn logprobs(&self, answer: &Answer, tokens: std::ops::Range<u32>) -> Option<Logprobs> {
        let top = self.call.logprobs?;
        let entry = |token: u32| {
            let text = detokenize(&[token % VOCABULARY]);
            let bytes = text.clone().into_bytes();
            let logprob = -f64::from(VOCABULARY).ln();
            TokenLogprob { token: text, logprob, bytes, top_logprobs: None }
        };
        let tokens = &answer.tokens[tokens.start as usize..tokens.end as usize];
        let content = tokens.iter().map(|&token| TokenLogprob {
            top_logprobs: Some((token..token + top).map(entry).collect()),
            ..entry(token)
        });
        Some(Logprobs { content: content.collect() })
    }
}

/// The last event of every stream.
pub(crate) const DONE: &str = "data: [DONE]\n\n";

pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("strings, numbers and lists always serialise")
}

fn frame(value: &impl Serialize) -> Bytes {
    let mut bytes = b"data: ".to_vec();
    serde_json::to_writer(&mut bytes, value).expect("a vector takes everything");
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

const fn finish_reason(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

fn count(tokens: &[u32]) -> u32 {
    u32::try_from(tokens.len()).expect("prompts are no longer than max_model_len")
}
