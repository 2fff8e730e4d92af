//! The greatest load that the baseline bears.
//!
//! A rate is borne if the mean over seeds of the share of counted requests that meet the SLO is at least
//! [`attainment`](crate::CapacitySettings::attainment). The share need not fall with every step of the rate, but it does from
//! far below to far above; the search doubles or halves the rate until one is borne and its double is not, and then halves
//! the interval, by the ratio of its ends.

use kvroute_lab::Capacity;

use crate::RunFault;
use crate::plan::{Plan, PlannedLoad, Scene};
use crate::scene::{Prepared, attainment, config};

/// Most doublings or halvings from the first rate.
const STEPS_MAX: u32 = 24;

/// Whose capacity.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search {
    pub(crate) source: usize,
    pub(crate) instances: u32,
}

pub(crate) fn capacity(plan: &Plan, search: &Search) -> Result<Capacity, RunFault> {
    let settings = plan.spec.capacity;
    let source = &plan.sources[search.source];
    let base = &plan.base;
    let mut tried: Vec<(f64, f64)> = Vec::new();
    let mut is_borne = |rate: f64| -> Result<bool, RunFault> {
        let scene = Scene {
            source: search.source,
            instances: search.instances,
            load: PlannedLoad::Rate(rate),
        };
        let config = config(plan, base, search.instances, plan.baseline, plan.spec.first_seed)?;
        let mut sum = 0.0;
        let seeds = settings.seeds.min(plan.spec.seeds);
        for seed in plan.seeds().take(seeds as usize) {
            let prepared = Prepared::new(plan, &scene, seed, Some(rate), config.engine.block_size)?;
            sum += attainment(plan, &prepared, &scene, base)?;
        }
        let share = sum / f64::from(seeds);
        tried.push((rate, share));
        Ok(share >= settings.attainment)
    };

    let mut rate = f64::from(search.instances);
    let mut bounds = None;
    let goes_up = is_borne(rate)?;
    for _ in 0..STEPS_MAX {
        let next = if goes_up { 2.0 * rate } else { rate / 2.0 };
        if is_borne(next)? != goes_up {
            bounds = Some(if goes_up { (rate, next) } else { (next, rate) });
            break;
        }
        rate = next;
    }
    let Some((mut borne, mut too_much)) = bounds else {
        let (rate, attainment) = tried.last().copied().unwrap_or_default();
        return Err(RunFault::Capacity {
            workload: source.name.clone(),
            instances: search.instances,
            policy: plan.spec.baseline.clone(),
            rate,
            attainment,
        });
    };
    while too_much / borne > 1.0 + settings.tolerance {
        let middle = (borne * too_much).sqrt();
        if is_borne(middle)? {
            borne = middle;
        } else {
            too_much = middle;
        }
    }
    Ok(Capacity {
        workload: source.name.clone(),
        instances: search.instances,
        policy: plan.spec.baseline.clone(),
        requests_per_s: borne,
        too_much_requests_per_s: too_much,
        attainment_min: settings.attainment,
        tried,
    })
}
