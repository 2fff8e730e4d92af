//! Takes a calibration's measurements at a live instance, with the load driver.

use std::num::NonZeroU32;
use std::time::SystemTime;

use anyhow::anyhow;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use kvroute_load::{InstanceTarget, LoadConfig, LoadOutcome, Mode, PromptForm, Summary, Target};
use kvroute_profile::{Measure, Measured, Probe};
use kvroute_types::{RequestRecord, Timestamp, mix64};
use kvroute_workload::{TokenPrompt, Workload};

use crate::failure::Failure;

/// Ids below this are left to the model's special tokens.
const FIRST_TOKEN_ID: u32 = 100;
/// Prompts longer than this are prefilled before their decode steps are measured, so that all decode at once.
const PREFILLED_ABOVE: u32 = 128;

/// Rounds over all measurements.
const ROUNDS: u32 = 3;

/// Sends prompts to one instance.
pub(super) struct Driver {
    instance: Target,
    model: Option<String>,
    vocabulary: u32,
    /// Of all prompts: no two calibrations send the same ones.
    salt: u64,
}

/// What one probe gave so far.
#[derive(Default)]
struct Samples {
    /// As the client saw it, s.
    client_s: Vec<f64>,
    /// Of first tokens, as the instance told.
    cached_tokens: Vec<u32>,
    /// Sum and number of the engine's own prefill times, s; of cold first tokens, if it tells them.
    engine_s: (f64, f64),
}

impl Driver {
    pub(super) fn new(
        instance: Target,
        model: Option<String>,
        vocabulary: u32,
        started: SystemTime,
    ) -> Self {
        let now = started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let salt = mix64(now.as_secs() ^ u64::from(now.subsec_nanos()).rotate_left(32));
        Self { instance, model, vocabulary, salt }
    }

    pub(super) fn salt(&self) -> u64 {
        self.salt
    }

    /// Takes all measurements, in rounds over all of them, so that what disturbs the machine for a while does not spoil
    /// every repetition of one; progress goes to standard error.
    pub(super) async fn measure(&self, probes: &[Probe]) -> Result<Vec<Measured>, Failure> {
        let style = ProgressStyle::with_template("{bar:30} {percent} %: {msg}, {elapsed} gone");
        let progress = ProgressBar::new(u64::from(ROUNDS) * probes.len() as u64)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        self.warm_up().await?;
        let mut samples: Vec<Samples> = probes.iter().map(|_| Samples::default()).collect();
        for round in 0..ROUNDS {
            for ((number, probe), samples) in (1..).zip(probes).zip(&mut samples) {
                progress.set_message(format!("{:?}", probe.measure));
                let reps = (round..probe.repetitions).step_by(ROUNDS as usize).collect::<Vec<_>>();
                if !reps.is_empty() {
                    self.take(number, &reps, probe.measure, samples).await?;
                }
                progress.inc(1);
            }
        }
        progress.finish_and_clear();
        Ok(probes
            .iter()
            .zip(samples)
            .map(|(probe, samples)| samples.measured(probe.measure))
            .collect())
    }

    /// The first requests of a server's life are slow.
    async fn warm_up(&self) -> Result<(), Failure> {
        let prompts = (0..3).map(|rep| self.prompt(0, rep, 300, 8));
        self.play(one_by_one(), prompts.collect()).await.map(|_| ())
    }

    /// Takes repetitions of one measurement.
    async fn take(
        &self,
        number: u64,
        reps: &[u32],
        measure: Measure,
        samples: &mut Samples,
    ) -> Result<(), Failure> {
        match measure {
            Measure::FirstToken { prompt_tokens, cached_tokens } => {
                let prompts = reps.iter().map(|rep| self.prompt(number, *rep, prompt_tokens, 1));
                self.take_first_tokens(prompts.collect(), cached_tokens, samples).await
            }
            Measure::Decode { batch, prompt_tokens, output_tokens } => {
                for rep in reps {
                    let prompts = |output_tokens: u32| -> Vec<TokenPrompt> {
                        let prompt = |index| {
                            self.prompt(number, (rep << 16) + index, prompt_tokens, output_tokens)
                        };
                        (0..batch).map(prompt).collect()
                    };
                    if prompt_tokens > PREFILLED_ABOVE {
                        self.play(one_by_one(), prompts(1)).await?;
                    }
                    let outcome = self.play(Mode::OpenLoop {}, prompts(output_tokens)).await?;
                    samples.client_s.push(middle_mean_s(&outcome.inter_token_ns));
                }
                Ok(())
            }
        }
    }

    /// First tokens of prompts, whose first `cached_tokens` a request just before leaves in the cache.
    async fn take_first_tokens(
        &self,
        measured: Vec<TokenPrompt>,
        cached_tokens: u32,
        samples: &mut Samples,
    ) -> Result<(), Failure> {
        let mut prompts = Vec::new();
        for prompt in measured {
            if cached_tokens > 0 {
                let mut first = prompt.clone();
                first.tokens.truncate(cached_tokens as usize);
                prompts.push(first);
            }
            prompts.push(prompt);
        }
        let outcome = self.play(one_by_one(), prompts).await?;
        let every = if cached_tokens > 0 { 2 } else { 1 };
        let measured = || outcome.records.iter().skip(every - 1).step_by(every);
        samples.client_s.extend(measured().filter_map(ttft_s));
        // A server that does not tell is taken at its rule: whole blocks are found again.
        let cached = |record: &RequestRecord| record.cached_tokens.map_or(cached_tokens, |c| c.0);
        samples.cached_tokens.extend(measured().map(cached));
        let delta = outcome.instances.first().and_then(|instance| instance.delta()?.ok());
        let prefills = delta.as_ref().and_then(|delta| delta.summary(Summary::PrefillTime));
        if let Some(prefills) = prefills.filter(|_| cached_tokens == 0) {
            samples.engine_s.0 += prefills.sum;
            samples.engine_s.1 += prefills.count;
        }
        Ok(())
    }

    async fn play(&self, mode: Mode, prompts: Vec<TokenPrompt>) -> Result<LoadOutcome, Failure> {
        let vocabulary = NonZeroU32::new(self.vocabulary).unwrap_or(NonZeroU32::MIN);
        let config = LoadConfig {
            target: self.instance.clone(),
            model: self.model.clone(),
            mode,
            prompt_form: PromptForm::TokenIds { vocabulary },
            instances: vec![InstanceTarget::new(self.instance.clone())],
            // Only the pages before and after are of use, and reading one disturbs.
            metrics_interval_s: 3_600.0,
            ..LoadConfig::default()
        };
        let workload = Workload::of_prompts("calibration", prompts);
        let outcome = kvroute_load::run(config, &workload, |_| {}).await.map_err(Failure::usage)?;
        if let Some((kind, failures)) = outcome.failures.first_key_value() {
            return Err(Failure::Run(anyhow!(
                "{} of {} requests failed ({kind}): {}; give the engine's sizes and --vocabulary as the instance has them",
                failures.count,
                workload.requests().len(),
                failures.example
            )));
        }
        Ok(outcome)
    }

    /// A prompt that nobody has seen, the same each time it is asked for.
    fn prompt(&self, number: u64, rep: u32, tokens: u32, output_tokens: u32) -> TokenPrompt {
        let seed = mix64(self.salt ^ mix64((number << 32) | u64::from(rep)));
        let ids = u64::from(self.vocabulary - FIRST_TOKEN_ID);
        let token = |index: u32| {
            let drawn = mix64(seed ^ u64::from(index)) % ids;
            FIRST_TOKEN_ID + u32::try_from(drawn).expect("it is below the vocabulary's size")
        };
        TokenPrompt {
            arrival: Timestamp::ZERO,
            tokens: (0..tokens).map(token).collect(),
            output_tokens,
        }
    }
}

impl Samples {
    /// The repetitions as one measurement.
    fn measured(self, measure: Measure) -> Measured {
        let Self { client_s, cached_tokens, engine_s: (sum_s, count) } = self;
        let client_mean_s = client_s.iter().sum::<f64>() / client_s.len() as f64;
        let measure = match measure {
            Measure::FirstToken { prompt_tokens, .. } => {
                Measure::FirstToken { prompt_tokens, cached_tokens: middle(cached_tokens) }
            }
            Measure::Decode { .. } => measure,
        };
        let means_s = (count > 0.0).then(|| (client_mean_s, sum_s / count));
        Measured { measure, seconds: median(client_s), means_s }
    }
}

fn one_by_one() -> Mode {
    Mode::ClosedLoop { concurrency: NonZeroU32::MIN }
}

fn ttft_s(record: &RequestRecord) -> Option<f64> {
    Some(record.first_token?.since(record.arrival).as_secs_f64())
}

/// Mean of the middle half of the gaps, s. Outside of it lie the steps before and after all of the batch decode, and those
/// that something else disturbed; a median would show the grain of the machine's timers.
fn middle_mean_s(gaps_ns: &Histogram<u64>) -> f64 {
    let (first, last) = (gaps_ns.len() / 4, gaps_ns.len() - gaps_ns.len() / 4);
    let (mut below, mut sum_ns) = (0, 0.0);
    for level in gaps_ns.iter_recorded() {
        let above = below + level.count_at_value();
        let inside = above.min(last).saturating_sub(below.max(first));
        sum_ns += inside as f64 * gaps_ns.median_equivalent(level.value_iterated_to()) as f64;
        below = above;
    }
    sum_ns * 1e-9 / (last - first) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    kvroute_lab::quantile(&values, 0.5).unwrap_or(f64::NAN)
}

fn middle(mut values: Vec<u32>) -> u32 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_half_counts() {
        let mut gaps = Histogram::<u64>::new(3).unwrap();
        for ns in [1, 2, 1_000, 1_004, 1_008, 1_012, 90_000, 99_000] {
            gaps.record(ns).unwrap();
        }
        assert!((middle_mean_s(&gaps) - 1_006e-9).abs() < 1e-12, "{}", middle_mean_s(&gaps));
        gaps.reset();
        gaps.record_n(500, 5).unwrap();
        assert!((middle_mean_s(&gaps) - 500e-9).abs() < 1e-15);
    }

    #[test]
    fn prompts_are_new_but_repeatable() {
        let driver = |seconds| {
            let started = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            Driver::new(Target::local(1), None, 8_000, started)
        };
        let prompt = driver(1).prompt(3, 2, 400, 1);
        assert_eq!(prompt, driver(1).prompt(3, 2, 400, 1));
        assert!(prompt.tokens.iter().all(|id| (FIRST_TOKEN_ID..8_000).contains(id)));
        let others = [
            driver(1).prompt(3, 1, 400, 1),
            driver(1).prompt(2, 2, 400, 1),
            driver(2).prompt(3, 2, 400, 1),
        ];
        assert!(others.iter().all(|other| other.tokens[0] != prompt.tokens[0]));
    }
}
