//! Laws that every policy keeps.

use kvroute_policy::{BlockNames, Candidate, Decision, RequestView, Scores};
use kvroute_types::{InstanceId, Timestamp};
use proptest::prelude::*;

use crate::common::{any_life, any_request, any_table, build, choose, live, specs};

/// Whether the policy compares all candidates, by nothing but their figures: what most do.
fn looks_at_all(spec: &str) -> bool {
    // Least recent of all without a match is, at first, the least id.
    let has_order = name(spec) == "round-robin" || spec.contains("lru_weight");
    !has_order && !draws(spec) && !HASH_IDS.contains(&name(spec))
}

fn name(spec: &str) -> &str {
    spec.split_once(':').map_or(spec, |(name, _)| name)
}

/// Whether the policy draws.
fn draws(spec: &str) -> bool {
    ["p2c", "dynamo", "ray"].contains(&name(spec))
}

const HASH_IDS: [&str; 5] =
    ["session-affinity", "prefix-affinity", "dualmap", "chwbl", "sticky-least-loaded"];

/// Whether the policy hashes instance ids.
fn hashes_ids(spec: &str) -> bool {
    HASH_IDS.contains(&name(spec)) && !spec.contains("hash=modulo")
}

proptest! {
    #[test]
    fn an_eligible_instance_is_chosen_if_there_is_one(
        candidates in any_table(0..20),
        request in any_request(),
        seed: u64,
    ) {
        let any_eligible = candidates.iter().any(|candidate| candidate.eligible);
        for spec in specs() {
            let mut policy = build(spec, seed);
            for _ in 0..3 {
                let decision = choose(policy.as_mut(), &request, &candidates);
                prop_assert_eq!(decision.is_some(), any_eligible, "{}", spec);
                prop_assert!(decision.is_none_or(|d| candidates[d.position].eligible), "{}", spec);
            }
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_decisions_with_and_without_events(
        life in any_life(0..80),
        seed: u64,
    ) {
        for spec in specs() {
            let told = live(build(spec, seed).as_mut(), &life, true);
            prop_assert_eq!(&told, &live(build(spec, seed).as_mut(), &life, true), "{}", spec);
            prop_assert_eq!(&told, &live(build(spec, seed).as_mut(), &life, false), "{}", spec);
        }
    }

    /// Who is who is told by load, affinity and turn, not by where in the table it stands.
    #[test]
    fn shuffled_ids_change_nothing_while_turns_tell_equals_apart(
        (candidates, shuffled) in any_table(1..20).prop_flat_map(|candidates| {
            let order: Vec<usize> = (0..candidates.len()).collect();
            (Just(candidates), Just(order).prop_shuffle())
        }),
        request in any_request(),
    ) {
        let by_turn: Vec<Candidate> = (1..)
            .zip(&candidates)
            .map(|(turn, candidate)| Candidate { last_chosen: turn, ..candidate.clone() })
            .collect();
        let moved: Vec<Candidate> = (0..)
            .zip(&shuffled)
            .map(|(id, &from)| Candidate { id: InstanceId(id), ..by_turn[from].clone() })
            .collect();
        for spec in specs().into_iter().filter(|spec| looks_at_all(spec)) {
            let here = choose(build(spec, 0).as_mut(), &request, &by_turn);
            let there = choose(build(spec, 0).as_mut(), &request, &moved);
            prop_assert_eq!(
                here.map(|d| (d.position, d.reason)),
                there.map(|d| (shuffled[d.position], d.reason)),
                "{}", spec
            );
        }
    }

    /// Policies that do not hash ids see only the ids' order.
    #[test]
    fn ids_that_keep_their_order_keep_the_decisions(
        candidates in any_table(0..20),
        request in any_request(),
        seed: u64,
    ) {
        let spread: Vec<Candidate> = candidates
            .iter()
            .map(|candidate| Candidate { id: InstanceId(1_000 + 7 * candidate.id.0), ..candidate.clone() })
            .collect();
        for spec in specs().into_iter().filter(|spec| !hashes_ids(spec)) {
            let (mut here, mut there) = (build(spec, seed), build(spec, seed));
            for _ in 0..5 {
                prop_assert_eq!(
                    choose(here.as_mut(), &request, &candidates),
                    choose(there.as_mut(), &request, &spread),
                    "{}", spec
                );
            }
        }
    }

    #[test]
    fn scores_change_no_decision_and_the_chosen_scores_best(
        candidates in any_table(0..20),
        request in any_request(),
        seed: u64,
    ) {
        for spec in specs() {
            let (mut quiet, mut noting) = (build(spec, seed), build(spec, seed));
            let mut scores = Scores::new(true);
            let decision = noting.choose(Timestamp::ZERO, &request, &candidates, &mut scores);
            prop_assert_eq!(choose(quiet.as_mut(), &request, &candidates), decision, "{}", spec);
            check_scores(&candidates, decision, scores.as_slice())?;
        }
    }
}

fn check_scores(
    candidates: &[Candidate],
    decision: Option<Decision>,
    scores: &[(InstanceId, f64)],
) -> Result<(), TestCaseError> {
    let (Some(decision), false) = (decision, scores.is_empty()) else {
        return Ok(());
    };
    let chosen = candidates[decision.position].id;
    let best = scores.iter().map(|&(_, score)| score).max_by(f64::total_cmp);
    let of_chosen = scores.iter().find(|(id, _)| *id == chosen).map(|&(_, score)| score);
    prop_assert_eq!(of_chosen, best);
    for (id, _) in scores {
        prop_assert!(candidates.iter().any(|candidate| candidate.id == *id && candidate.eligible));
    }
    Ok(())
}

/// A different seed gives different draws, and whoever does not draw does not hang on it.
#[test]
fn only_those_that_draw_hang_on_the_seed() {
    let mut candidates: Vec<Candidate> = (0..50).map(InstanceId).map(Candidate::new).collect();
    candidates[7].in_flight = 20; // out of balance
    let request = RequestView {
        id: kvroute_types::RequestId(0),
        session_key: None,
        prefix_key: Some(3),
        prompt_blocks: &[],
        block_names: BlockNames::Engine,
        prompt_tokens: kvroute_types::TokenCount(1),
        max_output_tokens: None,
        priority: 0,
    };
    let choices = |spec, seed| -> Vec<_> {
        let mut policy = build(spec, seed);
        (0..20).map(|_| choose(policy.as_mut(), &request, &candidates)).collect()
    };
    for spec in specs() {
        assert_eq!(choices(spec, 1) != choices(spec, 2), draws(spec), "{spec}");
    }
}
