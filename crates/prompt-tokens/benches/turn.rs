//! The next turn of a conversation of 16 thousand tokens, of which 15 thousand are known: body to token ids to hashes.
//!
//! The text is that of the fixtures' corpus with numbers strewn in, so that no two messages are alike. The tokenizer is
//! byte-level BPE; its vocabulary is small, so a message has more tokens per character than a real model's would have:
//! `KVROUTE_BENCH_MODEL` names the directory of a real one.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use divan::{Bencher, black_box};
use kvroute_prompt_tokens::{
    BlockHashes, Endpoint, HashSettings, Now, PromptSettings, PromptTokens,
};
use kvroute_vllm_wire::{ExtraKeys, HashAlgo};

fn main() {
    divan::main();
}

const NOW: Option<Now> = Some(Now { unix_s: 1_770_000_000, utc_offset_s: 0 });

/// The model in `KVROUTE_BENCH_MODEL`, else one of the fixtures.
fn model(name: &str) -> PromptTokens {
    let dir = std::env::var_os("KVROUTE_BENCH_MODEL").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name),
        PathBuf::from,
    );
    PromptTokens::open(&dir, PromptSettings::default()).expect("the model opens")
}

fn hashes() -> BlockHashes {
    let block_size = NonZeroUsize::new(16).expect("not zero");
    let settings = HashSettings { algo: HashAlgo::Sha256, block_size, pythonhashseed: None };
    BlockHashes::new(settings, 64 << 20)
}

/// A message of about `bytes` bytes.
fn message(seed: usize, bytes: usize) -> String {
    const SENTENCES: [&str; 6] = [
        "The router looks up which instance holds the prefix of a prompt and sends the request there.",
        "One block, two blocks, many blocks: a hash names a block and all blocks before it!",
        "def hello(name): return f'Hello, {name}!'  # the world",
        "Grüße aus Zürich, schöne Straße; à bientôt.",
        "The answer depends on the question, and the question on the asker.",
        "if not any(x in y for x in z): raise ValueError('nothing found in ' + str(y))",
    ];
    let mut text = String::new();
    let mut at = seed;
    while text.len() < bytes {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push_str(SENTENCES[(at >> 33) % SENTENCES.len()]);
        text.extend([" ", &(at >> 48).to_string(), "\n"]);
    }
    text
}

/// The body of turn `turn`: a system prompt and `messages` messages, growing at the end.
fn body(messages: usize, bytes: usize, turn: usize) -> Vec<u8> {
    let mut list = vec![serde_json::json!({"role": "system", "content": message(1, bytes)})];
    list.extend((0..messages).map(|at| {
        let role = if at % 2 == 0 { "user" } else { "assistant" };
        // The last message is that of this turn.
        let seed = if at + 1 == messages { 1000 + turn } else { at };
        serde_json::json!({"role": role, "content": message(seed, bytes)})
    }));
    serde_json::json!({"model": "m", "messages": list, "stream": true}).to_string().into_bytes()
}

/// As many bytes in each of 15 messages and the system prompt as make 16 thousand tokens.
fn bytes_per_message(model: &PromptTokens) -> usize {
    let sample = message(7, 100_000);
    let tokens = model.tokenizer().encode_whole(&sample, false).expect("text has tokens").len();
    1000 * sample.len() / tokens
}

/// Messages besides the system prompt; 1000 tokens each.
const MESSAGES: usize = 15;

fn turns(model: &PromptTokens) -> impl FnMut() -> Vec<u8> {
    let bytes = bytes_per_message(model);
    let mut turn = 0;
    move || {
        turn += 1;
        body(MESSAGES, bytes, turn)
    }
}

/// The whole turn.
#[divan::bench(args = ["chatml", "llama3"])]
fn turn_of_16k_tokens_with_15k_known(bencher: Bencher<'_, '_>, name: &str) {
    let (model, hashes) = (model(name), hashes());
    let next = turns(&model);
    let keys = ExtraKeys::default();
    bencher.with_inputs(next).bench_local_values(|body| {
        let tokens = model.from_body(Endpoint::Chat, &body, NOW).expect("known");
        assert!((15_000..18_000).contains(&tokens.prompts[0].len()));
        black_box(hashes.of(&tokens.prompts[0], &keys))
    });
}

/// Body to token ids.
#[divan::bench(args = ["chatml", "llama3"])]
fn ids_of_16k_tokens_with_15k_known(bencher: Bencher<'_, '_>, name: &str) {
    let model = model(name);
    let next = turns(&model);
    bencher
        .with_inputs(next)
        .bench_local_values(|body| model.from_body(Endpoint::Chat, &body, NOW).expect("known"));
}

/// The same with all 16 thousand known: what reading, rendering and cutting cost.
#[divan::bench(args = ["chatml", "llama3"])]
fn ids_of_16k_tokens_all_known(bencher: Bencher<'_, '_>, name: &str) {
    let model = model(name);
    let body = body(MESSAGES, bytes_per_message(&model), 0);
    bencher.bench_local(|| model.from_body(Endpoint::Chat, black_box(&body), NOW).expect("known"));
}

/// The library alone, on a message of 1000 new tokens.
#[divan::bench(args = ["chatml", "llama3"])]
fn library_on_1k_tokens(bencher: Bencher<'_, '_>, name: &str) {
    let model = model(name);
    let bytes = bytes_per_message(&model);
    let mut seed = 0;
    let next = || {
        seed += 1;
        message(seed, bytes)
    };
    bencher
        .with_inputs(next)
        .bench_local_values(|text| model.tokenizer().encode_whole(&text, false));
}

/// The library alone, on all 16 thousand.
#[divan::bench(args = ["chatml", "llama3"])]
fn library_on_16k_tokens(bencher: Bencher<'_, '_>, name: &str) {
    let model = model(name);
    let text = message(3, 16 * bytes_per_message(&model));
    bencher.bench_local(|| model.tokenizer().encode_whole(black_box(&text), false));
}

/// Hashes of 16 thousand tokens, 15 thousand of them known.
#[divan::bench]
fn hashes_of_16k_tokens_with_15k_known(bencher: Bencher<'_, '_>) {
    let hashes = hashes();
    let mut turn = 0_u32;
    let next = || {
        turn += 1;
        (0..15_000).chain((0..1000).map(|at| at ^ (turn << 12))).collect::<Vec<u32>>()
    };
    let keys = ExtraKeys::default();
    bencher.with_inputs(next).bench_local_values(|tokens| hashes.of(&tokens, &keys));
}
