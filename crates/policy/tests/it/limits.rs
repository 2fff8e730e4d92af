//! Where one policy's parameters make it another one.

use kvroute_policy::{BlockNames, Candidate, Reason, RequestView};
use kvroute_types::{InstanceId, RequestId, TokenCount};
use proptest::prelude::*;

use crate::common::{BLOCKS, Happening, any_life, build, choose, live};

/// Chosen instances, without the reasons, which differ by name.
fn instances(spec: &str, life: &[Happening]) -> Vec<Option<InstanceId>> {
    let decisions = live(build(spec, 0).as_mut(), life, true);
    decisions.into_iter().map(|decision| decision.map(|(instance, _)| instance)).collect()
}

proptest! {
    #[test]
    fn without_cache_weight_load_cache_is_jsq(life in any_life(0..80)) {
        prop_assert_eq!(instances("load-cache:alpha=0,beta=1", &life), instances("jsq", &life));
        prop_assert_eq!(instances("load-cache:alpha=0,beta=0", &life), instances("jsq", &life));
    }

    #[test]
    fn at_threshold_zero_prefix_affinity_is_jsq(life in any_life(0..80)) {
        prop_assert_eq!(
            instances("prefix-affinity:queue_threshold=0", &life),
            instances("jsq", &life)
        );
    }

    #[test]
    fn at_a_threshold_out_of_reach_prefix_affinity_is_a_pure_hash(life in any_life(0..80)) {
        let without_sessions: Vec<_> = life
            .into_iter()
            .map(|mut happening| {
                if let Happening::Arrives(request) = &mut happening {
                    request.session_key = None;
                }
                happening
            })
            .collect();
        prop_assert_eq!(
            instances("prefix-affinity:queue_threshold=4294967295", &without_sessions),
            instances("session-affinity", &without_sessions)
        );
    }
}

/// The collapse of the original study: with all weight on affinity, the first instance that
/// serves a shared prefix serves it for ever, whatever its load.
#[test]
fn with_all_weight_on_paper_affinity_one_prefix_collapses_onto_one_instance() {
    let request = RequestView {
        id: RequestId(0),
        session_key: None,
        prefix_key: Some(1),
        prompt_blocks: &BLOCKS,
        block_names: BlockNames::Engine,
        prompt_tokens: TokenCount(128),
        max_output_tokens: None,
        priority: 0,
    };
    let sent = |spec: &str| {
        let mut policy = build(spec, 0);
        let mut candidates: Vec<_> = (0..8).map(InstanceId).map(Candidate::new).collect();
        let mut reasons = Vec::new();
        for sequence in 1..=400 {
            let decision = choose(policy.as_mut(), &request, &candidates).unwrap();
            reasons.push(decision.reason);
            for (position, candidate) in candidates.iter_mut().enumerate() {
                candidate.is_last_for_prefix = position == decision.position;
            }
            let chosen = &mut candidates[decision.position];
            chosen.last_chosen = sequence;
            chosen.unseen_in_flight += 1; // nothing ever ends
        }
        (candidates.iter().map(|c| c.unseen_in_flight).collect::<Vec<_>>(), reasons)
    };
    let (collapsed, reasons) = sent("load-cache:affinity=paper,alpha=1,beta=0");
    assert_eq!(collapsed, [400, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(reasons[0], Reason::LoadScore);
    assert!(reasons[1..].iter().all(|&reason| reason == Reason::CacheScore));
    let (spread, _) = sent("load-cache:affinity=paper,alpha=0,beta=1");
    assert_eq!(spread, [50; 8]);
}
