//! Every reader on a few hand-written lines, and on what can be wrong with them.

use std::error::Error as _;
use std::io::Write as _;
use std::num::NonZeroU32;
use std::time::Duration;

use kvroute_types::BlockSize;
use proptest::prelude::*;

use super::*;
use crate::{Arrival, Plan, TokenStream, TraceStats, WorkloadRequest};

macro_rules! fixture {
    ($name:literal) => {
        include_str!(concat!("../../tests/fixtures/", $name))
    };
}

const MOONCAKE: &str = fixture!("mooncake.jsonl");
const AGENTIC: &str = fixture!("agentic.jsonl");

fn read(format: TraceFormat, text: &str) -> Result<Workload, TraceError> {
    format.read(text.as_bytes(), &TraceOptions::default())
}

fn message(format: TraceFormat, text: &str) -> String {
    read(format, text).unwrap_err().to_string()
}

fn at_s(request: &WorkloadRequest) -> f64 {
    match request.arrival {
        Arrival::At(at) => at.as_secs_f64(),
        relative => panic!("relative arrival, {relative:?}"),
    }
}

fn think_s(request: &WorkloadRequest) -> f64 {
    match request.arrival {
        Arrival::AfterPrevious { think } => think.as_secs_f64(),
        other => panic!("no think time, {other:?}"),
    }
}

fn sessions_and_turns(workload: &Workload) -> Vec<(u32, u32)> {
    workload.requests().iter().map(|r| (r.session.0, r.turn)).collect()
}

fn lengths(workload: &Workload) -> Vec<(u32, u32)> {
    workload.requests().iter().map(|r| (r.prompt_tokens.0, r.output_tokens.0)).collect()
}

/// Leading tokens that two requests share.
fn common_tokens(workload: &Workload, a: usize, b: usize) -> usize {
    let stream = TokenStream::new(NonZeroU32::MAX, 0);
    let tokens = |index: usize| workload.tokens(&workload.requests()[index], &stream);
    tokens(a).zip(tokens(b)).take_while(|(a, b)| a == b).count()
}

#[test]
fn names_are_read_back_and_unknown_ones_list_the_known() {
    for format in TraceFormat::ALL {
        assert_eq!(format.to_string().parse(), Ok(format));
    }
    let error = "moonshine".parse::<TraceFormat>().unwrap_err().to_string();
    assert!(error.starts_with("unknown trace format \"moonshine\"; known are mooncake, bailian"));
}

#[test]
fn mooncake() {
    let workload = read(TraceFormat::Mooncake, MOONCAKE).unwrap();
    assert_eq!(lengths(&workload), [(1100, 20), (700, 30), (1800, 40), (1024, 1)]);
    assert_eq!(workload.requests().iter().map(at_s).collect::<Vec<_>>(), [0.0, 0.0, 3.0, 9.0]);
    // The third extends the first's two full blocks; the partial third block is not repeated.
    assert_eq!(sessions_and_turns(&workload), [(0, 0), (1, 0), (0, 1), (2, 0)]);
    assert_eq!(common_tokens(&workload, 0, 1), 512);
    assert_eq!(common_tokens(&workload, 0, 2), 1024);
    assert_eq!(common_tokens(&workload, 2, 3), 1024);
    let key = |index: usize| workload.requests()[index].prefix_key;
    assert_eq!(key(0), key(2));
    assert_ne!(key(0), key(1));
    let stats = TraceStats::new(&workload, BlockSize::new(512).unwrap(), &[512, 4096]).unwrap();
    // Hits: 0, 1, 2 and (without the block that holds the last token) 1 block of 4624 prompt
    // tokens.
    assert!((stats.hit_rate_infinite_cache - 4.0 * 512.0 / 4624.0).abs() < 1e-12);
    assert!((stats.pooled_lru[1].hit_rate - stats.hit_rate_infinite_cache).abs() < 1e-12);
    assert!(stats.pooled_lru[0].hit_rate < stats.pooled_lru[1].hit_rate);
}

#[test]
fn bailian() {
    let workload = read(TraceFormat::Bailian, fixture!("bailian.jsonl")).unwrap();
    assert_eq!(sessions_and_turns(&workload), [(0, 0), (1, 0), (0, 1)]);
    assert_eq!(workload.requests().iter().map(at_s).collect::<Vec<_>>(), [0.0, 0.75, 1.5]);
    assert_eq!(common_tokens(&workload, 0, 1), 32);
    assert_eq!(common_tokens(&workload, 0, 2), 32);
}

#[test]
fn azure() {
    let workload = read(TraceFormat::Azure, fixture!("azure.csv")).unwrap();
    assert_eq!(lengths(&workload), [(374, 44), (396, 109)]);
    assert!((at_s(&workload.requests()[1]) - 2.25).abs() < 1e-9, "across midnight");
    assert_eq!(common_tokens(&workload, 0, 1), 0);
}

#[test]
fn burstgpt_with_and_without_sessions() {
    let text = fixture!("burstgpt.csv");
    let workload = read(TraceFormat::BurstGpt, text).unwrap();
    assert_eq!(sessions_and_turns(&workload), [(0, 0), (1, 0), (0, 1)]);
    assert_eq!(workload.requests().iter().map(at_s).collect::<Vec<_>>(), [0.0, 40.0, 113.0]);
    let workload = read(TraceFormat::BurstGpt, &text.replace("Session ID", "Note")).unwrap();
    assert_eq!(workload.sessions(), 3);
}

#[test]
fn sharegpt_text_is_estimated_and_not_kept() {
    let workload = read(TraceFormat::ShareGpt, fixture!("sharegpt.json")).unwrap();
    let mut found = lengths(&workload);
    found.sort_unstable();
    // 17, 28, 4 and 7 characters; 21, 3 and 6 of history (the diaeresis is one) before 4.
    assert_eq!(found, [(5, 7), (6 + 1 + 2, 1), (5 + 7 + 1, 2)]);
    assert_eq!(workload.dropped(), 1, "the empty answer");
}

#[test]
fn sharegpt_lengths() {
    let workload = read(TraceFormat::ShareGptLengths, fixture!("sharegpt-lengths.jsonl")).unwrap();
    let long: Vec<_> = workload.requests().iter().filter(|r| r.output_tokens.0 > 71).collect();
    assert_eq!((long[0].prompt_tokens.0, long[1].prompt_tokens.0), (34, 34 + 244 + 36));
    assert_eq!(workload.next_turn(long[0].id), Some(long[1].id));
    assert!(think_s(long[1]) > 0.0);
    let repeated = common_tokens(&workload, long[0].id.index(), long[1].id.index());
    assert_eq!(repeated, 34 + 244, "the answer is part of the next prompt");
    assert_eq!((workload.sessions(), workload.dropped()), (2, 0));
}

/// A prompt of everybody, a first message of two, and a tool.
const NUMBERED: &str = r#"
[["s",100,0],["h",20,1],["g",30],["t",40],["g",50],["h",7],["g",9]]
[["s",100,0],["h",20,1],["g",33]]
[["s",100,0],["h",20],["g",31]]
"#;

/// The requests with that many output tokens, in order.
fn with_output(workload: &Workload, tokens: u32) -> Vec<usize> {
    let requests = workload.requests().iter();
    requests.filter(|r| r.output_tokens.0 == tokens).map(|r| r.id.index()).collect()
}

#[test]
fn numbered_texts_are_shared_and_tools_are_answered() {
    let workload = read(TraceFormat::ShareGptLengths, NUMBERED).unwrap();
    let [first, tool, human, other, third] =
        [30, 50, 9, 33, 31].map(|tokens| with_output(&workload, tokens)[0]);
    let request = |index: usize| &workload.requests()[index];
    let prompt = |index: usize| request(index).prompt_tokens.0;
    assert_eq!([first, tool, human].map(prompt), [120, 190, 247]);
    assert_eq!(common_tokens(&workload, first, other), 120);
    assert_eq!(common_tokens(&workload, first, third), 100, "the same length is not the same text");
    assert_eq!(common_tokens(&workload, tool, human), 240);
    assert_eq!(request(first).prefix_key, request(third).prefix_key);
    assert_ne!(request(first).session_key, request(other).session_key);
    assert!((think_s(request(tool)) - 1.0).abs() < 1e-9, "a tool takes a second");
    let think_time_s = Distribution::Constant { value: 4.0 };
    let tool_time_s = Distribution::Constant { value: 0.5 };
    let options = TraceOptions { think_time_s, tool_time_s, ..TraceOptions::default() };
    let workload = TraceFormat::ShareGptLengths.read(NUMBERED.as_bytes(), &options).unwrap();
    let pauses = [tool, human].map(|index| think_s(&workload.requests()[index]));
    assert!((pauses[0] - 0.5).abs() < 1e-9 && (pauses[1] - 4.0).abs() < 1e-9, "{pauses:?}");
}

#[test]
fn a_number_is_of_one_text() {
    let of = |text: &str| message(TraceFormat::ShareGptLengths, text);
    assert_eq!(
        of("[[\"h\",5,3],[\"g\",1]]\n[[\"h\",6,3],[\"g\",1]]\n"),
        "line 2: text 3 has 6 tokens, and 5 on line 1; give another text another number"
    );
    assert!(of("[[\"h\",5,-3],[\"g\",1]]").starts_with("line 1: not a record"));
}

#[test]
fn another_round_is_of_other_people() {
    let read = |format: TraceFormat, text: &str, rounds: u32| {
        let rounds = NonZeroU32::new(rounds).unwrap();
        let options = TraceOptions { rounds, ..TraceOptions::default() };
        format.read(text.as_bytes(), &options).unwrap()
    };
    let workload = read(TraceFormat::ShareGptLengths, NUMBERED, 3);
    assert_eq!((workload.sessions(), workload.requests().len()), (9, 15));
    let human = with_output(&workload, 9);
    assert_eq!(human.len(), 3);
    assert_eq!(common_tokens(&workload, human[0], human[1]), 120);
    let third = with_output(&workload, 31);
    assert_eq!(common_tokens(&workload, third[0], third[2]), 100);
    let keys = human.iter().map(|&index| workload.requests()[index].session_key);
    assert_eq!(keys.collect::<std::collections::BTreeSet<_>>().len(), 3);

    let once = read(TraceFormat::Agentic, AGENTIC, 1);
    let twice = read(TraceFormat::Agentic, AGENTIC, 2);
    assert_eq!(twice.sessions(), 2 * once.sessions());
    assert_eq!(twice.dropped(), once.dropped(), "records of the file");
    let of_length = |tokens: u32| -> Vec<usize> {
        let requests = twice.requests().iter().filter(|r| r.prompt_tokens.0 == tokens);
        requests.map(|r| r.id.index()).collect()
    };
    let (first, sub) = (of_length(330), of_length(200));
    assert_eq!(common_tokens(&twice, first[0], first[1]), 128, "tools and system prompt");
    let of_one: Vec<usize> = sub.iter().map(|&sub| common_tokens(&twice, first[0], sub)).collect();
    assert!(of_one == [192, 128] || of_one == [128, 192], "a sub-agent of its round: {of_one:?}");
}

/// A committed trace.
fn committed(format: TraceFormat, name: &str) -> Workload {
    let path = format!("{}/../../data/traces/{name}", env!("CARGO_MANIFEST_DIR"));
    format.read(&std::fs::read(path).unwrap()[..], &TraceOptions::default()).unwrap()
}

#[test]
fn tau_bench_has_the_statistics_of_its_text() {
    let workload = committed(TraceFormat::ShareGptLengths, "tau-bench-airline.jsonl.gz");
    assert_eq!(workload.dropped(), 0);
    let stats = TraceStats::new(&workload, BlockSize::new(16).unwrap(), &[]).unwrap();
    assert_eq!((stats.requests, stats.sessions), (2_454, 200));
    // Of the text itself, tokenised as a whole: mean 3,051 and 85, and 95.1 % of the tokens in an infinite cache.
    assert!((stats.input_tokens.mean - 3_051.0).abs() < 1.0, "{stats:?}");
    assert!((stats.output_tokens.mean - 85.0).abs() < 0.5, "{stats:?}");
    assert!((stats.hit_rate_infinite_cache - 0.951).abs() < 0.0005, "{stats:?}");
    // One system prompt, of 1,265 tokens.
    let first_turns: Vec<usize> =
        workload.requests().iter().filter(|r| r.turn == 0).map(|r| r.id.index()).collect();
    assert!(
        first_turns[1..]
            .iter()
            .all(|&turn| common_tokens(&workload, first_turns[0], turn) >= 1_265)
    );
}

#[test]
fn azure_code_has_the_statistics_of_its_publication() {
    let workload = committed(TraceFormat::Azure, "azure-code-2023.csv.zst");
    let stats = TraceStats::new(&workload, BlockSize::new(16).unwrap(), &[]).unwrap();
    assert_eq!((stats.requests, stats.sessions), (8_819, 8_819));
    assert!((stats.duration_s - 3_436.0).abs() < 1.0, "{stats:?}");
    assert!((stats.input_tokens.mean - 2_048.0).abs() < 1.0, "{stats:?}");
    assert!((stats.output_tokens.mean - 27.9).abs() < 0.05, "{stats:?}");
    assert_eq!((stats.input_tokens.p50, stats.input_tokens.max), (1_469.0, 7_437));
    assert!(stats.hit_rate_infinite_cache.abs() < f64::EPSILON, "nothing is shared");
}

#[test]
fn llmservingsim_shares_real_tokens_exactly() {
    let workload = read(TraceFormat::LlmServingSim, fixture!("llmservingsim.jsonl")).unwrap();
    let stream = TokenStream::new(NonZeroU32::MIN, 0);
    let tokens: Vec<u32> = workload.tokens(&workload.requests()[1], &stream).collect();
    assert_eq!(tokens, [5, 6, 7, 8, 9, 11]);
    assert_eq!(common_tokens(&workload, 0, 1), 5, "the first one's answer begins with a 9");
}

#[test]
fn agentic_sessions_share_their_models_prompt() {
    let workload = read(TraceFormat::Agentic, AGENTIC).unwrap();
    let find = |prompt: u32| {
        let found = workload.requests().iter().position(|r| r.prompt_tokens.0 == prompt);
        found.unwrap()
    };
    let (first, second, last, sub, other) = (find(330), find(400), find(450), find(200), find(256));
    assert_eq!(common_tokens(&workload, first, second), 256);
    assert_eq!(common_tokens(&workload, second, last), 384);
    assert_eq!(common_tokens(&workload, first, sub), 192, "one id space");
    assert_eq!(common_tokens(&workload, first, other), 128, "only tools and system prompt");
    assert_eq!((workload.sessions(), workload.dropped()), (3, 1));

    let request = |index: usize| &workload.requests()[index];
    assert!((think_s(request(second)) - 3.0).abs() < 1e-9);
    assert!((think_s(request(last)) - 110.0).abs() < 1e-9, "the gap to the dropped request");
    // The second request is replayed 5 s + 3 s after the first; the sub-agent came 1 s after it.
    let after = at_s(request(sub)) - at_s(request(first));
    assert!((after - 9.0).abs() < 1e-9, "{after}");
}

#[test]
fn agentic_breaks_and_sessions_can_be_limited() {
    let options = TraceOptions {
        think_time_s_max: Some(2.0),
        prompt_tokens_max: Some(300),
        ..TraceOptions::default()
    };
    let workload = TraceFormat::Agentic.read(AGENTIC.as_bytes(), &options).unwrap();
    assert_eq!((workload.sessions(), workload.dropped()), (2, 4));
    let options = TraceOptions { prompt_tokens_max: None, ..options };
    let workload = TraceFormat::Agentic.read(AGENTIC.as_bytes(), &options).unwrap();
    let relative = workload.requests().iter().filter(|r| r.turn > 0);
    assert!(relative.map(think_s).all(|think_s| think_s <= 2.0));
    let options = TraceOptions { prompt_tokens_max: Some(10), ..options };
    let error = TraceFormat::Agentic.read(AGENTIC.as_bytes(), &options).unwrap_err();
    assert!(matches!(error, TraceError::Empty { dropped: 6 }), "{error}");
}

#[test]
fn times_can_be_scaled_and_drawn_again() {
    let trace = || read(TraceFormat::Mooncake, MOONCAKE).unwrap();
    let fast = trace().with_rate_scale(2.0).unwrap();
    assert_eq!(fast.requests().iter().map(at_s).collect::<Vec<_>>(), [0.0, 0.0, 1.5, 4.5]);
    let process = crate::ArrivalProcess { rate_per_s: 3.0, shape: crate::GapShape::default() };
    let drawn = |seed| trace().with_arrivals(process, seed).unwrap();
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    assert!(trace().with_rate_scale(0.0).is_err());
}

#[test]
fn wrong_records_name_their_line_and_a_remedy() {
    let line = |text: &str| format!("{MOONCAKE}{text}\n");
    let of = |text: &str| message(TraceFormat::Mooncake, &line(text));
    assert_eq!(
        of(r#"{"timestamp": 1, "input_length": 9, "output_length": 1, "hash_ids": [0]}"#),
        "line 5: arrival 0.001 s is before 9 s; sort the trace by arrival"
    );
    assert_eq!(
        of(r#"{"timestamp": 9000, "input_length": 513, "output_length": 1, "hash_ids": [0]}"#),
        "line 5: 1 block ids for a prompt of 513 tokens; blocks of 512 tokens take 2; check the \
         block size of the trace"
    );
    assert_eq!(
        of(r#"{"timestamp": 9000, "input_length": 9, "output_length": 0, "hash_ids": [0]}"#),
        "line 5: output_length is 0; remove requests that failed"
    );
    assert_eq!(
        of(r#"{"timestamp": -1, "input_length": 9, "output_length": 1, "hash_ids": [0]}"#),
        "line 5: timestamp is \"-1\"; it must be a time, 0 or more"
    );
    let error = read(TraceFormat::Mooncake, &line(r#"{"timestamp": 1}"#)).unwrap_err();
    assert!(error.to_string().starts_with("line 5: not a record of the mooncake format"));
    assert!(error.source().unwrap().to_string().contains("missing field `input_length`"));
    assert!(of("{").starts_with("line 5: not a record"));
    assert!(message(TraceFormat::Mooncake, "\n").contains("the trace has no requests"));
}

#[test]
fn wrong_rows_name_their_line_and_a_remedy() {
    let of = |rows: &str| {
        message(TraceFormat::Azure, &format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"))
    };
    assert_eq!(
        of("2023-11-16 18:15:46,1,1\nnoon,1,1\n"),
        "line 3: TIMESTAMP is \"noon\"; it must be like 2023-11-16 18:17:03.9799600"
    );
    assert_eq!(
        of("2023-11-16 18:15:46,1.5,1\n"),
        "line 2: ContextTokens is \"1.5\"; it must be a whole number of tokens"
    );
    assert!(of("2023-11-16 18:15:46,1\n").starts_with("line 2: not a CSV row"));
    assert_eq!(
        message(TraceFormat::BurstGpt, fixture!("azure.csv")),
        "the header has no column \"Request tokens\", only [\"TIMESTAMP\", \"ContextTokens\", \
         \"GeneratedTokens\"]; check the format"
    );
}

#[test]
fn compressed_traces_are_unpacked() {
    let plain = read(TraceFormat::Mooncake, MOONCAKE).unwrap();
    for packed in [gzip(MOONCAKE), zstd(MOONCAKE)] {
        let workload = TraceFormat::Mooncake.read(&packed[..], &TraceOptions::default()).unwrap();
        assert_eq!(workload, plain);
    }
}

#[test]
fn a_cut_off_file_is_told_from_a_wrong_one() {
    let long = MOONCAKE.lines().next().unwrap().to_owned() + "\n";
    for packed in [gzip(&long.repeat(5_000)), zstd(&long.repeat(5_000))] {
        let cut = &packed[..packed.len() - 12];
        let error = TraceFormat::Mooncake.read(cut, &TraceOptions::default()).unwrap_err();
        assert!(matches!(error, TraceError::Truncated { .. }), "{error:?}");
    }
    let rows = "2023-11-16 18:15:46,1,1\n".repeat(5_000);
    let packed = zstd(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}"));
    let error = TraceFormat::Azure.read(&packed[..packed.len() - 8], &TraceOptions::default());
    assert!(matches!(error, Err(TraceError::Truncated { .. })), "{error:?}");
    let packed = zstd(fixture!("sharegpt.json"));
    let error = TraceFormat::ShareGpt.read(&packed[..packed.len() - 8], &TraceOptions::default());
    assert!(matches!(error, Err(TraceError::Truncated { .. })), "{error:?}");
}

#[test]
fn drawn_think_times_need_a_distribution_that_exists() {
    let options = TraceOptions {
        think_time_s: Distribution::Exponential { mean: -1.0 },
        ..TraceOptions::default()
    };
    let error = TraceFormat::ShareGptLengths.read(&b"[]"[..], &options).unwrap_err();
    assert!(matches!(error, TraceError::Distribution(_)));
    let constant = Distribution::Constant { value: 4.0 };
    let options = TraceOptions { think_time_s: constant, ..TraceOptions::default() };
    let text = fixture!("sharegpt-lengths.jsonl");
    let workload = TraceFormat::ShareGptLengths.read(text.as_bytes(), &options).unwrap();
    let second = workload.requests().iter().find(|r| r.turn == 1).unwrap();
    assert_eq!(second.arrival, Arrival::AfterPrevious { think: Duration::from_secs(4) });
}

const FIXTURES: [(TraceFormat, &str); 8] = [
    (TraceFormat::Mooncake, MOONCAKE),
    (TraceFormat::Bailian, fixture!("bailian.jsonl")),
    (TraceFormat::Azure, fixture!("azure.csv")),
    (TraceFormat::BurstGpt, fixture!("burstgpt.csv")),
    (TraceFormat::ShareGpt, fixture!("sharegpt.json")),
    (TraceFormat::ShareGptLengths, fixture!("sharegpt-lengths.jsonl")),
    (TraceFormat::LlmServingSim, fixture!("llmservingsim.jsonl")),
    (TraceFormat::Agentic, AGENTIC),
];

/// Where to change a text, as a share of its length, and what to put there.
fn edits() -> impl Strategy<Value = Vec<(f64, &'static str)>> {
    let text = prop::sample::select(vec![
        "",
        "0",
        "7",
        "99999999",
        "18446744073709551615",
        "-1",
        ".5",
        "1e300",
        ",",
        "\"",
        "[",
        "]",
        "{",
        "}",
        ":",
        "\n",
        "null",
        "\u{fc}",
    ]);
    prop::collection::vec((0.0..1.0, text), 0..6)
}

proptest! {
    #[test]
    fn damaged_traces_are_errors_or_workloads_but_never_panics(
        (format, text) in prop::sample::select(&FIXTURES[..]),
        edits in edits(),
    ) {
        let mut text: Vec<char> = text.chars().collect();
        for (share, replacement) in edits {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the length")]
            let at = (share * text.len() as f64) as usize;
            text.splice(at..=at, replacement.chars());
        }
        let text: String = text.into_iter().collect();
        if let Ok(workload) = read(format, &text) {
            prop_assert!(!workload.requests().is_empty());
            prop_assert!(Plan::new(&workload, BlockSize::default()).is_ok());
        }
    }
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 0).unwrap()
}
