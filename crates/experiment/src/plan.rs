//! The grid of an experiment, written out.

use std::num::NonZeroU32;
use std::path::Path;

use kvroute_lab::{Cell, Condition, InputFile, LoadPoint, Slo};
use kvroute_profile::LatencyProfile;
use kvroute_sim::SimConfig;

use crate::RunFault;
use crate::cluster::{Caches, ClusterSettings};
use crate::runner::CellFilter;
use crate::scene::config;
use crate::spec::{ExperimentSpec, LabelledPolicy, SpecFault};
use crate::store::Store;
use crate::workloads::{Source, one_line};

/// All that is to be run, in the order of results.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) name: String,
    pub(crate) spec: ExperimentSpec,
    pub(crate) sources: Vec<Source>,
    pub(crate) policies: Vec<LabelledPolicy>,
    pub(crate) baseline: usize,
    /// The cluster of the file itself, whatever is swept.
    pub(crate) base: PlannedCondition,
    pub(crate) conditions: Vec<PlannedCondition>,
    pub(crate) scenes: Vec<Scene>,
}

/// A condition and its cluster.
#[derive(Clone, Debug)]
pub(crate) struct PlannedCondition {
    pub(crate) condition: Condition,
    pub(crate) cluster: ClusterSettings,
    pub(crate) profile: LatencyProfile,
}

/// A workload on a number of instances at a load: what all policies and conditions meet alike, under each seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scene {
    pub(crate) source: usize,
    pub(crate) instances: u32,
    pub(crate) load: PlannedLoad,
}

/// A load as the file has it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum PlannedLoad {
    /// The workload's own times.
    Own,
    /// A share of the capacity.
    OfCapacity(f64),
    /// Requests per second over all instances.
    Rate(f64),
    /// Sessions at once over all instances, in a closed loop.
    Concurrency(NonZeroU32),
}

impl PlannedLoad {
    /// As it stands in results, at a rate in requests/s if it has one.
    pub(crate) fn point(self, requests_per_s: Option<f64>) -> LoadPoint {
        let of_capacity = match self {
            Self::OfCapacity(share) => Some(share),
            Self::Own | Self::Rate(_) | Self::Concurrency(_) => None,
        };
        let concurrency = self.clients().map(|clients| f64::from(clients.get()));
        LoadPoint { of_capacity, requests_per_s, concurrency }
    }

    /// Number of clients of a closed loop.
    pub(crate) fn clients(self) -> Option<NonZeroU32> {
        match self {
            Self::Concurrency(clients) => Some(clients),
            Self::Own | Self::OfCapacity(_) | Self::Rate(_) => None,
        }
    }
}

/// A run, by its place in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId {
    /// Number of the cell, in the order of results.
    pub cell: usize,
    /// Its seed.
    pub seed: u64,
}

impl Plan {
    /// Writes the grid out. `name` is the experiment's, `folder` where the files that it names are looked for.
    ///
    /// # Errors
    /// If a workload, a policy, a profile or a cluster cannot be.
    ///
    /// # Panics
    /// If the specification was changed after it was read, to a baseline that is none of the policies.
    pub fn new(spec: ExperimentSpec, name: &str, folder: &Path) -> Result<Self, SpecFault> {
        let policies = spec.policies()?;
        let baseline = policies.iter().position(|policy| policy.label == spec.baseline);
        let baseline = baseline.expect("the file was checked for it");
        let mut sources = Vec::new();
        for entry in &spec.workloads {
            sources.extend(Source::all(entry, folder, (spec.requests, spec.duration))?);
        }
        let base = PlannedCondition {
            condition: Condition::none(),
            cluster: spec.cluster.clone(),
            profile: profile(&spec.cluster.profile, folder)?,
        };
        let mut conditions = Vec::new();
        for (condition, cluster) in spec.conditions()? {
            let profile = profile(&cluster.profile, folder)?;
            let place = if condition.sweep.is_empty() {
                "cluster".to_owned()
            } else {
                format!("sweeps.{}: {}", condition.sweep, condition.label)
            };
            for &instances in &spec.instances {
                let made = cluster.sim_config(&profile, policies[baseline].config, instances, 0);
                made.map_err(|source| SpecFault::Cluster { place: place.clone(), source })?;
            }
            conditions.push(PlannedCondition { condition, cluster, profile });
        }
        let mut scenes = Vec::new();
        for source in 0..sources.len() {
            for &instances in &spec.instances {
                for load in loads(&spec, instances) {
                    scenes.push(Scene { source, instances, load });
                }
            }
        }
        let name = name.to_owned();
        Ok(Self { name, spec, sources, policies, baseline, base, conditions, scenes })
    }

    /// Number of cells.
    pub fn cells(&self) -> usize {
        self.scenes.len() * self.cells_per_scene()
    }

    /// Number of runs: cells times seeds.
    pub fn runs(&self) -> usize {
        self.cells() * self.spec.seeds as usize
    }

    /// Number of runs that are asked for.
    pub fn count(&self, only: &[CellFilter]) -> usize {
        self.wanted(only).len() * self.spec.seeds as usize
    }

    /// Number of those that are in the store.
    pub fn count_done(&self, only: &[CellFilter], store: &Store) -> usize {
        let cells = self.wanted(only).into_iter().map(|(scene, condition, policy)| {
            let cell = self.cell_number(scene, condition, policy);
            self.seeds().filter(|&seed| store.done().contains_key(&RunId { cell, seed })).count()
        });
        cells.sum()
    }

    /// What the grid is made of, in a line.
    pub fn axes(&self) -> String {
        let list = |items: Vec<String>| items.join(", ");
        let short = |items: Vec<String>| match items.len() {
            0..=8 => list(items),
            n => format!("{}, … ({n})", items[..6].join(", ")),
        };
        let loads = self.scenes.iter().map(|scene| match scene.load {
            PlannedLoad::Own => "its own".to_owned(),
            PlannedLoad::OfCapacity(share) => format!("{share} of capacity"),
            PlannedLoad::Rate(rate) => format!("{rate}/s"),
            PlannedLoad::Concurrency(clients) => format!("{clients} sessions at once"),
        });
        let mut different: Vec<String> = Vec::new();
        for load in loads {
            if !different.contains(&load) {
                different.push(load);
            }
        }
        let conditions = self.conditions.iter().map(|planned| {
            let Condition { sweep, label, .. } = &planned.condition;
            format!("{sweep} {label}")
        });
        let mut axes = format!(
            "workloads {}; instances {}; loads {}; policies {}; {} seeds",
            short(self.sources.iter().map(|source| source.name.clone()).collect()),
            list(self.spec.instances.iter().map(u32::to_string).collect()),
            short(different),
            short(self.policies.iter().map(|policy| policy.label.clone()).collect()),
            self.spec.seeds,
        );
        if !self.spec.sweeps.is_empty() {
            axes = format!("{axes}; conditions {}", short(conditions.collect()));
        }
        axes
    }

    /// Scene, condition and policy of every cell that is asked for.
    pub(crate) fn wanted(&self, only: &[CellFilter]) -> Vec<(usize, usize, usize)> {
        let mut wanted = Vec::new();
        for (number, scene) in self.scenes.iter().enumerate() {
            let rate = match scene.load {
                PlannedLoad::Rate(rate) => Some(rate),
                PlannedLoad::Own | PlannedLoad::OfCapacity(_) | PlannedLoad::Concurrency(_) => None,
            };
            for condition in 0..self.conditions.len() {
                for policy in 0..self.policies.len() {
                    let cell = self.cell(scene, condition, policy, rate);
                    if only.is_empty() || only.iter().any(|filter| filter.fits(&cell)) {
                        wanted.push((number, condition, policy));
                    }
                }
            }
        }
        wanted
    }

    /// The seeds, ascending.
    pub fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.spec.first_seed;
        (0..u64::from(self.spec.seeds)).map(move |k| first + k)
    }

    /// The effective experiment file.
    pub fn spec(&self) -> &ExperimentSpec {
        &self.spec
    }

    /// Name of the experiment.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The files that the workloads are made of.
    ///
    /// # Errors
    /// If one cannot be read any more.
    pub fn inputs(&self) -> Result<Vec<InputFile>, kvroute_lab::ReadInputError> {
        let mut inputs: Vec<InputFile> = Vec::new();
        for source in &self.sources {
            let input = source.input()?;
            inputs.extend(input.filter(|input| !inputs.contains(input)));
        }
        Ok(inputs)
    }

    /// The cluster of the first scene, under the baseline and none of the sweeps.
    ///
    /// # Errors
    /// [`RunFault::Simulation`] if its parts do not fit together.
    pub fn base_cluster(&self) -> Result<SimConfig, RunFault> {
        let instances = self.scenes.first().map_or(1, |scene| scene.instances);
        config(self, &self.base, instances, self.baseline, self.spec.first_seed)
    }

    /// The objective of a scene's requests.
    pub(crate) fn slo(&self, scene: &Scene) -> Slo {
        self.sources[scene.source].slo().unwrap_or(self.spec.slo).into()
    }

    pub(crate) fn cells_per_scene(&self) -> usize {
        self.conditions.len() * self.policies.len()
    }

    /// Number of the cell of a scene, condition and policy.
    pub(crate) fn cell_number(&self, scene: usize, condition: usize, policy: usize) -> usize {
        (scene * self.conditions.len() + condition) * self.policies.len() + policy
    }

    /// The cell of that place, at a rate in requests/s if it has one.
    pub(crate) fn cell(
        &self,
        scene: &Scene,
        condition: usize,
        policy: usize,
        requests_per_s: Option<f64>,
    ) -> Cell {
        let source = &self.sources[scene.source];
        Cell {
            workload: source.name.clone(),
            factors: source.factors.clone(),
            instances: scene.instances,
            load: scene.load.point(requests_per_s),
            condition: self.conditions[condition].condition.clone(),
            policy: self.policies[policy].label.clone(),
        }
    }

    /// Whether any condition keeps caches from run to run.
    pub(crate) fn keeps_caches(&self, condition: usize) -> bool {
        self.conditions[condition].cluster.caches == Caches::Kept
    }
}

fn loads(spec: &ExperimentSpec, instances: u32) -> Vec<PlannedLoad> {
    let load = &spec.load;
    let shares = load.of_capacity.iter().map(|share| PlannedLoad::OfCapacity(*share));
    let rates = load.requests_per_s.iter().map(|rate| PlannedLoad::Rate(*rate));
    let each = &load.requests_per_s_per_instance;
    let rates_each = each.iter().map(|rate| PlannedLoad::Rate(rate * f64::from(instances)));
    let clients = load.concurrency.iter().map(|clients| PlannedLoad::Concurrency(*clients));
    let loads: Vec<_> = shares.chain(rates).chain(rates_each).chain(clients).collect();
    if loads.is_empty() { vec![PlannedLoad::Own] } else { loads }
}

fn profile(name: &str, folder: &Path) -> Result<LatencyProfile, SpecFault> {
    let fault = |what: String| SpecFault::Profile { name: name.to_owned(), what };
    if Path::new(name).extension().is_some_and(|extension| extension == "toml") {
        let path = folder.join(name);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| fault(format!("cannot read {}: {error}", path.display())))?;
        return LatencyProfile::from_toml(&text).map_err(|error| fault(one_line(&error)));
    }
    LatencyProfile::builtin(name).map_err(|error| fault(one_line(&error)))
}
