//! Conversations: each turn's prompt is the whole history, answers included.

use kvroute_types::Timestamp;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{Load, Output, SpecError, prefix_key};
use crate::distribution::Sampler;
use crate::workload::Draft;
use crate::{Arrival, Distribution, GapShape, Segment};

/// Multi-turn conversations.
///
/// Message lengths and turns follow 17,395 `ShareGPT` conversations (V3 unfiltered, counted with
/// the Qwen3 tokenizer): user messages mean 89 / median 18 tokens, answers mean 297 / median 268,
/// 3.53 user turns.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChatSpec {
    /// Offered load over all turns, requests per second.
    pub requests_per_s: f64,
    /// How irregularly sessions start.
    pub arrivals: GapShape,
    /// Turns per session that the user wants; the context limit may end it sooner.
    pub turns: Distribution,
    /// Number of system prompts, equally popular; 0 for none.
    pub system_prompts: u32,
    /// Length of each system prompt, drawn once per prompt. Not in the data: an assumption.
    pub system_prompt_tokens: Distribution,
    /// Length of a user message.
    pub user_message_tokens: Distribution,
    /// Length of an answer.
    pub answer_tokens: Distribution,
    /// Time from the end of an answer to the next message, seconds. Not in the data: an assumption.
    pub think_time_s: Distribution,
    /// Time from one message of a session to the next, seconds, though the next waits for the answer; takes the place of
    /// the think time. For comparing runs: clients then offer the same load however fast they are served.
    pub message_interval_s: Option<Distribution>,
    /// A turn whose prompt and output would be longer ends the session (vLLM `max_model_len`). A
    /// first message that is too long is cut.
    pub max_model_len_tokens: u32,
}

impl Default for ChatSpec {
    fn default() -> Self {
        Self {
            requests_per_s: 4.0,
            arrivals: GapShape::default(),
            turns: Distribution::Geometric { mean: 3.53 },
            system_prompts: 1,
            system_prompt_tokens: Distribution::Constant { value: 512.0 },
            user_message_tokens: Distribution::LogNormal { mean: 89.0, sigma: 1.79 },
            answer_tokens: Distribution::LogNormal { mean: 297.0, sigma: 0.45 },
            think_time_s: Distribution::Exponential { mean: 30.0 },
            message_interval_s: None,
            max_model_len_tokens: 8192,
        }
    }
}

impl ChatSpec {
    pub(super) fn generate_into(
        &self,
        out: &mut Output,
        rng: &mut ChaCha8Rng,
        requests: u32,
    ) -> Result<Load, SpecError> {
        let system = self.system_prompt_tokens.sampler("system_prompt_tokens")?;
        let session = Session {
            turns: self.turns.sampler("turns")?,
            user: self.user_message_tokens.sampler("user_message_tokens")?,
            answer: self.answer_tokens.sampler("answer_tokens")?,
            pause: match &self.message_interval_s {
                Some(interval) => Pause::Interval(interval.sampler("message_interval_s")?),
                None => Pause::Think(self.think_time_s.sampler("think_time_s")?),
            },
            max_tokens: self.max_model_len_tokens,
        };
        let systems = out.shared(self.system_prompts, &system, rng);
        let longest = systems.iter().map(|system| system.tokens).max().unwrap_or(0);
        if longest.saturating_add(2) > self.max_model_len_tokens {
            return Err(SpecError::OutOfRange {
                field: "max_model_len_tokens",
                value: f64::from(self.max_model_len_tokens),
                expected: "room for the longest system prompt and at least 2 tokens more",
            });
        }
        let mut left = requests;
        while left > 0 {
            let system = (!systems.is_empty()).then(|| systems[rng.random_range(0..systems.len())]);
            left -= session.generate_into(out, rng, system, left);
        }
        Ok((self.requests_per_s, self.arrivals))
    }
}

struct Session {
    turns: Sampler,
    user: Sampler,
    answer: Sampler,
    pause: Pause,
    max_tokens: u32,
}

/// What passes between messages.
enum Pause {
    Think(Sampler),
    Interval(Sampler),
}

impl Pause {
    fn draw(&self, rng: &mut ChaCha8Rng) -> Arrival {
        match self {
            Self::Think(think) => Arrival::AfterPrevious { think: think.draw_duration(rng) },
            Self::Interval(interval) => Arrival::Paced { interval: interval.draw_duration(rng) },
        }
    }
}

impl Session {
    /// Draws one session of at most `limit` turns and says how many it got: at least 1.
    fn generate_into(
        &self,
        out: &mut Output,
        rng: &mut ChaCha8Rng,
        system: Option<Segment>,
        limit: u32,
    ) -> u32 {
        let (session, session_key) = out.session();
        let turns = self.turns.draw_count(rng).min(limit);
        let mut content = out.builder.content(system);
        let mut history_tokens = system.map_or(0, |system| system.tokens);
        let mut prefix = system.map(prefix_key);
        for turn in 0..turns {
            let Some((user, answer)) = self.message(rng, self.max_tokens - history_tokens, turn)
            else {
                return turn;
            };
            let user = out.fresh(user);
            let answer = out.fresh(answer);
            content = out.builder.extend(content, [user, answer]);
            let arrival = match turn {
                0 => Arrival::At(Timestamp::ZERO),
                _ => self.pause.draw(rng),
            };
            out.builder.push(Draft {
                session,
                arrival,
                prompt_tokens: history_tokens + user.tokens,
                output_tokens: answer.tokens,
                content,
                session_key,
                prefix_key: *prefix.get_or_insert(prefix_key(user)),
            });
            history_tokens += user.tokens + answer.tokens;
        }
        turns
    }

    /// Lengths of a user message and its answer, if they fit into `room` tokens; the first pair is
    /// made to.
    fn message(&self, rng: &mut ChaCha8Rng, room: u32, turn: u32) -> Option<(u32, u32)> {
        let (user, answer) = (self.user.draw_count(rng), self.answer.draw_count(rng));
        if turn == 0 {
            let answer = answer.min(room / 2);
            return Some((user.min(room - answer), answer));
        }
        (user + answer <= room).then_some((user, answer))
    }
}
