//! How long one engine step takes: see [`StepModel`].

use serde::{Deserialize, Serialize};

use crate::load::StepLoad;

/// Coefficients of the step-time formula.
///
/// For a step of `n` tokens that samples `s` sequences, with the fields of this struct written
/// without their `_s` and those of [`StepLoad`] as they are,
///
/// ```text
/// step      = fixed(n, s) + attention                                         (0 if n = 0)
/// fixed     = overhead + kernel_floor + linear(n) + sample_per_seq * s
/// linear(n) = knee(linear_floor + linear_floor_per_token * n + jump(n),  linear_per_token * tile(n))
/// jump(n)   = linear_jump if n > linear_jump_above_tokens, else 0
/// knee(x,y) = (x^p + y^p)^(1/p),  p = linear_knee          a smooth max; p = 1 is the sum
/// tile(n)   = n rounded up to a multiple of linear_tile_tokens if n > linear_tile_above_tokens
/// ```
///
/// Below the knee a step is bound by reading the weights once, above it by arithmetic; the GEMM
/// kernels of large batches work in whole tiles, and those of the smallest in smaller ones, hence the
/// jump. Attention of a step without prefill is
///
/// ```text
/// attention = decode_per_seq * decode_seqs + decode_per_context_token * decode_context
///           + tail                                  (if decode_seqs > decode_tail_above_seqs)
/// tail      = decode_tail_per_token * (decode_context_max - decode_context / decode_seqs)
/// ```
///
/// and of a step with prefill chunks, where decodes run in the variable-length kernel too,
///
/// ```text
/// attention = max(prefill + decode + tail,
///                 prefill_per_pair * prefill_wave_rows * decode_context_max)
/// prefill   = prefill_per_token * prefill_tokens
///           + prefill_per_pair * max(prefill_pairs,
///                                    prefill_tile_rows * prefill_context,
///                                    prefill_wave_rows * prefill_pairs / prefill_tokens)
/// decode    = mixed_decode_per_seq * decode_seqs
///           + mixed_decode_per_context_token * decode_context
/// ```
///
/// The inner `max` says that the kernel pads each chunk's query rows to tiles, and that fewer than
/// `prefill_wave_rows` rows do not fill the device: one row against a long context takes as long as
/// that many do. The outer `max` is the same floor for a long decode beside a short chunk.
///
/// The tail is what contexts of unequal length cost more than equal ones: the kernel gives each
/// sequence and KV head to one thread block, and those of the longest run on when the others are
/// done. In small batches without prefill it splits each context among several blocks, and there
/// is no tail.
///
/// Only `+ - * /`, `sqrt` and comparisons occur: IEEE 754 rounds each of them one way, so a step
/// takes the same number of nanoseconds on every machine.
///
/// Times are seconds and hold for an instance that has its device to itself; two busy instances
/// on one device slow each other down, which is the simulator's business. All coefficients are
/// finite and not negative.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepModel {
    /// Host time of a step that the device does not hide (scheduler, input preparation), s.
    pub overhead_s: f64,
    /// Device time of every step whatever its load, s: launch of the attention kernels, and the
    /// part of `lm_head` and sampler that does not grow (vLLM V1 runs them on each sequence's last
    /// row even when no token comes of it).
    pub kernel_floor_s: f64,
    /// Linear layers, memory bound: time to read the weights, s.
    pub linear_floor_s: f64,
    /// Linear layers, memory bound: growth per token, s.
    pub linear_floor_s_per_token: f64,
    /// Linear layers, compute bound: time per token, s.
    pub linear_s_per_token: f64,
    /// Exponent `p` of the smooth maximum of the two: 1, 2, 4 or 8.
    pub linear_knee: u32,
    /// Tokens per GEMM tile of a large batch; 1 for no rounding.
    pub linear_tile_tokens: u32,
    /// Batches of more tokens than this compute in whole tiles.
    pub linear_tile_above_tokens: u32,
    /// Linear layers, memory bound: what batches of more than `linear_jump_above_tokens` take
    /// longer, s; 0 for no jump. A profile may leave it out.
    #[serde(default, skip_serializing_if = "is_out")]
    pub linear_jump_s: f64,
    /// Largest batch below the jump, tokens. A profile may leave it out.
    #[serde(default, skip_serializing_if = "is_out")]
    pub linear_jump_above_tokens: u32,
    /// `lm_head` and sampler: time per sampled sequence, s.
    pub sample_s_per_seq: f64,
    /// Prefill attention: time per new token (KV write, masked half of diagonal tiles), s.
    pub prefill_s_per_token: f64,
    /// Prefill attention: time per query-key pair over all layers and heads, s.
    pub prefill_s_per_pair: f64,
    /// Query rows to which the attention kernel pads a chunk; 0 for none. Also the price of
    /// reading a long cached prefix for a short suffix.
    pub prefill_tile_rows: f64,
    /// Query rows below which the attention kernel leaves the device partly idle; 0 for none.
    pub prefill_wave_rows: f64,
    /// Decode attention in a step without prefill: time per sequence, s.
    pub decode_s_per_seq: f64,
    /// Decode attention in a step without prefill: time per context token, s.
    pub decode_s_per_context_token: f64,
    /// Decode attention beside prefill chunks: time per sequence, s.
    pub mixed_decode_s_per_seq: f64,
    /// Decode attention beside prefill chunks: time per context token, s.
    pub mixed_decode_s_per_context_token: f64,
    /// Decode attention: time per token by which the longest context exceeds the mean, s; 0 if only
    /// the sum of contexts counts, or nobody measured it. A profile may leave it out.
    #[serde(default, skip_serializing_if = "is_out")]
    pub decode_tail_s_per_token: f64,
    /// Steps without prefill have a tail if they decode more sequences than this. A profile may
    /// leave it out.
    #[serde(default, skip_serializing_if = "is_out")]
    pub decode_tail_above_seqs: u32,
}

/// Whether a number that a profile may leave out is out.
fn is_out<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

impl StepModel {
    /// A model in which everything is free: where a fit starts from.
    pub fn zero() -> Self {
        Self {
            overhead_s: 0.0,
            kernel_floor_s: 0.0,
            linear_floor_s: 0.0,
            linear_floor_s_per_token: 0.0,
            linear_s_per_token: 0.0,
            linear_knee: 8,
            linear_tile_tokens: 1,
            linear_tile_above_tokens: 0,
            linear_jump_s: 0.0,
            linear_jump_above_tokens: 0,
            sample_s_per_seq: 0.0,
            prefill_s_per_token: 0.0,
            prefill_s_per_pair: 0.0,
            prefill_tile_rows: 0.0,
            prefill_wave_rows: 0.0,
            decode_s_per_seq: 0.0,
            decode_s_per_context_token: 0.0,
            mixed_decode_s_per_seq: 0.0,
            mixed_decode_s_per_context_token: 0.0,
            decode_tail_s_per_token: 0.0,
            decode_tail_above_seqs: 0,
        }
    }

    /// This model with every step `seconds` longer, or shorter if negative: the difference goes to
    /// the overhead, and what would make that negative off the kernel floor, down to 0.
    #[must_use]
    pub fn plus_per_step(mut self, seconds: f64) -> Self {
        let overhead_s = self.overhead_s + seconds;
        self.overhead_s = overhead_s.max(0.0);
        self.kernel_floor_s = (self.kernel_floor_s + overhead_s.min(0.0)).max(0.0);
        self
    }

    /// This model on a machine `speed` times as fast: every step takes `1 / speed` of its time.
    #[must_use]
    pub fn at_speed(&self, speed: f64) -> Self {
        Self {
            overhead_s: self.overhead_s / speed,
            kernel_floor_s: self.kernel_floor_s / speed,
            linear_floor_s: self.linear_floor_s / speed,
            linear_floor_s_per_token: self.linear_floor_s_per_token / speed,
            linear_s_per_token: self.linear_s_per_token / speed,
            linear_knee: self.linear_knee,
            linear_tile_tokens: self.linear_tile_tokens,
            linear_tile_above_tokens: self.linear_tile_above_tokens,
            linear_jump_s: self.linear_jump_s / speed,
            linear_jump_above_tokens: self.linear_jump_above_tokens,
            sample_s_per_seq: self.sample_s_per_seq / speed,
            prefill_s_per_token: self.prefill_s_per_token / speed,
            prefill_s_per_pair: self.prefill_s_per_pair / speed,
            prefill_tile_rows: self.prefill_tile_rows,
            prefill_wave_rows: self.prefill_wave_rows,
            decode_s_per_seq: self.decode_s_per_seq / speed,
            decode_s_per_context_token: self.decode_s_per_context_token / speed,
            mixed_decode_s_per_seq: self.mixed_decode_s_per_seq / speed,
            mixed_decode_s_per_context_token: self.mixed_decode_s_per_context_token / speed,
            decode_tail_s_per_token: self.decode_tail_s_per_token / speed,
            decode_tail_above_seqs: self.decode_tail_above_seqs,
        }
    }

    /// Part of the step time that depends only on the scheduled tokens and sampled sequences, s.
    ///
    /// Worth caching per `(tokens, sampled)`: a decode batch repeats it for hundreds of steps.
    pub fn fixed_s(&self, tokens: u32, sampled: u32) -> f64 {
        if tokens == 0 {
            return 0.0;
        }
        let mut memory = self.linear_floor_s + self.linear_floor_s_per_token * f64::from(tokens);
        if tokens > self.linear_jump_above_tokens {
            memory += self.linear_jump_s;
        }
        let compute = self.linear_s_per_token * self.tiled(tokens);
        let linear = smooth_max(memory, compute, self.linear_knee);
        self.overhead_s + self.kernel_floor_s + linear + self.sample_s_per_seq * f64::from(sampled)
    }

    /// Part of the step time that depends on contexts, s.
    #[inline]
    pub fn attention_s(&self, load: &StepLoad) -> f64 {
        if load.prefill_tokens == 0 {
            return self.decode_s_per_seq * f64::from(load.decode_seqs)
                + self.decode_s_per_context_token * load.decode_context as f64
                + self.tail_s(load);
        }
        self.mixed_attention_s(load)
    }

    /// Step time before rounding, s; 0 for an empty step.
    pub fn step_s(&self, load: &StepLoad) -> f64 {
        if load.tokens == 0 {
            return 0.0;
        }
        self.fixed_s(load.tokens, load.sampled) + self.attention_s(load)
    }

    /// Step time in whole nanoseconds: at least 1, but 0 for an empty step (R41: it costs no model time).
    pub fn step_ns(&self, load: &StepLoad) -> u64 {
        self.step_ns_with_fixed(self.fixed_s(load.tokens, load.sampled), load)
    }

    /// [`step_ns`](Self::step_ns) with [`fixed_s`](Self::fixed_s) of the load's tokens and sampled
    /// sequences already known; the same to the last bit.
    #[inline]
    pub fn step_ns_with_fixed(&self, fixed_s: f64, load: &StepLoad) -> u64 {
        if load.tokens == 0 {
            return 0;
        }
        whole_ns(fixed_s + self.attention_s(load)).max(1)
    }

    fn mixed_attention_s(&self, load: &StepLoad) -> f64 {
        let tokens = f64::from(load.prefill_tokens);
        let pairs = load.prefill_pairs as f64;
        let context = load.prefill_context as f64;
        let padded = pairs
            .max(self.prefill_tile_rows * context)
            .max(self.prefill_wave_rows * pairs / tokens);
        let prefill = self.prefill_s_per_token * tokens + self.prefill_s_per_pair * padded;
        if load.decode_seqs == 0 {
            return prefill;
        }
        let seqs = f64::from(load.decode_seqs);
        let context = load.decode_context as f64;
        let decode =
            self.mixed_decode_s_per_seq * seqs + self.mixed_decode_s_per_context_token * context;
        let longest = load.decode_context_max as f64;
        let one_wave = self.prefill_s_per_pair * self.prefill_wave_rows * longest;
        (prefill + decode + self.tail_s(load)).max(one_wave)
    }

    /// What the decodes' unequal lengths add, s.
    fn tail_s(&self, load: &StepLoad) -> f64 {
        let is_split = load.prefill_tokens == 0 && load.decode_seqs <= self.decode_tail_above_seqs;
        if self.decode_tail_s_per_token <= 0.0 || load.decode_seqs == 0 || is_split {
            return 0.0;
        }
        let mean = load.decode_context as f64 / f64::from(load.decode_seqs);
        self.decode_tail_s_per_token * (load.decode_context_max as f64 - mean).max(0.0)
    }

    fn tiled(&self, tokens: u32) -> f64 {
        if tokens > self.linear_tile_above_tokens && self.linear_tile_tokens > 1 {
            let tile = u64::from(self.linear_tile_tokens);
            (u64::from(tokens).div_ceil(tile) * tile) as f64
        } else {
            f64::from(tokens)
        }
    }
}

/// Seconds to the nearest nanosecond, halves up.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, coefficients are not negative, and dropping the fraction is the rounding"
)]
pub(crate) fn whole_ns(seconds: f64) -> u64 {
    (seconds * 1e9 + 0.5) as u64
}

/// `(x^p + y^p)^(1/p)` for `p` = 1, 2, 4 or 8, of non-negative `x` and `y`.
fn smooth_max(x: f64, y: f64, exponent: u32) -> f64 {
    let (low, high) = if x < y { (x, y) } else { (y, x) };
    if high <= 0.0 {
        return 0.0;
    }
    let doublings = exponent.trailing_zeros();
    let mut power = low / high;
    for _ in 0..doublings {
        power *= power;
    }
    let mut root = 1.0 + power;
    for _ in 0..doublings {
        root = root.sqrt();
    }
    high * root
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LatencyProfile;

    #[test]
    #[expect(clippy::float_cmp, reason = "these results are exact")]
    fn smooth_max_runs_from_sum_to_maximum() {
        assert_eq!(smooth_max(3.0, 4.0, 1), 7.0);
        assert_eq!(smooth_max(3.0, 4.0, 2), 5.0);
        assert_eq!(smooth_max(0.0, 4.0, 8), 4.0);
        assert_eq!(smooth_max(0.0, 0.0, 8), 0.0);
        let knee = smooth_max(1.0, 1.0, 8);
        assert!((knee - 1.090_507_732_665_257_7).abs() < 1e-15, "{knee}");
    }

    #[test]
    fn tiles_start_above_their_threshold() {
        let model = StepModel {
            linear_s_per_token: 1.0,
            linear_tile_tokens: 128,
            linear_tile_above_tokens: 256,
            ..StepModel::zero()
        };
        let ns = |tokens| model.step_ns(&StepLoad { tokens, ..StepLoad::default() });
        assert_eq!(ns(255), 255_000_000_000);
        assert_eq!(ns(256), 256_000_000_000);
        assert_eq!(ns(257), 384_000_000_000);
        assert_eq!(ns(385), 512_000_000_000);
    }

    #[test]
    fn larger_batches_than_the_smallest_tile_take_longer() {
        let model = StepModel {
            linear_floor_s: 10.0,
            linear_jump_s: 2.0,
            linear_jump_above_tokens: 16,
            ..StepModel::zero()
        };
        let [below, above] = [16, 17].map(|tokens| model.fixed_s(tokens, 0));
        assert!((below - 10.0).abs() < 1e-12 && (above - 12.0).abs() < 1e-12, "{below} {above}");
    }

    #[test]
    fn short_chunks_pay_for_tiles_and_an_idle_device() {
        let model = StepModel {
            prefill_s_per_pair: 1.0,
            prefill_tile_rows: 64.0,
            prefill_wave_rows: 256.0,
            ..StepModel::zero()
        };
        let attention = |load: StepLoad| model.attention_s(&load);
        let chunk = |load: StepLoad| load.with_chunk(1000, 16, true);
        let one = attention(chunk(StepLoad::default()));
        assert!((one - 256.0 * 1008.5).abs() < 1e-6, "one wave of rows: {one}");
        let sixteen = attention((0..16).fold(StepLoad::default(), |load, _| chunk(load)));
        assert!((sixteen - 16.0 * 64.0 * 1016.0).abs() < 1e-6, "sixteen tiles: {sixteen}");
        let long = attention(StepLoad::default().with_chunk(1000, 512, true));
        assert!((long - (512_000.0 + 256.0 * 513.0)).abs() < 1e-6, "pairs: {long}");
    }

    #[test]
    fn the_longest_decode_runs_on_when_the_others_are_done() {
        let model = StepModel {
            decode_tail_s_per_token: 1.0,
            decode_tail_above_seqs: 2,
            ..StepModel::zero()
        };
        let attention = |load: StepLoad| model.attention_s(&load);
        let two = StepLoad::default().with_decodes(1, 100).with_decodes(1, 200);
        let three = two.with_decodes(1, 300);
        assert!(attention(two).abs() < 1e-9, "two are split");
        assert!((attention(three) - 100.0).abs() < 1e-9, "300 against a mean of 200");
        let beside_a_chunk = attention(two.with_chunk(0, 16, true));
        assert!((beside_a_chunk - 50.0).abs() < 1e-9, "200 against 150: {beside_a_chunk}");
        assert!(attention(StepLoad::default().with_decodes(5, 500)).abs() < 1e-9, "equal lengths");
        assert!(attention(StepLoad::default().with_chunk(0, 16, true)).abs() < 1e-9, "no decodes");
    }

    #[test]
    fn a_shorter_step_takes_from_the_overhead_first() {
        let model = StepModel { overhead_s: 1.0, kernel_floor_s: 2.0, ..StepModel::zero() };
        for (seconds, overhead_s, floor_s) in
            [(0.5, 1.5, 2.0), (-0.5, 0.5, 2.0), (-2.0, 0.0, 1.0), (-9.0, 0.0, 0.0)]
        {
            let changed = model.clone().plus_per_step(seconds);
            let expected = StepModel { overhead_s, kernel_floor_s: floor_s, ..StepModel::zero() };
            assert_eq!(changed, expected, "{seconds}");
        }
    }

    #[test]
    fn half_the_speed_is_twice_the_time() {
        for name in LatencyProfile::names() {
            let model = LatencyProfile::builtin(name).unwrap().step;
            let slow = model.at_speed(0.5);
            let decode = StepLoad::default().with_decodes(20, 9_000);
            for load in [decode, decode.with_chunk(3_000, 700, true)] {
                assert_eq!(slow.step_s(&load).to_bits(), (2.0 * model.step_s(&load)).to_bits());
            }
        }
    }

    #[test]
    fn a_step_takes_at_least_one_nanosecond_unless_empty() {
        let free = StepModel::zero();
        assert_eq!(free.step_ns(&StepLoad::default()), 0);
        assert_eq!(free.step_ns(&StepLoad::default().with_decodes(1, 10)), 1);
        let costly = StepModel { overhead_s: 1.0, ..StepModel::zero() };
        assert_eq!(costly.step_ns(&StepLoad::default()), 0);
        assert_eq!(costly.step_ns_with_fixed(1.0, &StepLoad::default()), 0);
    }
}
