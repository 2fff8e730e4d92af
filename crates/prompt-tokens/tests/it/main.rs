//! Prompts against what vLLM and `transformers` make of them (`tests/fixtures/README.md`).

#![expect(clippy::unwrap_used, reason = "a fixture that does not read fails its test")]

mod blocks;
mod open;
mod pieces;
mod recorded;
mod vllm;

use std::path::PathBuf;

use kvroute_prompt_tokens::{PromptSettings, PromptTokens};

/// The models of the fixtures.
const MODELS: [&str; 5] = ["chatml", "llama3", "mistral", "prepend", "merged"];

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn open(model: &str) -> PromptTokens {
    PromptTokens::open(&fixture(model), PromptSettings::default()).unwrap()
}
