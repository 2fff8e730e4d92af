use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::{CacheResult, IndexResult, LoadResult, Mode, Slo, Summary};

/// A run with no figure measured.
pub(crate) fn unmeasured(policy: &str, workload: &str, mode: Mode) -> RunResult {
    let nothing = Summary::default();
    RunResult {
        policy: policy.to_owned(),
        policy_config: Value::Null,
        workload: workload.to_owned(),
        instances: 4,
        seed: 1,
        mode,
        requests: 600,
        completed: 600,
        failed: 0,
        duration_s: None,
        offered_rps: None,
        completed_rps: None,
        output_tokens_per_s: None,
        ttft_ms: nothing,
        tpot_ms: nothing,
        itl_ms: nothing,
        e2e_ms: nothing,
        queue_time_ms: nothing,
        slo: Slo { ttft_ms: 2000.0, tpot_ms: 50.0 },
        goodput_rps: None,
        cache: CacheResult::default(),
        load: LoadResult::default(),
        preemptions: None,
        per_instance: Vec::new(),
        index: IndexResult { precision: None, recall: None },
        reasons: BTreeMap::new(),
        decision_log_hash: None,
        wall_s: 1.0,
    }
}

fn run(policy: &str, workload: &str, mode: Mode, figures: [f64; 3]) -> RunResult {
    let [ttft_ms, hit_rate, imbalance] = figures;
    let summary = |mean: f64| Summary {
        mean: Some(mean),
        p50: Some(mean * 0.75),
        p90: Some(mean * 2.0),
        p95: Some(mean * 2.5),
        p99: Some(mean * 4.125),
        max: Some(mean * 6.0),
    };
    let mut run = unmeasured(policy, workload, mode);
    run.ttft_ms = summary(ttft_ms);
    run.tpot_ms = summary(11.25);
    run.e2e_ms = summary(ttft_ms + 900.0);
    run.completed_rps = Some(39.5);
    run.goodput_rps = Some(36.0);
    run.cache.hit_rate = Some(hit_rate);
    run.cache.hit_rate_infinite_cache = Some(0.8312);
    run.load.imbalance_max_over_mean = Some(imbalance);
    run.load.queue_depth_mean = Some(0.75);
    run.index.recall = Some(0.97);
    run
}

/// Live and simulated: mean TTFT in ms, hit rate, imbalance.
fn pair(policy: &str, workload: &str, live: [f64; 3], sim: [f64; 3]) -> Pair {
    Pair {
        live: run(policy, workload, Mode::Live, live),
        sims: vec![run(policy, workload, Mode::Sim, sim)],
    }
}

fn hand_made() -> Vec<Pair> {
    let mut pairs = vec![
        pair("round-robin", "chat", [200.0, 0.21, 1.04], [190.0, 0.2099, 1.05]),
        pair("jsq", "chat", [160.0, 0.24, 1.01], [152.0, 0.235, 1.01]),
        pair("p2c", "chat", [171.3, 0.233, 1.03], [171.3, 0.24, 1.02]),
        pair("session-affinity", "chat", [88.8, 0.71, 1.42], [91.0, 0.705, 1.38]),
        pair("prefix-affinity", "chat", [80.0, 0.7312, 1.31], [70.0, 0.75, 1.35]),
        pair("load-cache", "chat", [81.2, 0.69, 1.12], [69.0, 0.70, 1.10]),
        pair("round-robin", "shared-prefix", [1020.4, 0.55, 1.1], [1000.0, 0.56, 1.1]),
        pair("load-cache", "shared-prefix", [1234.5, 0.78, 2.5], [1200.0, 0.78, 2.45]),
    ];
    pairs[7].live.failed = 3;
    pairs[1].sims.push(run("jsq", "chat", Mode::Sim, [156.0, 0.245, 1.03]));
    pairs.push(Pair {
        live: unmeasured("p2c", "shared-prefix", Mode::Live),
        sims: vec![run("p2c", "shared-prefix", Mode::Sim, [1100.0, 0.5, 1.2])],
    });
    pairs
}

fn summary(pairs: &[Pair]) -> Vec<String> {
    words::summary(&Scenario::all(pairs))
}

/// Nothing that no number should turn into, and coordinates that lie in the image.
fn assert_drawable(svg: &str) {
    for bad in ["NaN", "inf\"", "-inf", "=\"-"] {
        assert!(!svg.contains(bad), "{bad} in {svg}");
    }
}

#[test]
fn the_table_of_the_terminal() {
    insta::assert_snapshot!(comparison_table(&hand_made()));
}

#[test]
fn the_summary_says_what_the_numbers_say() {
    insta::assert_snapshot!(summary(&hand_made()).join("\n"));
}

#[test]
fn the_table_fits_its_width() {
    let mut pairs = hand_made();
    let long = "a-name-that-goes-on-and-on-and-on-and-ends-at-last";
    pairs[0].live.policy = long.to_owned();
    pairs[1].live.workload = format!("{long}-elsewhere");
    pairs[2].live.seed = 2;
    pairs[3].live.ttft_ms.mean = Some(99_999.94);
    pairs[3].sims[0].ttft_ms.mean = Some(1e12);
    let table = comparison_table(&pairs);
    assert!(table.lines().all(|line| line.chars().count() <= LAYOUT.width), "{table}");
    assert!(table.contains('…') && table.contains("last") && table.contains("seed=2"), "{table}");
}

#[test]
fn errors_are_relative_to_live_and_hit_rates_differ_in_points() {
    let close = |got: Option<f64>, expected: f64| (got.unwrap() - expected).abs() < 1e-9;
    let pair = pair("jsq", "chat", [160.0, 0.24, 1.0], [152.0, 0.235, 1.0]);
    assert!(close(pair.error_percent(ttft_mean_ms), -5.0));
    assert!(close(pair.difference(hit_percent), -0.5));
    assert_eq!(error_percent(Some(0.0), Some(1.0)), None);
    assert_eq!(error_percent(None, Some(1.0)), None);
    assert_eq!(error_percent(Some(1.0), None), None);
    assert_eq!(error_percent(Some(f64::MIN_POSITIVE), Some(f64::MAX)), None);
}

#[test]
fn a_simulated_figure_is_the_mean_of_its_runs() {
    let mut pair = pair("jsq", "chat", [160.0, 0.24, 1.0], [152.0, 0.235, 1.0]);
    assert_eq!(pair.spread(ttft_mean_ms), None);
    pair.sims.push(run("jsq", "chat", Mode::Sim, [156.0, 0.245, 1.0]));
    assert_eq!(pair.sim(ttft_mean_ms), Some(154.0));
    assert_eq!(pair.spread(ttft_mean_ms), Some(8.0_f64.sqrt()));
    pair.sims[0].ttft_ms.mean = None;
    assert_eq!([pair.sim(ttft_mean_ms), pair.spread(ttft_mean_ms)], [None, None]);
}

#[test]
fn a_sign_is_shown_where_the_number_has_one() {
    let shown = [-0.04, 0.0, 0.04, 0.06, -3.0, 1e9].map(|value| signed(Some(value), 1));
    assert_eq!(shown, ["0.0", "0.0", "0.0", "+0.1", "-3.0", "+1.0e9"]);
    assert_eq!([signed(None, 1), signed(Some(f64::NAN), 1)], ["-", "-"]);
}

#[test]
fn every_text_is_escaped() {
    let evil = "<script>alert('x')</script>&\"\u{0}";
    let pairs = [pair(evil, evil, [1.0, 0.5, 1.0], [1.0, 0.5, 1.0])];
    let mut outputs = vec![comparison_html(evil, evil, &pairs)];
    outputs.extend(figures(&pairs).into_iter().map(|(_, svg)| svg));
    for output in outputs {
        assert!(!output.contains("<script"), "{output}");
        assert!(!output.contains("&\"") && !output.contains('\u{0}'), "{output}");
        assert!(output.contains("&lt;script&gt;"), "{output}");
    }
}

#[test]
fn a_page_needs_nothing_else() {
    let page = comparison_html("Demo", "kvroute demo --seed 1", &hand_made());
    let elsewhere = page.replace("http://www.w3.org/2000/svg", "");
    for bad in ["http:", "https:", "src=", "href=", "url(", "@import", "<script"] {
        assert!(!elsewhere.contains(bad), "{bad}");
    }
    assert!(page.contains("kvroute demo --seed 1") && page.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_policy_is_in_every_figure() {
    let pairs = hand_made();
    let page = comparison_html("Demo", "kvroute demo", &pairs);
    let figures = figures(&pairs);
    let names: Vec<_> = figures.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        [
            "chat-ttft-mean.svg",
            "chat-hit-rate.svg",
            "chat-imbalance.svg",
            "shared-prefix-ttft-mean.svg",
            "shared-prefix-hit-rate.svg",
            "shared-prefix-imbalance.svg",
        ]
    );
    for (name, svg) in &figures {
        let of_figure = pairs.iter().filter(|pair| name.starts_with(&pair.live.workload));
        for policy in of_figure.map(|pair| &pair.live.policy) {
            assert!(svg.contains(&format!(">{policy}</text>")), "{policy} in {name}");
        }
        assert_drawable(svg);
        assert!(page.contains(svg.as_str()), "{name} is in the page");
    }
}

#[test]
fn what_was_not_measured_is_a_dash() {
    let nothing = |mode| unmeasured("p2c", "chat", mode);
    let pairs = [Pair { live: nothing(Mode::Live), sims: vec![nothing(Mode::Sim)] }];
    let table = comparison_table(&pairs);
    let row: Vec<_> = table.lines().last().unwrap().split_whitespace().collect();
    assert_eq!(row[..2], ["chat", "p2c"]);
    assert!(row[2..14].iter().all(|cell| *cell == "-"), "{table}");
    assert_eq!(row[14..], ["0"]);
    for (_, svg) in figures(&pairs) {
        assert!(svg.contains(">- live</text>") && svg.contains(">- sim</text>"), "{svg}");
        assert_drawable(&svg);
    }
    assert!(comparison_html("", "", &pairs).contains("<td>-</td>"));
    assert_eq!(summary(&pairs), ["chat: no live run has a mean TTFT.", "No request failed."]);
}

#[test]
fn no_number_spoils_a_figure() {
    for value in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e-320, 0.3, 7.0, 99_999.0, f64::MAX] {
        let pairs = [pair("jsq", "chat", [value; 3], [1.0, 0.5, value])];
        for (_, svg) in figures(&pairs) {
            assert_drawable(&svg);
        }
        assert!(!comparison_html("", "", &pairs).contains("NaN"));
    }
}

#[test]
fn ticks_are_round_and_few() {
    for i in 1..400_u32 {
        let max = f64::from(i * i) / 37.0;
        let scale = svg::Scale::new(0.0, 100.0, max);
        let ticks: Vec<_> = scale.ticks().collect();
        assert!((3..=7).contains(&ticks.len()), "{max}: {ticks:?}");
        assert!(*ticks.last().unwrap() >= max * (1.0 - 1e-9), "{max}: {ticks:?}");
    }
}

#[test]
fn other_seeds_and_clusters_are_kept_apart() {
    let mut pairs = vec![hand_made().swap_remove(0); 3];
    pairs[1].live.seed = 2;
    pairs[2].live.workload = "CHAT/".to_owned();
    let names: Vec<_> = figures(&pairs).into_iter().map(|(name, _)| name).step_by(3).collect();
    assert_eq!(
        names,
        ["chat-n-4-seed-1-ttft-mean.svg", "chat-n-4-seed-2-ttft-mean.svg", "chat-ttft-mean.svg"]
    );
    pairs[1].live.seed = 1;
    pairs[1].live.workload = "chat!".to_owned();
    let names: Vec<_> = figures(&pairs).into_iter().map(|(name, _)| name).step_by(3).collect();
    assert_eq!(names, ["chat-ttft-mean.svg", "chat-2-ttft-mean.svg", "chat-3-ttft-mean.svg"]);
}

#[test]
fn no_pairs_are_no_rows_and_no_figures() {
    assert_eq!(comparison_table(&[]), "");
    assert_eq!(figures(&[]), []);
    assert!(comparison_html("Demo", "kvroute demo", &[]).contains("There are no runs."));
}
