//! From what a simulation left behind to the figures of its run.

use hdrhistogram::Histogram;
use kvroute_engine::EngineConfig;
use kvroute_lab::{
    HitRateBounds, InstanceMeasurements, MeasurementWindow, Measurements, Mode, Preemptions,
    RunResult, Slo, mean_in_flight,
};
use kvroute_policy::PolicyConfig;
use kvroute_sim::SimOutcome;
use kvroute_types::{InstanceId, RequestRecord, Timestamp};
use kvroute_workload::{PooledHitRates, Reuses};

/// What a simulated run was, besides its outcome.
#[derive(Clone, Copy, Debug)]
pub struct Simulated<'a> {
    /// The policy.
    pub policy: PolicyConfig,
    /// Name of the workload.
    pub workload: &'a str,
    /// Number of instances.
    pub instances: u32,
    /// Seed of all that was drawn.
    pub seed: u64,
    /// Which requests count. Gauges should have been measured over it.
    pub window: MeasurementWindow,
    /// The objective.
    pub slo: Slo,
    /// Hit rates of one cache for all instances.
    pub hit_rate_bounds: HitRateBounds,
    /// Time the simulation took, s.
    pub wall_s: f64,
}

/// Hit rates of one cache as large as those of so many instances together.
pub fn hit_rate_bounds(reuses: &Reuses, instances: u32, engine: &EngineConfig) -> HitRateBounds {
    let blocks = u64::from(instances) * u64::from(engine.usable_blocks());
    let PooledHitRates { lru, belady, infinite } = reuses.hit_rates(blocks);
    HitRateBounds {
        pooled_lru: Some(lru),
        pooled_belady: Some(belady),
        infinite_cache: Some(infinite),
    }
}

impl Simulated<'_> {
    /// The figures of the run.
    ///
    /// # Panics
    /// Never: inter-token histograms grow as needed, and policies are plain data.
    pub fn result(&self, outcome: &SimOutcome) -> RunResult {
        let mut inter_token_ns = Histogram::new(3).expect("3 significant digits are allowed");
        for instance in &outcome.instances {
            inter_token_ns.add(&instance.inter_token_ns).expect("the histogram grows as needed");
        }
        let (from, until) = (outcome.measured_from, outcome.measured_until);
        let ns = until.nanos_since(from);
        let mean = |sum: f64| (ns > 0).then(|| sum / ns as f64);
        let instances = outcome.instances.iter().map(|instance| InstanceMeasurements {
            instance: instance.id,
            queue_depth_mean: mean(instance.gauge_totals.waiting_ns as f64),
            queue_depth_max: Some(instance.gauge_totals.waiting_max),
            kv_cache_usage_mean: mean(instance.gauge_totals.kv_cache_usage_ns),
            in_flight_mean: mean_in_flight(&outcome.records, instance.id, from, until),
        });
        RunResult::from_measurements(&Measurements {
            records: &outcome.records,
            inter_token_ns: Some(inter_token_ns),
            instances_measured: instances.collect(),
            cov_in_flight: outcome.in_flight_cov,
            decision_log_hash: Some(outcome.decision_log_hash),
            ..self.unmeasured()
        })
    }

    /// The figures of a part of a run, of which only the records are known.
    pub(crate) fn result_of_records(&self, records: &[RequestRecord], instances: u32) -> RunResult {
        let until = records.iter().map(|record| record.end).max().unwrap_or(Timestamp::ZERO);
        let until = until.min(self.window.until());
        let instances = (0..instances).map(InstanceId).map(|id| InstanceMeasurements {
            in_flight_mean: mean_in_flight(records, id, self.window.from(), until),
            ..InstanceMeasurements::unmeasured(id)
        });
        RunResult::from_measurements(&Measurements {
            records,
            instances_measured: instances.collect(),
            ..self.unmeasured()
        })
    }

    fn unmeasured(&self) -> Measurements<'static> {
        Measurements {
            policy: self.policy.name().to_owned(),
            policy_config: serde_json::to_value(self.policy).expect("a policy is plain data"),
            workload: self.workload.to_owned(),
            instances: self.instances,
            seed: self.seed,
            mode: Mode::Sim,
            records: &[],
            window: self.window,
            slo: self.slo,
            inter_token_ns: None,
            hit_rate_bounds: self.hit_rate_bounds,
            instances_measured: Vec::new(),
            cov_in_flight: None,
            preemptions: Preemptions::InRecords,
            decision_log_hash: None,
            wall_s: self.wall_s,
        }
    }
}
