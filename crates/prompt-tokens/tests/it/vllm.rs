//! Every request of the fixtures: the same ids, or none where vLLM has none.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use kvroute_prompt_tokens::{Endpoint, Now, PromptSettings, PromptTokens, Unknown};
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{MODELS, fixture};

#[derive(Deserialize)]
struct Cases {
    now_unix_s: i64,
    max_model_len: usize,
    #[serde(rename = "cases")]
    list: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    model: String,
    #[serde(rename = "case")]
    title: String,
    endpoint: String,
    body: Box<RawValue>,
    text: Option<String>,
    ids: Option<Vec<Vec<u32>>>,
    refused: Option<String>,
}

fn cases() -> Cases {
    let text = std::fs::read_to_string(fixture("cases.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn open(max_model_len: usize) -> BTreeMap<String, PromptTokens> {
    let model = |name: &str| {
        let settings =
            PromptSettings { max_model_len: Some(max_model_len), ..PromptSettings::default() };
        (name.to_owned(), PromptTokens::open(&fixture(name), settings).unwrap())
    };
    MODELS.iter().map(|name| model(name)).collect()
}

fn endpoint(case: &Case) -> Endpoint {
    if case.endpoint == "chat" { Endpoint::Chat } else { Endpoint::Completions }
}

/// Twice over the same models: what is kept from the first time must not change the second.
#[test]
fn ids_are_those_that_vllm_makes() {
    let Cases { now_unix_s, max_model_len, list } = cases();
    let now = Some(Now { unix_s: now_unix_s, utc_offset_s: 0 });
    let models = open(max_model_len);
    let mut wrong = Vec::new();
    for case in list.iter().chain(&list) {
        let found = models[&case.model].from_body(endpoint(case), case.body.get().as_bytes(), now);
        let expected = case.ids.as_ref();
        let is_right = match &found {
            Ok(tokens) => expected == Some(&tokens.prompts),
            Err(_) => expected.is_none(),
        };
        if !is_right {
            let Case { model, title, body, text, refused, .. } = case;
            wrong.push(format!(
                "{model}, {title}: {body}\n  text {text:?} refused {refused:?}\n  \
                 expected {expected:?}\n  found {found:?}"
            ));
        }
    }
    assert!(list.len() > 300);
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The same from several threads at once, with a cache that is always full.
#[test]
fn threads_and_a_small_cache_change_nothing() {
    let Cases { list, .. } = cases();
    let settings = PromptSettings { cache_bytes: 2_000, ..PromptSettings::default() };
    let model = PromptTokens::open(&fixture("mistral"), settings).unwrap();
    let list: Vec<&Case> = list
        .iter()
        .filter(|case| case.model == "mistral" && !case.body.get().contains("truncate"))
        .collect();
    std::thread::scope(|scope| {
        for start in 0..4 {
            let (list, model) = (&list, &model);
            scope.spawn(move || {
                for case in list.iter().cycle().skip(start * 7).take(list.len() * 2) {
                    let endpoint = endpoint(case);
                    let found = model.from_body(endpoint, case.body.get().as_bytes(), None);
                    let found = found.ok().map(|tokens| tokens.prompts);
                    assert_eq!(found, case.ids, "{}", case.title);
                }
            });
        }
    });
}

proptest! {
    /// Damaged bodies are refused or have tokens; nothing else happens.
    #[test]
    fn damaged_bodies_do_not_panic(
        index in any::<prop::sample::Index>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), part()), 1..4),
        is_chat in any::<bool>(),
    ) {
        static SHARED: LazyLock<(Cases, BTreeMap<String, PromptTokens>)> =
            LazyLock::new(|| (cases(), open(24)));
        let (Cases { list, .. }, models) = &*SHARED;
        let case = &list[index.index(list.len())];
        let mut body = case.body.get().as_bytes().to_vec();
        for (at, part) in damage {
            let at = at.index(body.len());
            let end = (at + part.len()).min(body.len());
            body.splice(at..end, part);
        }
        let endpoint = if is_chat { Endpoint::Chat } else { Endpoint::Completions };
        let now = Some(Now { unix_s: 0, utc_offset_s: 0 });
        let _ = models[&case.model].from_body(endpoint, &body, now);
    }
}

fn part() -> impl Strategy<Value = Vec<u8>> {
    let texts =
        ["null", "1", "[]", "{}", "\"\"", ",", ":", "\\", "true", "\"x\"", "1e99", "-1", "\\ud800"];
    prop_oneof![
        prop::sample::select(texts.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..3),
    ]
}

#[test]
fn what_is_not_known_says_why() {
    let models = open(24);
    let model = &models["chatml"];
    let unknown = |body: &str| model.from_body(Endpoint::Chat, body.as_bytes(), None).unwrap_err();
    let of_content =
        |part: &str| unknown(&format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#));
    let kind = "image_url".to_owned();
    assert_eq!(
        of_content(r#"{"type":"image_url","image_url":{"url":"u"}}"#),
        Unknown::MultiModal { kind }
    );
    assert_eq!(of_content(r#"{"type":"prompt_embeds","data":"x"}"#), Unknown::PromptEmbeds);
    let hello = r#""messages":[{"role":"user","content":"x"}]"#;
    assert_eq!(unknown(&format!(r#"{{{hello},"chat_template":"x"}}"#)), Unknown::TemplateInRequest);
    assert_eq!(
        unknown(&format!(r#"{{{hello},"kv_transfer_params":{{"prompt_token_ids":[1]}}}}"#)),
        Unknown::Unsupported { field: "kv_transfer_params" }
    );
    assert_eq!(unknown("{").kind(), "body");
    assert_eq!(unknown(r#"{"messages":[{"role":"user","content":3}]}"#).kind(), "body");
    let completion =
        |body: &str| model.from_body(Endpoint::Completions, body.as_bytes(), None).unwrap_err();
    assert_eq!(completion(r#"{"prompt_embeds":"x"}"#), Unknown::PromptEmbeds);
    assert_eq!(completion(r#"{"prompt":[1,"a"]}"#).kind(), "body");
    assert_eq!(completion(r#"{"prompt":[-1]}"#).kind(), "body");
    let llama = &models["llama3"];
    let body = format!("{{{hello}}}");
    assert_eq!(llama.from_body(Endpoint::Chat, body.as_bytes(), None), Err(Unknown::NoClock));
    let two = r#"{"id":"1","type":"function","function":{"name":"f","arguments":""}}"#;
    let body = format!(
        r#"{{"messages":[{{"role":"user","content":"x"}},{{"role":"assistant","tool_calls":[{two},{two}]}}]}}"#
    );
    let now = Some(Now { unix_s: 0, utc_offset_s: 0 });
    assert_eq!(
        llama.from_body(Endpoint::Chat, body.as_bytes(), now),
        Err(Unknown::Template {
            message: "This model only supports single tool-calls at once!".to_owned()
        })
    );
}

#[test]
fn what_else_names_the_blocks_is_told() {
    let model = crate::open("chatml");
    let body = br#"{"prompt":"a","cache_salt":"tenant","model":"adapter"}"#;
    let tokens = model.from_body(Endpoint::Completions, body, None).unwrap();
    assert_eq!(tokens.cache_salt.as_deref(), Some("tenant"));
    assert_eq!(tokens.model.as_deref(), Some("adapter"));
}
