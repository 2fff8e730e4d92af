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
//! [`experiment_report`] makes page, figures and tables of an experiment of many runs, [`experiment_comparison`] of two.
//! The same measurements give the same bytes, whatever the order of the records.
//!
//! [`RequestRecord`]: kvroute_types::RequestRecord

mod columns;
mod experiment;
mod experiment_report;
mod latencies;
mod manifest;
mod measurements;
mod quantile;
mod report;
mod run_result;
mod statistics;
mod table;

pub use experiment::{
    About, Capacity, Cell, Condition, ExperimentResults, ExperimentRun, InstanceTimeline,
    LoadPoint, Quantiles, Timeline,
};
pub use experiment_report::{
    ExperimentReport, PngError, ReportFigure, ReportTable, experiment_comparison,
    experiment_report, svg_to_png,
};
pub use latencies::{
    Compared, FigureComparison, HitRates, Latencies, LatencyComparison, MeasuredError,
};
pub use manifest::{InputFile, Machine, Manifest, ReadInputError};
pub use measurements::{
    HitRateBounds, InstanceMeasurements, MeasurementWindow, Measurements, Mode, Preemptions, Slo,
    mean_in_flight,
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
pub use statistics::{
    CONFIDENCE, Comparison, EXACT_SEEDS_MAX, Estimate, SEEDS_MIN, compare, interval_tail, mean,
    standard_deviation, steady_from,
};
pub use table::{CSV_COLUMNS, text_table, write_csv};
