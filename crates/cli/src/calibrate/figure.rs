//! The figure of a calibration: measurements as rings, the model as lines.

use std::collections::BTreeMap;

use kvroute_lab::{Mark, Panel, Series, panels_svg};
use kvroute_profile::{Calibration, EngineDefaults, Kind, Measure};

/// Points of a model's line.
const LINE_POINTS: u32 = 64;

/// Draws first tokens over prompt length and over cached share, and decode steps over batch.
pub(super) fn svg(title: &str, calibration: &Calibration, engine: &EngineDefaults) -> String {
    let panels = [
        by_length(calibration, engine),
        by_cached_share(calibration, engine),
        by_batch(calibration, engine),
    ];
    panels_svg(title, &panels)
}

fn by_length(calibration: &Calibration, engine: &EngineDefaults) -> Panel {
    let mut series = Vec::new();
    for (colour, kind, name) in [(0, Kind::Cold, "cold"), (1, Kind::Warm, "all blocks cached")] {
        let rings = first_tokens(calibration, kind);
        let points = rings.iter().map(|(prompt, _, ms)| (f64::from(*prompt), *ms)).collect();
        let longest = rings.iter().map(|(prompt, ..)| *prompt).max().unwrap_or(0);
        let model = |prompt_tokens: u32| {
            let whole = (prompt_tokens - 1) / engine.block_size * engine.block_size;
            let cached_tokens = if kind == Kind::Warm { whole } else { 0 };
            model_ms(calibration, engine, Measure::FirstToken { prompt_tokens, cached_tokens })
        };
        let line = (1..=LINE_POINTS)
            .map(|point| (longest * point / LINE_POINTS).max(1))
            .map(|prompt| (f64::from(prompt), model(prompt)));
        let line = line.collect();
        series.extend(pair(name, colour, points, line));
    }
    Panel {
        title: "First token by prompt length (rings: measured, lines: model)".to_owned(),
        x_axis: "prompt, tokens".to_owned(),
        y_axis: "TTFT, ms".to_owned(),
        series,
    }
}

fn by_cached_share(calibration: &Calibration, engine: &EngineDefaults) -> Panel {
    let partly = first_tokens(calibration, Kind::PartlyCached);
    let longest = partly.iter().map(|(prompt, ..)| *prompt).max().unwrap_or(1);
    let mut rings: Vec<(f64, f64)> = Vec::new();
    for kind in [Kind::Cold, Kind::PartlyCached, Kind::Warm] {
        let of_longest =
            first_tokens(calibration, kind).into_iter().filter(|(p, ..)| *p == longest);
        rings.extend(
            of_longest
                .map(|(prompt, cached, ms)| (100.0 * f64::from(cached) / f64::from(prompt), ms)),
        );
    }
    let blocks = (longest - 1) / engine.block_size;
    let line = (0..=LINE_POINTS).map(|point| blocks * point / LINE_POINTS * engine.block_size);
    let line = line.map(|cached_tokens| {
        let measure = Measure::FirstToken { prompt_tokens: longest, cached_tokens };
        let share = 100.0 * f64::from(cached_tokens) / f64::from(longest);
        (share, model_ms(calibration, engine, measure))
    });
    Panel {
        title: format!("First token of {longest} tokens by cached share"),
        x_axis: "cached share of the prompt, %".to_owned(),
        y_axis: "TTFT, ms".to_owned(),
        series: pair("prefix cached", 2, rings, line.collect()).to_vec(),
    }
}

fn by_batch(calibration: &Calibration, engine: &EngineDefaults) -> Panel {
    let mut by_prompt: BTreeMap<u32, Vec<(u32, u32, f64)>> = BTreeMap::new();
    for point in &calibration.points {
        if let Measure::Decode { batch, prompt_tokens, output_tokens } = point.measured.measure {
            let ms = 1e3 * point.measured.seconds;
            by_prompt.entry(prompt_tokens).or_default().push((batch, output_tokens, ms));
        }
    }
    let mut series = Vec::new();
    for (colour, (prompt_tokens, rows)) in by_prompt.into_iter().enumerate() {
        let rings = rows.iter().map(|(batch, _, ms)| (f64::from(*batch), *ms)).collect();
        let line = rows.iter().map(|&(batch, output_tokens, _)| {
            let measure = Measure::Decode { batch, prompt_tokens, output_tokens };
            (f64::from(batch), model_ms(calibration, engine, measure))
        });
        series.extend(pair(&format!("{prompt_tokens} tokens"), colour, rings, line.collect()));
    }
    Panel {
        title: "Decode step by batch, for prompts of".to_owned(),
        x_axis: "sequences".to_owned(),
        y_axis: "step, ms".to_owned(),
        series,
    }
}

/// Prompt, cached tokens and measured ms of the first tokens of a kind.
fn first_tokens(calibration: &Calibration, kind: Kind) -> Vec<(u32, u32, f64)> {
    let points = calibration.points.iter().filter(|point| point.kind == kind);
    points
        .filter_map(|point| match point.measured.measure {
            Measure::FirstToken { prompt_tokens, cached_tokens } => {
                Some((prompt_tokens, cached_tokens, 1e3 * point.measured.seconds))
            }
            Measure::Decode { .. } => None,
        })
        .collect()
}

fn model_ms(calibration: &Calibration, engine: &EngineDefaults, measure: Measure) -> f64 {
    1e3 * calibration.client_s(measure, engine.max_num_batched_tokens)
}

/// Rings and their line, under one name.
fn pair(name: &str, colour: usize, rings: Vec<(f64, f64)>, line: Vec<(f64, f64)>) -> [Series; 2] {
    let series = |name: &str, mark, points| Series { name: name.to_owned(), mark, colour, points };
    [series(name, Mark::Rings, rings), series("", Mark::Line, line)]
}
