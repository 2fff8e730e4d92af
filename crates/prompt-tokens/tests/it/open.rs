//! Directories that cannot be used, and those that can only just.

use std::error::Error;
use std::path::Path;

use kvroute_prompt_tokens::{ContentFormat, Endpoint, PromptSettings, PromptTokens, Unknown};
use serde_json::Value;

use crate::fixture;

/// A copy of a model with some files written anew; no text deletes the file.
fn changed(model: &str, files: &[(&str, Option<&str>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture(model)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    for (name, text) in files {
        let path = dir.path().join(name);
        match text {
            Some(text) => std::fs::write(path, text).unwrap(),
            None => std::fs::remove_file(path).unwrap(),
        }
    }
    dir
}

/// The error and its causes, without the directory.
fn error(dir: &Path) -> String {
    let error = PromptTokens::open(dir, PromptSettings::default()).unwrap_err();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text.replace(&dir.display().to_string(), "DIR")
}

fn error_of(files: &[(&str, Option<&str>)]) -> String {
    error(changed("llama3", files).path())
}

#[test]
fn a_bad_directory_is_named_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let text = error(&dir.path().join("none"));
    assert!(text.starts_with("cannot read DIR; name the directory that holds"), "{text}");
    let text = error_of(&[("tokenizer.json", None)]);
    assert!(text.starts_with("cannot read DIR/tokenizer.json; name the directory with"), "{text}");
    let text = error_of(&[("tokenizer_config.json", Some("{\"a\":"))]);
    assert!(text.starts_with("DIR/tokenizer_config.json is not valid; copy it again"), "{text}");
    assert!(text.contains("line 1 column 5"), "{text}");
    let text = error_of(&[("config.json", Some("[]"))]);
    assert!(text.starts_with("DIR/config.json is not valid"), "{text}");
    let text = error_of(&[("tokenizer.json", Some("{}"))]);
    assert!(text.starts_with("DIR/tokenizer.json holds no usable tokenizer ("), "{text}");
    let text = error_of(&[("chat_template.jinja", Some("a\n{% for x in %}"))]);
    assert!(
        text.starts_with("the chat template in DIR/chat_template.jinja does not compile"),
        "{text}"
    );
    assert!(text.contains(":2"), "{text}");
    let text = error_of(&[("tekken.json", Some("{}")), ("consolidated.safetensors", Some(""))]);
    assert!(text.starts_with("DIR: the files are in Mistral's own format"), "{text}");
}

fn chat(model: &PromptTokens, extra: &str) -> Result<Vec<u32>, Unknown> {
    let body = format!(r#"{{"messages":[{{"role":"user","content":"hello"}}]{extra}}}"#);
    Ok(model.from_body(Endpoint::Chat, body.as_bytes(), None)?.prompts.concat())
}

fn opened(dir: &tempfile::TempDir, settings: PromptSettings) -> PromptTokens {
    PromptTokens::open(dir.path(), settings).unwrap()
}

#[test]
fn a_model_without_a_template_has_completions_only() {
    let dir = changed("llama3", &[("chat_template.jinja", None)]);
    let model = opened(&dir, PromptSettings::default());
    assert_eq!(chat(&model, ""), Err(Unknown::NoTemplate));
    let body = br#"{"prompt":"hello"}"#;
    assert!(model.from_body(Endpoint::Completions, body, None).is_ok());
}

#[test]
fn a_model_that_vllm_renders_itself_has_no_known_chats() {
    let dir = changed("chatml", &[("config.json", Some(r#"{"model_type":"gpt_oss"}"#))]);
    let model = opened(&dir, PromptSettings::default());
    assert_eq!(chat(&model, ""), Err(Unknown::OwnRenderer { model: "gpt_oss".to_owned() }));
}

#[test]
fn the_servers_settings_count() {
    let dir = changed("chatml", &[]);
    let plain = opened(&dir, PromptSettings::default());
    let tools = r#","tool_choice":"none","tools":[{"type":"function","function":{"name":"f"}}]"#;
    let without =
        PromptSettings { exclude_tools_when_tool_choice_none: true, ..PromptSettings::default() };
    assert_ne!(chat(&plain, tools), chat(&plain, ""));
    assert_eq!(chat(&opened(&dir, without), tools), chat(&plain, ""));

    let large = serde_json::from_str(r#"{"a":[1e30]}"#).unwrap();
    let large = PromptSettings { default_chat_template_kwargs: large, ..PromptSettings::default() };
    let error = PromptTokens::open(dir.path(), large).unwrap_err();
    assert!(error.to_string().starts_with("the default chat template argument `a`"), "{error}");
    let defaults = serde_json::from_str(r#"{"enable_thinking":false}"#).unwrap();
    let quiet =
        PromptSettings { default_chat_template_kwargs: defaults, ..PromptSettings::default() };
    let quiet = opened(&dir, quiet);
    let off = r#","chat_template_kwargs":{"enable_thinking":false}"#;
    let on = r#","chat_template_kwargs":{"enable_thinking":true}"#;
    assert_eq!(chat(&quiet, ""), chat(&plain, off));
    assert_eq!(chat(&quiet, on), chat(&plain, ""));

    let given = |template: &str, content_format| {
        let chat_template = Some(template.to_owned());
        opened(&dir, PromptSettings { chat_template, content_format, ..PromptSettings::default() })
    };
    let ids = |text: &str| plain.tokenizer().encode(text, false).unwrap();
    assert_eq!(chat(&given("x", None), "").unwrap(), ids("x"));
    let shape = "{{ messages[0].content is string }}";
    assert_eq!(chat(&given(shape, None), "").unwrap(), ids("True"));
    assert_eq!(chat(&given(shape, Some(ContentFormat::OpenAi)), "").unwrap(), ids("False"));
}

/// vLLM takes a processor's template, but for requests with tools.
#[test]
fn a_processors_template_goes_first() {
    let dir = changed(
        "chatml",
        &[
            ("chat_template.json", Some(r#"{"chat_template":"{{ messages[0].content }}!"}"#)),
            ("preprocessor_config.json", Some("{}")),
        ],
    );
    let model = opened(&dir, PromptSettings::default());
    let ids = model.tokenizer().encode("hello!", false).unwrap();
    assert_eq!(chat(&model, "").unwrap(), ids);
    let tools = r#","tools":[{"type":"function","function":{"name":"f"}}]"#;
    assert_eq!(chat(&model, tools), chat(&crate::open("chatml"), tools));
    std::fs::write(dir.path().join("tokenizer_config.json"), "{}").unwrap();
    let model = opened(&dir, PromptSettings::default());
    assert!(chat(&model, "").is_ok());
    assert_eq!(chat(&model, tools), Err(Unknown::NoTemplate));
}

#[test]
fn an_unknown_tokenizer_class_is_told() {
    let config = fixture("chatml").join("tokenizer_config.json");
    let config = std::fs::read_to_string(config).unwrap();
    let dir = changed(
        "chatml",
        &[("tokenizer_config.json", Some(&config.replace("Qwen2Tokenizer", "NewTokenizerFast")))],
    );
    let model = opened(&dir, PromptSettings::default());
    assert!(model.tokenizer().caveat().unwrap().contains("NewTokenizer"));
    assert_eq!(crate::open("chatml").tokenizer().caveat(), None);
}

#[test]
fn the_content_format_is_the_one_that_vllm_detects() {
    let text = std::fs::read_to_string(fixture("cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let formats = cases["content_formats"].as_array().unwrap();
    assert!(formats.len() > 15);
    let dir = changed("chatml", &[]);
    for entry in formats {
        let template = entry[0].as_str().unwrap();
        // The template, and whether it was given text, in the same text.
        let probe = format!(
            "{{% if false %}}{template}{{% endif %}}{{{{ messages[0].content is string }}}}"
        );
        let settings = PromptSettings { chat_template: Some(probe), ..PromptSettings::default() };
        let model = opened(&dir, settings);
        let is_text = entry[1] == "string";
        let expected = if is_text { "True" } else { "False" };
        let ids = model.tokenizer().encode(expected, false).unwrap();
        assert_eq!(chat(&model, "").unwrap(), ids, "{template}");
    }
}
