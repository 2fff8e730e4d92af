//! What the mock answers: made-up words, drawn from seed and prompt before the engine runs.
//!
//! * Word `i` of choice `c` is a hash of (server seed, the request's `seed`, the prompt's tokens, `c`, `i`): the same
//!   request has the same answer on every instance and in every run. Temperature and penalties change nothing.
//! * Unless `ignore_eos` is set, each token from number `min_tokens` on is the end-of-sequence token with probability
//!   `1 / eos_mean_tokens`, drawn by the same hash: lengths are geometric. A `logit_bias` of 100 or more on the
//!   end-of-sequence token (id 2) makes that certain.
//! * Stop strings are found in the text made so far; up to the longest one less a character is held back while
//!   streaming, as vLLM's front-end does. The engine is told the length (vLLM's aborts the request; R49), so the number
//!   of decode slots lost may differ by one.

use std::collections::BTreeSet;
use std::ops::Range;

use kvroute_types::mix64;

use crate::tokenizer::{EOS, decode_into, word};

/// How an answer is to be drawn.
#[derive(Clone, Debug)]
pub(crate) struct AnswerRules {
    /// Server seed and the request's `seed`, mixed.
    pub(crate) seed: u64,
    /// Output tokens at most; at least 1.
    pub(crate) max_tokens: u32,
    pub(crate) min_tokens: u32,
    /// Probability of the end-of-sequence token at each step.
    pub(crate) eos_probability: f64,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: BTreeSet<u32>,
    pub(crate) include_stop_str_in_output: bool,
    /// Whether the first word has a space before it: it has in a completion, and not in a chat message.
    pub(crate) leading_space: bool,
}

/// What ended an answer, if not its length: `stop_reason` in the API.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub(crate) enum StopReason {
    /// A stop string.
    Text(String),
    /// One of `stop_token_ids`.
    Token(u32),
}

/// One answer, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Its ids, an end-of-sequence token included.
    pub(crate) tokens: Vec<u32>,
    /// Whether the model ends it by itself after its last token.
    pub(crate) stops: bool,
    /// Why, unless by the end-of-sequence token.
    pub(crate) stop_reason: Option<StopReason>,
    text: String,
    /// Bytes of text up to and including each token.
    ends: Vec<usize>,
    /// Bytes not shown before the end, as they may be the start of a stop string.
    held_back: usize,
}

impl Answer {
    /// Draws choice `choice` of the answer to `prompt`.
    pub(crate) fn draw(rules: &AnswerRules, prompt: &[u32], choice: u32) -> Self {
        let key =
            prompt.iter().fold(mix64(rules.seed ^ mix64(u64::from(choice))), |key, &token| {
                mix64(key ^ u64::from(token))
            });
        let mut answer = Self {
            tokens: Vec::new(),
            stops: false,
            stop_reason: None,
            text: String::new(),
            ends: Vec::new(),
            held_back: if rules.include_stop_str_in_output {
                0
            } else {
                rules.stop.iter().map(|stop| stop.len().saturating_sub(1)).max().unwrap_or(0)
            },
        };
        for index in 0..rules.max_tokens {
            answer.push(rules, key, index);
            if answer.stops {
                break;
            }
        }
        answer
    }

    /// Number of tokens.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.tokens.len()).expect("bounded by max_model_len")
    }

    /// The whole text as the client sees it.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Text that has been shown when `tokens` of the answer are out, as a range from its start.
    pub(crate) fn shown(&self, tokens: u32) -> Range<usize> {
        if tokens >= self.len() {
            return 0..self.text.len();
        }
        let end = (tokens as usize).checked_sub(1).map_or(0, |last| self.ends[last]);
        // All of it is ASCII, so any index is a boundary.
        0..end.saturating_sub(self.held_back)
    }

    /// Text that token `index` adds.
    pub(crate) fn delta(&self, index: u32) -> &str {
        let from = self.shown(index).end;
        &self.text[from..self.shown(index + 1).end.max(from)]
    }

    fn push(&mut self, rules: &AnswerRules, key: u64, index: u32) {
        let may_stop = index >= rules.min_tokens;
        let draw = mix64(key.wrapping_add(u64::from(index)));
        if may_stop && unit(mix64(draw ^ EOS_STREAM)) < rules.eos_probability {
            self.tokens.push(EOS);
            self.ends.push(self.text.len());
            self.stops = true;
            return;
        }
        let token = word(draw, index > 0 || rules.leading_space);
        let mut bytes = Vec::new();
        decode_into(token, &mut bytes);
        self.tokens.push(token);
        if may_stop && rules.stop_token_ids.contains(&token) {
            self.stops = true;
            self.stop_reason = Some(StopReason::Token(token));
            if !rules.include_stop_str_in_output {
                self.ends.push(self.text.len());
                return;
            }
        }
        let before = self.text.len();
        self.text.extend(bytes.into_iter().map(char::from));
        self.ends.push(self.text.len());
        if may_stop && !self.stops {
            self.stop_at_string(rules, before);
        }
    }

    /// Ends the answer at the stop string that comes first, if the text added after `before` completes one.
    fn stop_at_string(&mut self, rules: &AnswerRules, before: usize) {
        let found = rules.stop.iter().filter(|stop| !stop.is_empty()).filter_map(|stop| {
            let from = before.saturating_sub(stop.len() - 1);
            let at = from
                + self.text.as_bytes()[from..]
                    .windows(stop.len())
                    .position(|part| part == stop.as_bytes())?;
            Some((at, stop))
        });
        let Some((at, stop)) = found.min_by_key(|&(at, _)| at) else { return };
        self.stops = true;
        self.stop_reason = Some(StopReason::Text(stop.clone()));
        let end = if rules.include_stop_str_in_output { at + stop.len() } else { at };
        self.text.truncate(end);
    }
}

/// Separates the draw of the end-of-sequence token from that of the word.
const EOS_STREAM: u64 = 0x656f_7365_6f73;

/// A number in `0.0..1.0` from 64 random bits.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{detokenize, tokenize};

    fn rules() -> AnswerRules {
        AnswerRules {
            seed: 7,
            max_tokens: 50,
            min_tokens: 0,
            eos_probability: 0.0,
            stop: Vec::new(),
            stop_token_ids: BTreeSet::new(),
            include_stop_str_in_output: false,
            leading_space: true,
        }
    }

    #[test]
    fn the_text_gives_the_ids_back() {
        for leading_space in [true, false] {
            let answer = Answer::draw(&AnswerRules { leading_space, ..rules() }, &[1, 2], 0);
            let mut tokens = Vec::new();
            tokenize(answer.text(), usize::MAX, &mut tokens);
            assert_eq!(tokens, answer.tokens);
            assert_eq!(answer.text().starts_with(' '), leading_space);
            assert_eq!(answer.len(), 50);
            assert!(!answer.stops);
        }
    }

    #[test]
    fn deltas_add_up_to_the_text() {
        let stop = vec!["never such a text".to_owned()];
        let answer = Answer::draw(&AnswerRules { stop, ..rules() }, &[1], 0);
        let deltas: String = (0..answer.len()).map(|index| answer.delta(index)).collect();
        assert_eq!(deltas, answer.text());
        assert_eq!(answer.delta(0), "", "held back");
    }

    #[test]
    fn choices_prompts_and_seeds_differ() {
        let base = Answer::draw(&rules(), &[1], 0);
        assert_eq!(base, Answer::draw(&rules(), &[1], 0));
        assert_ne!(base, Answer::draw(&rules(), &[1], 1));
        assert_ne!(base, Answer::draw(&rules(), &[2], 0));
        assert_ne!(base, Answer::draw(&AnswerRules { seed: 8, ..rules() }, &[1], 0));
    }

    #[test]
    fn lengths_are_geometric_and_respect_min_tokens() {
        let rules =
            AnswerRules { eos_probability: 0.1, max_tokens: 1_000, min_tokens: 5, ..rules() };
        let lengths: Vec<u32> = (0..2_000).map(|p| Answer::draw(&rules, &[p], 0).len()).collect();
        assert_eq!(lengths.iter().min(), Some(&6), "five words and the end");
        let mean = f64::from(lengths.iter().sum::<u32>()) / 2_000.0;
        assert!((mean - 15.0).abs() < 0.8, "5 + 1 / 0.1: {mean}");
    }

    #[test]
    fn stop_strings_and_ids_end_it() {
        let whole = Answer::draw(&rules(), &[1], 0);
        let third = detokenize(&whole.tokens[2..3]);
        let stop = vec![third.clone()];
        let cut = Answer::draw(&AnswerRules { stop: stop.clone(), ..rules() }, &[1], 0);
        assert_eq!(cut.text(), detokenize(&whole.tokens[..2]));
        assert_eq!((cut.len(), cut.stop_reason.clone()), (3, Some(StopReason::Text(third))));
        let deltas: String = (0..3).map(|index| cut.delta(index)).collect();
        assert_eq!(deltas, cut.text());
        let rules_with = AnswerRules { stop, include_stop_str_in_output: true, ..rules() };
        assert_eq!(Answer::draw(&rules_with, &[1], 0).text(), detokenize(&whole.tokens[..3]));

        let stop_token_ids = BTreeSet::from([whole.tokens[2]]);
        let cut = Answer::draw(&AnswerRules { stop_token_ids, ..rules() }, &[1], 0);
        assert_eq!(cut.text(), detokenize(&whole.tokens[..2]));
        assert_eq!(cut.stop_reason, Some(StopReason::Token(whole.tokens[2])));
    }
}
