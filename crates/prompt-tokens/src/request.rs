//! The fields of a request body that have a say in its prompt's token ids.
//!
//! Fields are read strictly: where vLLM would turn a value of another type into the right one (`"16"` into 16), the
//! request is one whose tokens are not known.

use std::borrow::Cow;
use std::fmt;

use minijinja::Value;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, SeqAccess, Visitor};

use crate::json::{Json, entries};

/// A `POST /v1/chat/completions` body (vLLM 0.32.0, `entrypoints/openai/chat_completion/protocol.py`).
#[derive(Debug, Deserialize)]
pub(crate) struct ChatBody<'a> {
    pub(crate) messages: Vec<Message>,
    #[serde(borrow)]
    pub(crate) model: Option<Cow<'a, str>>,
    pub(crate) tools: Option<Vec<Tool>>,
    pub(crate) tool_choice: Option<Json>,
    pub(crate) documents: Option<Json>,
    #[serde(default = "yes")]
    pub(crate) add_generation_prompt: bool,
    #[serde(default)]
    pub(crate) continue_final_message: bool,
    #[serde(default)]
    pub(crate) add_special_tokens: bool,
    pub(crate) chat_template: Option<IgnoredAny>,
    #[serde(default, deserialize_with = "entries")]
    pub(crate) chat_template_kwargs: Option<Vec<(String, Value)>>,
    pub(crate) reasoning_effort: Option<String>,
    pub(crate) truncate_prompt_tokens: Option<i64>,
    pub(crate) truncation_side: Option<Side>,
    pub(crate) max_tokens: Option<u64>,
    pub(crate) max_completion_tokens: Option<u64>,
    pub(crate) cache_salt: Option<String>,
    #[serde(default, deserialize_with = "entries")]
    pub(crate) kv_transfer_params: Option<Vec<(String, Value)>>,
}

/// A `POST /v1/completions` body (`entrypoints/openai/completion/protocol.py`).
#[derive(Debug, Deserialize)]
pub(crate) struct CompletionBody<'a> {
    pub(crate) prompt: Option<Prompts>,
    #[serde(borrow)]
    pub(crate) model: Option<Cow<'a, str>>,
    pub(crate) prompt_embeds: Option<IgnoredAny>,
    pub(crate) suffix: Option<IgnoredAny>,
    #[serde(default = "yes")]
    pub(crate) add_special_tokens: bool,
    pub(crate) truncate_prompt_tokens: Option<i64>,
    pub(crate) truncation_side: Option<Side>,
    /// Absent is 16, null is no limit.
    #[serde(default = "sixteen")]
    pub(crate) max_tokens: Option<u64>,
    pub(crate) cache_salt: Option<String>,
}

const fn yes() -> bool {
    true
}

#[expect(clippy::unnecessary_wraps, reason = "the default of an optional field")]
const fn sixteen() -> Option<u64> {
    Some(16)
}

/// Which end of a prompt that is too long is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Side {
    Left,
    Right,
}

/// A message of a chat.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    pub(crate) role: String,
    pub(crate) content: Option<Content>,
    pub(crate) reasoning: Option<Json>,
    pub(crate) reasoning_content: Option<Json>,
    pub(crate) tool_calls: Option<Vec<Json>>,
    #[serde(default, deserialize_with = "present")]
    pub(crate) tool_call_id: Option<Value>,
    pub(crate) name: Option<Json>,
    pub(crate) task: Option<Json>,
    pub(crate) tools: Option<Json>,
}

/// Tells a field that is null from one that is absent.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Json::deserialize(from).map(|Json(value)| Some(value))
}

/// A tool; fields that vLLM's model does not have are dropped by it.
#[derive(Debug, Deserialize)]
pub(crate) struct Tool {
    #[serde(rename = "type")]
    pub(crate) kind: Option<String>,
    pub(crate) function: Function,
    pub(crate) defer_loading: Option<bool>,
}

/// A tool's function.
#[derive(Debug, Deserialize)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    #[serde(default, deserialize_with = "entries")]
    pub(crate) parameters: Option<Vec<(String, Value)>>,
    pub(crate) strict: Option<bool>,
    pub(crate) defer_loading: Option<bool>,
}

/// A message's content.
#[derive(Debug)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Value>),
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ContentVisitor;

        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of content parts")
            }

            fn visit_str<E>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(Json(part)) = items.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }

        from.deserialize_any(ContentVisitor)
    }
}

/// The prompt or prompts of a completion request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Prompts {
    Texts(Vec<String>),
    Ids(Vec<Vec<u32>>),
}

impl Prompts {
    /// Whether there is nothing but one empty prompt, or none.
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Texts(texts) => texts.iter().all(String::is_empty) && texts.len() < 2,
            Self::Ids(lists) => lists.iter().all(Vec::is_empty) && lists.len() < 2,
        }
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, token ids, or a list of strings or of lists of token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts::Texts(vec![text.to_owned()]))
    }

    fn visit_string<E>(self, text: String) -> Result<Prompts, E> {
        Ok(Prompts::Texts(vec![text]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Prompts, A::Error> {
        let (mut ids, mut texts, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(item) = items.next_element()? {
            match item {
                Item::Id(id) => ids.push(id),
                Item::Text(text) => texts.push(text),
                Item::Ids(list) => lists.push(list),
            }
        }
        match (ids.is_empty(), texts.is_empty(), lists.is_empty()) {
            (_, true, true) => Ok(Prompts::Ids(vec![ids])),
            (true, false, true) => Ok(Prompts::Texts(texts)),
            (true, true, false) => Ok(Prompts::Ids(lists)),
            _ => Err(A::Error::custom("a list of prompts holds different kinds")),
        }
    }
}

/// A token id, or one of several prompts.
enum Item {
    Id(u32),
    Text(String),
    Ids(Vec<u32>),
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct ItemVisitor;

        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id, a string or a list of token ids")
            }

            fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Item, E> {
                u32::try_from(id).map(Item::Id).map_err(|_| E::custom("a token id is over 32 bits"))
            }

            fn visit_str<E>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut ids: A) -> Result<Item, A::Error> {
                let mut list = Vec::new();
                while let Some(id) = ids.next_element()? {
                    list.push(id);
                }
                Ok(Item::Ids(list))
            }
        }

        from.deserialize_any(ItemVisitor)
    }
}
