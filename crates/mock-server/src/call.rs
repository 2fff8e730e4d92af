//! An inference request, read, checked and tokenised: from here on nothing can be wrong with it.

use std::collections::BTreeSet;
use std::sync::Arc;

use hyper::HeaderMap;
use kvroute_types::mix64;
use serde_json::Value;

use crate::answer::AnswerRules;
use crate::api_error::{ApiError, N_MAX, TOP_LOGPROBS_MAX};
use crate::api_fields::{Fields, parse_object};
use crate::chat_template::{self, Message};
use crate::config::MockConfig;
use crate::tokenizer::{BOS, EOS, VOCABULARY, tokenize};

/// Which API was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Completion,
}

/// A checked request.
#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are the API's")]
pub(crate) struct Call {
    pub(crate) api: Api,
    pub(crate) model: String,
    pub(crate) request_id: Option<String>,
    pub(crate) prompts: Vec<Prompt>,
    /// Answers per prompt.
    pub(crate) n: u32,
    pub(crate) priority: i32,
    pub(crate) salt: Option<Arc<str>>,
    pub(crate) stream: bool,
    pub(crate) include_usage: bool,
    pub(crate) continuous_usage: bool,
    pub(crate) return_token_ids: bool,
    /// Whether an answer begins with the prompt.
    pub(crate) echo: bool,
    /// Whether an answer is the prompt alone (`echo` with `max_tokens` 0).
    pub(crate) hide_output: bool,
    /// Alternatives per token whose log probability is wanted; chat only.
    pub(crate) logprobs: Option<u32>,
}

/// One prompt and how to answer it.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) tokens: Vec<u32>,
    pub(crate) rules: AnswerRules,
}

impl Call {
    /// Reads a request body.
    pub(crate) fn parse(
        api: Api,
        config: &MockConfig,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<Self, ApiError> {
        let object = parse_object(body)?;
        let fields = Fields::of_body(&object);
        let messages = match api {
            Api::Chat => Some(messages(&fields)?),
            Api::Completion => None,
        };
        let limits = Limits::read(api, config, &fields)?;
        let stream = fields.boolean("stream")?;
        let options = fields.object("stream_options", "body.stream_options")?;
        if options.is_some() && !stream {
            return Err(ApiError::StreamOptionsWithoutStream);
        }
        let option = |name| options.map_or(Ok(false), |options| options.boolean(name));
        let force = config.enable_force_include_usage;
        let include_usage = option("include_usage")? || force;
        let continuous_usage = include_usage && (option("continuous_usage_stats")? || force);
        let echo = api == Api::Completion && fields.boolean("echo")?;
        let logprobs = logprobs(api, &fields)?;
        let model = served_model(config, &fields)?;
        let salt = salt(&fields)?;

        let prompts = match &messages {
            Some(messages) => vec![chat_prompt(config, messages)?],
            None => completion_prompts(config, &fields)?,
        };
        let hide_output = echo && limits.max_tokens == Some(0);
        let prompts = prompts.into_iter().map(|tokens| {
            let rules = limits.rules(config, tokens.len(), hide_output, messages.is_none())?;
            Ok(Prompt { tokens, rules })
        });
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let priority = match header("x-vllm-priority").and_then(|text| text.parse().ok()) {
            Some(priority) => priority,
            None => fields.integer("priority")?.unwrap_or(0),
        };
        let body_id = fields.string("request_id")?;
        Ok(Self {
            api,
            model,
            request_id: header("x-request-id").or(body_id).map(ToOwned::to_owned),
            prompts: prompts.collect::<Result<_, ApiError>>()?,
            n: limits.n,
            priority: i32::try_from(priority.clamp(i32::MIN.into(), i32::MAX.into()))
                .expect("it was clamped"),
            salt,
            stream,
            include_usage,
            continuous_usage,
            return_token_ids: fields.boolean("return_token_ids")?,
            echo,
            hide_output,
            logprobs,
        })
    }
}

/// Sampling parameters, as far as they bear on length and content.
#[derive(Clone, Debug)]
struct Limits {
    n: u32,
    max_tokens: Option<i64>,
    min_tokens: i64,
    default_max_tokens: Option<i64>,
    temperature: f64,
    seed: u64,
    eos_probability: f64,
    stop: Vec<String>,
    stop_token_ids: BTreeSet<u32>,
    include_stop_str_in_output: bool,
}

impl Limits {
    fn read(api: Api, config: &MockConfig, fields: &Fields<'_>) -> Result<Self, ApiError> {
        let n = fields.integer("n")?.unwrap_or(1);
        let stop = match fields.get("stop") {
            None => Vec::new(),
            Some(Value::String(stop)) => vec![stop.clone()],
            Some(_) => {
                let text = |value: &Value| match value.as_str() {
                    Some(text) => Ok(text.to_owned()),
                    None => Err(fields.invalid(
                        "stop",
                        value,
                        "string_type",
                        "Input should be a valid string",
                    )),
                };
                fields.list("stop")?.iter().map(text).collect::<Result<_, _>>()?
            }
        };
        let max_tokens = fields.integer("max_tokens")?;
        let max_completion_tokens = fields.integer("max_completion_tokens")?;
        let bias = fields.object("logit_bias", "body.logit_bias")?;
        let eos_bias = bias.map_or(Ok(None), |bias| bias.number(&EOS.to_string()))?;
        let eos_probability = if fields.boolean("ignore_eos")? {
            0.0
        } else if eos_bias.is_some_and(|bias| bias >= 100.0) {
            1.0
        } else {
            1.0 / config.eos_mean_tokens
        };
        let stop_token_ids = fields.tokens("stop_token_ids")?;
        Ok(Self {
            n: u32::try_from(n)
                .ok()
                .filter(|n| (1..=N_MAX).contains(n))
                .ok_or(ApiError::N { value: n })?,
            max_tokens: match api {
                Api::Chat => max_completion_tokens.or(max_tokens),
                Api::Completion => max_tokens,
            },
            min_tokens: fields.integer("min_tokens")?.unwrap_or(0),
            default_max_tokens: (api == Api::Completion).then_some(16),
            temperature: fields.number("temperature")?.unwrap_or(1.0),
            seed: fields.integer("seed")?.unwrap_or(0).cast_unsigned(),
            eos_probability,
            stop,
            stop_token_ids: stop_token_ids
                .iter()
                .filter_map(|&id| u32::try_from(id).ok())
                .collect(),
            include_stop_str_in_output: fields.boolean("include_stop_str_in_output")?,
        })
    }

    /// The rules for a prompt of that length (R79).
    fn rules(
        &self,
        config: &MockConfig,
        prompt_tokens: usize,
        hide_output: bool,
        leading_space: bool,
    ) -> Result<AnswerRules, ApiError> {
        let max_model_len = config.engine.max_model_len;
        if prompt_tokens > max_model_len as usize {
            return Err(ApiError::PromptTooLong { max_model_len });
        }
        let room = i64::try_from(max_model_len as usize - prompt_tokens).unwrap_or(i64::MAX);
        let wanted = self.max_tokens.or(self.default_max_tokens);
        if let Some(max_tokens) = wanted.filter(|&wanted| wanted > i64::from(max_model_len)) {
            return Err(ApiError::OutputTooLong {
                max_model_len,
                max_tokens,
                input_tokens: prompt_tokens,
            });
        }
        let wanted = if hide_output { Some(1) } else { wanted };
        let value = wanted.map_or(room, |wanted| wanted.min(room));
        let max_tokens = u32::try_from(value).ok().filter(|&max_tokens| max_tokens > 0);
        let max_tokens = max_tokens.ok_or(ApiError::MaxTokens { value })?;
        if self.temperature < 0.0 {
            return Err(ApiError::Temperature { value: self.temperature });
        }
        let min_tokens = u32::try_from(self.min_tokens).ok().filter(|&min| min <= max_tokens);
        let min_tokens =
            min_tokens.ok_or(ApiError::MinTokens { value: self.min_tokens, max_tokens })?;
        Ok(AnswerRules {
            seed: config.seed ^ mix64(self.seed),
            max_tokens,
            min_tokens,
            eos_probability: self.eos_probability,
            stop: self.stop.clone(),
            stop_token_ids: self.stop_token_ids.clone(),
            include_stop_str_in_output: self.include_stop_str_in_output,
            leading_space,
        })
    }
}

/// The model asked for: one of those served, or none, which means the first.
pub(crate) fn served_model(config: &MockConfig, fields: &Fields<'_>) -> Result<String, ApiError> {
    let Some(model) = fields.string("model")? else { return Ok(config.models[0].clone()) };
    if !config.models.iter().any(|served| served == model) {
        let aliases = config.models.join(", ");
        return Err(ApiError::UnknownModel { model: model.to_owned(), aliases });
    }
    Ok(model.to_owned())
}

/// The conversation in `messages`.
pub(crate) fn messages(fields: &Fields<'_>) -> Result<Vec<Message>, ApiError> {
    fields.required("messages")?;
    fields.list("messages")?.iter().map(|message| read_message(fields, message)).collect()
}

fn read_message(fields: &Fields<'_>, message: &Value) -> Result<Message, ApiError> {
    let invalid = |value: &Value| {
        fields.invalid("messages", value, "dict_type", "Input should be a valid dictionary")
    };
    let role = message.get("role").and_then(Value::as_str).ok_or_else(|| invalid(message))?;
    let content = match message.get("content") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let texts = parts.iter().map(|part| match part.get("text").and_then(Value::as_str) {
                Some(text) => Ok(text),
                None => Err(ApiError::Unsupported {
                    what: "a message part other than text",
                    parameter: "messages",
                }),
            });
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        Some(other) => return Err(invalid(other)),
    };
    Ok(Message { role: role.to_owned(), content })
}

/// One token more than fits is enough to know.
fn prompt_limit(config: &MockConfig) -> usize {
    config.engine.max_model_len as usize + 1
}

fn chat_prompt(config: &MockConfig, messages: &[Message]) -> Result<Vec<u32>, ApiError> {
    let tokens = chat_template::render(messages, true, prompt_limit(config));
    check_length(config, &tokens)?;
    Ok(tokens)
}

fn check_length(config: &MockConfig, tokens: &[u32]) -> Result<(), ApiError> {
    let max_model_len = config.engine.max_model_len;
    if tokens.len() > max_model_len as usize {
        return Err(ApiError::PromptTooLong { max_model_len });
    }
    Ok(())
}

/// `prompt` is a text, a list of texts, a list of ids or a list of lists of ids.
fn completion_prompts(config: &MockConfig, fields: &Fields<'_>) -> Result<Vec<Vec<u32>>, ApiError> {
    let prompts = match fields.get("prompt") {
        Some(Value::String(text)) if !text.is_empty() => vec![text_prompt(config, text)],
        Some(Value::Array(list)) => match list.first() {
            Some(Value::Number(_)) => vec![token_prompt(config, fields, list)?],
            _ => list
                .iter()
                .map(|prompt| match prompt {
                    Value::String(text) => Ok(text_prompt(config, text)),
                    Value::Array(ids) => token_prompt(config, fields, ids),
                    other => {
                        let message = "Input should be a valid string";
                        Err(fields.invalid("prompt", other, "string_type", message))
                    }
                })
                .collect::<Result<_, _>>()?,
        },
        Some(Value::String(_)) | None => Vec::new(),
        Some(other) => {
            let message = "Input should be a valid string";
            return Err(fields.invalid("prompt", other, "string_type", message));
        }
    };
    if prompts.is_empty() || prompts.iter().any(Vec::is_empty) {
        return Err(ApiError::MissingPrompt);
    }
    for tokens in &prompts {
        check_length(config, tokens)?;
    }
    Ok(prompts)
}

/// A text of the completions API, with the token that begins a sequence.
pub(crate) fn text_prompt(config: &MockConfig, text: &str) -> Vec<u32> {
    let mut tokens = vec![BOS];
    tokenize(text, prompt_limit(config), &mut tokens);
    tokens
}

fn token_prompt(
    config: &MockConfig,
    fields: &Fields<'_>,
    ids: &[Value],
) -> Result<Vec<u32>, ApiError> {
    let id = |value: &Value| {
        let wrong =
            || fields.invalid("prompt", value, "int_type", "Input should be a valid integer");
        let token = value.as_u64().ok_or_else(wrong)?;
        let known = u32::try_from(token).ok().filter(|&token| token < VOCABULARY);
        known.ok_or(ApiError::OutOfVocabulary { token })
    };
    ids.iter().take(prompt_limit(config)).map(id).collect()
}

fn salt(fields: &Fields<'_>) -> Result<Option<Arc<str>>, ApiError> {
    let Some(salt) = fields.string("cache_salt")? else { return Ok(None) };
    let is_bad =
        salt.is_empty() || salt.chars().count() > 128 || salt.contains(['@', '/', '\\', '\0']);
    if is_bad { Err(ApiError::CacheSalt) } else { Ok(Some(salt.into())) }
}

fn logprobs(api: Api, fields: &Fields<'_>) -> Result<Option<u32>, ApiError> {
    if fields.get("prompt_logprobs").is_some() {
        let what = "the log probability of a prompt";
        return Err(ApiError::Unsupported { what, parameter: "prompt_logprobs" });
    }
    match api {
        Api::Chat if fields.boolean("logprobs")? => {
            let value = fields.integer("top_logprobs")?.unwrap_or(0);
            let top = u32::try_from(value).ok().filter(|&top| top <= TOP_LOGPROBS_MAX);
            top.map(Some).ok_or(ApiError::TopLogprobs { value })
        }
        Api::Completion if fields.get("logprobs").is_some() => {
            let what = "the log probability of a completion";
            Err(ApiError::Unsupported { what, parameter: "logprobs" })
        }
        Api::Chat | Api::Completion => Ok(None),
    }
}
