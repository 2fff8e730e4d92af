//! 500 random requests, one at a time, as a real vLLM served them.

use std::path::Path;

use crate::differential::{Comparison, Event, Recording, compare};

fn recording() -> Recording {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    Recording::open(&fixtures.join("differential.jsonl.zst")).unwrap()
}

fn assert_identical(compared: &Comparison) {
    assert!(compared.differences.is_empty(), "{compared}\n{}", compared.differences.join("\n"));
    assert_eq!(compared.identical, compared.requests);
}

#[test]
fn the_model_does_what_the_recorded_vllm_did() {
    let recording = recording();
    let compared = compare(&recording, |_| {}).unwrap();
    assert_identical(&compared);
    assert_identical(&compare(&recording, |config| config.leap = false).unwrap());

    // That it was a test at all.
    assert_eq!(compared.requests, 500);
    assert!(compared.hits > 0 && compared.hits < compared.queries, "{compared}");
    assert!(compared.removed > 2_000, "eviction happened all the time: {compared}");
    assert!(compared.copies > 50, "{compared}");
}

#[test]
fn one_block_less_is_noticed() {
    let compared = compare(&recording(), |config| config.kv_blocks -= 1).unwrap();
    assert!(compared.identical < compared.requests);
}

#[test]
fn a_changed_recording_is_noticed() {
    let alone = |change: fn(&mut Recording)| {
        let mut changed = recording();
        change(&mut changed);
        compare(&changed, |_| {}).unwrap().differences.len()
    };
    assert_eq!(alone(|_| {}), 0);
    assert_eq!(alone(|recording| recording.requests[400].outcome.cached_tokens += 32), 1);
    assert_eq!(alone(|recording| recording.requests[400].outcome.counters.hits += 1), 1);
    // Two removed blocks in the other order.
    let swap = |recording: &mut Recording| {
        let is_removed = |event: &Event| matches!(event, Event::Removed { .. });
        let batches = recording.requests.iter_mut().flat_map(|r| &mut r.outcome.batches);
        let mut removing =
            batches.filter(|batch| batch.len() > 1 && batch[..2].iter().all(is_removed));
        removing.next().unwrap().swap(0, 1);
    };
    assert_eq!(alone(swap), 1);
    // A batch sent in two.
    let split = |recording: &mut Recording| {
        let mut requests = recording.requests.iter_mut().map(|r| &mut r.outcome.batches);
        let batches = requests.find(|batches| batches.iter().any(|batch| batch.len() > 1)).unwrap();
        let at = batches.iter().position(|batch| batch.len() > 1).unwrap();
        let rest = batches[at].split_off(1);
        batches.insert(at + 1, rest);
    };
    assert_eq!(alone(split), 1);
}
