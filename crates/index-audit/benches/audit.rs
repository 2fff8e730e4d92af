//! What an audit costs the router's lock: a request's calls and an event's, with many requests under way.
//!
//! Prompts of 128 blocks of 16 tokens of which 112 are predicted; each stores its last 16 in one event.
//!
//! ```text
//! cargo bench -p kvroute-index-audit
//! ```

use std::num::NonZeroUsize;

use divan::{Bencher, black_box};
use kvroute_index_audit::{Audit, AuditConfig, Expectation, Naming, Reported};
use kvroute_types::{BlockHash, BlockSize, RequestId, Timestamp, TokenCount, mix64};
use kvroute_vllm_wire::{BlockHasher, BlockRemoved, BlockStored, ExtraKeys, HashAlgo, none_hash};

fn main() {
    divan::main();
}

const NOW: Timestamp = Timestamp::ZERO;
/// Requests under way.
const UNDER_WAY: [u32; 2] = [8, 1024];

const BLOCKS: u64 = 128;
const PREDICTED: usize = 112;
const TOKENS: u32 = 128 * 16 + 1;

fn naming() -> Naming {
    Naming { algo: HashAlgo::Sha256, block_size: BlockSize::default(), pythonhashseed: None }
}

fn blocks(prompt: u32) -> Vec<BlockHash> {
    (0..BLOCKS).map(|block| BlockHash(mix64(u64::from(prompt) * BLOCKS + block))).collect()
}

fn expectation(prompt: u32, blocks: &[BlockHash]) -> Expectation<'_> {
    Expectation {
        request: RequestId(prompt),
        prompt_tokens: TokenCount(TOKENS),
        blocks,
        predicted_cached_tokens: TokenCount(112 * 16),
        has_extra_keys: false,
    }
}

fn stored(blocks: &[BlockHash]) -> BlockStored {
    BlockStored {
        block_hashes: blocks[PREDICTED..].iter().map(|hash| hash.0.into()).collect(),
        parent_block_hash: Some(blocks[PREDICTED - 1].0.into()),
        block_size: 16,
        group_idx: Some(0),
        ..BlockStored::default()
    }
}

/// An audit with these many requests under way, and the prompts of more.
fn audit(under_way: u32) -> (Audit, Vec<Vec<BlockHash>>) {
    let mut audit = Audit::new(AuditConfig::default(), &naming());
    let prompts: Vec<_> = (0..under_way + 1024).map(blocks).collect();
    for (id, prompt) in (0..under_way).zip(&prompts) {
        audit.routed(NOW, &expectation(id, prompt));
    }
    (audit, prompts)
}

const REPORTED: Option<Reported> =
    Some(Reported { prompt_tokens: TokenCount(TOKENS), cached_tokens: Some(TokenCount(112 * 16)) });

/// All of one request: routed, its event, ended, the verdict asked.
#[divan::bench(args = UNDER_WAY)]
fn request(bencher: Bencher<'_, '_>, under_way: u32) {
    let (mut audit, prompts) = audit(under_way);
    let events: Vec<_> = prompts.iter().map(|prompt| stored(prompt)).collect();
    let mut ids = (under_way..under_way + 1024).cycle();
    bencher.bench_local(move || {
        let id = ids.next().expect("the cycle is endless");
        audit.routed(NOW, &expectation(id, &prompts[id as usize]));
        audit.stored(NOW, &events[id as usize]);
        audit.ended(NOW, RequestId(id), REPORTED);
        black_box(audit.verdict(NOW))
    });
}

/// An event of 16 blocks that nobody waits for.
#[divan::bench(args = UNDER_WAY)]
fn event_of_16_blocks(bencher: Bencher<'_, '_>, under_way: u32) {
    let (mut audit, prompts) = audit(under_way);
    let event = stored(&prompts[under_way as usize]);
    bencher.bench_local(move || audit.stored(NOW, black_box(&event)));
}

/// An event of one block, as decoding makes it.
#[divan::bench(args = UNDER_WAY)]
fn event_of_1_block(bencher: Bencher<'_, '_>, under_way: u32) {
    let (mut audit, prompts) = audit(under_way);
    let event =
        BlockStored { block_hashes: vec![1.into()], ..stored(&prompts[under_way as usize]) };
    bencher.bench_local(move || audit.stored(NOW, black_box(&event)));
}

/// A removal.
#[divan::bench(args = UNDER_WAY)]
fn removal(bencher: Bencher<'_, '_>, under_way: u32) {
    let (mut audit, prompts) = audit(under_way);
    let block_hashes = vec![prompts[under_way as usize][0].0.into()];
    let event = BlockRemoved { block_hashes, ..BlockRemoved::default() };
    bencher.bench_local(move || audit.evicted(NOW, black_box(&event)));
}

/// An event of a first block, whose name is computed again.
#[divan::bench(args = HashAlgo::ALL)]
fn root_event(bencher: Bencher<'_, '_>, algo: HashAlgo) {
    let naming = Naming { algo, ..naming() };
    let block_size = NonZeroUsize::new(16).expect("not zero");
    let root = none_hash(algo, None);
    let mut hasher = BlockHasher::new(algo, root, block_size, ExtraKeys::default());
    let (tokens, mut digests) = ((1000..1016).collect::<Vec<u32>>(), Vec::new());
    hasher.extend(&tokens, &mut digests);
    let event = BlockStored {
        block_hashes: vec![digests[0].external_u64().into()],
        token_ids: tokens,
        block_size: 16,
        extra_keys: Some(vec![None]),
        ..BlockStored::default()
    };
    let mut audit = Audit::new(AuditConfig::default(), &naming);
    bencher.bench_local(|| audit.stored(NOW, black_box(&event)));
    assert!(audit.figures().verified_roots > 0, "the name is ours");
}
