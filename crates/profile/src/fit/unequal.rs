//! What decodes of unequal length cost beyond equal ones, from kernel times of batches of two lengths.

use std::io;

use serde::Deserialize;

use super::{
    Coefficient, FitDomain, FitError, LayerProfile, LayerProfileError, ModelShape, Observation,
    fit_observations,
};
use crate::load::StepLoad;
use crate::step::StepModel;

/// Attention time of one transformer layer for decodes of two lengths, at most one prefill chunk
/// beside them, and for as many decodes of their mean length.
///
/// The three times are in one unit, which need not be that of a [`LayerProfile`]: see
/// [`fit_decode_tail`].
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub struct UnequalTime {
    /// Tokens of the prefill chunk; 0 for none.
    #[serde(rename = "pc")]
    pub prefill_chunk: u32,
    /// Tokens of its sequence computed before.
    #[serde(rename = "kp")]
    pub kv_prefill: u32,
    /// Decoding sequences.
    #[serde(rename = "n")]
    pub n_decode: u32,
    /// Those of them that are long.
    #[serde(rename = "nb")]
    pub n_long: u32,
    /// Context of each of the others, tokens.
    #[serde(rename = "kvs")]
    pub kv_short: u32,
    /// Context of each long one, tokens.
    #[serde(rename = "kv_big")]
    pub kv_long: u32,
    /// Time with the two lengths.
    #[serde(rename = "t_skew_us")]
    pub unequal: f64,
    /// Time with each decode at the mean length.
    #[serde(rename = "t_mean_us")]
    pub equal: f64,
    /// Time with each decode at `kv_long`.
    #[serde(rename = "t_max_us")]
    pub longest: f64,
}

/// A fitted tail with what it was fitted to.
#[derive(Clone, Debug, PartialEq)]
pub struct TailFit {
    /// `kernels` with the tail.
    pub step: StepModel,
    /// Times of the file that make one second: the median over batches that both files have.
    pub units_per_s: f64,
    /// Whole steps with unequal lengths: the kernel fit's step of equal lengths plus what was measured to be
    /// more. Batches that the kernel splits are among them; they have no weight in the fit.
    pub steps: Vec<Observation>,
}

/// Reads a file with at least the columns `n,nb,pc,kp,kvs,kv_big,t_mean_us,t_max_us,t_skew_us`, as
/// `LLMServingSim`'s profiler writes it.
///
/// # Errors
/// [`LayerProfileError::Csv`] naming the line that does not fit.
pub fn read_unequal_times(input: impl io::Read) -> Result<Vec<UnequalTime>, LayerProfileError> {
    csv::Reader::from_reader(input).deserialize().collect::<Result<_, _>>().map_err(|source| {
        LayerProfileError::Csv {
            file: "unequal-length",
            columns: "n,nb,pc,kp,kvs,kv_big,t_mean_us,t_max_us,t_skew_us and others",
            source,
        }
    })
}

/// The tail per token that explains best what batches of two lengths took beyond equal ones.
///
/// Only the *difference* of the two times counts, so an error of `kernels` (a fit without a tail)
/// does not leak in. It minimises the squared error relative to the whole step; decode-only and mixed
/// batches count alike. Decode-only batches of up to `above_seqs` sequences, whose contexts the
/// kernel splits, do not count.
///
/// The files' unit is told by the batches of equal length that `profile` has too. (A profiler that
/// sums over repetitions where it should average is the reason.)
///
/// # Errors
/// [`LayerProfileError::Fit`] without a batch of a kind, or without one that `profile` has too.
pub fn fit_decode_tail(
    times: &[UnequalTime],
    profile: &LayerProfile,
    shape: ModelShape,
    domain: FitDomain,
    kernels: &StepModel,
    above_seqs: u32,
) -> Result<TailFit, LayerProfileError> {
    let none = FitError::TooFewObservations { observations: 0, free: 1 };
    let units_per_s = units_per_s(times, profile).ok_or_else(|| none.clone())?;
    let batches: Vec<&UnequalTime> = times.iter().filter(|time| time.is_within(domain)).collect();
    let counts = |time: &UnequalTime| time.prefill_chunk > 0 || time.n_decode > above_seqs;
    let of_kind = |mixed: bool| {
        batches.iter().filter(|b| counts(b) && (b.prefill_chunk > 0) == mixed).count()
    };
    let (decode_only, mixed) = (of_kind(false), of_kind(true));
    if decode_only == 0 || mixed == 0 {
        return Err(none.into());
    }
    let layers = f64::from(shape.layers);
    let steps: Vec<Observation> = batches
        .iter()
        .map(|batch| {
            let more = layers * (batch.unequal - batch.equal) / units_per_s;
            let kind = if batch.prefill_chunk > 0 { mixed } else { decode_only };
            let weight = if counts(batch) { 1.0 / kind as f64 } else { 0.0 };
            let seconds = kernels.step_s(&batch.equal_load()) + more;
            Observation { weight, ..Observation::step(batch.load(), seconds) }
        })
        .collect();
    let start = StepModel {
        decode_tail_s_per_token: 1e-6,
        decode_tail_above_seqs: above_seqs,
        ..kernels.clone()
    };
    let step = fit_observations(&steps, &start, &[Coefficient::DecodeTailPerToken])?;
    Ok(TailFit { step, units_per_s, steps })
}

impl UnequalTime {
    fn context(&self) -> u64 {
        let short = u64::from(self.n_decode.saturating_sub(self.n_long)) * u64::from(self.kv_short);
        short + u64::from(self.n_long) * u64::from(self.kv_long)
    }

    fn load(&self) -> StepLoad {
        StepLoad { decode_context_max: u64::from(self.kv_long), ..self.equal_load() }
    }

    fn equal_load(&self) -> StepLoad {
        let load = StepLoad::default().with_decodes(self.n_decode, self.context());
        if self.prefill_chunk == 0 {
            return load;
        }
        load.with_chunk(self.kv_prefill, self.prefill_chunk, true)
    }

    fn is_within(&self, domain: FitDomain) -> bool {
        let prefill = u64::from(self.prefill_chunk) + u64::from(self.kv_prefill);
        prefill + self.context() <= domain.max_kv_tokens
            && self.prefill_chunk + self.n_decode <= domain.max_batched_tokens
    }
}

fn units_per_s(times: &[UnequalTime], profile: &LayerProfile) -> Option<f64> {
    let mut ratios: Vec<f64> = times
        .iter()
        .filter_map(|time| {
            let same = profile.attention.iter().find(|row| {
                (row.prefill_chunk, row.kv_prefill, row.n_decode, row.kv_decode)
                    == (time.prefill_chunk, time.kv_prefill, time.n_decode, time.kv_long)
            })?;
            Some(time.longest / same.seconds)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::fit::AttentionTime;

    const SHAPE: ModelShape = ModelShape { layers: 2, layernorms_per_layer: 2 };
    const DOMAIN: FitDomain = FitDomain { max_kv_tokens: 10_000, max_batched_tokens: 1000 };

    /// Times of a kernel whose tail is `tail_s` a token over both layers, in thirds of a microsecond.
    fn times(tail_s: f64) -> Vec<UnequalTime> {
        let batch = |prefill_chunk, n_long| {
            let (n_decode, kv_short, kv_long) = (8, 100, 500);
            let mean = f64::from(100 * (8 - n_long) + 500 * n_long) / 8.0;
            let equal = 30.0 + mean;
            let tail = tail_s / 2.0 * 3e6 * (500.0 - mean);
            UnequalTime {
                prefill_chunk,
                kv_prefill: 0,
                n_decode,
                n_long,
                kv_short,
                kv_long,
                unequal: equal + tail,
                equal,
                longest: 530.0,
            }
        };
        vec![batch(0, 1), batch(0, 4), batch(16, 1), batch(16, 4)]
    }

    fn profile() -> LayerProfile {
        let same = AttentionTime {
            prefill_chunk: 0,
            kv_prefill: 0,
            n_decode: 8,
            kv_decode: 500,
            seconds: 530e-6 / 3.0,
        };
        LayerProfile {
            dense: BTreeMap::new(),
            attention: vec![same],
            per_sequence: BTreeMap::new(),
        }
    }

    fn fit(times: &[UnequalTime], above_seqs: u32) -> Result<TailFit, LayerProfileError> {
        let kernels = StepModel { linear_floor_s: 0.01, ..StepModel::zero() };
        fit_decode_tail(times, &profile(), SHAPE, DOMAIN, &kernels, above_seqs)
    }

    #[test]
    fn a_known_tail_is_recovered_in_the_unit_of_the_other_file() {
        let found = fit(&times(2e-6), 4).unwrap();
        assert!((found.units_per_s / 3e6 - 1.0).abs() < 1e-12);
        assert!((found.step.decode_tail_s_per_token / 2e-6 - 1.0).abs() < 1e-6, "{found:?}");
        assert_eq!(found.step.decode_tail_above_seqs, 4);
    }

    #[test]
    fn both_kinds_of_batches_are_needed() {
        let error = fit(&times(2e-6), 8).unwrap_err();
        assert!(matches!(error, LayerProfileError::Fit(_)), "all decode-only batches are split");
        assert!(fit(&times(2e-6)[..2], 4).is_err(), "no mixed batches");
    }

    #[test]
    fn the_file_is_read_by_its_column_names() {
        let header = "regime,n,nb,pc,kp,kvs,kv_big,kv_mean,t_mean_us,t_max_us,t_skew_us,alpha";
        let row = "pure,2,1,0,0,128,512,320,52,56,53.5,";
        let read = |text: String| read_unequal_times(text.as_bytes());
        let times = read(format!("{header}\n{row}\n")).unwrap();
        assert_eq!((times[0].n_decode, times[0].kv_long, times[0].context()), (2, 512, 640));
        let error = read("n,nb\n1,1\n".to_owned()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the unequal-length profile"), "{error}");
    }
}
