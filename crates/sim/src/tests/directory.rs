//! A directory of what instances tell of their caches.

use kvroute_router::DirectorySource;

use super::*;

/// Instances too small for what is asked of them.
fn pressed(directory: DirectorySource) -> SimConfig {
    let mut config = cluster(3, "load-cache").with_kv_blocks(400);
    config.router.directory = directory;
    config
}

/// Prompt tokens that were predicted to be cached and were not, or the other way round.
fn wrong_tokens(outcome: &SimOutcome) -> u32 {
    let wrong = |record: &RequestRecord| {
        record.cached_tokens.unwrap().0.abs_diff(record.predicted_cached_tokens.unwrap().0)
    };
    outcome.records.iter().map(wrong).sum()
}

#[test]
fn one_request_at_a_time_is_predicted_to_the_token() {
    let workload = rag(300, 0.05);
    let outcome = run(&pressed(DirectorySource::Events), &workload);
    let cached: u32 = outcome.records.iter().map(|record| record.cached_tokens.unwrap().0).sum();
    assert!(cached > 100_000, "{cached}");
    assert_eq!(wrong_tokens(&outcome), 0);
    // The same hits, less what was evicted, which a history has to guess.
    assert!(wrong_tokens(&run(&pressed(DirectorySource::History), &workload)) > 0);
}

#[test]
fn events_know_more_than_a_history_under_load() {
    let workload = rag(600, 20.0);
    let [events, history] = [DirectorySource::Events, DirectorySource::History]
        .map(|directory| wrong_tokens(&run(&pressed(directory), &workload)));
    assert!(events < history, "{events} tokens wrong by events, {history} by history");
}

#[test]
fn how_engines_get_through_their_steps_makes_no_difference() {
    let workload = chat(300, 15.0);
    let mut config = pressed(DirectorySource::Events);
    let leaping = run(&config, &workload);
    config.engine.leap = false;
    let stepping = run(&config, &workload);
    assert_eq!(leaping.decision_log_hash, stepping.decision_log_hash);
    assert_eq!(leaping.records, stepping.records);
}
