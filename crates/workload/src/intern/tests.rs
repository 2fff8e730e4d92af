//! Chains against the tokens they stand for.

use std::num::NonZeroU32;

use kvroute_types::{BlockKey, BlockSize, RequestId, Timestamp};
use proptest::prelude::*;

use super::Plan;
use crate::workload::{Draft, WorkloadBuilder};
use crate::{Arrival, Segment, SegmentId, TokenStream, Workload};

/// A workload whose contents are lists of (segment, length), each with storage of its own.
fn workload(contents: &[Vec<(u64, u32)>]) -> Workload {
    let mut builder = WorkloadBuilder::default();
    for content in contents {
        let segments = content.iter().map(|&(id, tokens)| Segment { id: SegmentId(id), tokens });
        let content = builder.content(segments);
        push(&mut builder, content, 0);
    }
    builder.finish("test")
}

fn push(builder: &mut WorkloadBuilder, content: crate::workload::Content, session: u32) {
    let tokens = builder.tokens(content);
    builder.push(Draft {
        session,
        arrival: Arrival::At(Timestamp::ZERO),
        prompt_tokens: tokens - 1,
        output_tokens: 1,
        content,
        session_key: 0,
        prefix_key: 0,
    });
}

fn plan(workload: &Workload, block_size: u32) -> Plan {
    Plan::new(workload, BlockSize::new(block_size).unwrap()).unwrap()
}

/// The keys of the blocks that each request fills.
fn keys(workload: &Workload, plan: &Plan) -> Vec<Vec<BlockKey>> {
    let filled = |request: &crate::WorkloadRequest| {
        let tokens = request.prompt_tokens.0 + request.output_tokens.0;
        let blocks = (tokens / plan.block_size().get()) as usize;
        let keys: Vec<BlockKey> = plan.chain(request.id).keys().take(blocks).collect();
        assert_eq!(keys.len(), blocks, "the chain covers every full block");
        keys
    };
    workload.requests().iter().map(filled).collect()
}

#[test]
fn lengths_of_one_segment_share_what_they_have_in_common() {
    let workload = workload(&[vec![(1, 40)], vec![(1, 100)], vec![(1, 40), (2, 60)]]);
    let plan = plan(&workload, 16);
    let keys = keys(&workload, &plan);
    assert_eq!(keys[0], keys[1][..2]);
    assert_eq!(keys[0], keys[2][..2]);
    // Block 2 holds tokens 32..48: the second request's are all segment 1's, the third's are not.
    assert_ne!(keys[1][2], keys[2][2]);
    assert_eq!(plan.distinct_keys(), 6 + 4);
}

#[test]
fn an_unbranched_chain_is_one_run() {
    let workload =
        workload(&[vec![(1, 50), (2, 50)], vec![(3, 100)], vec![(1, 50), (2, 50), (4, 90)]]);
    let plan = plan(&workload, 16);
    assert!(plan.chains().iter().all(|chain| chain.runs().len() == 1), "{:?}", plan.chains());
}

#[test]
fn turns_that_share_storage_share_one_chain() {
    let mut builder = WorkloadBuilder::default();
    let segment = |id, tokens| Segment { id: SegmentId(id), tokens };
    let first = builder.content([segment(1, 20), segment(2, 20)]);
    push(&mut builder, first, 0);
    let second = builder.extend(first, [segment(3, 30)]);
    push(&mut builder, second, 0);
    let workload = builder.finish("test");
    let plan = plan(&workload, 16);
    assert_eq!(plan.chain(RequestId(0)), plan.chain(RequestId(1)));
    assert_eq!(plan.chain(RequestId(0)).len(), 70 / 16);
    assert_eq!(plan.distinct_keys(), 70 / 16);
}

/// Few ids and short lengths, so that contents often agree for a while.
fn contents() -> impl Strategy<Value = Vec<Vec<(u64, u32)>>> {
    let length = prop_oneof![Just(5_u32), Just(16), Just(48), 1_u32..70];
    let content = prop::collection::vec((0_u64..3, length), 1..6);
    let content = content.prop_filter("a prompt and an output", |content| {
        content.iter().map(|part| part.1).sum::<u32>() >= 2
    });
    prop::collection::vec(content, 1..12)
}

proptest! {
    #[test]
    fn equal_keys_mean_equal_prefixes(
        contents in contents(),
        block_size in prop_oneof![Just(1_u32), Just(3), Just(16), Just(48), 1_u32..64],
    ) {
        let workload = workload(&contents);
        let plan = plan(&workload, block_size);
        let stream = TokenStream::new(NonZeroU32::MAX, 0);
        let tokens: Vec<Vec<u32>> =
            workload.requests().iter().map(|r| workload.tokens(r, &stream).collect()).collect();
        let keys = keys(&workload, &plan);
        let mut distinct = std::collections::BTreeSet::new();
        for (a, keys_a) in keys.iter().enumerate() {
            distinct.extend(keys_a.iter().copied());
            for (b, keys_b) in keys.iter().enumerate().take(a) {
                for block in 0..keys_a.len().min(keys_b.len()) {
                    let end = (block + 1) * block_size as usize;
                    prop_assert_eq!(
                        keys_a[block] == keys_b[block],
                        tokens[a][..end] == tokens[b][..end],
                        "requests {} and {}, block {}", a, b, block
                    );
                }
                let others = keys_b.iter().enumerate();
                for (i, other) in others {
                    prop_assert!(keys_a.iter().position(|key| key == other).is_none_or(|j| i == j));
                }
            }
        }
        prop_assert_eq!(distinct.len(), plan.distinct_keys() as usize, "keys are dense");
        prop_assert!(distinct.iter().all(|key| key.0 < plan.distinct_keys()));
    }
}
