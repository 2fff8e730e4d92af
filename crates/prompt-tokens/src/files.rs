//! The files of a model directory that have a say in what token ids a prompt becomes.

use std::fs;
use std::path::{Path, PathBuf};

use minijinja::Value;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Tree};
use tokenizers::AddedToken;

/// A model directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file is not there, or cannot be read.
    #[error("cannot read {}; {remedy}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A file is not the JSON that it should be.
    #[error("{} is not valid; copy it again from the model's repository", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it is not.
        #[source]
        source: serde_json::Error,
    },
    /// `tokenizer.json` holds a tokenizer that cannot be made.
    #[error(
        "{} holds no usable tokenizer ({message}); save it again with a current `transformers` (`save_pretrained`)",
        path.display()
    )]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library says.
        message: String,
    },
    /// A chat template does not compile here.
    #[error(
        "the chat template in {} does not compile: {message}; give the template that the servers run with \
         (`--chat-template`) as a file of its own, or run without a tokenizer",
        path.display()
    )]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong, and in which line.
        message: String,
    },
    /// A value of the servers' `--default-chat-template-kwargs` cannot be given to a template.
    #[error(
        "the default chat template argument `{name}` cannot be used; give it as JSON with numbers of at most 64 bits"
    )]
    DefaultKwargs {
        /// The argument.
        name: String,
        /// What is wrong with its value.
        #[source]
        source: serde_json::Error,
    },
    /// vLLM does not use this directory's `tokenizer.json`.
    #[error("{}: {why}", path.display())]
    NotUsed {
        /// The directory.
        path: PathBuf,
        /// What vLLM does instead, and what helps.
        why: &'static str,
    },
}

/// A template and the file it stands in.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) text: String,
    pub(crate) path: PathBuf,
}

/// A model directory, read.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    pub(crate) tokenizer_path: PathBuf,
    pub(crate) tokenizer_json: Vec<u8>,
    /// `tokenizer_config.json`, the special tokens of `special_tokens_map.json` worked in.
    pub(crate) config: Map<String, Tree>,
    pub(crate) model_type: Option<String>,
    pub(crate) architectures: Vec<String>,
    /// The tokenizer's chat template by name; `default` if there is but one.
    pub(crate) templates: Vec<(String, Source)>,
    /// The processor's template (`chat_template.json`), which vLLM prefers where a request has no tools.
    pub(crate) processor_template: Option<Source>,
}

#[derive(Default, Deserialize)]
struct ModelConfig {
    model_type: Option<String>,
    architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct ProcessorTemplate {
    chat_template: Option<String>,
}

impl ModelFiles {
    pub(crate) fn read(dir: &Path) -> Result<Self, OpenError> {
        refuse_mistral_format(dir)?;
        let tokenizer_path = dir.join("tokenizer.json");
        let tokenizer_json = fs::read(&tokenizer_path).map_err(|source| OpenError::Read {
            path: tokenizer_path.clone(),
            remedy: "name the directory with the model's tokenizer.json, tokenizer_config.json and config.json \
                     (a model that has only tokenizer.model or vocab.json: load it once with `transformers` and \
                     `save_pretrained`)",
            source,
        })?;
        let config_path = dir.join("tokenizer_config.json");
        let mut config: Map<String, Tree> = json(&config_path)?.unwrap_or_default();
        if !config.contains_key("added_tokens_decoder") {
            let tokens: Option<Map<String, Tree>> = json(&dir.join("special_tokens_map.json"))?;
            config.extend(tokens.into_iter().flatten());
        }
        let model: ModelConfig = json(&dir.join("config.json"))?.unwrap_or_default();
        let templates = templates(dir, &config, &config_path)?;
        Ok(Self {
            tokenizer_path,
            tokenizer_json,
            config,
            model_type: model.model_type,
            architectures: model.architectures.unwrap_or_default(),
            templates,
            processor_template: processor_template(dir)?,
        })
    }

    /// The tokenizer class that the directory names, without `Fast`.
    pub(crate) fn tokenizer_class(&self) -> Option<&str> {
        let name = self.config.get("tokenizer_class")?.as_str()?;
        Some(name.strip_suffix("Fast").unwrap_or(name))
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.config.get(name)?.as_bool()
    }

    /// The tokens with a name (`bos_token`, …, also a model's own), which templates see as variables.
    pub(crate) fn named_tokens(&self) -> Vec<(String, AddedToken)> {
        let named = self.config.iter().filter(|(name, _)| name.ends_with("_token"));
        let mut tokens: Vec<(String, AddedToken)> =
            named.filter_map(|(name, token)| Some((name.clone(), added_token(token)?))).collect();
        if let Some(Tree::Object(extra)) = self.config.get("extra_special_tokens") {
            let extra = extra.iter();
            tokens.extend(
                extra.filter_map(|(name, token)| Some((name.clone(), added_token(token)?))),
            );
        }
        tokens
    }

    /// The special tokens without a name of their own.
    pub(crate) fn extra_tokens(&self) -> Vec<AddedToken> {
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        let list = lists.iter().find_map(|name| self.config.get(*name)).and_then(Tree::as_array);
        list.into_iter().flatten().filter_map(added_token).collect()
    }

    /// `added_tokens_decoder` in the order of its ids.
    pub(crate) fn added_tokens(&self) -> Vec<AddedToken> {
        let decoder = self.config.get("added_tokens_decoder").and_then(Tree::as_object);
        let mut tokens: Vec<(u32, AddedToken)> = decoder
            .into_iter()
            .flatten()
            .filter_map(|(id, token)| Some((id.parse().ok()?, added_token(token)?)))
            .collect();
        tokens.sort_by_key(|(id, _)| *id);
        tokens.into_iter().map(|(_, token)| token).collect()
    }
}

/// A token as `tokenizer_config.json` writes it: its text, or a map with its flags.
fn added_token(token: &Tree) -> Option<AddedToken> {
    let (content, flags) = match token {
        Tree::String(content) => (content, None),
        Tree::Object(map) => (as_string(map.get("content")?)?, Some(map)),
        _ => return None,
    };
    let flag = |name| flags.and_then(|map| map.get(name)).and_then(Tree::as_bool);
    let special = flag("special").unwrap_or(true);
    Some(
        AddedToken::from(content.as_str(), special)
            .single_word(flag("single_word").unwrap_or(false))
            .lstrip(flag("lstrip").unwrap_or(false))
            .rstrip(flag("rstrip").unwrap_or(false))
            .normalized(flag("normalized").unwrap_or(!special)),
    )
}

fn as_string(tree: &Tree) -> Option<&String> {
    if let Tree::String(text) = tree { Some(text) } else { None }
}

/// vLLM's `tokenizer_mode` "auto" takes a repository in Mistral's own format to mistral-common.
fn refuse_mistral_format(dir: &Path) -> Result<(), OpenError> {
    let entries = fs::read_dir(dir).map_err(|source| OpenError::Read {
        path: dir.to_owned(),
        remedy: "name the directory that holds the model's tokenizer.json",
        source,
    })?;
    let names: Vec<String> =
        entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let any = |what: &dyn Fn(&str) -> bool| names.iter().any(|name| what(name));
    let weights = any(&|name| name.starts_with("consolidated") && name.ends_with(".safetensors"));
    let tokenizer = any(&|name| name == "tekken.json" || name.starts_with("tokenizer.model.v"));
    if weights && tokenizer {
        return Err(OpenError::NotUsed {
            path: dir.to_owned(),
            why: "the files are in Mistral's own format (consolidated*.safetensors with tekken.json or \
                  tokenizer.model.v*), for which vLLM takes mistral-common and not tokenizer.json; if the servers run \
                  with `--tokenizer-mode hf`, give a directory with the Hugging Face files alone",
        });
    }
    Ok(())
}

/// The file's content, or `None` if there is no such file.
fn text(path: &Path) -> Result<Option<String>, OpenError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(OpenError::Read {
            path: path.to_owned(),
            remedy: "make it readable UTF-8 text",
            source,
        }),
    }
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, OpenError> {
    let Some(text) = text(path)? else { return Ok(None) };
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|source| OpenError::Json { path: path.to_owned(), source })
}

/// The tokenizer's templates: files win over `tokenizer_config.json`, as in `transformers`.
fn templates(
    dir: &Path,
    config: &Map<String, Tree>,
    config_path: &Path,
) -> Result<Vec<(String, Source)>, OpenError> {
    let mut templates = Vec::new();
    let path = dir.join("chat_template.jinja");
    if let Some(text) = text(&path)? {
        templates.push(("default".to_owned(), Source { text, path }));
    }
    if let Ok(entries) = fs::read_dir(dir.join("additional_chat_templates")) {
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let is_template = path.extension().is_some_and(|extension| extension == "jinja");
            let name = path.file_stem().and_then(|stem| stem.to_str()).map(ToOwned::to_owned);
            if let (true, Some(name), Some(text)) = (is_template, name, text(&path)?) {
                templates.push((name, Source { text, path }));
            }
        }
    }
    if !templates.is_empty() {
        return Ok(templates);
    }
    let source = |text: &String| Source { text: text.clone(), path: config_path.to_owned() };
    match config.get("chat_template") {
        Some(Tree::String(text)) => templates.push(("default".to_owned(), source(text))),
        Some(Tree::Array(list)) => templates.extend(list.iter().filter_map(|entry| {
            let name = as_string(entry.get("name")?)?;
            Some((name.clone(), source(as_string(entry.get("template")?)?)))
        })),
        _ => {}
    }
    Ok(templates)
}

fn processor_template(dir: &Path) -> Result<Option<Source>, OpenError> {
    let is_processor = ["preprocessor_config.json", "processor_config.json"];
    if !is_processor.iter().any(|name| dir.join(name).exists()) {
        return Ok(None);
    }
    let path = dir.join("chat_template.json");
    let file: Option<ProcessorTemplate> = json(&path)?;
    Ok(file.and_then(|file| file.chat_template).map(|text| Source { text, path }))
}

/// The named tokens as template variables.
pub(crate) fn token_variables(tokens: &[(String, AddedToken)]) -> Vec<(String, Value)> {
    tokens.iter().map(|(name, token)| (name.clone(), Value::from(token.content.as_str()))).collect()
}
