//! What the numbers say, in sentences.

use super::{
    Figure, Pair, Scenario, error_percent, fixed, hit_percent, infinite_cache_percent, ttft_mean_ms,
};

/// The policy that the others are compared with.
const BASELINE: &str = "round-robin";

/// The sentences, one a paragraph; not escaped.
pub(super) fn summary(scenarios: &[Scenario<'_>]) -> Vec<String> {
    if scenarios.is_empty() {
        return vec!["There are no runs.".to_owned()];
    }
    let mut sentences: Vec<_> = scenarios.iter().map(least_ttft).collect();
    sentences.extend(largest_hit_rate_difference(scenarios));
    sentences.extend(largest_ttft_error(scenarios));
    sentences.push(failures(scenarios));
    sentences
}

/// Which policy had the least mean TTFT live, by how much, and whether the simulation says so too.
fn least_ttft(scenario: &Scenario<'_>) -> String {
    let name = scenario.short_name();
    let least_of = |run: fn(&Pair) -> Option<f64>| {
        let measured = scenario.pairs.iter().filter_map(|pair| Some((*pair, run(pair)?)));
        // The first of equals.
        measured.min_by(|a, b| a.1.total_cmp(&b.1))
    };
    let Some((least, live_ms)) = least_of(|pair| ttft_mean_ms(&pair.live)) else {
        return format!("{name}: no live run has a mean TTFT.");
    };

    let policy = &least.live.policy;
    let mut sentences = vec![format!(
        "{name}: {policy} had the least mean TTFT live, {} ms{}.",
        fixed(Some(live_ms), 1),
        against_baseline(scenario, policy, live_ms),
    )];
    if least.live.failed > 0 {
        sentences.push(format!(
            "It failed {} of {} requests, which are not in the mean.",
            least.live.failed, least.live.requests
        ));
    }
    sentences.push(match least_of(|pair| pair.sim(ttft_mean_ms)) {
        None => "No simulated run has one.".to_owned(),
        Some((simulated, sim_ms)) if simulated.live.policy == *policy => {
            format!("The simulation puts it first too, at {} ms.", fixed(Some(sim_ms), 1))
        }
        Some((simulated, sim_ms)) => format!(
            "The simulation puts {} first instead, at {} ms, and has {policy} at {} ms.",
            simulated.live.policy,
            fixed(Some(sim_ms), 1),
            fixed(least.sim(ttft_mean_ms), 1),
        ),
    });
    let without = scenario.pairs.iter().filter(|pair| ttft_mean_ms(&pair.live).is_none());
    let without: Vec<_> = without.map(|pair| pair.live.policy.as_str()).collect();
    if !without.is_empty() {
        sentences.push(format!("Without a mean TTFT live: {}.", without.join(", ")));
    }
    sentences.extend(highest_hit_rate(scenario));
    sentences.join(" ")
}

fn against_baseline(scenario: &Scenario<'_>, policy: &str, live_ms: f64) -> String {
    if policy == BASELINE {
        return String::new();
    }
    let baseline = scenario.pairs.iter().find(|pair| pair.live.policy == BASELINE);
    let Some(baseline_ms) = baseline.and_then(|pair| ttft_mean_ms(&pair.live)) else {
        return format!(" ({BASELINE} has none to compare with)");
    };
    let above = error_percent(Some(baseline_ms), Some(live_ms));
    format!(
        ", {} % less than {BASELINE} ({} ms)",
        fixed(above.map(|percent| -percent), 1),
        fixed(Some(baseline_ms), 1)
    )
}

/// The best hit rate live beside the bound.
fn highest_hit_rate(scenario: &Scenario<'_>) -> Option<String> {
    let measured = scenario.pairs.iter().filter_map(|pair| Some((pair, hit_percent(&pair.live)?)));
    // The first of equals, as `max_by` would not have it.
    let (pair, percent) = measured.min_by(|a, b| b.1.total_cmp(&a.1))?;
    let bound = infinite_cache_percent(&pair.live).or_else(|| pair.sim(infinite_cache_percent));
    let bound = bound.map_or_else(String::new, |bound| {
        format!(" (an infinite cache: {} %)", fixed(Some(bound), 1))
    });
    Some(format!(
        "The highest hit rate live was {} %, by {}{bound}.",
        fixed(Some(percent), 1),
        pair.live.policy,
    ))
}

fn largest_hit_rate_difference(scenarios: &[Scenario<'_>]) -> Option<String> {
    let (whose, pair, points) = largest(scenarios, |pair| pair.difference(hit_percent))?;
    Some(format!(
        "The largest difference of hit rate between live and simulated is {} points ({whose}: {}).",
        fixed(Some(points.abs()), 1),
        both(pair, hit_percent, "%"),
    ))
}

fn largest_ttft_error(scenarios: &[Scenario<'_>]) -> Option<String> {
    let (whose, pair, percent) = largest(scenarios, |pair| pair.error_percent(ttft_mean_ms))?;
    Some(format!(
        "The largest difference of mean TTFT is {} % of the live value ({whose}: {}).",
        fixed(Some(percent.abs()), 1),
        both(pair, ttft_mean_ms, "ms"),
    ))
}

/// The pair for which `difference` is furthest from zero, the first of equals, with its name.
fn largest<'a>(
    scenarios: &[Scenario<'a>],
    difference: impl Fn(&Pair) -> Option<f64>,
) -> Option<(String, &'a Pair, f64)> {
    let pairs =
        scenarios.iter().flat_map(|scenario| scenario.pairs.iter().map(move |p| (scenario, *p)));
    let (scenario, pair, size) = pairs
        .filter_map(|(scenario, pair)| Some((scenario, pair, difference(pair)?)))
        .min_by(|a, b| b.2.abs().total_cmp(&a.2.abs()))?;
    Some((format!("{}, {}", scenario.short_name(), pair.live.policy), pair, size))
}

fn both(pair: &Pair, figure: Figure, unit: &str) -> String {
    let [live, sim] = pair.both(figure).map(|value| fixed(value, 1));
    format!("{live} {unit} live, {sim} {unit} simulated")
}

fn failures(scenarios: &[Scenario<'_>]) -> String {
    let mut failed = Vec::new();
    for scenario in scenarios {
        for pair in &scenario.pairs {
            let sims = pair.sims.iter().map(|run| ("simulated", run));
            for (kind, run) in [("live", &pair.live)].into_iter().chain(sims) {
                if run.failed > 0 {
                    failed.push(format!(
                        "{}, {}, {kind}: {} of {}",
                        scenario.short_name(),
                        run.policy,
                        run.failed,
                        run.requests
                    ));
                }
            }
        }
    }
    if failed.is_empty() {
        "No request failed.".to_owned()
    } else {
        format!("Requests failed ({}).", failed.join("; "))
    }
}
