//! The results of an experiment: many runs, and what tells them apart.
//!
//! A *cell* is a point of the experiment's grid: a workload at a load, on a number of instances, under a condition (how
//! stale the signals are, say), routed by a policy. A *run* is a cell under one seed. Runs of different policies under the
//! same seed meet the same requests at the same times (common random numbers), so that they are compared in pairs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Manifest, RunResult};

/// All that an experiment found: `results.json` of its run directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExperimentResults {
    /// How it was made; its `config` is the experiment file with every default filled in.
    pub manifest: Manifest,
    /// What it is about.
    pub about: About,
    /// What the baseline can bear of each workload, one for each workload and number of instances whose load is a share
    /// of it.
    pub capacities: Vec<Capacity>,
    /// One for each cell and seed, cells in the order of the file, seeds innermost.
    pub runs: Vec<ExperimentRun>,
}

/// What an experiment is about, in words, and how it is to be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// Short name, from the file's name: `exp1-chat`.
    pub name: String,
    /// A line.
    pub title: String,
    /// The question it answers.
    pub question: String,
    /// Label of the policy that others are compared with, a load-only one: `round-robin`.
    pub baseline: String,
    /// What the warm-up is and how it was chosen, a sentence.
    pub warm_up: String,
    /// Label of the value that a sweep's other values are compared with, by the sweep's name. Of a sweep that is not in it
    /// the first: results from before there was this key have none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub references: BTreeMap<String, String>,
}

/// The greatest load at which the baseline still serves a workload well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Capacity {
    /// Name of the workload.
    pub workload: String,
    /// Number of instances.
    pub instances: u32,
    /// Label of the policy it was measured with.
    pub policy: String,
    /// The greatest rate that was seen to be borne, requests/s over all instances.
    pub requests_per_s: f64,
    /// The least rate that was seen not to be.
    pub too_much_requests_per_s: f64,
    /// Share of requests that must meet the SLO.
    pub attainment_min: f64,
    /// Rates that were tried and the share of requests that met the SLO, in the order of trying.
    pub tried: Vec<(f64, f64)>,
}

/// One run of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExperimentRun {
    /// Where in the grid it is; its seed is in the result.
    pub cell: Cell,
    /// The figures.
    pub result: RunResult,
    /// Distribution of the time to first token, if the experiment keeps distributions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_quantiles: Option<Quantiles>,
    /// What each instance did over time, if the experiment keeps timelines; of the first seed alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
    /// When the run became steady by its own data (MSER-5 of the TTFTs in order of arrival), s; `None` if it never did.
    pub steady_from_s: Option<f64>,
    /// When the warm-up ended, s.
    pub warm_up_s: f64,
}

/// A point of the grid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// Name of the workload in the experiment file; made different by its factors where the file has a grid of them.
    pub workload: String,
    /// Settings of the workload that the file varies, by name; what exp6 maps.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub factors: BTreeMap<String, f64>,
    /// Number of instances.
    pub instances: u32,
    /// Offered load.
    pub load: LoadPoint,
    /// Under which condition.
    pub condition: Condition,
    /// The policy with the parameters that differ from their defaults, as on the command line:
    /// `load-cache:alpha=0.5,beta=0.5`.
    pub policy: String,
}

/// Offered load of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadPoint {
    /// As a share of the baseline's capacity, if it was given like that.
    pub of_capacity: Option<f64>,
    /// Requests per second over all instances; `None` if the workload keeps its own times, or none.
    pub requests_per_s: Option<f64>,
    /// Sessions under way at once over all instances, in a closed loop; `None` in the open loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<f64>,
}

/// What the file varies besides workload, load, size and policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// The sweep it belongs to: `index refresh`; empty for the only condition of an experiment without any.
    pub sweep: String,
    /// The value, to be read: `500 ms`, `never`.
    pub label: String,
    /// The value as a number in the sweep's unit; `None` if it has none (`never`).
    pub value: Option<f64>,
    /// Unit of the values: `s`, `share`; empty for none.
    pub unit: String,
}

/// A distribution by its quantiles (type 7) at equal steps from the least value to the greatest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Values in ms at 0, 0.01, …, 1: 101 of them.
    pub ms: Vec<f64>,
}

impl Condition {
    /// The only one of an experiment that varies none.
    pub const fn none() -> Self {
        Self { sweep: String::new(), label: String::new(), value: None, unit: String::new() }
    }
}

/// State of a run's instances at equal steps of time from the run's beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Time between two samples, s; the first is at this time.
    pub step_s: f64,
    /// One for each instance, in the order of their ids.
    pub instances: Vec<InstanceTimeline>,
}

/// State of one instance over time; all three of the same length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceTimeline {
    /// Requests in the waiting queue.
    pub waiting: Vec<u32>,
    /// Requests that run.
    pub running: Vec<u32>,
    /// Fraction of KV blocks in use, `0.0..=1.0`, to three digits.
    pub kv_cache_usage: Vec<f64>,
}
