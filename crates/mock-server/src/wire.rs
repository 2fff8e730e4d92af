//! JSON of answers: keys, order and nulls as vLLM 0.32.0 sends them (R74-R78).
//!
//! In vLLM some keys are always there, null or not, and some only when set. A field `Option<Option<T>>` is the latter
//! kind with a value that may be null; `Option<()>` is a key that can only be null.

#![expect(clippy::option_option, reason = "absent, null and a value are three things in this API")]

use serde::Serialize;

use crate::answer::StopReason;

#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u32,
    pub(crate) total_tokens: u32,
    pub(crate) completion_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_tokens_details: Option<Option<PromptTokensDetails>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) completion_tokens_details: Option<()>,
}

#[derive(Clone, Debug, Serialize)]
#[expect(clippy::struct_field_names, reason = "they are the API's")]
pub(crate) struct PromptTokensDetails {
    pub(crate) cached_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) created_cache_tokens: Option<Option<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) multimodal_tokens: Option<()>,
}

/// An event of a stream. Both APIs share the frame.
#[derive(Debug, Serialize)]
pub(crate) struct Chunk<'a, C> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) choices: &'a [C],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) system_fingerprint: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_token_ids: Option<Option<&'a [u32]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) prompt_text: Option<()>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatChunkChoice<'a> {
    pub(crate) index: u32,
    pub(crate) delta: Delta<'a>,
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stop_reason: Option<Option<&'a StopReason>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) token_ids: Option<Option<&'a [u32]>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) role: Option<&'static str>,
    pub(crate) content: &'a str,
}

#[derive(Debug, Serialize)]
pub(crate) struct TextChunkChoice<'a> {
    pub(crate) index: u32,
    pub(crate) text: &'a str,
    pub(crate) logprobs: Option<()>,
    pub(crate) finish_reason: Option<&'static str>,
    pub(crate) stop_reason: Option<&'a StopReason>,
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    pub(crate) token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Logprobs {
    pub(crate) content: Vec<TokenLogprob>,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenLogprob {
    pub(crate) token: String,
    pub(crate) logprob: f64,
    pub(crate) bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top_logprobs: Option<Vec<TokenLogprob>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatBody<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) choices: Vec<ChatChoice<'a>>,
    pub(crate) service_tier: Option<()>,
    pub(crate) system_fingerprint: &'a str,
    pub(crate) usage: Usage,
    pub(crate) prompt_logprobs: Option<()>,
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    pub(crate) prompt_text: Option<()>,
    pub(crate) kv_transfer_params: Option<()>,
    pub(crate) ec_transfer_params: Option<()>,
    pub(crate) metrics: Option<()>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice<'a> {
    pub(crate) index: u32,
    pub(crate) message: ChatMessage<'a>,
    pub(crate) logprobs: Option<Logprobs>,
    pub(crate) finish_reason: &'static str,
    pub(crate) stop_reason: Option<&'a StopReason>,
    pub(crate) token_ids: Option<&'a [u32]>,
    pub(crate) routed_experts: Option<()>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ChatMessage<'a> {
    pub(crate) role: &'static str,
    pub(crate) content: &'a str,
    pub(crate) refusal: Option<()>,
    pub(crate) annotations: Option<()>,
    pub(crate) audio: Option<()>,
    pub(crate) function_call: Option<()>,
    pub(crate) reasoning: Option<()>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TextBody<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: &'a str,
    pub(crate) choices: Vec<TextChoice<'a>>,
    pub(crate) service_tier: Option<()>,
    pub(crate) system_fingerprint: &'a str,
    pub(crate) usage: Usage,
    pub(crate) kv_transfer_params: Option<()>,
    pub(crate) ec_transfer_params: Option<()>,
    pub(crate) metrics: Option<()>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TextChoice<'a> {
    pub(crate) index: u32,
    pub(crate) text: String,
    pub(crate) logprobs: Option<()>,
    pub(crate) finish_reason: &'static str,
    pub(crate) stop_reason: Option<&'a StopReason>,
    pub(crate) token_ids: Option<&'a [u32]>,
    pub(crate) prompt_logprobs: Option<()>,
    pub(crate) prompt_token_ids: Option<&'a [u32]>,
    pub(crate) routed_experts: Option<()>,
}

#[derive(Debug, Serialize)]
pub(crate) struct ModelList<'a> {
    pub(crate) object: &'static str,
    pub(crate) data: Vec<Model<'a>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Model<'a> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) owned_by: &'static str,
    pub(crate) root: &'a str,
    pub(crate) parent: Option<()>,
    pub(crate) max_model_len: u32,
    pub(crate) permission: [ModelPermission; 1],
}

/// Fixed but for its id.
#[derive(Debug, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are the API's")]
pub(crate) struct ModelPermission {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) allow_create_engine: bool,
    pub(crate) allow_sampling: bool,
    pub(crate) allow_logprobs: bool,
    pub(crate) allow_search_indices: bool,
    pub(crate) allow_view: bool,
    pub(crate) allow_fine_tuning: bool,
    pub(crate) organization: &'static str,
    pub(crate) group: Option<()>,
    pub(crate) is_blocking: bool,
}

#[derive(Debug, Serialize)]
pub(crate) struct Tokenized {
    pub(crate) count: usize,
    pub(crate) max_model_len: u32,
    pub(crate) tokens: Vec<u32>,
    pub(crate) token_strs: Option<Vec<String>>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Detokenized {
    pub(crate) prompt: String,
}
