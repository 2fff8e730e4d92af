//! The experiment file.
//!
//! TOML. Defaults are filled in, so that the parsed form is the effective configuration. A `[quick]` table holds whatever a
//! shorter version of the experiment has otherwise; it is laid over the rest (tables are merged, all else replaced).

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::Path;

use kvroute_lab::{MeasurementWindow, Slo};
use kvroute_policy::{ParsePolicyError, PolicyConfig};
use kvroute_types::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::cluster::{Caches, ClusterSettings, Span};

/// An experiment: a grid of workloads, sizes, loads, conditions and policies, each under several seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExperimentSpec {
    /// A line.
    pub title: String,
    /// The question it answers.
    pub question: String,
    /// The policy that others are compared with, and whose capacity loads are shares of; one of `policies`.
    #[serde(default = "default_baseline")]
    pub baseline: String,
    /// Number of seeds. Each draws the workload, the policies' choices and the signals' losses. At least 5 give intervals
    /// worth their name.
    #[serde(default = "default_seeds")]
    pub seeds: u32,
    /// The first seed; the others count up.
    #[serde(default)]
    pub first_seed: u64,
    /// Requests of a run, if neither the workload nor a duration says.
    #[serde(default = "default_requests")]
    pub requests: u32,
    /// Time over which the sessions of a run begin: the number of requests then follows from the rate, and a run at any
    /// load is as long as at another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
    /// Policies: `"name"`, `"name:parameter=value,…"`, or a table with `kind` and parameters, in which a list of values is
    /// a grid.
    pub policies: Vec<PolicyEntry>,
    /// Objective of a request.
    #[serde(default)]
    pub slo: SloSettings,
    /// What is not counted.
    #[serde(default)]
    pub warm_up: WarmUpSettings,
    /// Offered loads.
    #[serde(default)]
    pub load: LoadSettings,
    /// How the capacity is found that loads are shares of.
    #[serde(default)]
    pub capacity: CapacitySettings,
    /// The instances.
    #[serde(default)]
    pub cluster: ClusterSettings,
    /// Numbers of instances.
    #[serde(default = "default_instances")]
    pub instances: Vec<u32>,
    /// What is asked.
    pub workloads: Vec<WorkloadEntry>,
    /// Conditions to vary, each on its own.
    #[serde(default)]
    pub sweeps: Vec<Sweep>,
    /// What is kept of each run besides its figures.
    #[serde(default)]
    pub keep: Keep,
    /// What a quick version has otherwise.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub quick: Table,
}

/// A policy, or a grid of its parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PolicyEntry {
    /// `NAME[:KEY=VALUE,…]`.
    Text(String),
    /// `kind` and parameters; a list of values is a grid.
    Grid(#[schemars(with = "BTreeMap<String, serde_json::Value>")] Table),
}

/// Objective of a request: both are upper bounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SloSettings {
    /// Time to first token, ms.
    pub ttft_ms: f64,
    /// Time per output token, ms.
    pub tpot_ms: f64,
}

impl Default for SloSettings {
    fn default() -> Self {
        Self { ttft_ms: 2_000.0, tpot_ms: 100.0 }
    }
}

impl From<SloSettings> for Slo {
    fn from(SloSettings { ttft_ms, tpot_ms }: SloSettings) -> Self {
        Self { ttft_ms, tpot_ms }
    }
}

/// The beginning of a run that is served but not counted, while caches and queues fill.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WarmUpSettings {
    /// Share of the requests, by intended arrival, `0.0..1.0`.
    pub share: f64,
    /// Count requests after the last session's beginning as well, while the load falls: for a workload that is played once,
    /// from its first request to its last answer.
    pub counts_tail: bool,
}

impl WarmUpSettings {
    /// Which requests count if the last session begins at `last_start`.
    pub(crate) fn window(self, last_start: Timestamp) -> MeasurementWindow {
        let from = Timestamp::from_secs_f64(last_start.as_secs_f64() * self.share);
        if self.counts_tail {
            MeasurementWindow::from_time(from)
        } else {
            MeasurementWindow::between(from, last_start)
        }
    }
}

impl Default for WarmUpSettings {
    fn default() -> Self {
        Self { share: 0.2, counts_tail: false }
    }
}

/// Offered loads: one of the lists, or none for the workload's own times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoadSettings {
    /// Shares of the baseline's capacity, which is measured.
    pub of_capacity: Vec<f64>,
    /// Requests per second and instance.
    pub requests_per_s_per_instance: Vec<f64>,
    /// Requests per second over all instances.
    pub requests_per_s: Vec<f64>,
    /// Sessions under way at once over all instances, in a closed loop: whenever one ends, the next begins. The number of
    /// requests is then given, not a duration.
    pub concurrency: Vec<NonZeroU32>,
}

impl LoadSettings {
    fn is_closed_loop(&self) -> bool {
        !self.concurrency.is_empty()
    }
}

/// How the baseline's capacity is found: by bisection for the greatest rate at which enough requests meet the SLO.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CapacitySettings {
    /// Share of counted requests that must meet the SLO, mean over seeds, `0.0..=1.0`.
    pub attainment: f64,
    /// The rate is known to this share of itself.
    pub tolerance: f64,
    /// Seeds that it is the mean over, counted from the first of the experiment.
    pub seeds: u32,
    /// Number of instances that it is measured with, in place of each of the experiment's: clusters of all sizes then get
    /// the same load per instance.
    pub instances: Option<u32>,
}

impl Default for CapacitySettings {
    fn default() -> Self {
        Self { attainment: 0.95, tolerance: 0.02, seeds: 3, instances: None }
    }
}

/// A workload: a synthetic one by its specification, or a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkloadEntry {
    /// What it is called in results.
    pub name: String,
    /// A synthetic workload: a built-in name (`chat`, `rag`, `mixed`, `uniform`) or a TOML file, relative to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<String>,
    /// Settings of that specification to replace: `{ "turns.mean" = 6 }`.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub set: Table,
    /// Settings of it to vary, each with the name it has in results and the values to give it; all combinations are run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub grid: Vec<Factor>,
    /// Factors that are the same for all of this workload, as they stand in results: entries of which each has another
    /// value make a grid of what one setting cannot express.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fixed: BTreeMap<String, f64>,
    /// A trace file, relative to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// Its format: `mooncake`, `agentic`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// Arrivals of a trace.
    #[serde(default)]
    pub arrivals: TraceArrivals,
    /// The conversations of a trace take place again, among other people, as often as a run needs them; else a run has no
    /// more requests than the trace. For traces without arrivals of their own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub repeat: bool,
    /// Longest time between two turns that a trace keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_think_time: Option<Span>,
    /// Sessions with a longer prompt are left out of a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_prompt_tokens: Option<u32>,
    /// Objective of its requests; else the experiment's. Long prompts take their time even on an idle instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<SloSettings>,
    /// Requests of a run; else the experiment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u32>,
    /// Time over which the sessions of a run begin; else the experiment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Span>,
}

/// A setting of a workload that is varied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Factor {
    /// What it is called in results, with its unit if it has one: `turns per session`.
    pub name: String,
    /// Its values, as they stand in results.
    pub values: Vec<f64>,
    /// What they mean for the specification: settings with dotted keys, each with one value for each of `values`:
    /// `{ "turns.mean" = [1, 2, 4] }`.
    #[schemars(with = "BTreeMap<String, Vec<serde_json::Value>>")]
    pub set: BTreeMap<String, Vec<Value>>,
}

/// When a trace's requests arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TraceArrivals {
    /// As recorded, all gaps scaled to the load. What differs between seeds is which part of the trace is played.
    #[default]
    Recorded,
    /// A Poisson process of the load.
    Poisson,
}

/// Settings of the cluster that are varied together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sweep {
    /// What it is called in results: `index refresh`.
    pub name: String,
    /// The keys of `[cluster]` that take the value.
    pub set: Vec<String>,
    /// Values, as `[cluster]` takes them.
    #[schemars(with = "Vec<serde_json::Value>")]
    pub values: Vec<Value>,
    /// The value that the others are compared with, one of `values`; the first if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<serde_json::Value>")]
    pub reference: Option<Value>,
    /// More settings of `[cluster]` for every value of this sweep.
    #[serde(default, skip_serializing_if = "Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub with: Table,
}

/// What is kept of each run besides its figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// Every request, in `requests.parquet`.
    pub requests: bool,
    /// The instances' gauges at this interval, in `samples.parquet`.
    pub samples_every: Option<Span>,
    /// Distributions of the time to first token, in the results.
    pub distributions: bool,
    /// What the instances did over time, in the results: of the first seed, and up to 16 instances.
    pub timelines: bool,
}

fn default_baseline() -> String {
    "round-robin".into()
}

fn default_seeds() -> u32 {
    5
}

fn default_requests() -> u32 {
    4_000
}

fn default_instances() -> Vec<u32> {
    vec![2]
}

/// An experiment file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecFault {
    /// Not TOML, or a key or a value that does not belong there.
    #[error("{0}")]
    Toml(#[from] Box<toml::de::Error>),
    /// `--set` without a value.
    #[error("`{text}` is not KEY=VALUE; write for instance seeds=3 or cluster.kv_blocks=2000")]
    NotAPair {
        /// What was given.
        text: String,
    },
    /// A list that must not be empty.
    #[error("{key} is empty; {remedy}")]
    Empty {
        /// The key.
        key: String,
        /// What to write.
        remedy: &'static str,
    },
    /// A number out of range.
    #[error("{key} is {value}; give {expected}")]
    OutOfRange {
        /// The key.
        key: String,
        /// What was given.
        value: f64,
        /// What makes sense.
        expected: &'static str,
    },
    /// Two keys of which there may be one.
    #[error("{key}: {what}")]
    Conflict {
        /// The key.
        key: String,
        /// What is wrong, and the remedy.
        what: String,
    },
    /// A policy that is none.
    #[error("policies: {entry}")]
    Policy {
        /// As it was given.
        entry: String,
        /// What is wrong.
        #[source]
        source: ParsePolicyError,
    },
    /// A policy of a shape that is none.
    #[error("policies: {entry}: {what}")]
    PolicyTable {
        /// As it was given.
        entry: String,
        /// What is wrong, and the remedy.
        what: String,
    },
    /// The baseline is not among the policies.
    #[error("baseline: {baseline} is none of the policies; add it, or name one of: {known}")]
    Baseline {
        /// What was given.
        baseline: String,
        /// The policies' labels.
        known: String,
    },
    /// A setting of the cluster that cannot be, in a sweep or not.
    #[error("{place}")]
    Cluster {
        /// Where.
        place: String,
        /// What is wrong.
        #[source]
        source: crate::InvalidCluster,
    },
    /// A latency profile that cannot be used.
    #[error("cluster.profile: {name}: {what}")]
    Profile {
        /// As it was given.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A workload that cannot be made.
    #[error("workloads.{workload}: {what}")]
    Workload {
        /// Its name.
        workload: String,
        /// What is wrong, and the remedy.
        what: String,
    },
}

/// A policy of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledPolicy {
    /// With the parameters that the file gives, as on the command line.
    pub label: String,
    /// The policy.
    pub config: PolicyConfig,
}

impl ExperimentSpec {
    /// Reads an experiment file; `quick` lays its `[quick]` table over it, and `set` holds replacements `KEY=VALUE` with
    /// dotted keys, laid over that.
    ///
    /// # Errors
    /// [`SpecFault`] names the key and the remedy.
    pub fn from_toml(text: &str, quick: bool, set: &[String]) -> Result<Self, SpecFault> {
        // The untouched text first: its errors have lines.
        let spec: Self = toml::from_str(text).map_err(Box::new)?;
        let mut table: Table = toml::from_str(text).map_err(Box::new)?;
        let over = table.remove("quick");
        if let (true, Some(Value::Table(over))) = (quick, over) {
            merge(&mut table, over);
        }
        for pair in set {
            let not_a_pair = || SpecFault::NotAPair { text: pair.clone() };
            let (key, value) = pair.split_once('=').ok_or_else(not_a_pair)?;
            let value = parse_value(value.trim());
            set_path(&mut table, key.trim(), value).ok_or_else(not_a_pair)?;
        }
        let mut effective: Self = table.try_into().map_err(Box::new)?;
        effective.quick = if quick { Table::new() } else { spec.quick };
        effective.validate()?;
        Ok(effective)
    }

    /// The JSON Schema of the file.
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }

    /// The policies, grids written out, in the order of the file.
    ///
    /// # Errors
    /// If one is none.
    pub fn policies(&self) -> Result<Vec<LabelledPolicy>, SpecFault> {
        let mut policies: Vec<LabelledPolicy> = Vec::new();
        for entry in &self.policies {
            for text in entry.texts()? {
                let parsed: Result<PolicyConfig, _> = text.parse();
                let config =
                    parsed.map_err(|source| SpecFault::Policy { entry: text.clone(), source })?;
                if policies.iter().any(|known| known.label == text) {
                    let what = "is there twice; leave one out".to_owned();
                    return Err(SpecFault::PolicyTable { entry: text, what });
                }
                policies.push(LabelledPolicy { label: text, config });
            }
        }
        Ok(policies)
    }

    fn validate(&self) -> Result<(), SpecFault> {
        let empty = |key: &str, remedy| Err(SpecFault::Empty { key: key.to_owned(), remedy });
        if self.policies.is_empty() {
            return empty("policies", "name at least one: [\"round-robin\", \"load-cache\"]");
        }
        if self.workloads.is_empty() {
            return empty(
                "workloads",
                "add a [[workloads]] table with name and spec, or trace and format",
            );
        }
        if self.instances.is_empty() {
            return empty("instances", "give at least one number: [2]");
        }
        let whole = [
            ("seeds", self.seeds),
            ("requests", self.requests),
            ("capacity.seeds", self.capacity.seeds),
        ];
        for (key, value) in
            whole.into_iter().chain(self.instances.iter().map(|n| ("instances", *n)))
        {
            in_range(key, f64::from(value), value >= 1, "at least 1")?;
        }
        let slos = self.workloads.iter().filter_map(|workload| workload.slo).chain([self.slo]);
        let slos =
            slos.flat_map(|slo| [("slo.ttft_ms", slo.ttft_ms), ("slo.tpot_ms", slo.tpot_ms)]);
        let duration = self.duration.map(|duration| ("duration", duration.as_secs_f64()));
        let slos = slos.chain(duration);
        let positive = slos.chain([("capacity.tolerance", self.capacity.tolerance)]);
        let loads = [
            ("load.of_capacity", &self.load.of_capacity),
            ("load.requests_per_s", &self.load.requests_per_s),
            ("load.requests_per_s_per_instance", &self.load.requests_per_s_per_instance),
        ];
        let rates = loads.iter().flat_map(|(key, values)| values.iter().map(|v| (*key, *v)));
        for (key, value) in positive.chain(rates) {
            in_range(key, value, value.is_finite() && value > 0.0, "a number above 0")?;
        }
        let share = self.warm_up.share;
        in_range("warm_up.share", share, (0.0..1.0).contains(&share), "a share from 0 to below 1")?;
        let attainment = self.capacity.attainment;
        let is_share = attainment > 0.0 && attainment < 1.0;
        in_range(
            "capacity.attainment",
            attainment,
            is_share,
            "a share between 0 and 1, 0.95 for instance",
        )?;
        let given = loads.iter().map(|(_, values)| !values.is_empty());
        if given.chain([self.load.is_closed_loop()]).filter(|is_given| *is_given).count() > 1 {
            return Err(SpecFault::Conflict {
                key: "load".into(),
                what: "give one of of_capacity, requests_per_s, requests_per_s_per_instance and concurrency"
                    .into(),
            });
        }
        if self.load.is_closed_loop() {
            self.validate_closed_loop()?;
        }
        let labels: Vec<String> = self.policies()?.into_iter().map(|policy| policy.label).collect();
        if !labels.contains(&self.baseline) {
            return Err(SpecFault::Baseline {
                baseline: self.baseline.clone(),
                known: labels.join(", "),
            });
        }
        for (at, workload) in self.workloads.iter().enumerate() {
            workload.validate()?;
            if self.workloads[..at].iter().any(|other| other.name == workload.name) {
                return Err(workload.fault("the name is used twice; rename one".into()));
            }
        }
        for sweep in &self.sweeps {
            sweep.validate()?;
        }
        Ok(())
    }

    /// A closed loop has no times of its own, and no end but that of its requests.
    fn validate_closed_loop(&self) -> Result<(), SpecFault> {
        let of_workloads = self.workloads.iter().any(|workload| workload.duration.is_some());
        if self.duration.is_some() || of_workloads {
            return Err(SpecFault::Conflict {
                key: "duration".into(),
                what: "the rate of a closed loop follows from the answers; give requests".into(),
            });
        }
        // Both put things at times that must be known before the run.
        for (_, cluster) in self.conditions()? {
            let conflict = |key: &str| {
                let what = "is not for a closed loop; leave it out, or give a rate".to_owned();
                Err(SpecFault::Conflict { key: format!("cluster.{key}"), what })
            };
            if cluster.caches == Caches::Kept {
                return conflict("caches = \"kept\"");
            }
            if cluster.router_restart_every.is_some() {
                return conflict("router_restart_every");
            }
        }
        Ok(())
    }

    /// The clusters to run on, one for each condition, with its condition: the cluster of the file if nothing is swept.
    ///
    /// # Errors
    /// If a sweep gives the cluster a value that it cannot have.
    pub(crate) fn conditions(
        &self,
    ) -> Result<Vec<(kvroute_lab::Condition, ClusterSettings)>, SpecFault> {
        if self.sweeps.is_empty() {
            return Ok(vec![(kvroute_lab::Condition::none(), self.cluster.clone())]);
        }
        let base = Table::try_from(&self.cluster).expect("a cluster is a table");
        let mut conditions = Vec::new();
        for sweep in &self.sweeps {
            for value in &sweep.values {
                let mut table = base.clone();
                merge(&mut table, sweep.with.clone());
                for key in &sweep.set {
                    // A refresh of `never` is a value; elsewhere it is the absence of one.
                    if value.as_str() == Some("never") && !key.ends_with("_refresh") {
                        table.remove(key);
                    } else {
                        table.insert(key.clone(), value.clone());
                    }
                }
                let cluster = table.try_into().map_err(|error: toml::de::Error| {
                    let key = format!("sweeps.{}", sweep.name);
                    SpecFault::Conflict { key, what: error.message().to_owned() }
                })?;
                conditions.push((sweep.condition(value), cluster));
            }
        }
        Ok(conditions)
    }
}

impl PolicyEntry {
    /// The policies as on the command line; a grid gives several, the last parameter changing fastest.
    fn texts(&self) -> Result<Vec<String>, SpecFault> {
        let table = match self {
            Self::Text(text) => return Ok(vec![text.clone()]),
            Self::Grid(table) => table,
        };
        let fault = |what: &str| SpecFault::PolicyTable {
            entry: Value::Table(table.clone()).to_string(),
            what: what.to_owned(),
        };
        let Some(Value::String(kind)) = table.get("kind") else {
            return Err(fault("give kind = \"NAME\""));
        };
        let mut texts = vec![kind.clone()];
        for (key, value) in table.iter().filter(|(key, _)| *key != "kind") {
            let values = match value {
                Value::Array(values) => values.clone(),
                Value::Table(range) => range_values(range)
                    .ok_or_else(|| fault("a range is { from = 0.0, to = 1.0, step = 0.1 }"))?,
                value => vec![value.clone()],
            };
            if values.is_empty() {
                return Err(fault("a list of values is empty; give at least one"));
            }
            texts = texts
                .iter()
                .flat_map(|text| {
                    let separator = if text.contains(':') { ',' } else { ':' };
                    values
                        .iter()
                        .map(move |value| format!("{text}{separator}{key}={}", plain_text(value)))
                })
                .collect();
        }
        Ok(texts)
    }
}

impl WorkloadEntry {
    pub(crate) fn fault(&self, what: String) -> SpecFault {
        SpecFault::Workload { workload: self.name.clone(), what }
    }

    fn validate(&self) -> Result<(), SpecFault> {
        let fault = |what: &str| Err(self.fault(what.to_owned()));
        match (&self.spec, &self.trace) {
            (None, None) => return fault("give spec, or trace and format"),
            (Some(_), Some(_)) => return fault("give either spec or trace, not both"),
            (None, Some(_)) if self.format.is_none() => {
                return fault("give the trace's format: mooncake, agentic, …");
            }
            (None, Some(_)) if !(self.set.is_empty() && self.grid.is_empty()) => {
                return fault("set and grid are for a spec; a trace is as it is");
            }
            (Some(_), None) if self.format.is_some() => return fault("format is for a trace"),
            (Some(_), None) if self.repeat => {
                return fault("repeat is for a trace; a spec has as many sessions as a run needs");
            }
            _ => {}
        }
        if self.requests == Some(0) {
            return fault("requests is 0; give at least 1");
        }
        if self.duration.is_some_and(|duration| duration.0.is_zero()) {
            return fault("duration is 0; give a span of time, 5min for instance");
        }
        if self.requests.is_some() && self.duration.is_some() {
            return fault("give requests or duration, not both");
        }
        for factor in &self.grid {
            let name = &factor.name;
            if factor.values.is_empty() || factor.set.is_empty() {
                return Err(self.fault(format!("grid {name}: give values and set")));
            }
            if let Some((key, of)) =
                factor.set.iter().find(|(_, of)| of.len() != factor.values.len())
            {
                let (of, values) = (of.len(), factor.values.len());
                let what = format!(
                    "grid {name}: {key} has {of} values for the {values} of the factor; give one for each"
                );
                return Err(self.fault(what));
            }
        }
        Ok(())
    }
}

impl Sweep {
    fn validate(&self) -> Result<(), SpecFault> {
        let key = format!("sweeps.{}", self.name);
        if self.name.is_empty() {
            return Err(SpecFault::Empty {
                key: "sweeps.name".into(),
                remedy: "name what is varied",
            });
        }
        if self.set.is_empty() {
            return Err(SpecFault::Empty { key, remedy: "name a key of [cluster] in set" });
        }
        if self.values.is_empty() {
            return Err(SpecFault::Empty { key, remedy: "give at least one value in values" });
        }
        if let Some(reference) = &self.reference
            && !self.values.contains(reference)
        {
            let values: Vec<_> = self.values.iter().map(plain_text).collect();
            return Err(SpecFault::Conflict {
                key: format!("{key}.reference"),
                what: format!(
                    "{} is none of the values; name one of: {}",
                    plain_text(reference),
                    values.join(", ")
                ),
            });
        }
        Ok(())
    }

    /// Label of the value that the others are compared with.
    pub(crate) fn reference_label(&self) -> String {
        self.reference.as_ref().or(self.values.first()).map_or_else(String::new, plain_text)
    }

    fn condition(&self, value: &Value) -> kvroute_lab::Condition {
        let text = plain_text(value);
        let is_span = self.set.iter().all(|key| {
            ["_refresh", "_delay", "_expiry", "_every"].iter().any(|end| key.ends_with(end))
        });
        let number = match value {
            Value::Integer(number) => number.to_string().parse().ok(),
            Value::Float(number) => Some(*number),
            _ if is_span => {
                crate::values::parse_duration(&text).ok().map(|span| span.as_secs_f64())
            }
            _ => None,
        };
        let unit = if is_span { "s" } else { "" };
        kvroute_lab::Condition {
            sweep: self.name.clone(),
            label: text,
            value: number,
            unit: unit.to_owned(),
        }
    }
}

/// Reads a file's text, and its name without extension.
///
/// # Errors
/// If it cannot be read.
pub fn read_file(path: &Path) -> std::io::Result<(String, String)> {
    let text = std::fs::read_to_string(path)?;
    let name =
        path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    Ok((name, text))
}

fn in_range(key: &str, value: f64, is_fine: bool, expected: &'static str) -> Result<(), SpecFault> {
    let fault = || SpecFault::OutOfRange { key: key.to_owned(), value, expected };
    is_fine.then_some(()).ok_or_else(fault)
}

/// Lays `over` over `table`: tables are merged, all else is replaced.
pub(crate) fn merge(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// Sets a dotted key, making the tables on the way; `None` if something on the way is no table.
pub(crate) fn set_path(table: &mut Table, path: &str, value: Value) -> Option<()> {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
            Some(())
        }
        Some((first, rest)) => {
            let below = table.entry(first).or_insert_with(|| Value::Table(Table::new()));
            set_path(below.as_table_mut()?, rest, value)
        }
    }
}

/// A value as TOML writes it, or else a word.
fn parse_value(text: &str) -> Value {
    let parsed: Result<Table, _> = format!("value = {text}").parse();
    match parsed.ok().and_then(|mut table| table.remove("value")) {
        Some(value) => value,
        None => Value::String(text.to_owned()),
    }
}

/// The numbers of `{ from, to, step }`, both ends included.
fn range_values(range: &Table) -> Option<Vec<Value>> {
    let number = |key: &str| {
        let value = range.get(key)?;
        value.as_float().or_else(|| value.as_integer().and_then(|n| n.to_string().parse().ok()))
    };
    let (from, to, step) = (number("from")?, number("to")?, number("step")?);
    if range.len() != 3 || !(step > 0.0 && to >= from) {
        return None;
    }
    let value = |k: u32| from + f64::from(k) * step;
    // Steps such as 0.1 do not add up exactly: 0.30000000000000004 is written 0.3.
    let tidy = |value: f64| (value * 1e9).round() / 1e9;
    let values = (0..).map(value).take_while(|value| *value <= to + step * 1e-6);
    Some(values.map(|value| Value::Float(tidy(value))).collect())
}

/// A value without quotes.
fn plain_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests;
