//! Samples of the instances' state.

use kvroute_router::{DirectorySource, Refresh};
use kvroute_types::LoadSample;

use super::*;

fn sampled(config: &SimConfig, every_s: f64) -> SimConfig {
    SimConfig { sample_every_s: Some(every_s), ..config.clone() }
}

#[test]
fn sampling_changes_nothing() {
    let variants = ["jsq:load=waiting", "load-cache:load=waiting,alpha=0.5,beta=0.5"];
    let policies = policies().into_iter().chain(variants.map(|text| text.parse().unwrap()));
    let workload = chat(120, 25.0);
    for policy in policies {
        for refresh in [Refresh::RealTime, Refresh::EveryS(0.3), Refresh::Never] {
            for instances_per_device in [1, 2] {
                let base = cluster(3, "jsq").with_kv_blocks(300);
                let mut config = SimConfig { policy, instances_per_device, ..base };
                config.router.load.refresh = refresh;
                let plain = run(&config, &workload);
                assert!(plain.samples.is_empty());
                for every_s in [0.3, 0.013] {
                    let sampled = run(&sampled(&config, every_s), &workload);
                    assert!(!sampled.samples.is_empty());
                    let what = format!("{:?}, {refresh:?}, {every_s}", config.policy);
                    assert_eq!(Seen::from(&sampled), Seen::from(&plain), "{what}");
                }
            }
        }
    }
}

#[test]
fn sampling_changes_nothing_where_much_else_goes_on() {
    let workload = rag(200, 30.0);
    let mut config = cluster(4, "load-cache").with_kv_blocks(400);
    config.network_delay_s = 0.004;
    config.measure_from_s = 1.5;
    config.router.directory = DirectorySource::Events;
    let restart = |at_s| RouterRestart { at_s, policy: None };
    config.router_restarts = [1.0, 2.5, 4.0].map(restart).to_vec();
    let plain = run(&config, &workload);
    let sampled = run(&sampled(&config, 0.01), &workload);
    assert_eq!(Seen::from(&sampled), Seen::from(&plain));
}

#[test]
fn samples_are_taken_on_time_of_every_instance() {
    let workload = uniform(100, 40.0, 2.0);
    let config = sampled(&cluster(3, "jsq"), 0.25);
    let outcome = run(&config, &workload);
    let moments = (0_u32..).map(|number| Timestamp::from_nanos(250_000_000 * u64::from(number)));
    let moments: Vec<Timestamp> = moments.take_while(|at| *at < outcome.end).collect();
    assert!(moments.len() > 8);
    let expected: Vec<_> =
        moments.iter().flat_map(|&at| [0, 1, 2].map(|id| (at, InstanceId(id)))).collect();
    let taken: Vec<_> = outcome.samples.iter().map(|sample| (sample.at, sample.instance)).collect();
    assert_eq!(taken, expected);
    for sample in &outcome.samples[..3] {
        let LoadSample { waiting, running, kv_cache_usage, in_flight, .. } = *sample;
        assert_eq!((waiting, running, kv_cache_usage, in_flight), (0, 0, 0.0, 0));
    }
}

#[test]
fn samples_say_what_records_and_totals_say() {
    let workload = uniform(150, 50.0, 2.0);
    let mut config = cluster(2, "p2c");
    config.network_delay_s = 0.02;
    let outcome = run(&sampled(&config, 1e-3), &workload);
    for sample in outcome.samples.iter().step_by(17) {
        let is_in_flight = |record: &&RequestRecord| {
            record.instance == Some(sample.instance)
                && record.arrival < sample.at
                && record.end > sample.at
        };
        let in_flight = outcome.records.iter().filter(is_in_flight).count();
        assert_eq!(sample.in_flight as usize, in_flight, "{sample:?}");
        assert!(sample.waiting + sample.running <= sample.in_flight, "{sample:?}");
    }
    for instance in &outcome.instances {
        let samples = || outcome.samples.iter().filter(|sample| sample.instance == instance.id);
        let integral = |of: fn(&LoadSample) -> f64| samples().map(of).sum::<f64>() * 1e6;
        let totals = instance.gauge_totals;
        for (sampled, exact) in [
            (integral(|sample| f64::from(sample.running)), totals.running_ns as f64),
            (integral(|sample| f64::from(sample.waiting)), totals.waiting_ns as f64),
            (integral(|sample| sample.kv_cache_usage), totals.kv_cache_usage_ns),
        ] {
            assert!(exact > 0.0);
            assert!((sampled / exact - 1.0).abs() < 0.01, "{sampled} {exact}");
        }
    }
}

#[test]
fn samples_do_not_depend_on_how_engines_get_through_their_steps() {
    let config = sampled(&cluster(3, "load-cache").with_kv_blocks(300), 0.007);
    let mut stepping = config.clone();
    stepping.engine.leap = false;
    let workload = chat(100, 25.0);
    assert_eq!(run(&config, &workload).samples, run(&stepping, &workload).samples);
}

#[test]
fn a_run_measured_in_two_parts_adds_up() {
    let workload = chat(150, 20.0);
    for policy in ["round-robin", "load-cache"] {
        let config = cluster(2, policy).with_kv_blocks(300);
        let until_s = 4.0;
        let whole = run(&config, &workload);
        let first = run(&SimConfig { measure_until_s: Some(until_s), ..config.clone() }, &workload);
        let second = run(&SimConfig { measure_from_s: until_s, ..config.clone() }, &workload);
        assert_eq!(first.measured_until, Timestamp::from_secs_f64(until_s));
        assert_eq!(whole.measured_until, whole.end);
        assert_eq!(first.records, whole.records, "measuring changes nothing");
        for ((whole, first), second) in
            whole.instances.iter().zip(&first.instances).zip(&second.instances)
        {
            let waiting = |of: &crate::InstanceOutcome| of.gauge_totals.waiting_ns;
            assert!(waiting(first) > 0 || whole.gauge_totals.waiting_max == 0);
            assert_eq!(waiting(first) + waiting(second), waiting(whole));
            let gaps = |of: &crate::InstanceOutcome| of.inter_token_ns.len();
            assert!(gaps(first) > 0 && gaps(second) > 0);
            // A gap counts when it ends.
            assert_eq!(gaps(first) + gaps(second), gaps(whole));
        }
    }
}
