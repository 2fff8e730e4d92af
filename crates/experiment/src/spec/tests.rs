//! What a file may say, and what is said of one that may not.

use std::path::Path;

use super::*;
use crate::Plan;

const SMALL: &str = r#"
title = "Small"
question = "Is it read?"
policies = ["round-robin"]
[[workloads]]
name = "chat"
spec = "chat"
[quick]
seeds = 2
load.requests_per_s = [1.0]
"#;

fn read(text: &str, set: &[&str]) -> Result<ExperimentSpec, SpecFault> {
    let set: Vec<String> = set.iter().map(|pair| (*pair).to_owned()).collect();
    ExperimentSpec::from_toml(text, false, &set)
}

fn complaint(set: &[&str]) -> String {
    match read(SMALL, set) {
        Err(fault) => crate::workloads::one_line(&fault),
        Ok(spec) => match Plan::new(spec, "small", Path::new(".")) {
            Err(fault) => crate::workloads::one_line(&fault),
            Ok(_) => panic!("{set:?} is accepted"),
        },
    }
}

#[test]
fn quick_and_set_are_laid_over_the_file() {
    let spec = read(SMALL, &[]).unwrap();
    assert_eq!((spec.seeds, spec.load.requests_per_s.len()), (5, 0));
    let quick = ExperimentSpec::from_toml(SMALL, true, &[]).unwrap();
    assert_eq!((quick.seeds, &quick.load.requests_per_s[..]), (2, &[1.0][..]));
    let spec =
        read(SMALL, &["seeds=3", "cluster.kv_blocks=2000", "cluster.load_refresh=100ms"]).unwrap();
    assert_eq!((spec.seeds, spec.cluster.kv_blocks), (3, Some(2000)));
    assert_eq!(spec.cluster.load_refresh.0, kvroute_router::Refresh::EveryS(0.1));
}

#[test]
fn a_grid_of_parameters_is_written_out() {
    let text = SMALL.replace(
        "policies = [\"round-robin\"]",
        "policies = [\"round-robin\", { kind = \"load-cache\", alpha = { from = 0.0, to = 0.4, step = 0.1 }, beta = [0.5, 1.0] }]",
    );
    let labels: Vec<String> =
        read(&text, &[]).unwrap().policies().unwrap().into_iter().map(|p| p.label).collect();
    assert_eq!(labels.len(), 1 + 5 * 2);
    assert_eq!(labels[1], "load-cache:alpha=0.0,beta=0.5");
    assert_eq!(labels[2], "load-cache:alpha=0.0,beta=1.0");
    assert_eq!(labels[7], "load-cache:alpha=0.3,beta=0.5", "not 0.30000000000000004");
}

#[test]
fn a_sweep_sets_keys_of_the_cluster() {
    let text = SMALL.replace(
        "[quick]",
        "[[sweeps]]\nname = \"both\"\nset = [\"index_refresh\", \"load_refresh\"]\nvalues = [0, \"500ms\", \"never\"]\n\
         [[sweeps]]\nname = \"restart\"\nset = [\"router_restart_every\"]\nvalues = [\"10s\", \"never\"]\n[quick]",
    );
    let spec = read(&text, &[]).unwrap();
    let conditions = spec.conditions().unwrap();
    let shown: Vec<_> = conditions
        .iter()
        .map(|(c, _)| (c.sweep.as_str(), c.label.as_str(), c.value, c.unit.as_str()))
        .collect();
    assert_eq!(
        shown,
        [
            ("both", "0", Some(0.0), "s"),
            ("both", "500ms", Some(0.5), "s"),
            ("both", "never", None, "s"),
            ("restart", "10s", Some(10.0), "s"),
            ("restart", "never", None, "s"),
        ]
    );
    let refresh = |at: usize| (conditions[at].1.index_refresh.0, conditions[at].1.load_refresh.0);
    assert_eq!(
        refresh(1),
        (kvroute_router::Refresh::EveryS(0.5), kvroute_router::Refresh::EveryS(0.5))
    );
    assert!(conditions[3].1.router_restart_every.is_some());
    assert!(conditions[4].1.router_restart_every.is_none());
}

#[test]
fn a_sweep_has_a_reference_which_is_one_of_its_values() {
    let with = |reference: &str| {
        SMALL.replace(
            "[quick]",
            &format!(
                "[[sweeps]]\nname = \"restart\"\nset = [\"router_restart_every\"]\nvalues = [\"10s\", \"never\"]\n{reference}\n[quick]"
            ),
        )
    };
    let label = |text: &str| read(text, &[]).unwrap().sweeps[0].reference_label();
    assert_eq!(label(&with("")), "10s");
    assert_eq!(label(&with("reference = \"never\"")), "never");
    let fault = read(&with("reference = \"1min\""), &[]).unwrap_err().to_string();
    assert_eq!(
        fault,
        "sweeps.restart.reference: 1min is none of the values; name one of: 10s, never"
    );
}

#[test]
fn what_cannot_be_is_named_with_its_remedy() {
    let complaints = [
        (vec!["seed=3"], "unknown field `seed`"),
        (vec!["seeds=0"], "seeds is 0; give at least 1"),
        (vec!["warm_up.share=1.0"], "warm_up.share is 1; give a share from 0 to below 1"),
        (vec!["policies=[]"], "policies is empty; name at least one"),
        (
            vec!["policies=[\"jsq\"]"],
            "round-robin is none of the policies; add it, or name one of: jsq",
        ),
        (vec!["policies=[\"random\"]"], "no policy is named `random`; known: round-robin"),
        (vec!["policies=[\"round-robin\",\"round-robin\"]"], "is there twice"),
        (vec!["policies=[{kind=\"load-cache\",alpha=[]}]"], "a list of values is empty"),
        (vec!["load.of_capacity=[1.0]", "load.requests_per_s=[1.0]"], "load: give one of"),
        (vec!["load.of_capacity=[1.0]", "load.concurrency=[4]"], "load: give one of"),
        (vec!["load.concurrency=[0]"], "expected a nonzero u32"),
        (vec!["load.concurrency=[4]", "duration=1min"], "duration: the rate of a closed loop"),
        (
            vec!["load.concurrency=[4]", "cluster.router_restart_every=10s"],
            "cluster.router_restart_every: is not for a closed loop",
        ),
        (
            vec!["load.concurrency=[4]", "cluster.caches=kept"],
            "cluster.caches = \"kept\": is not for a closed loop",
        ),
        (vec!["cluster.profile=gpu"], "cluster.profile: gpu"),
        (vec!["cluster.kv_blocks=1"], "vLLM would not start"),
        (vec!["cluster.index_loss=1.5"], "loss is 1.5; it is a share"),
        (vec!["cluster.speeds=[1,0]"], "speeds is 0; give positive numbers"),
        (vec!["cluster.load_refresh=often"], "give a span of time"),
        (vec!["workloads=[{name=\"x\"}]"], "workloads.x: give spec, or trace and format"),
        (
            vec!["workloads=[{name=\"x\",spec=\"talk\"}]"],
            "no built-in workload \"talk\"; known are chat",
        ),
        (vec!["workloads=[{name=\"x\",spec=\"chat\",set={colour=1}}]"], "unknown field `colour`"),
        (vec!["workloads=[{name=\"x\",trace=\"t.jsonl\"}]"], "give the trace's format"),
        (vec!["workloads=[{name=\"x\",spec=\"chat\",repeat=true}]"], "repeat is for a trace"),
        (vec!["workloads=[{name=\"x\",trace=\"no.jsonl\",format=\"mooncake\"}]"], "cannot read"),
        (vec!["noise"], "`noise` is not KEY=VALUE"),
    ];
    for (set, part) in complaints {
        let complaint = complaint(&set);
        assert!(complaint.contains(part), "{set:?}: {complaint}");
    }
}
