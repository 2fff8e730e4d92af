//! Events of a real vLLM 0.32.0 (`vllm-wire/tests/fixtures/README.md`): its first blocks are named as we name them, salted
//! ones too, and other settings than its own are found at the first event.

use kvroute_index_audit::{Audit, AuditConfig, Cause, Naming, Verdict};
use kvroute_types::{BlockSize, Timestamp};
use kvroute_vllm_wire::{BlockStored, EventBatch, HashAlgo, KvEvent};
use serde_json::Value;

const RECORDED: [(HashAlgo, &str); 2] = [
    (HashAlgo::Sha256, include_str!("../../../vllm-wire/tests/fixtures/events.json")),
    (
        HashAlgo::Sha256Cbor,
        include_str!("../../../vllm-wire/tests/fixtures/events-sha256_cbor-bytes.json"),
    ),
];

/// The stored events of a recording whose bytes are all there.
fn stored(recording: &str) -> Vec<BlockStored> {
    let recording: Value = serde_json::from_str(recording).expect("JSON");
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let messages = list(&recording["steps"]).into_iter().flat_map(|step| list(&step["messages"]));
    let payloads = messages.filter_map(|message| from_hex(message["frames_hex"][2].as_str()?));
    let batches = payloads.map(|payload| EventBatch::decode(&payload).expect("recorded"));
    let stored = batches.flat_map(|batch| batch.events).filter_map(|event| match event {
        KvEvent::BlockStored(stored) => Some(stored),
        KvEvent::BlockRemoved(_) | KvEvent::AllBlocksCleared => None,
    });
    stored.collect()
}

/// `None` where the recording leaves bytes out.
fn from_hex(hex: &str) -> Option<Vec<u8>> {
    let byte = |at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// The verdict after the events up to the first root, and the roots verified in all.
fn audited(naming: &Naming, events: &[BlockStored]) -> (Verdict, u64) {
    let mut audit = Audit::new(AuditConfig::default(), naming);
    let (mut first, now) = (None, Timestamp::ZERO);
    for event in events {
        audit.stored(now, event);
        if event.parent_block_hash.is_none() {
            first.get_or_insert(audit.verdict(now));
        }
    }
    (first.expect("there is a root"), audit.figures().verified_roots)
}

#[test]
fn settings_are_told_by_recorded_events() {
    for (algo, recording) in RECORDED {
        let events = stored(recording);
        let roots = events.iter().filter(|event| event.parent_block_hash.is_none());
        let (roots, salted): (Vec<_>, Vec<_>) = roots
            .map(|root| root.extra_keys.as_ref().is_some_and(|keys| keys[0].is_some()))
            .partition(|is_salted| !is_salted);
        assert!(roots.len() > 2 && !salted.is_empty(), "{} and {}", roots.len(), salted.len());

        let block_size = BlockSize::new(32).unwrap();
        let right = Naming { algo, block_size, pythonhashseed: None };
        let all = u64::try_from(roots.len() + salted.len()).unwrap();
        assert_eq!(audited(&right, &events), (Verdict::Learning, all), "{algo}");

        let other = HashAlgo::ALL.into_iter().find(|other| *other != algo).unwrap();
        for (naming, cause) in [
            (Naming { algo: other, ..right.clone() }, Cause::HashAlgo { theirs: algo }),
            (Naming { pythonhashseed: Some("0".to_owned()), ..right.clone() }, Cause::HashSeed),
            (
                Naming { block_size: BlockSize::default(), ..right.clone() },
                Cause::BlockSize { ours: 16, theirs: 32 },
            ),
        ] {
            assert_eq!(audited(&naming, &events), (Verdict::Doubted(cause), 0), "{algo}");
        }
    }
}
