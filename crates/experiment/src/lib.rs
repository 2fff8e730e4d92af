//! Experiments: a file that describes a grid of runs, and the runs themselves.
//!
//! An [`ExperimentSpec`] is read from TOML; a [`Plan`] is its grid written out, with workloads and profiles read; [`run`]
//! simulates what a [`Store`] does not have yet, several runs at a time; [`results`] puts all of it in the plan's order. What
//! a run leaves behind is measured by `kvroute-lab`, and what the results mean is told there too.
//!
//! The same file, seed and build give the same results, with any number of threads, in one go or in many.
//!
//! The crate is *not* told how a live run is made: whoever has a gateway brings a [`Live`].

mod capacity;
mod cluster;
mod measure;
mod plan;
mod runner;
mod scene;
mod spec;
mod store;
mod values;
mod workloads;

#[cfg(test)]
mod tests;

pub use cluster::{Caches, ClusterSettings, InvalidCluster, RefreshText, Span, fit_model_len};
pub use measure::{Simulated, hit_rate_bounds};
pub use plan::{Plan, RunId};
pub use runner::{
    CellFilter, Live, LiveOutcome, LiveRun, Options, Progress, RunFault, results, run,
};
pub use spec::{
    CapacitySettings, ExperimentSpec, Factor, Keep, LabelledPolicy, LoadSettings, PolicyEntry,
    SloSettings, SpecFault, Sweep, TraceArrivals, WarmUpSettings, WorkloadEntry, read_file,
};
pub use store::{Shard, Store, StoreFault, write_atomically};
pub use values::{parse_duration, parse_refresh};
