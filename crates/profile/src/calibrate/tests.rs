//! Measurements made from a known profile give its step times back.

use super::*;
use crate::profile::LatencyProfile;

/// What a client would measure at an engine that is the profile, `noise(i)` being the factor on the i-th measurement.
fn measured(truth: &LatencyProfile, effort: Effort, noise: impl Fn(usize) -> f64) -> Vec<Measured> {
    let budget = truth.engine.max_num_batched_tokens;
    let of = |(index, probe): (usize, Probe)| {
        let steps = probe.measure.steps(budget);
        let engine_s = noise(index) * steps.iter().map(|load| truth.step.step_s(load)).sum::<f64>();
        let (overhead_s, means_s) = match probe.measure {
            Measure::FirstToken { prompt_tokens, cached_tokens } => {
                let ns = truth.request_overhead_ns(prompt_tokens) + truth.response_overhead_ns();
                let overhead_s = ns as f64 * 1e-9;
                let means_s = (cached_tokens == 0).then_some((engine_s + overhead_s, engine_s));
                (overhead_s, means_s)
            }
            Measure::Decode { .. } => (0.0, None),
        };
        Measured { measure: probe.measure, seconds: engine_s + overhead_s, means_s }
    };
    probes(&truth.engine, effort).into_iter().enumerate().map(of).collect()
}

fn calibrated(truth: &LatencyProfile, measured: &[Measured]) -> Calibration {
    let engine = truth.engine;
    Calibration::fit(measured, engine.block_size, engine.max_num_batched_tokens).unwrap()
}

/// Largest relative error of step times that were not measured: other lengths, shares and batches.
fn worst_elsewhere(truth: &LatencyProfile, found: &Calibration) -> f64 {
    let budget = truth.engine.max_num_batched_tokens;
    let prompts = [(100, 0), (700, 0), (1500, 512), (3000, 0), (3000, 2048)];
    let decodes = [(3, 200), (6, 500), (12, 300), (24, 100)];
    let prefills = prompts.map(|(prompt_tokens, cached_tokens)| {
        Measure::FirstToken { prompt_tokens, cached_tokens }.steps(budget)
    });
    let decodes = decodes.map(|(batch, prompt_tokens)| {
        Measure::Decode { batch, prompt_tokens, output_tokens: 64 }.steps(budget)
    });
    let error = |steps: &Vec<StepLoad>| {
        let of = |step: &StepModel| steps.iter().map(|load| step.step_s(load)).sum::<f64>();
        (of(&found.step) / of(&truth.step) - 1.0).abs()
    };
    prefills.iter().chain(&decodes).map(error).fold(0.0, f64::max)
}

#[test]
fn the_cpu_profile_is_recovered_exactly() {
    let truth = LatencyProfile::builtin("cpu-tiny").unwrap();
    for effort in [Effort::Full, Effort::Quick] {
        let found = calibrated(&truth, &measured(&truth, effort, |_| 1.0));
        assert!(worst_elsewhere(&truth, &found) < 1e-6, "{effort:?}: {found:#?}");
        assert!((found.request_overhead_s - truth.request_overhead_s).abs() < 1e-7);
        assert_eq!(found.left_out, []);
    }
}

#[test]
fn gpu_profiles_with_kinks_of_their_own_are_recovered_closely() {
    // Tiles, waves and floors that the calibrated form does not have.
    for (name, worst) in
        [("rtx4090-llama3.1-8b", 0.09), ("a100-llama3.1-8b", 0.03), ("h100-llama3.1-8b", 0.03)]
    {
        let truth = LatencyProfile::builtin(name).unwrap();
        let found = calibrated(&truth, &measured(&truth, Effort::Full, |_| 1.0));
        let error = worst_elsewhere(&truth, &found);
        assert!(error < worst, "{name}: {error}");
    }
}

#[test]
fn noise_and_a_disturbed_measurement_do_little() {
    let truth = LatencyProfile::builtin("cpu-tiny").unwrap();
    // Between -4 and +4 %, and one measurement in fifteen half as long again.
    let noise = |index: usize| match index % 15 {
        7 => 1.5,
        _ => 1.0 + 0.04 * (((index * 37) % 21) as f64 / 10.0 - 1.0),
    };
    let found = calibrated(&truth, &measured(&truth, Effort::Full, noise));
    let error = worst_elsewhere(&truth, &found);
    assert!(error < 0.02, "{error}");
    assert!((found.request_overhead_s / truth.request_overhead_s - 1.0).abs() < 1e-6);
}

#[test]
fn the_profile_is_complete_and_says_how_good_it_is() {
    let truth = LatencyProfile::builtin("cpu-tiny").unwrap();
    let found = calibrated(&truth, &measured(&truth, Effort::Full, |_| 1.0));
    let provenance = Provenance {
        name: "again".into(),
        description: "d".into(),
        origin: "vLLM 0.32.0 at http://x".into(),
        engine: "Told by the instance.".into(),
    };
    let profile = found.profile(truth.engine, &provenance);
    let text = profile.to_toml();
    assert_eq!(LatencyProfile::from_toml(&text).unwrap(), profile, "{text}");
    assert!(text.contains("cold first token: 0.0 % in the median"), "{text}");
    assert!(text.contains("vLLM 0.32.0 at http://x"));
}

#[test]
fn what_makes_no_profile_is_named() {
    let truth = LatencyProfile::builtin("cpu-tiny").unwrap();
    let all = measured(&truth, Effort::Full, |_| 1.0);
    let engine = truth.engine;
    let fit = |measured: &[Measured]| {
        Calibration::fit(measured, engine.block_size, engine.max_num_batched_tokens).unwrap_err()
    };
    let blind: Vec<Measured> = all.iter().map(|m| Measured { means_s: None, ..*m }).collect();
    assert_eq!(fit(&blind), CalibrationError::NoPrefillTimes);
    let prefills: Vec<Measured> =
        all.iter().copied().filter(|m| matches!(m.measure, Measure::FirstToken { .. })).collect();
    assert_eq!(fit(&prefills), CalibrationError::Missing(Kind::Decode));
}

#[test]
fn plans_stay_within_the_engine() {
    for name in LatencyProfile::names() {
        let engine = LatencyProfile::builtin(name).unwrap().engine;
        let capacity = u64::from(engine.kv_blocks - 1) * u64::from(engine.block_size);
        for effort in [Effort::Full, Effort::Quick] {
            let probes = probes(&engine, effort);
            for probe in &probes {
                match probe.measure {
                    Measure::FirstToken { prompt_tokens, cached_tokens } => {
                        assert!(
                            cached_tokens < prompt_tokens && prompt_tokens < engine.max_model_len
                        );
                        assert_eq!(cached_tokens % engine.block_size, 0);
                        assert!(u64::from(prompt_tokens) < capacity);
                    }
                    Measure::Decode { batch, prompt_tokens, output_tokens } => {
                        assert!(batch <= engine.max_num_seqs);
                        let tokens = u64::from(batch) * u64::from(prompt_tokens + output_tokens);
                        assert!(tokens < capacity);
                    }
                }
            }
            let decodes: Vec<_> =
                probes.iter().filter(|p| matches!(p.measure, Measure::Decode { .. })).collect();
            assert!(decodes.len() >= 3, "{name}: {decodes:?}");
        }
    }
}

#[test]
fn a_measure_spans_the_steps_that_the_engine_takes() {
    let prompt = Measure::FirstToken { prompt_tokens: 100, cached_tokens: 32 };
    let expected = [
        StepLoad::default().with_chunk(32, 48, false),
        StepLoad::default().with_chunk(80, 20, true),
    ];
    assert_eq!(prompt.steps(48), expected);
    assert_eq!(prompt.steps(68), [StepLoad::default().with_chunk(32, 68, true)]);
    let decode = Measure::Decode { batch: 4, prompt_tokens: 64, output_tokens: 100 };
    assert_eq!(decode.steps(48), [StepLoad::default().with_decodes(4, 4 * (64 + 50))]);
    assert_eq!(prompt.kind(32), Kind::PartlyCached);
    assert_eq!(Measure::FirstToken { prompt_tokens: 100, cached_tokens: 96 }.kind(32), Kind::Warm);
    assert_eq!(Measure::FirstToken { prompt_tokens: 100, cached_tokens: 0 }.kind(32), Kind::Cold);
}
