//! The messages of a request as vLLM hands them to a chat template.
//!
//! vLLM does not pass messages on as they came (0.32.0, `renderers/chat_utils.py`, `renderers/hf.py`): content takes
//! the shape that the template expects, tool calls get their arguments parsed, `reasoning_content` becomes `reasoning`,
//! a `developer` becomes a `system` where the template knows none. The order of a map's keys counts, since templates
//! write maps out as JSON.

use minijinja::Value;
use minijinja::value::ValueKind;
use serde::de::IgnoredAny;

use crate::content_format::ContentFormat;
use crate::json::{Json, pairs};
use crate::request::{Content, Function, Message, Tool};
use crate::unknown::Unknown;

/// What Claude Code puts first into its system prompt, different in every request; vLLM drops the line.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// The fields that vLLM knows of content parts of any type; others reach the template.
const PART_FIELDS: [&str; 18] = [
    "audio_embeds",
    "audio_url",
    "closed",
    "data",
    "file",
    "image_embeds",
    "image_pil",
    "image_url",
    "input_audio",
    "name",
    "prompt_cache_breakpoint",
    "refusal",
    "text",
    "thinking",
    "type",
    "uuid",
    "video_embeds",
    "video_url",
];

type Pairs = Vec<(String, Value)>;

/// A message in the form in which templates see it.
#[derive(Debug)]
pub(crate) struct Turn {
    role: String,
    content: TurnContent,
    /// The other fields, in order.
    rest: Pairs,
}

#[derive(Debug)]
enum TurnContent {
    Text(String),
    Parts(Vec<Value>),
}

impl Turn {
    /// The text that `continue_final_message` continues, and the same turn with `tag` put behind it.
    pub(crate) fn tag_text(&mut self, tag: &str) -> Option<String> {
        match &mut self.content {
            TurnContent::Text(text) => {
                let plain = text.clone();
                text.push_str(tag);
                Some(plain)
            }
            TurnContent::Parts(parts) => parts.iter_mut().rev().find_map(|part| {
                let mut fields = pairs(part)?;
                let (_, text) = fields.iter_mut().find(|(name, _)| name == "text")?;
                let plain = text.as_str()?.to_owned();
                *text = Value::from(format!("{plain}{tag}"));
                *part = Value::from_pairs(fields);
                Some(plain)
            }),
        }
    }

    pub(crate) fn into_value(self) -> Value {
        let content = match self.content {
            TurnContent::Text(text) => Value::from(text),
            TurnContent::Parts(parts) => Value::from(parts),
        };
        let head = [("role".to_owned(), Value::from(self.role)), ("content".to_owned(), content)];
        Value::from_pairs(head.into_iter().chain(self.rest))
    }
}

/// `parse_chat_messages`, then what `safe_apply_chat_template` does about developers.
pub(crate) fn conversation(
    messages: Vec<Message>,
    format: ContentFormat,
    has_developer: bool,
) -> Result<Vec<Turn>, Unknown> {
    let turns: Result<Vec<Turn>, Unknown> =
        messages.into_iter().map(|message| turn(message, format)).collect();
    let turns = turns?;
    if has_developer || turns.iter().all(|turn| turn.role != "developer") {
        return Ok(turns);
    }
    Ok(with_one_system(turns))
}

fn turn(message: Message, format: ContentFormat) -> Result<Turn, Unknown> {
    let Message { role, content, tool_calls, tool_call_id, .. } = message;
    let content = match content {
        // The common case, without detours.
        Some(Content::Text(text)) if format == ContentFormat::String && role != "system" => {
            TurnContent::Text(text)
        }
        Some(Content::Text(text)) => parts_content(&role, vec![Value::from(text)], format)?,
        Some(Content::Parts(parts)) => parts_content(&role, parts, format)?,
        None => parts_content(&role, Vec::new(), format)?,
    };
    let mut rest = Pairs::new();
    let mut add = |name: &str, value: Value| rest.push((name.to_owned(), value));
    if role == "assistant" {
        if let Some(calls) = tool_calls.filter(|calls| !calls.is_empty()) {
            let calls: Result<Vec<Value>, Unknown> = calls.iter().map(tool_call).collect();
            add("tool_calls", Value::from(calls?));
        }
        let reasoning = [message.reasoning, message.reasoning_content].into_iter().flatten();
        if let Some(Json(reasoning)) = reasoning.into_iter().find(|Json(value)| !value.is_none()) {
            add("reasoning", reasoning.clone());
            add("reasoning_content", reasoning);
        }
    } else if role == "tool"
        && let Some(id) = tool_call_id
    {
        add("tool_call_id", id);
    }
    for (name, field) in [("name", message.name), ("task", message.task)] {
        if let Some(Json(value)) = field.filter(|Json(value)| value.kind() == ValueKind::String) {
            add(name, value);
        }
    }
    if role == "developer" {
        add("tools", message.tools.map_or(Value::from(()), |Json(tools)| tools));
    }
    Ok(Turn { role, content, rest })
}

/// `_parse_chat_message_content_parts`
fn parts_content(
    role: &str,
    parts: Vec<Value>,
    format: ContentFormat,
) -> Result<TurnContent, Unknown> {
    let mut kept = Vec::with_capacity(parts.len());
    for part in parts {
        let part = match part.as_str() {
            Some(text) => {
                Part { text: Some(text.to_owned()), is_plain_text: true, ..Part::default() }
            }
            None => Part::parse(&part)?,
        };
        kept.extend(if role == "system" { part.without_billing_header() } else { Some(part) });
    }
    let has_reference = kept.iter().any(|part| part.is_reference);
    let is_text = format == ContentFormat::String || (role == "tool" && !has_reference);
    if !is_text {
        let values = kept.into_iter().filter_map(Part::into_value);
        return Ok(TurnContent::Parts(values.collect()));
    }
    // As parts, empty texts are kept, and joined where they are a tool's.
    let keeps_empty = format == ContentFormat::OpenAi;
    let texts: Vec<String> = kept
        .into_iter()
        .filter_map(|part| part.text)
        .filter(|text| keeps_empty || !text.is_empty())
        .collect();
    Ok(TurnContent::Text(texts.join("\n")))
}

/// A content part that is text, or names a tool.
#[derive(Debug, Default)]
struct Part {
    /// `None` is a part without text, which is left out.
    text: Option<String>,
    is_reference: bool,
    /// Whether it is of the type `text`.
    is_plain_text: bool,
    /// Fields that vLLM does not know, which templates see.
    extra: Pairs,
}

impl Part {
    fn parse(part: &Value) -> Result<Self, Unknown> {
        let body = |message: &str| Unknown::Body { message: message.to_owned() };
        let fields = pairs(part).ok_or_else(|| body("a content part must be a map or a string"))?;
        let field = |name: &str| {
            fields
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value)
                .filter(|v| !v.is_none())
        };
        let kind = field("type").and_then(Value::as_str).unwrap_or("without a type");
        let name = match kind {
            "text" | "input_text" | "output_text" => "text",
            "refusal" => "refusal",
            "thinking" => "thinking",
            "tool_reference" => "name",
            "prompt_embeds" => return Err(Unknown::PromptEmbeds),
            _ => return Err(Unknown::MultiModal { kind: kind.to_owned() }),
        };
        if field("uuid").is_some() {
            return Err(Unknown::Refused { why: "a text part with a `uuid`" });
        }
        let text = field(name).map(|text| text.as_str().map(ToOwned::to_owned));
        let text = match text {
            Some(None) => return Err(body("the text of a content part must be a string")),
            None if !matches!(kind, "text" | "refusal") => {
                return Err(body("a content part has no text"));
            }
            text => text.flatten(),
        };
        let (is_reference, is_plain_text) = (kind == "tool_reference", kind == "text");
        let mut extra = fields;
        extra.retain(|(name, _)| !is_reference && !PART_FIELDS.contains(&name.as_str()));
        Ok(Self { text, is_reference, is_plain_text, extra })
    }

    fn without_billing_header(mut self) -> Option<Self> {
        let Some(text) = self.text.as_ref().filter(|text| text.starts_with(BILLING_HEADER)) else {
            return Some(self);
        };
        if !self.is_plain_text {
            return Some(self);
        }
        let rest = text.split_once('\n').map(|(_, rest)| rest).filter(|rest| !rest.is_empty())?;
        self.text = Some(rest.to_owned());
        Some(self)
    }

    fn into_value(self) -> Option<Value> {
        let text = Value::from(self.text?);
        let (kind, name) =
            if self.is_reference { ("tool_reference", "name") } else { ("text", "text") };
        let head = [("type".to_owned(), Value::from(kind)), (name.to_owned(), text)];
        Some(Value::from_pairs(head.into_iter().chain(self.extra)))
    }
}

/// A tool call with its fields in the order of vLLM's model, and its arguments parsed (`_postprocess_messages`).
fn tool_call(Json(call): &Json) -> Result<Value, Unknown> {
    let refused = Unknown::Refused { why: "a tool call that is not a complete call of a function" };
    let Some(mut call) = pairs(call) else { return Err(refused) };
    let mut take = |name: &str| {
        let at = call.iter().position(|(key, _)| key == name)?;
        Some(call.remove(at).1)
    };
    let (id, kind) = (take("id"), take("type"));
    let function = take("function").as_ref().and_then(pairs);
    let (Some(id), Some(kind), Some(mut function)) = (id, kind, function) else {
        return Err(refused);
    };
    if kind.as_str() != Some("function") {
        return Err(refused);
    }
    let mut take = |name: &str| {
        let at = function.iter().position(|(key, _)| key == name)?;
        Some(function.remove(at).1)
    };
    let (Some(arguments), Some(name)) = (take("arguments"), take("name")) else {
        return Err(refused);
    };
    let arguments = arguments_map(arguments.as_str().ok_or(refused)?)?;
    let head = [("arguments".to_owned(), arguments), ("name".to_owned(), name)];
    let function = Value::from_pairs(head.into_iter().chain(function));
    let head =
        [("id".to_owned(), id), ("function".to_owned(), function), ("type".to_owned(), kind)];
    Ok(Value::from_pairs(head.into_iter().chain(call)))
}

/// What is no JSON map becomes an empty one.
fn arguments_map(text: &str) -> Result<Value, Unknown> {
    let empty = || Value::from_pairs([] as [(&str, Value); 0]);
    match serde_json::from_str::<Json>(text) {
        Ok(Json(map)) if map.kind() == ValueKind::Map => Ok(map),
        Ok(_) => Ok(empty()),
        // Python reads some texts that are refused here: long integers, NaN, lone surrogates.
        Err(_) => {
            let is_json = serde_json::from_str::<IgnoredAny>(text).is_ok();
            let is_python = ["NaN", "Infinity", "\\u"].iter().any(|mark| text.contains(mark));
            if is_json || is_python {
                return Err(Unknown::Unsupported { field: "tool_calls" });
            }
            Ok(empty())
        }
    }
}

/// `_convert_developer_to_system` and `_consolidate_system_messages`: all system texts become one, in front.
fn with_one_system(mut turns: Vec<Turn>) -> Vec<Turn> {
    for turn in &mut turns {
        if turn.role == "developer" {
            "system".clone_into(&mut turn.role);
            turn.rest.retain(|(name, _)| name != "tools");
        }
    }
    let is_system = |turn: &Turn| turn.role == "system";
    let count = turns.iter().filter(|turn| is_system(turn)).count();
    // Empty system texts in front do not count as one that is in place.
    let is_in_place = count == 1 && turns.first().is_some_and(is_system);
    if is_in_place {
        return turns;
    }
    let (systems, others): (Vec<Turn>, Vec<Turn>) = turns.into_iter().partition(is_system);
    let texts: Vec<String> = systems
        .into_iter()
        .map(|turn| match turn.content {
            TurnContent::Text(text) => text,
            TurnContent::Parts(parts) => {
                let texts: Vec<String> = parts
                    .iter()
                    .filter_map(|part| part.get_attr("text").ok()?.as_str().map(ToOwned::to_owned))
                    .collect();
                texts.join("\n")
            }
        })
        .filter(|text| !text.is_empty())
        .collect();
    let merged = Turn {
        role: "system".to_owned(),
        content: TurnContent::Text(texts.join("\n\n")),
        rest: Pairs::new(),
    };
    std::iter::once(merged).chain(others).collect()
}

/// A tool as vLLM's model writes it (`ChatCompletionToolsParam.model_dump`).
pub(crate) fn tool(tool: Tool) -> Result<Value, Unknown> {
    let Tool { kind, function, defer_loading } = tool;
    if kind.is_some_and(|kind| kind != "function") {
        return Err(Unknown::Refused { why: "a tool that is not a function" });
    }
    let Function { name, description, parameters, strict, defer_loading: function_defer } =
        function;
    let null = || Value::from(());
    let mut fields = vec![
        ("name", Value::from(name)),
        ("description", description.map_or_else(null, Value::from)),
        ("parameters", parameters.map_or_else(null, Value::from_pairs)),
    ];
    fields.extend(strict.map(|strict| ("strict", Value::from(strict))));
    let function_defer = function_defer.or(defer_loading);
    fields.extend(function_defer.map(|defer| ("defer_loading", Value::from(defer))));
    let function = Value::from_pairs(fields);
    let mut fields = vec![("type", Value::from("function")), ("function", function)];
    fields.extend(defer_loading.map(|defer| ("defer_loading", Value::from(defer))));
    Ok(Value::from_pairs(fields))
}
