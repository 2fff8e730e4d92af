//! The workloads of an experiment, under any seed and rate.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use kvroute_lab::InputFile;
use kvroute_types::mix64;
use kvroute_workload::traces::{TraceFormat, TraceOptions};
use kvroute_workload::{Arrival, ArrivalProcess, GapShape, Workload, WorkloadSpec};
use toml::{Table, Value};

use crate::cluster::Span;
use crate::spec::{SloSettings, SpecFault, TraceArrivals, WorkloadEntry, merge, set_path};

/// One workload of the grid.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Name in results, unique in the experiment.
    pub(crate) name: String,
    /// What makes it different from its like.
    pub(crate) factors: BTreeMap<String, f64>,
    entry: WorkloadEntry,
    kind: Kind,
    requests: u32,
    /// In place of `requests`, where a rate is given.
    duration_s: Option<f64>,
}

#[derive(Clone, Debug)]
enum Kind {
    Synthetic(Box<WorkloadSpec>),
    Trace { path: PathBuf, bytes: std::sync::Arc<Vec<u8>>, format: TraceFormat },
}

impl Source {
    /// The workloads of an entry, its grid written out; the last factor changes fastest. Files are looked for from
    /// `folder`, and read.
    pub(crate) fn all(
        entry: &WorkloadEntry,
        folder: &Path,
        (requests, duration): (u32, Option<Span>),
    ) -> Result<Vec<Self>, SpecFault> {
        // What an entry says itself goes first, in either form.
        let duration_s = match entry.requests {
            Some(_) => None,
            None => entry.duration.or(duration).map(Span::as_secs_f64),
        };
        let requests = entry.requests.unwrap_or(requests);
        let source = |name: String, factors, kind| Self {
            name,
            factors,
            entry: entry.clone(),
            kind,
            requests,
            duration_s,
        };
        if let Some(trace) = &entry.trace {
            let format = entry.format.as_deref().unwrap_or_default();
            let format: TraceFormat =
                format.parse().map_err(|error| entry.fault(format!("format: {error}")))?;
            if entry.repeat && format.has_arrivals() {
                let what = format!(
                    "repeat is for conversations without arrivals, and {format} has them; leave it out"
                );
                return Err(entry.fault(what));
            }
            let path = folder.join(trace);
            let bytes = std::fs::read(&path)
                .map_err(|error| entry.fault(format!("cannot read {}: {error}", path.display())))?;
            let kind = Kind::Trace { path, bytes: bytes.into(), format };
            let source = source(entry.name.clone(), entry.fixed.clone(), kind);
            source.load(0, None)?;
            return Ok(vec![source]);
        }
        let table = spec_table(entry, folder)?;
        let mut variants = vec![(entry.fixed.clone(), table)];
        for factor in &entry.grid {
            let mut more = Vec::new();
            for (factors, table) in &variants {
                for (at, &value) in factor.values.iter().enumerate() {
                    let (mut factors, mut table) = (factors.clone(), table.clone());
                    factors.insert(factor.name.clone(), value);
                    for (key, values) in &factor.set {
                        set(entry, &mut table, key, values[at].clone())?;
                    }
                    more.push((factors, table));
                }
            }
            variants = more;
        }
        variants
            .into_iter()
            .map(|(factors, table)| {
                let spec: WorkloadSpec = table.try_into().map_err(|error: toml::de::Error| {
                    entry.fault(format!("in its specification: {}", error.message()))
                })?;
                let mut name = entry.name.clone();
                let varied = factors.iter().filter(|(name, _)| !entry.fixed.contains_key(*name));
                for (at, (factor, value)) in varied.enumerate() {
                    let separator = if at == 0 { ": " } else { ", " };
                    name = format!("{name}{separator}{factor} {value}");
                }
                let source = source(name, factors, Kind::Synthetic(Box::new(spec)));
                // So that a bad setting is told before anything runs.
                source.load(0, Some(1.0))?;
                Ok(source)
            })
            .collect()
    }

    /// The objective of its requests, if it has one of its own.
    pub(crate) fn slo(&self) -> Option<SloSettings> {
        self.entry.slo
    }

    /// Requests of a run at that rate, in requests/s.
    pub(crate) fn requests(&self, rate: Option<f64>) -> u32 {
        match self.duration_s.zip(rate) {
            Some((duration_s, rate)) => whole(duration_s * rate),
            None => self.requests,
        }
    }

    /// The workload under a seed at `rate` requests/s; at its own rate if that is `None`.
    pub(crate) fn load(&self, seed: u64, rate: Option<f64>) -> Result<Workload, SpecFault> {
        let requests = self.requests(rate);
        let fault = |error: &dyn std::error::Error| self.entry.fault(one_line(error));
        let workload = match &self.kind {
            Kind::Synthetic(spec) => {
                let spec = match rate {
                    Some(rate) => spec.as_ref().clone().with_rate(rate),
                    None => spec.as_ref().clone(),
                };
                spec.generate(seed, requests).map_err(|error| fault(&error))?
            }
            Kind::Trace { bytes, format, .. } => {
                let mut workload = self.read(bytes, *format, seed, NonZeroU32::MIN)?;
                if self.entry.repeat {
                    let rounds = rounds(&workload, requests);
                    workload = self.read(bytes, *format, seed, rounds)?;
                }
                let workload = window(workload, seed, requests);
                match rate {
                    None => workload,
                    Some(rate_per_s)
                        if self.entry.arrivals == TraceArrivals::Poisson
                            || !format.has_arrivals() =>
                    {
                        let process = ArrivalProcess { rate_per_s, shape: GapShape::Poisson {} };
                        workload.with_arrivals(process, seed).map_err(|error| fault(&error))?
                    }
                    Some(rate) => {
                        let recorded = recorded_rate(&workload).ok_or_else(|| {
                            let what = "all requests arrive at once; give arrivals = \"poisson\"";
                            self.entry.fault(what.to_owned())
                        })?;
                        workload.with_rate_scale(rate / recorded).map_err(|error| fault(&error))?
                    }
                }
            }
        };
        Ok(workload.with_name(self.name.clone()))
    }

    fn read(
        &self,
        bytes: &[u8],
        format: TraceFormat,
        seed: u64,
        rounds: NonZeroU32,
    ) -> Result<Workload, SpecFault> {
        let options = TraceOptions {
            think_time_s_max: self.entry.max_think_time.map(Span::as_secs_f64),
            prompt_tokens_max: self.entry.max_prompt_tokens,
            rounds,
            seed,
            ..TraceOptions::default()
        };
        format
            .read(Cursor::new(bytes), &options)
            .map_err(|error| self.entry.fault(one_line(&error)))
    }

    /// The file it is made of, if any.
    pub(crate) fn input(&self) -> Result<Option<InputFile>, kvroute_lab::ReadInputError> {
        match &self.kind {
            Kind::Synthetic(_) => Ok(None),
            Kind::Trace { path, .. } => InputFile::read(path).map(Some),
        }
    }
}

/// At least 1.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates; rates and durations are positive"
)]
fn whole(requests: f64) -> u32 {
    (requests.round() as u32).max(1)
}

/// The specification as a table, with the replacements of the entry.
fn spec_table(entry: &WorkloadEntry, folder: &Path) -> Result<Table, SpecFault> {
    let name = entry.spec.as_deref().unwrap_or_default();
    let spec = if Path::new(name).extension().is_some_and(|extension| extension == "toml") {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| entry.fault(format!("cannot read {}: {error}", path.display())))?;
        WorkloadSpec::from_toml(&text)
    } else {
        WorkloadSpec::builtin(name)
    };
    let spec = spec.map_err(|error| entry.fault(one_line(&error)))?;
    let mut table = Table::try_from(spec).expect("a specification is a table");
    for (key, value) in &entry.set {
        set(entry, &mut table, key, value.clone())?;
    }
    Ok(table)
}

fn set(entry: &WorkloadEntry, table: &mut Table, key: &str, value: Value) -> Result<(), SpecFault> {
    // `{ kind = "…", … }` for a whole distribution replaces it; anything else is laid over.
    match value {
        Value::Table(over) if !over.contains_key("kind") => {
            let mut nested = Table::new();
            nested.insert(key.to_owned(), Value::Table(over));
            merge(table, nested);
            Some(())
        }
        value => set_path(table, key, value),
    }
    .ok_or_else(|| entry.fault(format!("set: {key} leads through something that is no table")))
}

/// Rounds of all conversations in which `requests` requests can begin anywhere in the first.
fn rounds(all: &Workload, requests: u32) -> NonZeroU32 {
    let of_a_round = u32::try_from(all.requests().len()).unwrap_or(u32::MAX).max(1);
    NonZeroU32::MIN.saturating_add(requests.div_ceil(of_a_round))
}

/// `requests` requests from a place in the trace that the seed draws; all of them if there are no more.
fn window(workload: Workload, seed: u64, requests: u32) -> Workload {
    let all = u32::try_from(workload.requests().len()).unwrap_or(u32::MAX);
    match all.checked_sub(requests) {
        None | Some(0) => workload,
        Some(room) => {
            let start = mix64(seed ^ 0x7769_6e64_6f77) % (u64::from(room) + 1);
            workload.window(u32::try_from(start).unwrap_or(0), requests)
        }
    }
}

/// Requests per second between the first and the last absolute arrival; `None` if that is no time.
fn recorded_rate(workload: &Workload) -> Option<f64> {
    let at = |request: &kvroute_workload::WorkloadRequest| match request.arrival {
        Arrival::At(at) => Some(at),
        Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => None,
    };
    let last = workload.requests().iter().filter_map(at).next_back()?;
    let first = workload.requests().iter().find_map(at)?;
    let s = last.nanos_since(first) as f64 / 1e9;
    (s > 0.0).then(|| workload.requests().len() as f64 / s)
}

/// An error and its causes in a line.
pub(crate) fn one_line(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
