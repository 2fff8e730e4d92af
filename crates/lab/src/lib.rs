//! Results of a run and their statistics.
//!
//! A run, simulated or live, is measured as a [`Measurements`]: one [`RequestRecord`] per request, the
//! gauges of each instance, and what the run was. [`RunResult::from_measurements`] turns it into the
//! figures the project reports, each defined once, there. [`text_table`] and [`write_csv`] show them,
//! and a [`Manifest`] says where they came from.
//!
//! The crate is *not* told how a run is made: it drives nothing, and reads no clock, environment or
//! socket (the caller passes what the manifest needs of them). `comparison_table`, `comparison_html` and `figures` set live
//! runs beside simulated ones; [`LatencyComparison`] says how far a simulation of a measured run is off.
//! The same measurements give the same bytes, whatever the order of the records.
//!
//! [`RequestRecord`]: kvroute_types::RequestRecord

mod columns;
mod latencies;
mod manifest;
mod measurements;
mod quantile;
mod report;
mod run_result;
mod table;

pub use latencies::{
    Compared, FigureComparison, HitRates, Latencies, LatencyComparison, MeasuredError,
};
pub use manifest::{InputFile, Machine, Manifest, ReadInputError};
pub use measurements::{
    InstanceMeasurements, Measurements, Mode, Preemptions, Slo, WarmUp, mean_in_flight,
};
pub use quantile::{Summary, quantile};
pub use report::{
    Mark, Pair, Panel, Series, comparison_html, comparison_table, figures, latency_figure,
    panels_svg,
};
pub use run_result::{
    CacheResult, DecisionLogHash, IndexResult, InstanceResult, LoadResult, ParseHashError,
    RunResult,
};
pub use table::{CSV_COLUMNS, text_table, write_csv};
