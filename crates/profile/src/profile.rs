//! A profile: step model, overheads, engine sizes, sources; and its TOML form.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::load::StepLoad;
use crate::step::{StepModel, whole_ns};

/// Latency and size of one model on one device under vLLM.
///
/// Deserialising checks it like [`from_toml`](Self::from_toml) does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "UncheckedProfile")]
pub struct LatencyProfile {
    /// Name, e.g. `rtx4090-llama3.1-8b`.
    pub name: String,
    /// Device, model, engine version and what the numbers rest on, for people.
    pub description: String,
    /// Time of a request before the engine sees it (HTTP, tokenising, transfer to the engine), s.
    pub request_overhead_s: f64,
    /// Growth of that time per prompt token, s.
    pub request_overhead_s_per_prompt_token: f64,
    /// Time of a token from the end of its step to the client (transfer, detokenising, HTTP), s.
    pub response_overhead_s: f64,
    /// Time of one engine step.
    pub step: StepModel,
    /// Sizes of the engine.
    pub engine: EngineDefaults,
    /// Where each number is from; every number has one.
    pub sources: Vec<Source>,
}

/// Engine sizes that a profile sets unless the user says otherwise. All positive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineDefaults {
    /// Tokens per KV block (vLLM `block_size`, R1).
    pub block_size: u32,
    /// KV blocks of one instance, vLLM's null block included (`num_gpu_blocks`, R2).
    pub kv_blocks: u32,
    /// Tokens that one step schedules at most (vLLM `max_num_batched_tokens`, R4).
    pub max_num_batched_tokens: u32,
    /// Sequences that run at once at most (vLLM `max_num_seqs`, R4).
    pub max_num_seqs: u32,
    /// Longest sequence, prompt and output, tokens (vLLM `max_model_len`).
    pub max_model_len: u32,
    /// Instances that share one device; 1 if each has its own.
    pub instances_per_device: u32,
}

/// Where some of a profile's numbers come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The fields it vouches for, by their path in the TOML (`step.linear_floor_s`).
    pub fields: Vec<String>,
    /// How far to trust it.
    pub kind: SourceKind,
    /// What was measured, read or supposed, with the formula of a derived number.
    pub what: String,
    /// Data set, publication or document, precise enough to find.
    pub origin: String,
}

/// How a number came about, from the firmest to the weakest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SourceKind {
    /// Measured on the device and model of the profile, or fitted to such measurements.
    Measured,
    /// Read from a published table or from an engine's documented default, or fitted to a table.
    PublishedTable,
    /// Computed from other sourced numbers by the formula given.
    Derived,
    /// Supposed: no measurement was at hand.
    Assumption,
}

/// Why a profile is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not TOML, or not the keys of a profile.
    #[error("not a latency profile in TOML; compare a built-in one (`kvroute profiles`)")]
    Toml(#[source] toml::de::Error),
    /// A number out of range.
    #[error("`{field}` is {value}; it must be {expected}")]
    Range {
        /// Path of the field.
        field: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// The longest sequence does not fit the KV cache, so vLLM would refuse to start (R3).
    #[error(
        "`engine.max_model_len` is {max_model_len}, but {kv_blocks} blocks of {block_size} tokens \
         less the null block hold {capacity}: lower it or raise `engine.kv_blocks`"
    )]
    SequenceExceedsCache {
        /// Longest sequence, tokens.
        max_model_len: u32,
        /// KV blocks, the null block included.
        kv_blocks: u32,
        /// Tokens per block.
        block_size: u32,
        /// KV tokens that fit.
        capacity: u64,
    },
    /// More sequences than tokens in a step (vLLM's `SchedulerConfig` refuses it).
    #[error(
        "`engine.max_num_seqs` is {max_num_seqs}, more than `engine.max_num_batched_tokens` = \
         {max_num_batched_tokens}: lower it"
    )]
    SequencesExceedTokens {
        /// Sequences per step.
        max_num_seqs: u32,
        /// Tokens per step.
        max_num_batched_tokens: u32,
    },
    /// A number that no source vouches for.
    #[error(
        "no source for `{field}`: name it in the `fields` of a [[sources]] entry, as an assumption if it is one"
    )]
    Unsourced {
        /// Path of the field.
        field: &'static str,
    },
    /// A source for a field that does not exist.
    #[error(
        "a [[sources]] entry names `{field}`, which is no field of a profile; known: {}",
        .known.join(", ")
    )]
    UnknownField {
        /// The name found.
        field: String,
        /// All fields that have a source.
        known: Vec<&'static str>,
    },
}

impl LatencyProfile {
    /// Length of the steps of instance `number`, where instances are as fast against this profile as `speeds` says in
    /// turn; no speeds mean that all are as it says.
    pub fn step_at(&self, speeds: &[f64], number: u32) -> StepModel {
        speeds
            .iter()
            .cycle()
            .nth(number as usize)
            .map_or_else(|| self.step.clone(), |&speed| self.step.at_speed(speed))
    }

    /// Reads and checks a profile in TOML.
    ///
    /// # Errors
    /// [`ProfileError`] names the key at fault and what to change.
    pub fn from_toml(text: &str) -> Result<Self, ProfileError> {
        let unchecked: UncheckedProfile = toml::from_str(text).map_err(ProfileError::Toml)?;
        Self::try_from(unchecked)
    }

    /// The profile in TOML, as [`from_toml`](Self::from_toml) reads it.
    ///
    /// # Panics
    /// Never: a profile has only what TOML can hold.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).expect("a profile has string keys, finite numbers and no null")
    }

    /// Checks ranges, the engine's own start-up rules (R3, R4), and that every number has a source.
    ///
    /// Call it after changing fields by hand.
    ///
    /// # Errors
    /// The first rule broken.
    pub fn validate(&self) -> Result<(), ProfileError> {
        let numbers = self.numbers();
        for number in &numbers {
            number.check()?;
        }
        self.engine.check_start_up_rules()?;
        let known: Vec<&'static str> = numbers.iter().map(|number| number.field).collect();
        let named: BTreeSet<&str> =
            self.sources.iter().flat_map(|source| &source.fields).map(String::as_str).collect();
        if let Some(stray) = named.iter().find(|name| !known.contains(name)) {
            return Err(ProfileError::UnknownField { field: (*stray).to_owned(), known });
        }
        match numbers.into_iter().find(|n| n.needs_source() && !named.contains(n.field)) {
            Some(Number { field, .. }) => Err(ProfileError::Unsourced { field }),
            None => Ok(()),
        }
    }

    /// Time of one engine step in whole ns; see [`StepModel::step_ns`].
    #[inline]
    pub fn step_ns(&self, load: &StepLoad) -> u64 {
        self.step.step_ns(load)
    }

    /// The part of a step's time to cache per `(tokens, sampled)`, s; see [`StepModel::fixed_s`].
    #[inline]
    pub fn fixed_s(&self, tokens: u32, sampled: u32) -> f64 {
        self.step.fixed_s(tokens, sampled)
    }

    /// [`step_ns`](Self::step_ns) from a cached [`fixed_s`](Self::fixed_s), to the same bit.
    #[inline]
    pub fn step_ns_with_fixed(&self, fixed_s: f64, load: &StepLoad) -> u64 {
        self.step.step_ns_with_fixed(fixed_s, load)
    }

    /// Time between a request's arrival at the server and at the engine, ns.
    pub fn request_overhead_ns(&self, prompt_tokens: u32) -> u64 {
        let growth = self.request_overhead_s_per_prompt_token * f64::from(prompt_tokens);
        whole_ns(self.request_overhead_s + growth)
    }

    /// Time between the end of a step and its tokens at the client, ns.
    pub fn response_overhead_ns(&self) -> u64 {
        whole_ns(self.response_overhead_s)
    }

    /// Every number of the profile with its path and range. Destructured without `..`, so that a
    /// new field must be given a range and a source.
    fn numbers(&self) -> Vec<Number> {
        let Self {
            name: _,
            description: _,
            request_overhead_s,
            request_overhead_s_per_prompt_token,
            response_overhead_s,
            step,
            engine,
            sources: _,
        } = self;
        let StepModel {
            overhead_s,
            kernel_floor_s,
            linear_floor_s,
            linear_floor_s_per_token,
            linear_s_per_token,
            linear_knee,
            linear_tile_tokens,
            linear_tile_above_tokens,
            linear_jump_s,
            linear_jump_above_tokens,
            sample_s_per_seq,
            prefill_s_per_token,
            prefill_s_per_pair,
            prefill_tile_rows,
            prefill_wave_rows,
            decode_s_per_seq,
            decode_s_per_context_token,
            mixed_decode_s_per_seq,
            mixed_decode_s_per_context_token,
            decode_tail_s_per_token,
            decode_tail_above_seqs,
        } = step;
        let EngineDefaults {
            block_size,
            kv_blocks,
            max_num_batched_tokens,
            max_num_seqs,
            max_model_len,
            instances_per_device,
        } = engine;
        let cost = |field, value: &f64| Number { field, value: *value, range: Range::Cost };
        let count =
            |field, value: &u32| Number { field, value: f64::from(*value), range: Range::Count };
        let threshold = |field, value: &u32| Number { range: Range::Cost, ..count(field, value) };
        let optional = |number| Number { range: Range::Optional, ..number };
        vec![
            cost("request_overhead_s", request_overhead_s),
            cost("request_overhead_s_per_prompt_token", request_overhead_s_per_prompt_token),
            cost("response_overhead_s", response_overhead_s),
            cost("step.overhead_s", overhead_s),
            cost("step.kernel_floor_s", kernel_floor_s),
            cost("step.linear_floor_s", linear_floor_s),
            cost("step.linear_floor_s_per_token", linear_floor_s_per_token),
            cost("step.linear_s_per_token", linear_s_per_token),
            Number { range: Range::Knee, ..count("step.linear_knee", linear_knee) },
            count("step.linear_tile_tokens", linear_tile_tokens),
            threshold("step.linear_tile_above_tokens", linear_tile_above_tokens),
            optional(cost("step.linear_jump_s", linear_jump_s)),
            optional(count("step.linear_jump_above_tokens", linear_jump_above_tokens)),
            cost("step.sample_s_per_seq", sample_s_per_seq),
            cost("step.prefill_s_per_token", prefill_s_per_token),
            cost("step.prefill_s_per_pair", prefill_s_per_pair),
            cost("step.prefill_tile_rows", prefill_tile_rows),
            cost("step.prefill_wave_rows", prefill_wave_rows),
            cost("step.decode_s_per_seq", decode_s_per_seq),
            cost("step.decode_s_per_context_token", decode_s_per_context_token),
            cost("step.mixed_decode_s_per_seq", mixed_decode_s_per_seq),
            cost("step.mixed_decode_s_per_context_token", mixed_decode_s_per_context_token),
            optional(cost("step.decode_tail_s_per_token", decode_tail_s_per_token)),
            optional(count("step.decode_tail_above_seqs", decode_tail_above_seqs)),
            count("engine.block_size", block_size),
            count("engine.kv_blocks", kv_blocks),
            count("engine.max_num_batched_tokens", max_num_batched_tokens),
            count("engine.max_num_seqs", max_num_seqs),
            count("engine.max_model_len", max_model_len),
            count("engine.instances_per_device", instances_per_device),
        ]
    }
}

impl EngineDefaults {
    fn check_start_up_rules(&self) -> Result<(), ProfileError> {
        let &Self { block_size, kv_blocks, max_num_batched_tokens, max_num_seqs, .. } = self;
        let capacity = u64::from(kv_blocks.saturating_sub(1)) * u64::from(block_size);
        if u64::from(self.max_model_len) > capacity {
            return Err(ProfileError::SequenceExceedsCache {
                max_model_len: self.max_model_len,
                kv_blocks,
                block_size,
                capacity,
            });
        }
        if max_num_seqs > max_num_batched_tokens {
            return Err(ProfileError::SequencesExceedTokens {
                max_num_seqs,
                max_num_batched_tokens,
            });
        }
        Ok(())
    }
}

/// A number of a profile, with the path by which sources and errors call it.
struct Number {
    field: &'static str,
    value: f64,
    range: Range,
}

enum Range {
    /// Finite, not negative.
    Cost,
    /// The same; a profile may leave it out, and then it is 0 and needs no source.
    Optional,
    /// At least 1.
    Count,
    /// 1, 2, 4 or 8.
    Knee,
}

impl Number {
    fn needs_source(&self) -> bool {
        !matches!(self.range, Range::Optional) || self.value != 0.0
    }

    fn check(&self) -> Result<(), ProfileError> {
        let (valid, expected) = match self.range {
            Range::Cost | Range::Optional => {
                (self.value.is_finite() && self.value >= 0.0, "finite and 0 or more")
            }
            Range::Count => (self.value >= 1.0, "1 or more"),
            Range::Knee => ([1.0, 2.0, 4.0, 8.0].contains(&self.value), "1, 2, 4 or 8"),
        };
        if valid {
            Ok(())
        } else {
            Err(ProfileError::Range { field: self.field, value: self.value, expected })
        }
    }
}

/// The fields of a [`LatencyProfile`] before [`validate`](LatencyProfile::validate).
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UncheckedProfile {
    name: String,
    description: String,
    request_overhead_s: f64,
    request_overhead_s_per_prompt_token: f64,
    response_overhead_s: f64,
    step: StepModel,
    engine: EngineDefaults,
    sources: Vec<Source>,
}

impl TryFrom<UncheckedProfile> for LatencyProfile {
    type Error = ProfileError;

    fn try_from(unchecked: UncheckedProfile) -> Result<Self, ProfileError> {
        let UncheckedProfile {
            name,
            description,
            request_overhead_s,
            request_overhead_s_per_prompt_token,
            response_overhead_s,
            step,
            engine,
            sources,
        } = unchecked;
        let profile = Self {
            name,
            description,
            request_overhead_s,
            request_overhead_s_per_prompt_token,
            response_overhead_s,
            step,
            engine,
            sources,
        };
        profile.validate()?;
        Ok(profile)
    }
}

#[cfg(test)]
mod tests;
