//! The specs, and the workloads they give.

use std::collections::BTreeSet;

use kvroute_types::{BlockSize, RequestId, Timestamp};
use proptest::prelude::*;

use super::*;
use crate::{Arrival, Reuses, TraceStats};

fn generate(name: &str, seed: u64, requests: u32) -> Workload {
    WorkloadSpec::builtin(name).unwrap().generate(seed, requests).unwrap()
}

fn last_start_s(workload: &Workload) -> f64 {
    let starts = workload.requests().iter().filter_map(|request| match request.arrival {
        Arrival::At(at) => Some(at.as_secs_f64()),
        Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => None,
    });
    starts.fold(0.0, f64::max)
}

#[test]
fn built_in_specs_are_the_defaults() {
    let builtin = |name| WorkloadSpec::builtin(name).unwrap();
    assert_eq!(builtin("chat"), WorkloadSpec::Chat(ChatSpec::default()));
    assert_eq!(builtin("rag"), WorkloadSpec::Rag(RagSpec::default()));
    assert_eq!(builtin("mixed"), WorkloadSpec::Mixed(MixedSpec::default()));
    assert_eq!(builtin("uniform"), WorkloadSpec::Uniform(UniformSpec::default()));
    for name in WorkloadSpec::BUILTIN {
        assert_eq!(builtin(name).kind(), name);
    }
}

#[test]
fn specs_survive_a_round_trip() {
    for name in WorkloadSpec::BUILTIN {
        let spec = WorkloadSpec::builtin(name).unwrap();
        let text = toml::to_string(&spec).unwrap();
        assert_eq!(WorkloadSpec::from_toml(&text), Ok(spec), "{text}");
    }
}

#[test]
fn unknown_names_and_settings_are_refused() {
    let error = WorkloadSpec::builtin("caht").unwrap_err().to_string();
    assert_eq!(error, "no built-in workload \"caht\"; known are chat, rag, mixed, uniform");
    for text in [
        "kind = \"chat\"\nrequests_per_sec = 3",
        "kind = \"chat\"\nturns = { kind = \"geometric\", mean = 3, sigma = 1 }",
        "kind = \"chat\"\narrivals = { kind = \"poisson\", cv = 2 }",
        "kind = \"chats\"",
    ] {
        assert!(matches!(WorkloadSpec::from_toml(text), Err(SpecError::Parse(_))), "{text}");
    }
}

#[test]
fn impossible_specs_are_refused() {
    let chat = |spec| WorkloadSpec::Chat(spec).generate(0, 10).unwrap_err();
    let small = ChatSpec { max_model_len_tokens: 100, ..ChatSpec::default() };
    assert!(matches!(chat(small), SpecError::OutOfRange { field: "max_model_len_tokens", .. }));
    let idle = ChatSpec { requests_per_s: 0.0, ..ChatSpec::default() };
    assert!(matches!(chat(idle), SpecError::Arrival(_)));
    let empty = WorkloadSpec::Mixed(MixedSpec { parts: Vec::new() });
    assert_eq!(empty.generate(0, 10), Err(SpecError::NoParts));
    assert_eq!(empty.generate(0, 0), Err(SpecError::NoRequests));
    let rag = WorkloadSpec::Rag(RagSpec { documents: 0, ..RagSpec::default() });
    assert!(matches!(rag.generate(0, 1), Err(SpecError::OutOfRange { field: "documents", .. })));
}

#[test]
fn a_seed_gives_one_workload() {
    for name in WorkloadSpec::BUILTIN {
        assert_eq!(generate(name, 1, 500), generate(name, 1, 500));
        assert_ne!(generate(name, 1, 500), generate(name, 2, 500));
    }
}

#[test]
fn the_rate_counts_requests() {
    for name in WorkloadSpec::BUILTIN {
        let spec = WorkloadSpec::builtin(name).unwrap().with_rate(20.0);
        assert!((spec.requests_per_s() - 20.0).abs() < 1e-9);
        let workload = spec.generate(5, 20_000).unwrap();
        let rate = 20_000.0 / last_start_s(&workload);
        assert!((rate / 20.0 - 1.0).abs() < 0.05, "{name}: {rate}");
    }
}

#[test]
fn every_turn_repeats_the_one_before() {
    let workload = generate("chat", 3, 2_000);
    for request in workload.requests() {
        let Some(next) = workload.next_turn(request.id) else { continue };
        let next = &workload.requests()[next.index()];
        let (this, all) = (workload.segments(request), workload.segments(next));
        assert_eq!(this, &all[..this.len()]);
        assert_eq!((next.session, next.turn), (request.session, request.turn + 1));
        assert_eq!(next.prefix_key, request.prefix_key);
        assert!(matches!(next.arrival, Arrival::AfterPrevious { .. }));
    }
    let prefixes: BTreeSet<u64> = workload.requests().iter().map(|r| r.prefix_key).collect();
    assert_eq!(prefixes.len(), 1, "one system prompt");
}

#[test]
fn sharing_is_what_each_kind_promises() {
    let stats =
        |name| TraceStats::new(&generate(name, 7, 5_000), BlockSize::default(), &[]).unwrap();
    let hit_rate = |name| stats(name).hit_rate_infinite_cache;
    assert!(hit_rate("uniform").abs() < f64::EPSILON);
    assert!(hit_rate("rag") > 0.8);
    assert!(hit_rate("chat") > 0.7);
    let chat = stats("chat");
    let turns = f64::from(chat.requests) / f64::from(chat.sessions);
    assert!((3.0..3.7).contains(&turns), "turns per session: {turns}");
}

#[test]
fn a_mixture_keeps_proportions_and_parts_apart() {
    let workload = generate("mixed", 1, 4_000);
    let prompts: BTreeSet<u64> = workload.requests().iter().map(|r| r.session_key).collect();
    assert_eq!(prompts.len(), workload.sessions() as usize);
    // Chat brings half the requests in sessions of about 3.5; the rest come alone.
    let turns = workload.requests().len() as f64 / f64::from(workload.sessions());
    assert!((1.4..1.7).contains(&turns), "{turns}");
}

proptest! {
    #[test]
    fn workloads_are_well_formed(
        name in prop::sample::select(&WorkloadSpec::BUILTIN[..]),
        seed: u64,
        requests in 1_u32..300,
    ) {
        let workload = generate(name, seed, requests);
        prop_assert_eq!(workload.requests().len(), requests as usize);
        let mut latest = kvroute_types::Timestamp::ZERO;
        for (index, request) in (0..).zip(workload.requests()) {
            prop_assert_eq!(request.id, RequestId(index));
            let tokens: u32 = workload.segments(request).iter().map(|s| s.tokens).sum();
            prop_assert_eq!(tokens, request.prompt_tokens.0 + request.output_tokens.0);
            prop_assert!(request.prompt_tokens.0 > 0 && request.output_tokens.0 > 0);
            match request.arrival {
                Arrival::At(at) => {
                    prop_assert!(at >= latest);
                    latest = at;
                }
                Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => prop_assert!(request.turn > 0),
            }
        }
    }
}

#[test]
fn a_window_leaves_the_cold_start_of_an_infinite_cache_out() {
    let text = "kind = \"rag\"\ndocuments = 1\ndocument_tokens = { kind = \"constant\", value = 1600 }\n\
        question_tokens = { kind = \"constant\", value = 8 }\nanswer_tokens = { kind = \"constant\", value = 8 }\n";
    let workload = WorkloadSpec::from_toml(text).unwrap().generate(3, 10).unwrap();
    let plan = crate::Plan::new(&workload, BlockSize::new(16).unwrap()).unwrap();
    let at = |index: usize| match workload.requests()[index].arrival {
        Arrival::At(at) => at,
        other => panic!("{other:?}"),
    };
    let rate = |window| Reuses::new(&workload, &plan, window).infinite_hit_rate();
    // 1,600 of 1,608 prompt tokens are hit by all but the first.
    assert!((rate(Timestamp::ZERO..=Timestamp::MAX) - 9.0 * 1600.0 / 16_080.0).abs() < 1e-12);
    assert!((rate(at(1)..=Timestamp::MAX) - 1600.0 / 1608.0).abs() < 1e-12);
    assert!((rate(at(1)..=at(4)) - 1600.0 / 1608.0).abs() < 1e-12);
    assert!(rate(Timestamp::ZERO..=at(0)) < 1e-12);
}
