//! The schedule in paused time, over a transport without sockets.

use std::num::NonZeroU32;
use std::sync::Mutex;

use kvroute_workload::WorkloadSpec;
use proptest::prelude::*;

use super::*;
use crate::config::PromptForm;

/// Answers each request after its delay; remembers what was sent, and when.
struct Fake {
    delay: Box<dyn Fn(RequestId) -> Duration + Send + Sync>,
    fails: fn(RequestId) -> bool,
    calls: Mutex<Vec<(Timestamp, Call)>>,
}

impl Fake {
    fn new(delay: impl Fn(RequestId) -> Duration + Send + Sync + 'static) -> Arc<Self> {
        let (delay, calls) = (Box::new(delay), Mutex::default());
        Arc::new(Self { delay, fails: |_| false, calls })
    }

    fn body(&self, id: u32) -> String {
        let calls = self.calls.lock().unwrap();
        let (_, call) = calls.iter().find(|(_, call)| call.id.0 == id).unwrap();
        String::from_utf8(call.body.to_vec()).unwrap()
    }
}

impl Transport for Fake {
    async fn exchange(&self, call: Call, clock: Clock) -> Report {
        let id = call.id;
        let mut report = Report::new(id, clock.now());
        self.calls.lock().unwrap().push((report.sent, call));
        tokio::time::sleep((self.delay)(id)).await;
        report.over = clock.now();
        if (self.fails)(id) {
            report.result = Err(Failure::new(FailureKind::Connection, "cut"));
            return report;
        }
        report.answer = Answer {
            first_token: Some(report.over),
            last_token: Some(report.over),
            text: format!("answer-{}", id.0),
            token_ids: vec![900, 900 + id.0],
            content_frames: 2,
            gaps_ns: vec![7_000_000],
            finish_reason: Some("length".into()),
            ..Answer::default()
        };
        report
    }
}

/// Sessions of three turns, 10 s think time, 2 requests/s.
fn chat(requests: u32) -> Workload {
    chat_with(requests, "think_time_s = { kind = \"constant\", value = 10 }")
}

fn chat_with(requests: u32, pause: &str) -> Workload {
    let spec = "kind = \"chat\"\nrequests_per_s = 2.0\nsystem_prompts = 1\n\
        system_prompt_tokens = { kind = \"constant\", value = 4 }\n\
        user_message_tokens = { kind = \"constant\", value = 3 }\n\
        answer_tokens = { kind = \"constant\", value = 2 }\n\
        turns = { kind = \"constant\", value = 3 }\n";
    toml::from_str::<WorkloadSpec>(&format!("{spec}{pause}"))
        .unwrap()
        .generate(7, requests)
        .unwrap()
}

fn uniform(requests: u32) -> Workload {
    let spec = "kind = \"uniform\"\nrequests_per_s = 100.0\n\
        prompt_tokens = { kind = \"constant\", value = 5 }";
    toml::from_str::<WorkloadSpec>(spec).unwrap().generate(7, requests).unwrap()
}

async fn play_over(config: LoadConfig, workload: &Workload, transport: &Arc<Fake>) -> LoadOutcome {
    let settings = Settings::try_from(config).unwrap();
    let prompts = Prompts::new(workload, &settings);
    play(&settings, &prompts, workload, Arc::clone(transport), |_| ()).await
}

fn ids() -> PromptForm {
    PromptForm::TokenIds { vocabulary: NonZeroU32::new(800).unwrap() }
}

fn closed(concurrency: u32) -> LoadConfig {
    let concurrency = NonZeroU32::new(concurrency).unwrap();
    LoadConfig { mode: Mode::ClosedLoop { concurrency }, ..LoadConfig::default() }
}

const MS: Duration = Duration::from_millis(1);

#[tokio::test(start_paused = true)]
async fn later_turns_wait_for_the_answer_and_hold_it() {
    // An answer takes 3 s: within the interval, or longer.
    for pause in ["think_time_s", "message_interval_s"] {
        for pause_s in [2, 10] {
            let pause = format!("{pause} = {{ kind = \"constant\", value = {pause_s} }}");
            check_later_turns(&chat_with(9, &pause)).await;
        }
    }
}

async fn check_later_turns(workload: &Workload) {
    let fake = Fake::new(|_| Duration::from_secs(3));
    let outcome = play_over(LoadConfig::default(), workload, &fake).await;
    for request in workload.requests() {
        let record = &outcome.records[request.id.index()];
        assert_eq!(record.id, request.id);
        let intended = match request.arrival {
            Arrival::At(at) => at,
            relative => {
                let previous = &outcome.records[request.id.index() - 1];
                relative.after(previous.arrival, previous.end).unwrap()
            }
        };
        assert_eq!(record.arrival, intended);
        assert!(record.end.since(record.arrival) >= Duration::from_secs(3));
        assert_eq!((record.outcome, record.reason), (Outcome::Completed, "none"));
    }
    assert_eq!(outcome.planned_answers, 0);
    assert_eq!(outcome.inter_token_ns.len(), 9);
    assert!(outcome.inter_token_ns.equivalent(outcome.inter_token_ns.max(), 7_000_000));
    let third = fake.body(2);
    let parts = ["\"system\"", "\"answer-0\"", "\"user\"", "\"answer-1\"", "\"user\""];
    let mut rest = third.as_str();
    for part in parts {
        rest = rest.split_once(part).unwrap_or_else(|| panic!("{part} in {third}")).1;
    }
    assert!(!fake.body(1).contains("return_token_ids"), "text needs none");
}

#[tokio::test(start_paused = true)]
async fn token_ids_of_the_answer_go_into_the_next_prompt() {
    let (workload, fake) = (chat(3), Fake::new(|_| MS));
    let config = LoadConfig { prompt_form: ids(), ..LoadConfig::default() };
    play_over(config, &workload, &fake).await;
    assert!(fake.body(0).contains("\"return_token_ids\":true"));
    assert!(!fake.body(2).contains("return_token_ids"), "nobody needs the last answer");
    assert!(fake.body(1).contains(",900,900,"));
    assert!(fake.body(2).contains(",900,900,") && fake.body(2).contains(",900,901,"));
}

#[tokio::test(start_paused = true)]
async fn a_failed_turn_does_not_end_its_session() {
    let workload = chat(3);
    let fake =
        Arc::new(Fake { delay: Box::new(|_| MS), fails: |id| id.0 == 0, calls: Mutex::default() });
    let outcome = play_over(LoadConfig::default(), &workload, &fake).await;
    assert_eq!(outcome.records[0].outcome, Outcome::Failed);
    assert!(outcome.records[0].end >= outcome.records[0].arrival + MS);
    assert_eq!(outcome.records[2].outcome, Outcome::Completed);
    assert_eq!(outcome.planned_answers, 1);
    assert_eq!(outcome.failures[&FailureKind::Connection].count, 1);
    assert_eq!(outcome.failures[&FailureKind::Connection].example, "cut");
    assert_eq!(outcome.finish_reasons["length"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_scaled_run_keeps_workload_time() {
    let (workload, fake) = (chat(9), Fake::new(|_| Duration::from_millis(300)));
    let config = LoadConfig { time_scale: 10.0, ..LoadConfig::default() };
    let outcome = play_over(config, &workload, &fake).await;
    let first = &outcome.records[0];
    let Arrival::At(at) = workload.requests()[0].arrival else { panic!() };
    assert_eq!(first.arrival, at);
    let e2e_s = first.end.since(first.arrival).as_secs_f64();
    assert!((3.0..3.1).contains(&e2e_s), "{e2e_s}");
    assert!(outcome.end.as_secs_f64() > 9.0 * outcome.wall.as_secs_f64());
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_has_so_many_in_flight() {
    let (workload, fake) = (uniform(20), Fake::new(|_| 10 * MS));
    let outcome = play_over(closed(4), &workload, &fake).await;
    assert_eq!(outcome.end, Timestamp::ZERO + 50 * MS);
    let at = |n: usize| outcome.records[n].arrival;
    assert_eq!((at(3), at(4), at(19)), (at(0), at(0) + 10 * MS, at(0) + 40 * MS));
    assert_eq!(outcome.late_sends.max, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_client_of_the_closed_loop_plays_whole_sessions() {
    let (workload, fake) = (chat(6), Fake::new(|_| 10 * MS));
    let outcome = play_over(closed(1), &workload, &fake).await;
    let mut order: Vec<_> =
        outcome.records.iter().map(|r| (r.arrival, r.session, r.turn)).collect();
    order.sort_unstable();
    let turns: Vec<_> = order.iter().map(|(_, session, turn)| (session.0, *turn)).collect();
    assert_eq!(turns, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]);
    assert_eq!(fake.body(5).matches("answer-").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_workload_in_a_closed_loop_is_played_as_by_clients() {
    let (workload, fake) = (chat(18), Fake::new(|_| 10 * MS));
    let by_clients = play_over(closed(2), &workload, &fake).await;
    let looped = workload.in_closed_loop(NonZeroU32::new(2).unwrap());
    let fake = Fake::new(|_| 10 * MS);
    let as_it_is = play_over(LoadConfig::default(), &looped, &fake).await;
    assert_eq!(as_it_is.records, by_clients.records);
    // A session knows nothing of the one before it.
    assert_eq!(fake.body(6).matches("answer-").count(), 0);
    assert_eq!(fake.body(8).matches("answer-").count(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_warm_up_leaves_gaps_out_but_no_records() {
    let (workload, fake) = (uniform(50), Fake::new(|_| MS));
    let config = LoadConfig { warm_up_s: 0.2, ..LoadConfig::default() };
    let outcome = play_over(config, &workload, &fake).await;
    let after = outcome.records.iter().filter(|r| r.arrival.as_secs_f64() >= 0.2).count();
    assert!((1..50).contains(&after));
    assert_eq!((outcome.records.len(), outcome.inter_token_ns.len()), (50, after as u64));
}

#[tokio::test(start_paused = true)]
async fn progress_ends_with_everything_told() {
    let (workload, fake) = (uniform(5), Fake::new(|_| MS));
    let settings = Settings::try_from(LoadConfig::default()).unwrap();
    let prompts = Prompts::new(&workload, &settings);
    let mut seen = Vec::new();
    play(&settings, &prompts, &workload, fake, |progress| seen.push(progress)).await;
    let last = seen.last().unwrap();
    assert_eq!((last.total, last.sent, last.completed, last.failed), (5, 5, 5, 0));
    assert_eq!(seen.len(), 10);
}

#[test]
fn an_empty_workload_is_refused() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let refused = runtime.block_on(run(LoadConfig::default(), &uniform(1).take(0), |_| ()));
    assert_eq!(refused.unwrap_err(), LoadError::NoRequests);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The open loop: however long answers take, every request goes out at its time.
    #[test]
    fn no_answer_delays_a_send(delays_ms in proptest::collection::vec(0_u64..5_000, 40)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let workload = uniform(40);
        let fake = Fake::new(move |id| Duration::from_millis(delays_ms[id.index()]));
        let outcome = runtime.block_on(play_over(LoadConfig::default(), &workload, &fake));
        // The timer's resolution is 1 ms, and arrivals fall between.
        let LateSends { p50, max, .. } = outcome.late_sends;
        prop_assert!(max <= 2 * MS && p50 > MS / 100, "{:?}", outcome.late_sends);
        for (request, record) in workload.requests().iter().zip(&outcome.records) {
            prop_assert_eq!(Arrival::At(record.arrival), request.arrival);
        }
    }
}
