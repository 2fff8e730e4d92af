//! From a request body to the token ids that an engine gets.

use std::path::Path;

use minijinja::Value;
use serde::Deserialize;
use serde_json::{Map, Value as Tree};

use crate::chat::{Turn, conversation, tool};
use crate::clock::Now;
use crate::content_format::ContentFormat;
use crate::files::{ModelFiles, OpenError, Source, token_variables};
use crate::json::Json;
use crate::request::{ChatBody, CompletionBody, Prompts, Side};
use crate::template::{RenderError, Template};
use crate::tokenizer::Tokenizer;
use crate::unknown::Unknown;

/// Which API a body belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completions,
}

/// How the servers are started, as far as it changes prompts. All servers behind one router must agree on it.
#[derive(Clone, Debug)]
pub struct PromptSettings {
    /// The text of the servers' `--chat-template`, if they have one; it wins over the model's.
    pub chat_template: Option<String>,
    /// The servers' `--chat-template-content-format`; `None` is `auto`.
    pub content_format: Option<ContentFormat>,
    /// The servers' `--default-chat-template-kwargs`.
    pub default_chat_template_kwargs: Map<String, Tree>,
    /// The servers' `--exclude-tools-when-tool-choice-none`.
    pub exclude_tools_when_tool_choice_none: bool,
    /// The servers' `--max-model-len`, in tokens: only to tell where `truncate_prompt_tokens: -1` cuts.
    pub max_model_len: Option<usize>,
    /// Bytes for the token ids of recent texts.
    pub cache_bytes: u64,
}

impl Default for PromptSettings {
    /// vLLM's defaults, and 64 MiB of cache: some ten million tokens.
    fn default() -> Self {
        Self {
            chat_template: None,
            content_format: None,
            default_chat_template_kwargs: Map::new(),
            exclude_tools_when_tool_choice_none: false,
            max_model_len: None,
            cache_bytes: 64 << 20,
        }
    }
}

/// The prompts of one request, as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// One list of token ids for each prompt: one for a chat, one or more for a completion request.
    pub prompts: Vec<Vec<u32>>,
    /// The request's `cache_salt`; part of [`ExtraKeys`](kvroute_vllm_wire::ExtraKeys).
    pub cache_salt: Option<String>,
    /// The request's `model`, which may name an adapter.
    pub model: Option<String>,
}

/// Turns request bodies into the token ids that vLLM makes of them. Shared between threads by reference.
#[derive(Debug)]
pub struct PromptTokens {
    settings: PromptSettings,
    tokenizer: Tokenizer,
    templates: Templates,
    /// The named special tokens, which templates see as variables.
    token_variables: Vec<(String, Value)>,
    defaults: Vec<(String, Value)>,
}

/// The chat templates of a model.
#[derive(Debug)]
struct Templates {
    without_tools: Option<Template>,
    with_tools: WithTools,
    /// The architecture or model type whose chats vLLM renders without a template.
    own_renderer: Option<String>,
}

/// The template for a request with tools.
#[derive(Debug)]
enum WithTools {
    /// The one for requests without.
    Same,
    Own(Box<Template>),
    /// There is a processor's template only, which vLLM does not take then.
    None,
}

impl PromptTokens {
    /// Reads a model directory: `tokenizer.json` and, as far as they are there, `tokenizer_config.json`,
    /// `special_tokens_map.json`, `config.json`, `chat_template.jinja`, `chat_template.json`. Nothing is read later.
    ///
    /// # Errors
    /// [`OpenError`], which names the file and the remedy.
    pub fn open(dir: &Path, settings: PromptSettings) -> Result<Self, OpenError> {
        let files = ModelFiles::read(dir)?;
        let tokenizer = Tokenizer::from_files(&files, settings.cache_bytes)?;
        let templates = Templates::of(&files, &settings, dir)?;
        let token_variables = token_variables(&files.named_tokens());
        let defaults = settings.default_chat_template_kwargs.iter();
        let defaults = defaults
            .map(|(name, tree)| {
                let Json(value) = Json::deserialize(tree)
                    .map_err(|source| OpenError::DefaultKwargs { name: name.clone(), source })?;
                Ok((name.clone(), value))
            })
            .collect::<Result<_, OpenError>>()?;
        Ok(Self { settings, tokenizer, templates, token_variables, defaults })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The token ids of a request's prompts.
    ///
    /// `now` is what a chat template is told that asks for the time; `None` makes such a request
    /// [`Unknown::NoClock`].
    ///
    /// This computes: for a body of known messages some 50 µs per 16 thousand tokens, for new text some milliseconds
    /// per 16 thousand. A server should do it where that does not hold up others.
    ///
    /// # Errors
    /// [`Unknown`] where it cannot be said what vLLM would make of the request. Never a guess.
    pub fn from_body(
        &self,
        endpoint: Endpoint,
        body: &[u8],
        now: Option<Now>,
    ) -> Result<Tokens, Unknown> {
        fn parsed<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, Unknown> {
            serde_json::from_slice(body)
                .map_err(|error| Unknown::Body { message: error.to_string() })
        }
        match endpoint {
            Endpoint::Chat => self.chat(parsed(body)?, now),
            Endpoint::Completions => self.completion(parsed(body)?),
        }
    }

    fn completion(&self, body: CompletionBody<'_>) -> Result<Tokens, Unknown> {
        if body.prompt_embeds.is_some() {
            return Err(Unknown::PromptEmbeds);
        }
        if body.suffix.is_some() {
            return Err(Unknown::Unsupported { field: "suffix" });
        }
        let cut = self.cut(body.truncate_prompt_tokens, body.truncation_side, body.max_tokens)?;
        let prompts = match body.prompt {
            None => return Err(EMPTY),
            Some(prompts) if prompts.is_empty() => return Err(EMPTY),
            Some(Prompts::Ids(lists)) => lists.into_iter().map(|ids| cut.of_ids(ids)).collect(),
            Some(Prompts::Texts(texts)) => {
                let ids = texts.iter().map(|text| self.ids(text, body.add_special_tokens, cut));
                ids.collect::<Result<_, _>>()?
            }
        };
        let model = body.model.map(std::borrow::Cow::into_owned);
        Ok(Tokens { prompts, cache_salt: body.cache_salt, model })
    }

    fn chat(&self, mut body: ChatBody<'_>, now: Option<Now>) -> Result<Tokens, Unknown> {
        if body.chat_template.is_some() {
            return Err(Unknown::TemplateInRequest);
        }
        let transfer = body.kv_transfer_params.iter().flatten();
        if transfer.into_iter().any(|(name, ids)| name == "prompt_token_ids" && !ids.is_none()) {
            return Err(Unknown::Unsupported { field: "kv_transfer_params" });
        }
        let max_tokens = body.max_completion_tokens.or(body.max_tokens);
        let cut = self.cut(body.truncate_prompt_tokens, body.truncation_side, max_tokens)?;
        let (add_special_tokens, cache_salt) = (body.add_special_tokens, body.cache_salt.take());
        let model = body.model.take().map(std::borrow::Cow::into_owned);
        let text = self.render(body, now)?;
        let prompts = vec![self.ids(&text, add_special_tokens, cut)?];
        Ok(Tokens { prompts, cache_salt, model })
    }

    /// The text that the chat template makes of a request.
    fn render(&self, mut body: ChatBody<'_>, now: Option<Now>) -> Result<String, Unknown> {
        const TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";
        let is_continued = body.continue_final_message;
        if body.messages.is_empty() {
            return Err(Unknown::Refused { why: "no messages" });
        }
        if is_continued && body.add_generation_prompt {
            let why = "`continue_final_message` without `add_generation_prompt: false`";
            return Err(Unknown::Refused { why });
        }
        let messages = std::mem::take(&mut body.messages);
        let kwargs = self.template_variables(body)?;
        let has_tools = kwargs.iter().any(|(name, value)| name == "tools" && !value.is_none());
        let template = self.templates.for_chat(has_tools)?;
        let format = self.settings.content_format.unwrap_or(template.content_format());
        let has_developer = ["\"developer\"", "'developer'"]
            .iter()
            .any(|quoted| template.source().contains(quoted));
        let mut turns = conversation(messages, format, has_developer)?;
        let continued = match turns.last_mut().filter(|_| is_continued) {
            None => None,
            Some(last) => Some(last.tag_text(TAG).ok_or(Unknown::Refused {
                why: "`continue_final_message` with a last message without text",
            })?),
        };
        if is_continued && !template.source().contains("content") {
            return Err(Unknown::Refused { why: "`continue_final_message` with this template" });
        }
        let messages: Value = turns.into_iter().map(Turn::into_value).collect();
        let mut variables = self.token_variables.clone();
        let absent = ["tools", "documents"].map(|name| (name.to_owned(), Value::from(())));
        variables.extend(absent);
        variables.extend(kwargs);
        variables.push(("messages".to_owned(), messages));
        let text = template.render(variables, now).map_err(|error| match error {
            RenderError::NoClock => Unknown::NoClock,
            RenderError::Raised(message) | RenderError::Failed(message) => {
                Unknown::Template { message }
            }
        })?;
        match continued {
            Some(last) => cut_at_tag(text, TAG, &last),
            None => Ok(text),
        }
    }

    /// The variables of the template besides messages and special tokens, as vLLM merges them: the servers' defaults,
    /// then the request's `chat_template_kwargs`, then its own fields, where null and "auto" count as not given.
    fn template_variables(&self, body: ChatBody<'_>) -> Result<Vec<(String, Value)>, Unknown> {
        /// Arguments of the functions on the way, which are no variables.
        const TAKEN: [&str; 8] = [
            "chat_template",
            "conversation",
            "messages",
            "model_config",
            "return_assistant_tokens_mask",
            "return_dict",
            "tokenize",
            "tokenizer",
        ];
        let given = body.chat_template_kwargs.unwrap_or_default();
        if given.iter().any(|(name, value)| TAKEN.contains(&name.as_str()) && !value.is_none()) {
            return Err(Unknown::Unsupported { field: "chat_template_kwargs" });
        }
        let is_none_chosen =
            body.tool_choice.is_some_and(|Json(choice)| choice.as_str() == Some("none"));
        let tools = body
            .tools
            .filter(|_| !(is_none_chosen && self.settings.exclude_tools_when_tool_choice_none));
        let mut variables = self.defaults.clone();
        if let Some(tools) = tools {
            if tools.is_empty() {
                return Err(Unknown::Refused { why: "an empty list of `tools`" });
            }
            let tools = tools.into_iter().map(tool).collect::<Result<Vec<Value>, _>>()?;
            variables.push(("tools".to_owned(), Value::from(tools)));
        }
        let thinks = given.iter().any(|(name, _)| name == "enable_thinking");
        let effort = body.reasoning_effort;
        let thinking = effort.as_ref().filter(|_| !thinks).map(|effort| effort != "none");
        let own = [
            ("add_generation_prompt", Some(Value::from(body.add_generation_prompt))),
            ("documents", body.documents.map(|Json(documents)| documents)),
            ("enable_thinking", thinking.map(Value::from)),
            ("reasoning_effort", effort.map(Value::from)),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let is_given =
            |(_, value): &(String, Value)| !value.is_none() && value.as_str() != Some("auto");
        // Later entries win. `continue_final_message` is not a variable.
        let own: Vec<(String, Value)> = given.into_iter().chain(own.filter(is_given)).collect();
        variables.extend(
            own.into_iter().filter(|entry| is_given(entry) && entry.0 != "continue_final_message"),
        );
        Ok(variables)
    }

    fn ids(&self, text: &str, add_special_tokens: bool, cut: Cut) -> Result<Vec<u32>, Unknown> {
        // Without a side, the tokenizer cuts at the left and what it adds stays; with one, the whole row is cut.
        let max = cut.side.is_none().then_some(cut.max).flatten();
        let ids = self.tokenizer.encode_last(text, add_special_tokens, max)?;
        Ok(cut.of_ids(ids))
    }

    /// What of a prompt `truncate_prompt_tokens` leaves (`renderers/params.py`, `TokenizeParams`).
    fn cut(
        &self,
        truncate: Option<i64>,
        side: Option<Side>,
        max_tokens: Option<u64>,
    ) -> Result<Cut, Unknown> {
        let max = match truncate {
            None => None,
            Some(-1) => {
                let field = "truncate_prompt_tokens";
                let len = self.settings.max_model_len.ok_or(Unknown::Unsupported { field })?;
                // A token of room is left for output, if the request says that it wants any.
                let room = usize::from(max_tokens.is_some_and(|max| max > 0));
                Some(len.saturating_sub(room))
            }
            Some(max) => {
                let why = "`truncate_prompt_tokens` out of range";
                let max = usize::try_from(max).map_err(|_| Unknown::Refused { why })?;
                Some(max)
            }
        };
        if max == Some(0) {
            return Err(EMPTY);
        }
        Ok(Cut { max, side })
    }
}

const EMPTY: Unknown = Unknown::Refused { why: "an empty prompt" };

/// How much of a prompt is kept, and from which side it is cut.
#[derive(Clone, Copy, Debug)]
struct Cut {
    max: Option<usize>,
    /// `None` is the tokenizer's side: left, where vLLM generates.
    side: Option<Side>,
}

impl Cut {
    fn of_ids(self, mut ids: Vec<u32>) -> Vec<u32> {
        let Some(max) = self.max.filter(|&max| max < ids.len()) else { return ids };
        match self.side {
            Some(Side::Right) => ids.truncate(max),
            Some(Side::Left) | None => drop(ids.drain(..ids.len() - max)),
        }
        ids
    }
}

/// What `render_jinja_template` does about `continue_final_message`: the text ends where the last message does.
fn cut_at_tag(mut text: String, tag: &str, last: &str) -> Result<String, Unknown> {
    let gone =
        Unknown::Refused { why: "`continue_final_message` with a template that drops the message" };
    if !text.contains(last.trim()) {
        return Err(gone);
    }
    let at = text.rfind(tag.trim()).ok_or(gone)?;
    let is_spacing_kept = text[at..].starts_with(tag);
    text.truncate(at);
    if !is_spacing_kept {
        text.truncate(text.trim_end().len());
    }
    Ok(text)
}

impl Templates {
    fn of(files: &ModelFiles, settings: &PromptSettings, dir: &Path) -> Result<Self, OpenError> {
        let compiled = |source: &Source| {
            Template::new(&source.text).map_err(|error| OpenError::Template {
                path: source.path.clone(),
                message: error.to_string(),
            })
        };
        let own_renderer = own_renderer(files);
        if let Some(text) = &settings.chat_template {
            let source = Source { text: text.clone(), path: dir.join("(--chat-template)") };
            let without_tools = Some(compiled(&source)?);
            return Ok(Self { without_tools, with_tools: WithTools::Same, own_renderer });
        }
        let named = |name: &str| {
            files.templates.iter().find(|(known, _)| known == name).map(|(_, source)| source)
        };
        let default = named("default");
        let processor = files.processor_template.as_ref();
        let with_tools = match (named("tool_use"), processor) {
            (Some(own), _) => WithTools::Own(Box::new(compiled(own)?)),
            (None, None) => WithTools::Same,
            (None, Some(_)) => match default {
                Some(default) => WithTools::Own(Box::new(compiled(default)?)),
                None => WithTools::None,
            },
        };
        let without_tools = processor.or(default).map(compiled).transpose()?;
        Ok(Self { without_tools, with_tools, own_renderer })
    }

    fn for_chat(&self, has_tools: bool) -> Result<&Template, Unknown> {
        if let Some(model) = &self.own_renderer {
            return Err(Unknown::OwnRenderer { model: model.clone() });
        }
        let template = match &self.with_tools {
            WithTools::Own(template) if has_tools => Some(&**template),
            WithTools::None if has_tools => None,
            _ => self.without_tools.as_ref(),
        };
        template.ok_or(Unknown::NoTemplate)
    }
}

/// The models whose chats vLLM 0.32.0 renders with code (`config/model.py`, `renderers/registry.py`).
fn own_renderer(files: &ModelFiles) -> Option<String> {
    const ARCHITECTURES: [&str; 8] = [
        "DeepseekV32ForCausalLM",
        "DeepseekV41ForCausalLM",
        "DeepseekV4ForCausalLM",
        "DeepseekV4ForConditionalGeneration",
        "InklingForCausalLM",
        "InklingForConditionalGeneration",
        "KimiK3ForConditionalGeneration",
        "MoonshotKimiaForCausalLM",
    ];
    let mut architectures = files.architectures.iter();
    let own = architectures.find(|name| ARCHITECTURES.contains(&name.as_str()));
    own.or(files.model_type.as_ref().filter(|kind| *kind == "gpt_oss")).cloned()
}
