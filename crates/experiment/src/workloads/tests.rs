//! Traces as workloads: which part a seed plays, how fast, and again if they are short.

use std::collections::BTreeSet;

use super::*;

fn traces() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data/traces")
}

fn entry(text: &str) -> WorkloadEntry {
    toml::from_str(text).unwrap()
}

fn source(text: &str) -> Source {
    Source::all(&entry(text), &traces(), (4_000, None)).unwrap().remove(0)
}

fn fault(text: &str) -> String {
    Source::all(&entry(text), &traces(), (4_000, None)).unwrap_err().to_string()
}

const AZURE: &str = r#"
name = "azure-code"
trace = "azure-code-2023.csv.zst"
format = "azure"
requests = 3000
"#;

const TAU_BENCH: &str = r#"
name = "tau-bench"
trace = "tau-bench-airline.jsonl.gz"
format = "sharegpt-lengths"
repeat = true
"#;

fn arrivals_s(workload: &Workload) -> Vec<f64> {
    let at = |arrival| match arrival {
        Arrival::At(at) => Some(at.as_secs_f64()),
        Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => None,
    };
    workload.requests().iter().filter_map(|request| at(request.arrival)).collect()
}

/// Coefficient of variation of the gaps.
fn gap_cv(workload: &Workload) -> f64 {
    let gaps: Vec<f64> = arrivals_s(workload).windows(2).map(|at| at[1] - at[0]).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
    variance.sqrt() / mean
}

fn lengths(workload: &Workload) -> Vec<u32> {
    workload.requests().iter().map(|request| request.prompt_tokens.0).collect()
}

#[test]
fn a_seed_plays_a_part_of_the_trace_at_the_rate_and_with_its_bursts() {
    let azure = source(AZURE);
    let mut parts = BTreeSet::new();
    for seed in 1..=5 {
        let recorded = azure.load(seed, None).unwrap();
        let played = azure.load(seed, Some(40.0)).unwrap();
        assert_eq!(played.requests().len(), 3_000);
        assert_eq!(lengths(&played), lengths(&recorded));
        let at_s = arrivals_s(&played);
        let rate = 3_000.0 / (at_s[2_999] - at_s[0]);
        assert!((rate - 40.0).abs() < 1e-3, "{rate}");
        let (cv, recorded_cv) = (gap_cv(&played), gap_cv(&recorded));
        assert!((cv / recorded_cv - 1.0).abs() < 1e-3, "{cv} {recorded_cv}");
        assert!(cv > 5.0, "seed {seed}: {cv}");
        parts.insert(lengths(&played));
    }
    assert_eq!(parts.len(), 5, "every seed has a part of its own");
}

#[test]
fn conversations_are_repeated_as_often_as_a_run_needs() {
    let run = |text: &str, seed: u64| source(text).load(seed, Some(16.0)).unwrap();
    let whole = run(&TAU_BENCH.replace("repeat = true", "requests = 10000"), 1);
    assert_eq!((whole.requests().len(), whole.sessions()), (2_454, 200), "all there is");
    let text = format!("{TAU_BENCH}requests = 10000");
    let long = run(&text, 1);
    // At most the first conversation of the part lacks its beginning, and is left out: 30 turns are the longest.
    assert!((9_970..=10_000).contains(&long.requests().len()), "{}", long.requests().len());
    let keys = long.requests().iter().map(|request| request.session_key);
    assert_eq!(
        keys.collect::<BTreeSet<_>>().len(),
        long.sessions() as usize,
        "{}",
        long.sessions()
    );
    assert_ne!(lengths(&long), lengths(&run(&text, 2)));
    assert_eq!(long, run(&text, 1));
    let rate = long.requests().len() as f64 / arrivals_s(&long).last().unwrap();
    assert!((rate / 16.0 - 1.0).abs() < 0.15, "{rate}");
    // A short run begins anywhere, too.
    let text = format!("{TAU_BENCH}requests = 500");
    assert_ne!(lengths(&run(&text, 1)), lengths(&run(&text, 2)));
}

#[test]
fn only_conversations_of_a_trace_are_repeated() {
    assert_eq!(
        fault(&format!("{AZURE}repeat = true")),
        "workloads.azure-code: repeat is for conversations without arrivals, and azure has them; leave it out"
    );
}
