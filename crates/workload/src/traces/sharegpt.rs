//! `ShareGPT`: conversations without times, as text or as token counts.
//!
//! Rule: a human's message or a tool's result directly followed by a model's message is one request.
//! Its prompt is everything up to and including the former, its output the model's message; all
//! other messages are history. A message is one segment, so the next prompt repeats the answer.
//! Requests without prompt or output tokens are dropped (and counted) but stay in the history. Texts
//! are never kept: their tokens are **estimated** as a quarter of the characters, rounded up, which
//! holds for English and is too few for most other scripts.
//!
//! Conversations share no content, unless the form of token counts says so: messages with the same
//! number behind their length are the same text, wherever they stand. A request follows the answer
//! before it after the time that a human, or a tool, takes.

use std::fmt;
use std::io::BufRead;

use hashbrown::HashMap;
use kvroute_types::{Timestamp, mix64};
use rand_chacha::ChaCha8Rng;
use rustc_hash::FxBuildHasher;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use super::input::for_each_json_line;
use super::{TraceError, TraceFormat, TraceOptions, block_ids};
use crate::arrival::{absolute, schedule, seeded};
use crate::distribution::Sampler;
use crate::workload::{Draft, WorkloadBuilder};
use crate::{Arrival, ArrivalProcess, GapShape, Segment, SegmentId, Workload};

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
enum Role {
    #[serde(rename = "h", alias = "human", alias = "user")]
    Human,
    #[serde(
        rename = "g",
        alias = "gpt",
        alias = "chatgpt",
        alias = "assistant",
        alias = "bard",
        alias = "bing"
    )]
    Model,
    #[serde(rename = "t", alias = "tool")]
    Tool,
    #[serde(other)]
    Other,
}

/// Who, how many tokens, and the number of its text if other messages have the same.
#[derive(Clone, Copy, Deserialize)]
struct Message(Role, u32, #[serde(default)] Option<u64>);

#[derive(Deserialize)]
struct TextConversation {
    conversations: Vec<TextMessage>,
}

#[derive(Deserialize)]
struct TextMessage {
    from: Role,
    #[serde(rename = "value", deserialize_with = "estimate_tokens")]
    tokens: u32,
}

/// Reads the V3 form: `[{"id": …, "conversations": [{"from": "human", "value": "…"}, …]}, …]`.
pub(super) fn read_text(
    reader: impl BufRead,
    options: &TraceOptions,
) -> Result<Workload, TraceError> {
    let format = TraceFormat::ShareGpt;
    let parsed: Vec<TextConversation> = serde_json::from_reader(reader).map_err(|source| {
        let line = source.line();
        if source.is_io() {
            return TraceError::io(line, source.into());
        }
        TraceError::Json { line, format, source }
    })?;
    let message = |message: TextMessage| Message(message.from, message.tokens, None);
    let parsed = parsed.into_iter();
    let conversations: Vec<Vec<Message>> =
        parsed.map(|parsed| parsed.conversations.into_iter().map(message).collect()).collect();
    replay(&conversations, format, options)
}

/// Reads one conversation per line, `[["s", 900, 0], ["h", 34], ["g", 244], …]`: token counts, and the numbers of texts that
/// are not of one conversation alone.
pub(super) fn read_lengths(
    reader: impl BufRead,
    options: &TraceOptions,
) -> Result<Workload, TraceError> {
    let format = TraceFormat::ShareGptLengths;
    let mut conversations = Vec::new();
    let mut texts = Texts::default();
    for_each_json_line(reader, format, |line, messages: Vec<Message>| {
        texts.check(line, &messages)?;
        conversations.push(messages);
        Ok(())
    })?;
    replay(&conversations, format, options)
}

/// Numbered texts: where each was first, and its tokens.
#[derive(Default)]
struct Texts(HashMap<u64, (usize, u32), FxBuildHasher>);

impl Texts {
    /// One text has one length.
    fn check(&mut self, line: usize, messages: &[Message]) -> Result<(), TraceError> {
        for &Message(_, found, text) in messages {
            let Some(text) = text else { continue };
            let (first_line, expected) = *self.0.entry(text).or_insert((line, found));
            if found != expected {
                return Err(TraceError::TextLength { line, text, found, first_line, expected });
            }
        }
        Ok(())
    }
}

fn replay(
    conversations: &[Vec<Message>],
    format: TraceFormat,
    options: &TraceOptions,
) -> Result<Workload, TraceError> {
    let mut replayed = Conversations::new(options)?;
    let mut dropped = None;
    for _ in 0..options.rounds.get() {
        for messages in conversations {
            replayed.push(messages);
        }
        replayed.builder.dropped = *dropped.get_or_insert(replayed.builder.dropped);
    }
    replayed.finish(format)
}

struct Conversations {
    builder: WorkloadBuilder,
    options: TraceOptions,
    think: Sampler,
    tool: Sampler,
    rng: ChaCha8Rng,
    messages: u64,
    sessions: u32,
}

impl Conversations {
    fn new(options: &TraceOptions) -> Result<Self, TraceError> {
        Ok(Self {
            builder: WorkloadBuilder::default(),
            options: *options,
            think: options.think_time_s.sampler("think_time_s")?,
            tool: options.tool_time_s.sampler("tool_time_s")?,
            rng: seeded(options.seed),
            messages: 0,
            sessions: 0,
        })
    }

    fn push(&mut self, messages: &[Message]) {
        let (turns, dropped) = turns(messages);
        let limit = self.options.prompt_tokens_max.unwrap_or(LONGEST_TOKENS);
        if turns.iter().any(|turn| turn.prompt_tokens > limit || turn.tokens() > LONGEST_TOKENS) {
            self.builder.dropped += dropped + u32::try_from(turns.len()).unwrap_or(u32::MAX);
            return;
        }
        self.builder.dropped += dropped;
        let Some(first) = turns.first() else { return };
        let first_answer = first.answer;
        let prefix_key = mix64(self.segment_id(0, messages[0]).0);
        let mut content = self.builder.content([]);
        let mut stored = 0;
        for turn in turns {
            let segments: Vec<Segment> = (stored..=turn.answer)
                .map(|index| Segment {
                    id: self.segment_id(index, messages[index]),
                    tokens: messages[index].1,
                })
                .collect();
            content = self.builder.extend(content, segments);
            stored = turn.answer + 1;
            let arrival = if turn.answer == first_answer {
                Arrival::At(Timestamp::ZERO)
            } else {
                let pause = if turn.asked_by == Role::Tool { &self.tool } else { &self.think };
                Arrival::AfterPrevious { think: pause.draw_duration(&mut self.rng) }
            };
            self.builder.push(Draft {
                session: self.sessions,
                arrival,
                prompt_tokens: turn.prompt_tokens,
                output_tokens: turn.output_tokens,
                content,
                session_key: block_ids::session_key(self.sessions),
                prefix_key,
            });
        }
        self.messages += messages.len() as u64;
        self.sessions += 1;
    }

    fn segment_id(&self, index: usize, message: Message) -> SegmentId {
        const MESSAGES: u64 = 0x6d65_7373;
        const TEXTS: u64 = 0x7465_7874;
        match message.2 {
            Some(text) => SegmentId::derive(TEXTS, text),
            None => SegmentId::derive(MESSAGES, self.messages + index as u64),
        }
    }

    fn finish(mut self, format: TraceFormat) -> Result<Workload, TraceError> {
        let starts = absolute(self.builder.drafts.iter_mut().map(|draft| &mut draft.arrival));
        let process =
            ArrivalProcess { rate_per_s: self.options.sessions_per_s, shape: GapShape::default() };
        schedule(starts.len(), starts, process, &mut self.rng)?;
        Ok(self.builder.finish(format.name()))
    }
}

/// Longer conversations than any context window holds are dropped (and counted).
const LONGEST_TOKENS: u32 = 1 << 30;

struct Turn {
    /// Index of the model's message.
    answer: usize,
    /// A human or a tool.
    asked_by: Role,
    prompt_tokens: u32,
    output_tokens: u32,
}

impl Turn {
    fn tokens(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.output_tokens)
    }
}

/// The requests of a conversation, and how many were dropped as empty.
fn turns(messages: &[Message]) -> (Vec<Turn>, u32) {
    let mut turns = Vec::new();
    let mut dropped = 0;
    let mut history_tokens = 0_u32;
    for (index, &Message(role, tokens, _)) in messages.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| messages[before].0);
        let asked_by = before.filter(|before| matches!(before, Role::Human | Role::Tool));
        if let (Role::Model, Some(asked_by)) = (role, asked_by) {
            if tokens > 0 && history_tokens > 0 {
                turns.push(Turn {
                    answer: index,
                    asked_by,
                    prompt_tokens: history_tokens,
                    output_tokens: tokens,
                });
            } else {
                dropped += 1;
            }
        }
        history_tokens = history_tokens.saturating_add(tokens);
    }
    (turns, dropped)
}

/// Reads a text and keeps only the estimate of its length.
fn estimate_tokens<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("the text of a message")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
            const CHARACTERS_PER_TOKEN: usize = 4;
            let tokens = text.chars().count().div_ceil(CHARACTERS_PER_TOKEN);
            u32::try_from(tokens).map_err(|_| E::custom("message of 2^34 characters or more"))
        }
    }
    deserializer.deserialize_str(Text)
}
