//! 500 random requests, one at a time, as a real vLLM served them: with sync and with async scheduling.

use std::path::Path;

use crate::differential::{Comparison, Event, Recording, compare};

fn recording(scheduling: &str) -> Recording {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let file = fixtures.join(format!("differential-{scheduling}.jsonl.zst"));
    let recording = Recording::open(&file).unwrap();
    assert_eq!(recording.settings.async_scheduling, scheduling == "async");
    recording
}

fn assert_identical(compared: &Comparison) {
    assert!(compared.differences.is_empty(), "{compared}\n{}", compared.differences.join("\n"));
    assert_eq!(compared.identical, compared.requests);
}

fn the_model_does_what_vllm_did(scheduling: &str) {
    let recording = recording(scheduling);
    let compared = compare(&recording, |_| {}).unwrap();
    assert_identical(&compared);
    assert_identical(&compare(&recording, |config| config.leap = false).unwrap());

    // That it was a test at all.
    assert_eq!(compared.requests, 500);
    assert!(compared.hits > 0 && compared.hits < compared.queries, "{compared}");
    assert!(compared.removed > 2_000, "eviction happened all the time: {compared}");
    assert!(compared.copies > 50, "{compared}");
    let other = compare(&recording, |config| config.async_scheduling ^= true).unwrap();
    assert!(other.identical < compared.requests, "the two kinds of scheduling differ");
    let smaller = compare(&recording, |config| config.kv_blocks -= 1).unwrap();
    assert!(smaller.identical < compared.requests, "one block less is noticed");
}

#[test]
fn the_model_does_what_vllm_did_with_sync_scheduling() {
    the_model_does_what_vllm_did("sync");
}

#[test]
fn the_model_does_what_vllm_did_with_async_scheduling() {
    the_model_does_what_vllm_did("async");
}

#[test]
fn a_changed_recording_is_noticed() {
    let differences = |change: fn(&mut Recording)| {
        let mut changed = recording("sync");
        change(&mut changed);
        compare(&changed, |_| {}).unwrap().differences.len()
    };
    assert_eq!(differences(|_| {}), 0);
    assert_eq!(differences(|recording| recording.requests[400].outcome.cached_tokens += 32), 1);
    assert_eq!(differences(|recording| recording.requests[400].outcome.counters.hits += 1), 1);
    // Two removed blocks in the other order.
    let swap = |recording: &mut Recording| {
        let is_removed = |event: &Event| matches!(event, Event::Removed { .. });
        let mut batches = recording.requests.iter_mut().flat_map(|r| &mut r.outcome.batches);
        let removing = batches.find(|batch| batch.len() > 1 && batch[..2].iter().all(is_removed));
        removing.unwrap().swap(0, 1);
    };
    assert_eq!(differences(swap), 1);
    // A batch sent in two.
    let split = |recording: &mut Recording| {
        let mut requests = recording.requests.iter_mut().map(|r| &mut r.outcome.batches);
        let batches = requests.find(|batches| batches.iter().any(|batch| batch.len() > 1)).unwrap();
        let at = batches.iter().position(|batch| batch.len() > 1).unwrap();
        let rest = batches[at].split_off(1);
        batches.insert(at + 1, rest);
    };
    assert_eq!(differences(split), 1);
}
