//! Our statistics of samples given on stdin, for `scripts/check_statistics.sh` to hold them to numpy and scipy.
//!
//! In: `{"cases": [{"name": …, "values": […], "reference": […], "fractions": […]}, …]}`; `reference`, as long as the values, may
//! be missing. Out: the same names with our figures, and the tail of the interval over 1 to 40 seeds.

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use std::collections::BTreeMap;
use std::error::Error;

use kvroute_lab::{
    Comparison, Estimate, Summary, compare, interval_tail, mean, quantile, standard_deviation,
    steady_from,
};
use serde::{Deserialize, Serialize};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    values: Vec<f64>,
    reference: Option<Vec<f64>>,
    /// At which quantiles are taken.
    fractions: Vec<f64>,
}

#[derive(Serialize)]
struct Output {
    /// By number of seeds.
    interval_tails: BTreeMap<usize, Option<f64>>,
    cases: Vec<Figures>,
}

#[derive(Serialize)]
struct Figures {
    name: String,
    quantiles: Vec<Option<f64>>,
    summary: Summary,
    mean: Option<Estimate>,
    comparison: Option<Comparison>,
    standard_deviation: Option<f64>,
    steady_from: Option<usize>,
}

impl From<Case> for Figures {
    fn from(Case { name, values, reference, fractions }: Case) -> Self {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        Self {
            name,
            quantiles: fractions.iter().map(|&fraction| quantile(&sorted, fraction)).collect(),
            summary: Summary::of(values.clone()),
            mean: mean(&values),
            comparison: reference.and_then(|reference| compare(&values, &reference)),
            standard_deviation: standard_deviation(&values),
            steady_from: steady_from(&values),
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let Input { cases } = serde_json::from_reader(std::io::stdin().lock())?;
    let output = Output {
        interval_tails: (1..=40).map(|seeds| (seeds, interval_tail(seeds))).collect(),
        cases: cases.into_iter().map(Figures::from).collect(),
    };
    println!("{}", serde_json::to_string_pretty(&output)?);
    Ok(())
}
