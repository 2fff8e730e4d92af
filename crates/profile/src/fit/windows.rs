//! Step overhead of a running engine, from its once-a-second log.
//!
//! In a second in which `running` sequences only decode, every step makes one token of each, so
//! one step took `running / tokens` seconds. What is left after taking away the model's step is
//! time that kernels do not explain: host work that asynchronous scheduling does not hide, launch
//! gaps, and the model's own error. It can come out below zero, as where kernels were timed one by
//! one and the engine runs them fused and in CUDA graphs.

use std::io;

use serde::Deserialize;

use crate::load::StepLoad;
use crate::step::StepModel;

/// One second of an engine's log; gauges are those at its end.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogSecond {
    /// End of the second, s since the run began.
    pub t: f64,
    /// Prompt tokens computed in the second, cached ones included.
    pub prompt_throughput: f64,
    /// Output tokens made in the second.
    pub gen_throughput: f64,
    /// Sequences running.
    pub running: u32,
    /// Sequences waiting.
    pub waiting: u32,
    /// KV usage, percent.
    pub kv_cache_pct: f64,
}

/// A second in which only decoding happened.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecodeSecond {
    /// Its end, s since the run began.
    pub t: f64,
    /// Sequences running, mean of its beginning and end.
    pub running: f64,
    /// Steps taken in it.
    pub steps: f64,
    /// Length of one of them less the model's, s; may be negative.
    pub excess_s: f64,
}

/// Time per decode step beyond the model.
#[derive(Clone, Debug, PartialEq)]
pub struct StepOverhead {
    /// The seconds it was seen in, in the log's order.
    pub seconds: Vec<DecodeSecond>,
}

impl StepOverhead {
    /// The `fraction` quantile (nearest rank), s; `None` without data.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index between 0 and the length"
    )]
    pub fn quantile_s(&self, fraction: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.seconds.iter().map(|second| second.excess_s).collect();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().checked_sub(1)?;
        let index = (fraction.clamp(0.0, 1.0) * last as f64 + 0.5) as usize;
        sorted.get(index).copied()
    }

    /// Mean over steps, s: all the time beyond the model, by all the steps. `None` without data.
    pub fn mean_s(&self) -> Option<f64> {
        let steps: f64 = self.seconds.iter().map(|second| second.steps).sum();
        let beyond: f64 = self.seconds.iter().map(|second| second.steps * second.excess_s).sum();
        (steps > 0.0).then(|| beyond / steps)
    }
}

/// Reads a log with the columns of [`LogSecond`].
///
/// # Errors
/// `csv::Error` naming the line that does not fit.
pub fn read_engine_log(input: impl io::Read) -> Result<Vec<LogSecond>, csv::Error> {
    csv::Reader::from_reader(input).deserialize().collect()
}

/// Compares decode-only seconds of an engine's log with `model`.
///
/// A second counts if nothing was prefilled in it: no prompt tokens in it or the one before, and
/// no request admitted (a preempted one is recomputed without being counted as prompt tokens), so
/// `running` does not grow and, where requests wait, `waiting` does not shrink and no request
/// ended (the next would take its place) or came (it would hide one that ended). Fewer than 8
/// sequences, or a change of more than two, are left out as too coarse.
///
/// Contexts are KV usage less half a block per sequence, taken as equal: a log does not tell the
/// longest, so a model with a tail is charged none.
pub fn step_overhead(
    log: &[LogSecond],
    model: &StepModel,
    kv_tokens: u32,
    block_size: u32,
) -> StepOverhead {
    let seconds = log
        .windows(2)
        .filter(|pair| only_decodes(&pair[0], &pair[1]))
        .map(|pair| {
            let running = f64::from(pair[0].running + pair[1].running) / 2.0;
            let usage = (pair[0].kv_cache_pct + pair[1].kv_cache_pct) / 200.0;
            let unused = running * f64::from(block_size - 1) / 2.0;
            let context = usage * f64::from(kv_tokens) - unused;
            let steps = pair[1].gen_throughput / running;
            let excess_s = steps.recip() - decode_step_s(model, running, context);
            DecodeSecond { t: pair[1].t, running, steps, excess_s }
        })
        .collect();
    StepOverhead { seconds }
}

fn only_decodes(before: &LogSecond, now: &LogSecond) -> bool {
    let no_prompt = before.prompt_throughput == 0.0 && now.prompt_throughput == 0.0;
    let steady = now.running >= 8 && now.running <= before.running;
    let small_change = before.running.saturating_sub(now.running) <= 2;
    let requests = |second: &LogSecond| second.running + second.waiting;
    let nobody_waits = before.waiting == 0 && now.waiting == 0;
    let nobody_admitted = now.waiting >= before.waiting && requests(now) == requests(before);
    no_prompt
        && steady
        && small_change
        && now.gen_throughput > 0.0
        && (nobody_waits || nobody_admitted)
}

/// Step of a fractional mean number of sequences, between its whole neighbours.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sequence and context counts, small and not negative"
)]
fn decode_step_s(model: &StepModel, running: f64, context: f64) -> f64 {
    let step = |seqs: f64| {
        model.step_s(&StepLoad::default().with_decodes(seqs as u32, context.max(0.0) as u64))
    };
    f64::midpoint(step(running.floor()), step(running.ceil()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(running: u32, waiting: u32, tokens: f64) -> LogSecond {
        LogSecond {
            t: 0.0,
            prompt_throughput: 0.0,
            gen_throughput: tokens,
            running,
            waiting,
            kv_cache_pct: 50.0,
        }
    }

    #[test]
    fn a_steady_second_shows_the_excess() {
        let model = StepModel { overhead_s: 0.020, ..StepModel::zero() };
        // 10 sequences, 400 tokens: 40 steps of 25 ms.
        let log = [second(10, 0, 400.0), second(10, 0, 400.0)];
        let found = step_overhead(&log, &model, 1000, 16);
        assert!((found.quantile_s(0.5).unwrap() - 0.005).abs() < 1e-12);
    }

    #[test]
    fn the_mean_is_over_steps() {
        let second = |steps, excess_s| DecodeSecond { t: 0.0, running: 8.0, steps, excess_s };
        let found = StepOverhead { seconds: vec![second(30.0, 3e-3), second(10.0, -1e-3)] };
        assert!((found.mean_s().unwrap() - 2e-3).abs() < 1e-12);
        assert_eq!(StepOverhead { seconds: Vec::new() }.mean_s(), None);
    }

    #[test]
    fn seconds_with_prefill_do_not_count() {
        let model = StepModel::zero();
        let prompt = LogSecond { prompt_throughput: 1.0, ..second(10, 0, 400.0) };
        let resumed = [second(10, 5, 400.0), second(10, 4, 400.0)];
        let grown = [second(10, 0, 400.0), second(11, 0, 400.0)];
        let came = [second(10, 5, 400.0), second(10, 6, 400.0)];
        let few = [second(7, 0, 400.0), second(7, 0, 400.0)];
        for log in [[prompt, second(10, 0, 400.0)], resumed, grown, came, few] {
            assert_eq!(step_overhead(&log, &model, 1000, 16).quantile_s(0.5), None, "{log:?}");
        }
    }
}
