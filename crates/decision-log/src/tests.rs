//! Logs that are written, read, damaged and replayed.

use kvroute_policy::{BlockNames, PolicyConfig};
use kvroute_router::{CacheNews, DirectorySource, Router, RouterConfig};
use kvroute_types::{BlockHash, InstanceId, LoadSnapshot, RequestId, Timestamp, TokenCount};
use proptest::prelude::*;

use crate::{
    Comparison, Entry, Event, FORMAT, LogReader, LogWriter, LoggedRequest, ReadError, Replay,
    ReplayError, Route, Start,
};

const A: InstanceId = InstanceId(0);
const B: InstanceId = InstanceId(1);

pub(crate) fn policy(text: &str) -> PolicyConfig {
    text.parse().unwrap()
}

/// Names of the policies that a gateway can run.
fn live_names() -> Vec<&'static str> {
    PolicyConfig::every_live().iter().map(PolicyConfig::name).collect()
}

fn start(text: &str) -> Event {
    Event::Start(Box::new(Start {
        format: FORMAT,
        version: "0".to_owned(),
        seed: u64::MAX,
        policy: policy(text),
        router: router_config(),
    }))
}

fn router_config() -> RouterConfig {
    let directory = DirectorySource::Events;
    RouterConfig { always_index: true, directory, ..RouterConfig::default() }
}

/// What a gateway has kept of a router in which B told that it holds a prompt of three blocks.
fn snapshot() -> Vec<u8> {
    let mut router = Router::new(router_config(), policy("jsq").build(0).unwrap(), 0).unwrap();
    router.observe_cache(Timestamp::ZERO, B, stored(1, 3));
    let mut snapshot = Vec::new();
    router.snapshot(Timestamp::ZERO, &mut snapshot).unwrap();
    snapshot
}

fn stored(family: u64, blocks: u64) -> CacheNews {
    CacheNews::Stored { parent: None, blocks: prompt(family, blocks).into() }
}

fn prompt(family: u64, blocks: u64) -> Vec<BlockHash> {
    (0..blocks).map(|block| BlockHash(family << 32 | block)).collect()
}

fn added(id: InstanceId, name: &str) -> Event {
    Event::InstanceAdded { id, name: name.to_owned() }
}

fn route(id: u32, family: u64, blocks: u64) -> Event {
    Event::Route(Box::new(Route {
        request: LoggedRequest {
            id: RequestId(id),
            session_key: Some(u64::MAX - family),
            prefix_key: None,
            prompt_blocks: prompt(family, blocks),
            // Those of the first family are text.
            block_names: if family == 1 { BlockNames::Text } else { BlockNames::Engine },
            prompt_tokens: TokenCount(u32::try_from(blocks).unwrap() * 16 + 4),
            max_output_tokens: Some(TokenCount(7)),
            priority: -1,
        },
        attempt: 1,
        excluded: Vec::new(),
        decision: None,
        receipt: None,
    }))
}

fn end(id: u32) -> Event {
    Event::End { request: RequestId(id) }
}

/// The events as a gateway would log them, a second apart: with what the router decided.
fn decided(events: impl IntoIterator<Item = Event>) -> Vec<(Timestamp, Event)> {
    let mut replay = None;
    let decide = |(s, mut event): (u64, Event)| {
        let at = Timestamp::from_nanos(s * 1_000_000_000);
        if let Event::Start(start) = &event {
            replay = Some(Replay::as_recorded(start).unwrap());
        } else if !matches!(event, Event::Gap { .. }) {
            let decision = replay.as_mut().unwrap().apply(at, &event).unwrap();
            if let Event::Route(route) = &mut event {
                route.decision = decision;
            }
        }
        (at, event)
    };
    (0..).zip(events).map(decide).collect()
}

fn written(events: &[(Timestamp, Event)]) -> String {
    let mut text = Vec::new();
    let mut log = LogWriter::new(&mut text);
    for (at, event) in events {
        log.write(*at, event).unwrap();
    }
    String::from_utf8(text).unwrap()
}

fn read(text: &str) -> Result<Vec<Entry>, ReadError> {
    LogReader::new(text.as_bytes()).collect()
}

pub(crate) fn compared(entries: &[Entry], policies: &[PolicyConfig]) -> Comparison {
    let mut comparison = Comparison::new(policies);
    for entry in entries {
        comparison.add(entry).unwrap();
    }
    comparison
}

#[test]
fn what_was_written_is_read() {
    let reading = LoadSnapshot {
        waiting: 3,
        running: 1,
        kv_cache_usage: 0.1 + 0.2,
        as_of: Timestamp::from_nanos(u64::MAX / 3),
    };
    let events = decided([
        start("load-cache:alpha=0.30000000000000004"),
        route(0, 1, 3),
        Event::Restored { snapshot: snapshot() },
        added(A, "a"),
        added(B, "b"),
        Event::Load { id: B, reading },
        Event::Cache { id: B, news: stored(2, 2) },
        Event::Cache {
            id: B,
            news: CacheNews::Stored {
                parent: Some(BlockHash(u64::MAX)),
                blocks: prompt(3, 1).into(),
            },
        },
        Event::Cache { id: A, news: CacheNews::Removed(prompt(2, 1).into()) },
        Event::Cache { id: A, news: CacheNews::Cleared },
        Event::Cache { id: A, news: CacheNews::Lost },
        Event::Believed { id: A, believed: false },
        Event::InstanceRestarted { id: A },
        route(1, 1, 3),
        route(2, 1, 5),
        Event::FirstToken { request: RequestId(1) },
        Event::Eligible { id: A, eligible: false },
        Event::Policy(policy("jsq:load=in-flight")),
        end(1),
        Event::InstanceRemoved { id: B },
    ]);
    let text = written(&events);
    let read: Vec<_> = read(&text).unwrap().into_iter().map(|it| (it.at, it.event)).collect();
    assert_eq!(read, events);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&lines[1]["event"], &lines[13]["event"]), (&"refused".into(), &"route".into()));
    // What the log has held before is named, not repeated.
    assert_eq!(lines[1]["blocks"].as_str().unwrap().len(), 3 * 16);
    assert_eq!(lines[13]["blocks"], "");
    assert_eq!(lines[14]["blocks_after"], lines[13]["blocks_after"]);
    assert_eq!(lines[14]["blocks"].as_str().unwrap().len(), 2 * 16);
}

#[test]
fn a_damaged_log_says_where_and_how() {
    let events = decided([start("jsq"), added(A, "a"), route(0, 1, 3), route(1, 1, 4)]);
    let text = written(&events);
    let error = |text: &str| read(text).unwrap_err().to_string();
    let cut = &text[..text.len() - 10];
    assert!(matches!(read(cut), Err(ReadError::Cut { line: 4 })));
    assert_eq!(LogReader::new(cut.as_bytes()).filter_map(Result::ok).count(), 3);
    let without = |line: usize| {
        let lines = text.split_inclusive('\n').enumerate();
        lines.filter(|&(at, _)| at != line).map(|(_, line)| line).collect::<String>()
    };
    assert!(error(&without(0)).contains("line 1 comes before any start"));
    assert!(error(&without(2)).contains("line 3: its blocks"), "{}", error(&without(2)));
    assert!(error(&text.replace("\"format\":2", "\"format\":3")).contains("format 3"));
    assert!(error("{\"request\":1}\n").contains("--decision-log"));
    // Each line is well formed, but one is missing.
    let ended = decided([start("jsq"), added(A, "a"), route(0, 1, 3), end(0)]);
    let text = written(&ended);
    let line = text.lines().nth(2).unwrap();
    let mut comparison = Comparison::new(&[]);
    let missing = read(&text.replace(&format!("{line}\n"), "")).unwrap();
    let result: Result<(), _> = missing.iter().try_for_each(|entry| comparison.add(entry));
    assert!(matches!(result, Err(ReplayError::NotInFlight { request: RequestId(0) })));
}

#[test]
fn the_figures_are_those_worked_out_by_hand() {
    // round-robin: A, B, A, B. Each request is in flight for a second, the last for two.
    let events = decided([
        start("round-robin"),
        added(A, "a"),
        added(B, "b"),
        route(0, 1, 2),
        end(0),
        route(1, 1, 2),
        end(1),
        route(2, 1, 2),
        end(2),
        route(3, 1, 2),
        Event::Eligible { id: A, eligible: true },
        end(3),
    ]);
    let entries = read(&written(&events)).unwrap();
    let sticky = policy("load-cache:alpha=1.0,beta=0.0");
    let comparison = compared(&entries, &[sticky]);
    let summary = comparison.summary();
    assert_eq!((summary.starts, summary.decisions, summary.reproduced), (1, 4, 4));

    let recorded = comparison.recorded();
    assert_eq!((recorded.decisions, recorded.differing), (4, 0));
    // 36 tokens each; cached at the third and fourth, when A and B know the prompt: its 2 blocks.
    assert_eq!((recorded.prompt_tokens, recorded.predicted_cached_tokens), (144, Some(64)));
    assert_eq!(recorded.predicted_hit_rate, Some(64.0 / 144.0));
    // In flight over the log's 11 s: A for 2 s, B for 3 s.
    let shares = |figures: &crate::PolicyFigures| -> Vec<_> {
        let shares = figures.per_instance.iter();
        shares.map(|it| (it.instance.clone(), it.decisions, it.in_flight_mean)).collect()
    };
    assert_eq!(
        shares(&recorded),
        [("a".into(), 2, Some(2.0 / 11.0)), ("b".into(), 2, Some(3.0 / 11.0))]
    );
    assert_eq!(recorded.in_flight_imbalance.map(|it| (it * 1e9).round()), Some(1.2e9));

    let other = &comparison.others()[0];
    // All to A, which B's recorded second and fourth are not.
    assert_eq!((other.differing, other.differing_share), (2, Some(0.5)));
    assert_eq!(other.predicted_cached_tokens, Some(96));
    assert_eq!(shares(other), [("a".into(), 4, Some(5.0 / 11.0)), ("b".into(), 0, Some(0.0))]);
    assert_eq!(other.in_flight_imbalance, Some(2.0));
}

#[test]
fn the_oracle_cannot_be_asked_what_it_would_have_decided() {
    let Event::Start(start) = start("jsq") else { unreachable!("it is one") };
    let refused = Replay::counterfactual(&start, policy("oracle")).unwrap_err();
    let ReplayError::Policy(refused) = refused else { panic!("{refused:?}") };
    assert_eq!(refused, policy("oracle").validate_live().unwrap_err());
}

#[test]
fn a_decision_that_was_changed_is_found() {
    let events =
        decided([start("jsq"), added(A, "a"), added(B, "b"), route(0, 1, 2), route(1, 1, 2)]);
    let text = written(&events).replace(
        "\"request\":1,\"attempt\":1,\"instance_id\":1",
        "\"request\":1,\"attempt\":1,\"instance_id\":0",
    );
    let comparison = compared(&read(&text).unwrap(), &[]);
    let summary = comparison.summary();
    assert_eq!((summary.decisions, summary.reproduced), (2, 1));
    let difference = summary.first_difference.as_ref().unwrap();
    assert_eq!((difference.line, difference.request), (5, RequestId(1)));
    assert_eq!(difference.recorded.unwrap().instance, A);
    assert_eq!(difference.replayed.unwrap().instance, B);
}

#[test]
fn after_a_gap_nothing_is_claimed_until_the_next_start() {
    let events = decided([
        start("jsq"),
        added(A, "a"),
        route(0, 1, 2),
        Event::Gap { lost: 3 },
        route(5, 1, 2),
        start("jsq"),
        added(A, "a"),
        route(0, 1, 2),
    ]);
    let comparison = compared(&read(&written(&events)).unwrap(), &[policy("p2c")]);
    let summary = comparison.summary();
    assert_eq!((summary.starts, summary.decisions, summary.reproduced), (2, 2, 2));
    assert_eq!((summary.lost_events, summary.decisions_after_gaps), (3, 1));
    assert_eq!(comparison.others()[0].per_instance[0].decisions, 2);
}

proptest! {
    /// Whatever happens, each policy's decisions come out again from the text of its log.
    #[test]
    fn every_decision_is_reproduced(
        name in prop::sample::select(live_names()),
        later in prop::sample::select(live_names()),
        ops in prop::collection::vec((0_u32..12, any::<u16>()), 1..200),
    ) {
        let (mut in_flight, mut guests) = (Vec::new(), Vec::new());
        let mut events = vec![start(name), added(A, "a"), added(B, "b")];
        for (number, (op, pick)) in (0..).zip(ops) {
            let id = InstanceId(u32::from(pick % 3));
            events.extend(match op {
                0..=2 => {
                    // B is always eligible, so there is a decision.
                    in_flight.push(number);
                    Some(route(number, u64::from(pick % 5), u64::from(pick % 9)))
                }
                3 if !in_flight.is_empty() => {
                    Some(end(in_flight.swap_remove(pick as usize % in_flight.len())))
                }
                4 => Some(Event::Load {
                    id,
                    reading: LoadSnapshot {
                        waiting: u32::from(pick % 4),
                        running: 1,
                        kv_cache_usage: f64::from(pick) / 3.0,
                        as_of: Timestamp::from_nanos(u64::from(number) * 1_000_000_000),
                    },
                }),
                5 if id != B => Some(Event::Eligible { id, eligible: pick & 8 == 0 }),
                6 if pick % 16 == 0 => Some(Event::Policy(policy(later))),
                7 if pick & 8 == 0 => {
                    // Ids are never used again.
                    guests.push(InstanceId(2 + number));
                    Some(added(InstanceId(2 + number), "guest"))
                }
                8 => Some(Event::Cache {
                    id,
                    news: match pick % 8 {
                        0 => CacheNews::Cleared,
                        1 => CacheNews::Lost,
                        2 | 3 => CacheNews::Removed(prompt(u64::from(pick % 5), 2).into()),
                        _ => stored(u64::from(pick % 5), u64::from(pick % 9)),
                    },
                }),
                9 => Some(Event::Believed { id, believed: pick & 8 == 0 }),
                10 if pick % 8 == 0 => Some(Event::InstanceRestarted { id }),
                11 if pick % 16 == 0 => Some(Event::Restored { snapshot: snapshot() }),
                7 => guests.pop().map(|id| Event::InstanceRemoved { id }),
                _ => None,
            });
        }
        let events = decided(events);
        let entries = read(&written(&events)).unwrap();
        let comparison = compared(&entries, &PolicyConfig::every_live());
        let summary = comparison.summary();
        prop_assert_eq!(summary.first_difference.as_ref(), None);
        prop_assert_eq!(summary.decisions, summary.reproduced);
        if !events.iter().any(|(_, event)| matches!(event, Event::Policy(_))) {
            let same = live_names().iter().position(|it| *it == name).unwrap();
            prop_assert_eq!(comparison.others()[same].differing, 0);
        }
    }
}
