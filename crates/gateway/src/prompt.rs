//! The routing fields of a request, and names for its prompt that need no tokenizer.
//!
//! # Canonical text
//! A prompt is named by hashes over a canonical text. It need not be what the engine's chat template makes of the
//! messages; it only has to be equal where that is equal, and to grow at the end when a conversation grows:
//!
//! * chat: the raw JSON of `tools`, if any; then for each message `\n<|ROLE|>\n`, its text, and the raw JSON of its
//!   `tool_calls`, if any. The text is the content string, or the texts of its parts, each preceded by `\n<|text|>\n`; a
//!   part without text (an image, say) stands as its raw JSON;
//! * completion: the prompt string; the first of several;
//! * token ids: each id as four bytes, little-endian, so that a block holds the same number of tokens as text is
//!   estimated to have.
//!
//! # Block hashes
//! `h[i] = mix64(h[i-1] ^ xxh3(bytes of block i))`, where `h[-1]` is the hash of the model, the `cache_salt` and the form
//! (chat, text, ids), since engines share no blocks across these. Only whole blocks count, as in an engine.

mod de;

use std::borrow::Cow;

use http::HeaderMap;
use kvroute_policy::{BlockNames, RequestView};
use kvroute_types::{BlockHash, RequestId, TokenCount, mix64};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::config::{BYTES_PER_TOKEN, PromptConfig};

/// What routing needs to know of a request.
#[derive(Debug, Default)]
pub(crate) struct RoutingFacts {
    pub(crate) session_key: Option<u64>,
    pub(crate) prefix_key: Option<u64>,
    pub(crate) prompt_blocks: Vec<BlockHash>,
    pub(crate) names: Names,
    /// Exact for token ids, else a quarter of the canonical text's bytes.
    pub(crate) prompt_tokens: TokenCount,
    /// The prompt, where it is one list of token ids that reaches the engine as it is.
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) cache_salt: Option<String>,
    pub(crate) model: Option<String>,
    /// Whether the engine looks this prompt up in its cache once, and tells the client what it found.
    pub(crate) is_auditable: bool,
    pub(crate) max_output_tokens: Option<TokenCount>,
    pub(crate) priority: i32,
    pub(crate) is_stream: bool,
}

/// What names a prompt's blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Names {
    /// Its text.
    #[default]
    Text,
    /// Its token ids, as the engines hash them.
    Engine {
        /// Whether more than the ids is hashed: a `cache_salt`, an adapter.
        has_extra_keys: bool,
    },
}

impl RoutingFacts {
    /// Of a request whose body says nothing about its prompt.
    pub(crate) fn opaque(headers: &HeaderMap) -> Self {
        Self { session_key: session_header(headers).map(session_key), ..Self::default() }
    }

    /// Of a chat or completion request.
    pub(crate) fn parse(
        headers: &HeaderMap,
        json: &[u8],
        config: &PromptConfig,
        seed: u64,
    ) -> Result<Self, serde_json::Error> {
        let body: Body<'_> = serde_json::from_slice(json)?;
        let first_user = body.first_text("user");
        let prefix = body.first_text("system").or_else(|| first_user.clone());
        let prefix = prefix
            .as_deref()
            .or_else(|| body.prompt.as_ref().and_then(|prompts| prompts.first.text()));
        let prefix_key = match (&body.prompt, prefix) {
            (Some(Prompts { first: Prompt::Ids(ids), .. }), _) => {
                Some(prefix_key_of_ids(ids.iter().copied(), config))
            }
            (_, prefix) => prefix.map(|text| xxh3_64(first_chars(text, config.prefix_chars))),
        };
        let session = session_header(headers)
            .or_else(|| body.session_id.as_deref().map(str::as_bytes))
            .or_else(|| body.user.as_deref().map(str::as_bytes))
            .or_else(|| first_user.as_deref().map(str::as_bytes));

        let root = [body.model.as_deref(), body.cache_salt.as_deref()]
            .into_iter()
            .flatten()
            .fold(seed ^ body.form() as u64, |seed, part| xxh3_64_with_seed(part.as_bytes(), seed));
        let mut hasher = BlockHasher::new(config.block_bytes as usize, root, json.len());
        body.canonical_text(&mut |piece| hasher.push(piece));
        let tokens = u32::try_from(hasher.bytes).unwrap_or(u32::MAX) / BYTES_PER_TOKEN;
        let limit = body.max_completion_tokens.or(body.max_tokens);
        let session_key = session.map(session_key);
        let is_auditable = body.is_auditable();
        let token_ids = match body.prompt {
            Some(Prompts { first: Prompt::Ids(ids), are_several: false })
                if body.truncate_prompt_tokens.is_none() =>
            {
                Some(ids)
            }
            _ => None,
        };
        Ok(Self {
            session_key,
            prefix_key,
            prompt_blocks: hasher.blocks,
            names: Names::Text,
            prompt_tokens: TokenCount(tokens),
            token_ids,
            cache_salt: body.cache_salt.map(Cow::into_owned),
            model: body.model.map(Cow::into_owned),
            is_auditable,
            max_output_tokens: limit.map(TokenCount),
            priority: body.priority.unwrap_or(0),
            is_stream: body.stream.unwrap_or(false),
        })
    }

    pub(crate) fn view(&self, id: RequestId) -> RequestView<'_> {
        RequestView {
            id,
            session_key: self.session_key,
            prefix_key: self.prefix_key,
            prompt_blocks: &self.prompt_blocks,
            block_names: match self.names {
                Names::Text => BlockNames::Text,
                Names::Engine { .. } => BlockNames::Engine,
            },
            prompt_tokens: self.prompt_tokens,
            max_output_tokens: self.max_output_tokens,
            priority: self.priority,
        }
    }
}

/// The fields that routing reads; everything else is skipped unread.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    model: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    messages: Option<Vec<Message<'a>>>,
    #[serde(borrow, default)]
    prompt: Option<Prompts<'a>>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    cache_salt: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    session_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    user: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "de::lax")]
    stream: Option<bool>,
    #[serde(default, deserialize_with = "de::lax")]
    max_tokens: Option<u32>,
    #[serde(default, deserialize_with = "de::lax")]
    max_completion_tokens: Option<u32>,
    #[serde(default, deserialize_with = "de::lax")]
    priority: Option<i32>,
    #[serde(default, deserialize_with = "de::lax")]
    n: Option<u32>,
    #[serde(default, deserialize_with = "de::lax")]
    echo: Option<bool>,
    #[serde(default)]
    logprobs: Option<IgnoredAny>,
    #[serde(default)]
    prompt_logprobs: Option<IgnoredAny>,
    #[serde(default)]
    truncate_prompt_tokens: Option<IgnoredAny>,
    #[serde(default)]
    vllm_xargs: Option<IgnoredAny>,
    #[serde(default)]
    kv_transfer_params: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    role: Cow<'a, str>,
    #[serde(borrow, default)]
    content: Option<Content<'a>>,
    #[serde(borrow, default)]
    tool_calls: Option<&'a RawValue>,
}

/// A string, or something else that is looked at only if need be.
struct Text<'a>(Cow<'a, str>);

enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

/// A content part that has a text, or its raw JSON.
struct Part<'a>(Cow<'a, str>);

/// One prompt or several, of which the first names the request.
struct Prompts<'a> {
    first: Prompt<'a>,
    are_several: bool,
}

enum Prompt<'a> {
    Text(Cow<'a, str>),
    Ids(Vec<u32>),
}

/// Keeps chats, texts and token ids apart: they are tokenized differently.
#[derive(Clone, Copy)]
enum Form {
    Chat,
    Text,
    Ids,
}

impl Body<'_> {
    fn form(&self) -> Form {
        match self.prompt.as_ref().map(|prompts| &prompts.first) {
            Some(Prompt::Ids(_)) => Form::Ids,
            Some(Prompt::Text(_)) => Form::Text,
            None => Form::Chat,
        }
    }

    /// Several prompts or answers are several look-ups with one sum; log probabilities of the prompt forbid the cache
    /// (R25); extra arguments and transfers may change anything.
    fn is_auditable(&self) -> bool {
        let reads_cache =
            self.prompt_logprobs.is_none() && !(self.echo == Some(true) && self.logprobs.is_some());
        reads_cache
            && self.n.is_none_or(|n| n == 1)
            && !self.prompt.as_ref().is_some_and(|prompts| prompts.are_several)
            && self.vllm_xargs.is_none()
            && self.kv_transfer_params.is_none()
    }

    /// Says the canonical text piece by piece: it is never put together.
    fn canonical_text(&self, say: &mut impl FnMut(&[u8])) {
        match self.prompt.as_ref().map(|prompts| &prompts.first) {
            Some(Prompt::Ids(ids)) => ids.iter().for_each(|id| say(&id.to_le_bytes())),
            Some(Prompt::Text(text)) => say(text.as_bytes()),
            None => self.canonical_chat(say),
        }
    }

    fn canonical_chat(&self, say: &mut impl FnMut(&[u8])) {
        if let Some(tools) = self.tools {
            say(tools.get().as_bytes());
        }
        for message in self.messages.iter().flatten() {
            for piece in ["\n<|", &message.role, "|>\n"] {
                say(piece.as_bytes());
            }
            match &message.content {
                Some(Content::Text(text)) => say(text.as_bytes()),
                Some(Content::Parts(parts)) => parts.iter().for_each(|part| {
                    say(b"\n<|text|>\n");
                    say(part.0.as_bytes());
                }),
                None => {}
            }
            if let Some(calls) = message.tool_calls {
                say(calls.get().as_bytes());
            }
        }
    }

    /// Text of the first message of this role.
    fn first_text(&self, role: &str) -> Option<Cow<'_, str>> {
        let message = self.messages.iter().flatten().find(|message| message.role == role)?;
        Some(match message.content.as_ref()? {
            Content::Text(text) => Cow::Borrowed(text),
            Content::Parts(parts) => parts.iter().map(|part| &*part.0).collect(),
        })
    }
}

impl Prompt<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Ids(_) => None,
        }
    }
}

/// The key under which a session is routed, from the value of its `X-Session-ID` header or what stands in for it.
pub fn session_key(session: &[u8]) -> u64 {
    xxh3_64(session)
}

/// The prefix key of a prompt of token ids: of as many leading ids as the characters of a text prompt's key are
/// estimated to make.
pub fn prefix_key_of_ids(ids: impl IntoIterator<Item = u32>, config: &PromptConfig) -> u64 {
    let leading = config.prefix_chars.div_ceil(BYTES_PER_TOKEN as usize);
    let bytes: Vec<u8> = ids.into_iter().take(leading).flat_map(u32::to_le_bytes).collect();
    xxh3_64(&bytes)
}

fn session_header(headers: &HeaderMap) -> Option<&[u8]> {
    headers.get("x-session-id").map(http::HeaderValue::as_bytes)
}

fn first_chars(text: &str, chars: usize) -> &[u8] {
    let end = text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    &text.as_bytes()[..end]
}

/// Names the blocks of a text that comes in pieces.
struct BlockHasher {
    block_bytes: usize,
    parent: u64,
    /// The start of a block whose end has not come.
    held: Vec<u8>,
    blocks: Vec<BlockHash>,
    /// Of all pieces.
    bytes: usize,
}

impl BlockHasher {
    fn new(block_bytes: usize, root: u64, bytes_expected: usize) -> Self {
        Self {
            block_bytes,
            parent: root,
            held: Vec::with_capacity(block_bytes.min(bytes_expected)),
            blocks: Vec::with_capacity(bytes_expected / block_bytes),
            bytes: 0,
        }
    }

    fn push(&mut self, mut piece: &[u8]) {
        self.bytes += piece.len();
        if !self.held.is_empty() {
            let count = piece.len().min(self.block_bytes - self.held.len());
            self.held.extend_from_slice(&piece[..count]);
            piece = &piece[count..];
            if self.held.len() < self.block_bytes {
                return;
            }
            self.parent = chained(self.parent, &self.held);
            self.blocks.push(BlockHash(self.parent));
            self.held.clear();
        }
        let (blocks, rest) = piece.split_at(piece.len() - piece.len() % self.block_bytes);
        let mut parent = self.parent;
        self.blocks.extend(blocks.chunks_exact(self.block_bytes).map(|block| {
            parent = chained(parent, block);
            BlockHash(parent)
        }));
        self.parent = parent;
        self.held.extend_from_slice(rest);
    }
}

/// The blocks' own hashes do not wait for one another; only the cheap mix is a chain.
fn chained(parent: u64, block: &[u8]) -> u64 {
    mix64(parent ^ xxh3_64(block))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn facts(body: &str) -> RoutingFacts {
        RoutingFacts::parse(&HeaderMap::new(), body.as_bytes(), &PromptConfig::default(), 1)
            .unwrap()
    }

    fn text(body: &str) -> String {
        let mut out = Vec::new();
        let body: Body<'_> = serde_json::from_str(body).unwrap();
        body.canonical_text(&mut |piece| out.extend_from_slice(piece));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_canonical_text_is_as_documented() {
        let chat = r#"{"model":"m","messages":[{"role":"system","content":"be\nbrief"},
            {"content":[{"type":"text","text":"hi"},{"type":"image_url","image_url":{"url":"u"}}],"role":"user"},
            {"role":"assistant","content":null,"tool_calls":[{"id":"1"}]}],"tools":[{"a":1}],"unknown":{"x":[1]}}"#;
        assert_eq!(
            text(chat),
            "[{\"a\":1}]\n<|system|>\nbe\nbrief\n<|user|>\n\n<|text|>\nhi\n<|text|>\n\
             {\"type\":\"image_url\",\"image_url\":{\"url\":\"u\"}}\n<|assistant|>\n[{\"id\":\"1\"}]"
        );
        assert_eq!(text(r#"{"prompt":"a\u00e9b"}"#), "aéb");
        assert_eq!(text(r#"{"prompt":["one","two"]}"#), "one");
        assert_eq!(text(r#"{"prompt":[[65,66],[1]]}"#), "A\0\0\0B\0\0\0");
        assert_eq!(text(r#"{"prompt":[65]}"#), "A\0\0\0");
        assert_eq!(text(r#"{"model":"m"}"#), "");
    }

    #[test]
    fn blocks_do_not_depend_on_the_pieces() {
        let text: Vec<u8> = (0..=255).collect();
        let blocks = |size| {
            let mut hasher = BlockHasher::new(12, 7, 0);
            text.chunks(size).for_each(|piece| hasher.push(piece));
            assert_eq!(hasher.bytes, text.len());
            hasher.blocks
        };
        let mut parent = 7;
        let expected: Vec<BlockHash> = text
            .chunks_exact(12)
            .map(|block| {
                parent = mix64(parent ^ xxh3_64(block));
                BlockHash(parent)
            })
            .collect();
        assert!((1..=text.len()).all(|size| blocks(size) == expected));
    }

    #[test]
    fn a_growing_conversation_keeps_its_blocks() {
        let turn = |rest: &str| {
            format!(
                r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}{rest}]}}"#,
                "x".repeat(300)
            )
        };
        let first = facts(&turn(""));
        let second =
            facts(&turn(&format!(r#",{{"role":"assistant","content":"{}"}}"#, "yes".repeat(50))));
        assert_eq!(first.prompt_blocks.len(), 4);
        assert!(second.prompt_blocks.starts_with(&first.prompt_blocks));
        assert!(second.prompt_blocks.len() > first.prompt_blocks.len());
        assert_eq!(first.session_key, second.session_key);
        let other_model = facts(&turn("").replace("\"m\"", "\"n\""));
        assert_ne!(other_model.prompt_blocks[0], first.prompt_blocks[0]);
    }

    #[test]
    fn token_ids_are_counted_exactly() {
        let ids: Vec<u32> = (0..40).collect();
        let facts = facts(&format!(r#"{{"prompt":{ids:?},"max_tokens":7,"stream":true}}"#));
        assert_eq!(facts.prompt_tokens, TokenCount(40));
        assert_eq!(facts.prompt_blocks.len(), 2);
        assert_eq!(facts.max_output_tokens, Some(TokenCount(7)));
        assert!(facts.is_stream);
    }

    #[test]
    fn keys_come_from_the_documented_places() {
        let body = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"u"}]"#;
        let plain = facts(&format!("{body}}}"));
        assert_eq!(plain.session_key, Some(xxh3_64(b"u")));
        assert_eq!(plain.prefix_key, Some(xxh3_64(b"s")));
        let user = facts(&format!(r#"{body},"user":"alice"}}"#));
        assert_eq!(user.session_key, Some(xxh3_64(b"alice")));
        let session = facts(&format!(r#"{body},"user":"alice","session_id":"7"}}"#));
        assert_eq!(session.session_key, Some(xxh3_64(b"7")));
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("x-session-id"),
            HeaderValue::from_static("h"),
        )]);
        let config = PromptConfig { prefix_chars: 1, ..PromptConfig::default() };
        let body = r#"{"prompt":"äöü","session_id":"7"}"#;
        let facts = RoutingFacts::parse(&headers, body.as_bytes(), &config, 1).unwrap();
        assert_eq!(facts.session_key, Some(xxh3_64(b"h")));
        assert_eq!(facts.prefix_key, Some(xxh3_64("ä".as_bytes())));
    }

    #[test]
    fn a_limit_in_another_form_costs_only_the_limit() {
        let body = |limit: &str| {
            format!(r#"{{"prompt":[1,2,3],"max_tokens":{limit},"stream":true,"priority":null}}"#)
        };
        for limit in ["-5", "16.0", "\"16\"", "[1]", "null"] {
            let facts = facts(&body(limit));
            assert_eq!((facts.max_output_tokens, facts.is_stream), (None, true), "{limit}");
            assert_eq!(facts.prompt_tokens, TokenCount(3), "{limit}");
        }
        assert_eq!(facts(&body("16")).max_output_tokens, Some(TokenCount(16)));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let error = |body: &[u8]| {
            RoutingFacts::parse(&HeaderMap::new(), body, &PromptConfig::default(), 1)
                .unwrap_err()
                .to_string()
        };
        assert!(error(b"{\"model\": ").contains("EOF"));
        assert!(error(b"[1]").contains("invalid type"), "{}", error(b"[1]"));
        assert!(error(b"{\"messages\": 3}").contains("invalid type"));
        assert!(error(b"{\"prompt\": \"\xff\"}").contains("unicode"));
    }
}
