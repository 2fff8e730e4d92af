//! Errors of the API in vLLM's words (R80).
//!
//! Texts marked *(unverified)* were not seen in a recorded answer; status, type and parameter follow R80.

use hyper::StatusCode;
use serde::Serialize;

/// Most answers to one prompt (vLLM's `VLLM_MAX_N_SEQUENCES`).
pub(crate) const N_MAX: u32 = 16_384;
/// Most alternatives per token (vLLM's `--max-logprobs`).
pub(crate) const TOP_LOGPROBS_MAX: u32 = 20;

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum ApiError {
    /// A field is missing or of the wrong type, or the body is no JSON.
    #[error(
        "1 validation error:\n  {{'type': '{kind}', 'loc': '{loc}', 'msg': '{message}', 'input': '{input}'{context}}}"
    )]
    Validation {
        kind: &'static str,
        /// `body.max_tokens`
        loc: String,
        message: &'static str,
        input: String,
        context: String,
    },
    #[error("1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed")]
    MediaType,
    #[error("Stream options can only be defined when `stream=True`. (parameter=stream_options)")]
    StreamOptionsWithoutStream,
    #[error("The model `{model}` does not exist. Valid aliases: {aliases}.")]
    UnknownModel { model: String, aliases: String },
    #[error("Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)")]
    MissingPrompt,
    #[error("Token id {token} is out of vocabulary")]
    OutOfVocabulary { token: u64 },
    #[error(
        "This model's maximum context length is {max_model_len} tokens. However, your prompt contains at least {} \
         input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input \
         prompt. (parameter=input_tokens, value={})",
        u64::from(*.max_model_len) + 1, u64::from(*.max_model_len) + 1
    )]
    PromptTooLong { max_model_len: u32 },
    /// *(unverified)*
    #[error(
        "This model's maximum context length is {max_model_len} tokens. However, you requested {max_tokens} output \
         tokens and your prompt contains at least {input_tokens} input tokens, for a total of at least {} tokens. \
         Please reduce the length of the input prompt or the number of requested output tokens. \
         (parameter=input_tokens, value={input_tokens})",
        .max_tokens.saturating_add(i64::try_from(*.input_tokens).unwrap_or(i64::MAX))
    )]
    OutputTooLong { max_model_len: u32, max_tokens: i64, input_tokens: usize },
    #[error("max_tokens must be at least 1, got {value}. (parameter=max_tokens, value={value})")]
    MaxTokens { value: i64 },
    #[error(
        "temperature must be non-negative, got {value:?}. (parameter=temperature, value={value:?})"
    )]
    Temperature { value: f64 },
    /// *(unverified)*
    #[error("n must be at least 1 and at most {N_MAX}, got {value}. (parameter=n, value={value})")]
    N { value: i64 },
    /// *(unverified)*
    #[error(
        "Requested sample logprobs of {value}, which is greater than max allowed: {TOP_LOGPROBS_MAX} \
         (parameter=top_logprobs, value={value})"
    )]
    TopLogprobs { value: i64 },
    /// *(unverified)*
    #[error(
        "min_tokens must be less than or equal to max_tokens={max_tokens}, got {value}. (parameter=min_tokens, value={value})"
    )]
    MinTokens { value: i64, max_tokens: u32 },
    /// *(unverified)*
    #[error(
        "cache_salt must be a non-empty string of at most 128 characters without '@', '/', '\\' and NUL. (parameter=cache_salt)"
    )]
    CacheSalt,
    /// Something vLLM can do and the mock cannot; it says so instead of pretending.
    #[error("{what} is not supported by kvroute's mock server (parameter={parameter})")]
    Unsupported { what: &'static str, parameter: &'static str },
    /// A fault asked for.
    #[error("injected error")]
    Injected { status: u16 },
    #[error("EngineCore encountered an issue. See stack trace (above) for the root cause.")]
    EngineDead,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: String,
    r#type: &'a str,
    param: Option<&'a str>,
    code: u16,
}

impl ApiError {
    /// A field that is not there.
    pub(crate) fn missing(loc: &str, input: String) -> Self {
        Self::Validation {
            kind: "missing",
            loc: loc.to_owned(),
            message: "Field required",
            input,
            context: String::new(),
        }
    }

    /// Status, type and parameter.
    fn class(&self) -> (StatusCode, &'static str, Option<&str>) {
        let bad_value = |parameter| (StatusCode::BAD_REQUEST, "BadRequestError", parameter);
        match self {
            Self::Validation { loc, .. } => (StatusCode::BAD_REQUEST, "Bad Request", Some(loc)),
            Self::MediaType => (StatusCode::BAD_REQUEST, "Bad Request", None),
            Self::StreamOptionsWithoutStream => bad_value(Some("stream_options")),
            Self::UnknownModel { .. } => (StatusCode::NOT_FOUND, "NotFoundError", Some("model")),
            Self::MissingPrompt => bad_value(Some("prompt")),
            Self::OutOfVocabulary { .. } => bad_value(None),
            Self::PromptTooLong { .. } | Self::OutputTooLong { .. } => {
                bad_value(Some("input_tokens"))
            }
            Self::MaxTokens { .. } => bad_value(Some("max_tokens")),
            Self::Temperature { .. } => bad_value(Some("temperature")),
            Self::N { .. } => bad_value(Some("n")),
            Self::TopLogprobs { .. } => bad_value(Some("top_logprobs")),
            Self::MinTokens { .. } => bad_value(Some("min_tokens")),
            Self::CacheSalt => bad_value(Some("cache_salt")),
            Self::Unsupported { parameter, .. } => bad_value(Some(parameter)),
            Self::Injected { status: 503 } => {
                (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable", None)
            }
            Self::Injected { status } => (
                StatusCode::from_u16(*status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                "InternalServerError",
                None,
            ),
            Self::EngineDead => (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError", None),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.class().0
    }

    /// The body of an answer.
    pub(crate) fn to_json(&self) -> String {
        let (status, kind, param) = self.class();
        let error = Inner { message: self.to_string(), r#type: kind, param, code: status.as_u16() };
        serde_json::to_string(&Body { error }).expect("strings and numbers always serialise")
    }

    /// The event inside a stream, which has spaces where the body has none.
    pub(crate) fn to_event(&self) -> String {
        let (status, kind, param) = self.class();
        let json = |text: &str| serde_json::to_string(text).expect("strings always serialise");
        let param = param.map_or_else(|| "null".to_owned(), json);
        format!(
            "data: {{\"error\": {{\"message\": {}, \"type\": {}, \"param\": {param}, \"code\": {}}}}}\n\n",
            json(&self.to_string()),
            json(kind),
            status.as_u16(),
        )
    }
}
