//! Texts cut at added tokens against whole texts, for every kind of tokenizer.

use kvroute_prompt_tokens::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{MODELS, fixture, open};

/// Parts of texts: added tokens of the models and what may look like them, spaces, words, other scripts.
fn text() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec![
            "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</think>", "<|eot_id|>", "<|begin_of_text|>",
            "<s>", "</s>", "<unk>", "[INST]", "[/INST]", "<bos>", "<eos>", "<|User|>", "<|Assistant|>", "<|call|>",
            "<|result|>", "<|im_", "start|>", "<", ">", "<|", "|>",
        ]).prop_map(ToOwned::to_owned),
        4 => prop::sample::select(vec![
            " ", "  ", "\n", "\n\n", "\t", "\u{a0}", "\u{3000}", "hello", " world", "assistant", "user", "It's", "12345",
            ".", "ü", "u\u{308}", "世界", "🙂", "▁", "\u{0}", "A", "x", "ﬁ",
        ]).prop_map(ToOwned::to_owned),
        1 => any::<String>(),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

fn same(tokenizer: &Tokenizer, text: &str, what: &str) -> Result<(), TestCaseError> {
    for add_special_tokens in [false, true] {
        let whole = tokenizer.encode_whole(text, add_special_tokens);
        // Twice: made, and kept.
        for _ in 0..2 {
            let cut = tokenizer.encode(text, add_special_tokens);
            prop_assert_eq!(&cut, &whole, "{} {:?}", what, text);
        }
    }
    Ok(())
}

/// A model of the fixtures with a part of its `tokenizer.json` changed.
fn variant(model: &str, change: impl FnOnce(&mut Value)) -> Tokenizer {
    let source = fixture(model).join("tokenizer.json");
    let mut tree: Value = serde_json::from_str(&std::fs::read_to_string(source).unwrap()).unwrap();
    change(&mut tree);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tree.to_string()).unwrap();
    Tokenizer::open(dir.path(), 1 << 20).unwrap()
}

/// Every pre-tokenizer and normalizer of the library that a piece could be treated differently by.
fn kinds() -> Vec<(String, Tokenizer)> {
    let metaspace = |scheme: &str, split: bool| json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split});
    let byte_level = |space: bool| json!({"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": true});
    let pre_tokenizers = [
        Value::Null,
        metaspace("first", true),
        metaspace("first", false),
        metaspace("always", false),
        metaspace("never", true),
        byte_level(true),
        byte_level(false),
        json!({"type": "BertPreTokenizer"}),
        json!({"type": "WhitespaceSplit"}),
        json!({"type": "Whitespace"}),
        json!({"type": "Punctuation", "behavior": "MergedWithNext"}),
        json!({"type": "Digits", "individual_digits": false}),
        json!({"type": "UnicodeScripts"}),
        json!({"type": "FixedLength", "length": 5}),
        json!({"type": "CharDelimiterSplit", "delimiter": "s"}),
        json!({"type": "Split", "pattern": {"Regex": "^.|\\s+$|o(?= w)"}, "behavior": "MergedWithPrevious", "invert": false}),
        json!({"type": "Sequence", "pretokenizers": [json!({"type": "UnicodeScripts"}), metaspace("first", false)]}),
    ];
    let normalizers = [
        Value::Null,
        json!({"type": "NFKC"}),
        json!({"type": "Prepend", "prepend": "▁"}),
        json!({"type": "Strip", "strip_left": true, "strip_right": true}),
        json!({"type": "Lowercase"}),
        json!({"type": "Replace", "pattern": {"Regex": "^\\s|<"}, "content": "▁"}),
        json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}),
    ];
    let mut kinds = Vec::new();
    for base in ["prepend", "merged"] {
        for pre_tokenizer in &pre_tokenizers {
            let made = variant(base, |tree| tree["pre_tokenizer"] = pre_tokenizer.clone());
            kinds.push((format!("{base} {pre_tokenizer}"), made));
        }
        for normalizer in &normalizers {
            let made = variant(base, |tree| {
                tree["normalizer"] = normalizer.clone();
                tree["pre_tokenizer"] = metaspace("first", true);
            });
            kinds.push((format!("{base} {normalizer}"), made));
        }
    }
    for flag in ["lstrip", "rstrip", "single_word", "normalized"] {
        for id in [1, 2] {
            let made = variant("merged", |tree| {
                tree["added_tokens"][id][flag] = json!(true);
                tree["pre_tokenizer"] = metaspace("first", true);
            });
            kinds.push((format!("{flag} of {id}"), made));
        }
    }
    kinds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn cut_texts_have_the_ids_of_whole_ones(texts in prop::collection::vec(text(), 1..4)) {
        for model in MODELS {
            let model_tokens = open(model);
            for text in &texts {
                same(model_tokens.tokenizer(), text, model)?;
            }
        }
    }
}

#[test]
fn every_kind_of_tokenizer_is_cut_safely() {
    let kinds = kinds();
    assert!(kinds.iter().filter(|(_, kind)| kind.is_piecewise()).count() > 40);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(300));
    let cases = runner.run(&text(), |text| {
        kinds.iter().try_for_each(|(name, tokenizer)| same(tokenizer, &text, name))
    });
    cases.unwrap();
}

/// Where a token is only one as a word of its own, or special tokens are text, nothing may be cut.
#[test]
fn what_cannot_be_cut_is_taken_whole() {
    let single = variant("merged", |tree| tree["added_tokens"][1]["single_word"] = json!(true));
    assert!(!single.is_piecewise());
    let none = variant("merged", |tree| tree["added_tokens"] = json!([]));
    assert!(!none.is_piecewise());
    assert_eq!(
        none.encode("hello <bos> world", false),
        none.encode_whole("hello <bos> world", false)
    );
}
