//! Names a prompt's blocks as the engines name them, where its token ids can be known: what instances tell of their caches
//! is in these names.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kvroute_prompt_tokens::{
    BlockHashes, Endpoint, Now, OpenError, PromptSettings, PromptTokens, Unknown,
};
use kvroute_types::{BlockHash, TokenCount};
use kvroute_vllm_wire::{ExtraKeys, LoraKey};
use tokio::task::{JoinError, spawn_blocking};

use crate::config::GatewayConfig;
use crate::prompt::{Names, RoutingFacts};

/// Bodies up to this size are tokenised where they are served: at some 2 MB of new text a second and core it holds up
/// others for at most some milliseconds, and less than a hop to another thread costs if most of it is known.
const INLINE_BYTES_MAX: usize = 8 << 10;

/// Why a prompt is named by its text.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unnamed {
    /// It is text, and nobody here can tokenise it.
    #[error("its token ids are not known without prompt.tokenizer")]
    NoTokenizer,
    /// The tokenizer, or the template, says why not.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The tokenizer panicked on it.
    #[error("the tokenizer panicked: {0}")]
    Panicked(#[from] JoinError),
}

impl Unnamed {
    /// A short name, for a metric's label.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::NoTokenizer => "no_tokenizer",
            Self::Unknown(unknown) => unknown.kind(),
            Self::Panicked(_) => "panicked",
        }
    }
}

/// The model directory, or a file beside it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// In the model directory.
    #[error("prompt.tokenizer cannot be used")]
    Model(#[from] OpenError),
    /// The chat template.
    #[error("prompt.chat_template {} cannot be read", path.display())]
    Template {
        /// Its file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Knows how the engines make blocks of prompts.
pub(crate) struct Namer {
    hashes: BlockHashes,
    tokens: Option<PromptTokens>,
    /// Paths by name.
    adapters: BTreeMap<String, String>,
    utc_offset_s: i32,
}

/// A prompt by the engines' names.
struct Named {
    blocks: Vec<BlockHash>,
    tokens: TokenCount,
    has_extra_keys: bool,
    is_only: bool,
}

impl Namer {
    /// `None` if nobody asks for such names.
    ///
    /// # Errors
    /// If the configured tokenizer cannot be used.
    pub(crate) fn new(config: &GatewayConfig) -> Result<Option<Arc<Self>>, TokenizerError> {
        let (events, prompt) = (&config.kv_events, &config.prompt);
        if !events.enabled {
            return Ok(None);
        }
        let template = |path: &PathBuf| {
            fs::read_to_string(path)
                .map_err(|source| TokenizerError::Template { path: path.clone(), source })
        };
        let settings = PromptSettings {
            chat_template: prompt.chat_template.as_ref().map(template).transpose()?,
            content_format: prompt.content_format,
            default_chat_template_kwargs: prompt.default_chat_template_kwargs.clone(),
            exclude_tools_when_tool_choice_none: prompt.exclude_tools_when_tool_choice_none,
            max_model_len: None,
            cache_bytes: prompt.token_cache_bytes,
        };
        let open = |dir: &PathBuf| PromptTokens::open(dir, settings);
        let tokens = prompt.tokenizer.as_ref().map(open).transpose()?;
        if let Some(caveat) = tokens.as_ref().and_then(|tokens| tokens.tokenizer().caveat()) {
            tracing::warn!(caveat, "the tokenizer");
        }
        if tokens.is_none() {
            tracing::warn!(
                "without prompt.tokenizer only prompts of token ids are looked up in what the instances tell; \
                 text is judged by what was routed where"
            );
        }
        Ok(Some(Arc::new(Self {
            hashes: BlockHashes::new(events.hash_settings(), events.hash_cache_bytes),
            tokens,
            adapters: events.adapters.clone(),
            utc_offset_s: prompt.utc_offset_s,
        })))
    }

    /// Names the blocks of a request, if its token ids can be known. What `facts` says of its text stays otherwise.
    ///
    /// # Errors
    /// Why they cannot.
    pub(crate) async fn name(
        self: &Arc<Self>,
        endpoint: Endpoint,
        body: &Bytes,
        facts: &mut RoutingFacts,
    ) -> Result<(), Unnamed> {
        let ids = facts.token_ids.take();
        if ids.is_none() && self.tokens.is_none() {
            return Err(Unnamed::NoTokenizer);
        }
        let keys = self.keys(facts.cache_salt.take(), facts.model.as_deref());
        let named = if body.len() <= INLINE_BYTES_MAX {
            self.named(endpoint, body, ids, &keys)
        } else {
            let (namer, body) = (Arc::clone(self), body.clone());
            let naming = spawn_blocking(move || namer.named(endpoint, &body, ids, &keys));
            naming.await?
        };
        let Named { blocks, tokens, has_extra_keys, is_only } = named?;
        facts.prompt_blocks = blocks;
        facts.prompt_tokens = tokens;
        facts.names = Names::Engine { has_extra_keys };
        facts.is_auditable &= is_only;
        Ok(())
    }

    fn named(
        &self,
        endpoint: Endpoint,
        body: &[u8],
        ids: Option<Vec<u32>>,
        keys: &ExtraKeys,
    ) -> Result<Named, Unnamed> {
        let (ids, is_only) = match (ids, &self.tokens) {
            (Some(ids), _) => (ids, true),
            (None, Some(tokens)) => {
                let mut prompts = tokens.from_body(endpoint, body, self.now())?.prompts;
                let is_only = prompts.len() == 1;
                (if prompts.is_empty() { Vec::new() } else { prompts.swap_remove(0) }, is_only)
            }
            (None, None) => return Err(Unnamed::NoTokenizer),
        };
        let digests = self.hashes.of(&ids, keys);
        let blocks = digests.iter().map(|digest| BlockHash(digest.external_u64())).collect();
        let tokens = TokenCount(u32::try_from(ids.len()).unwrap_or(u32::MAX));
        let has_extra_keys = *keys != ExtraKeys::default();
        Ok(Named { blocks, tokens, has_extra_keys, is_only })
    }

    fn keys(&self, cache_salt: Option<String>, model: Option<&str>) -> ExtraKeys {
        let adapter = model.and_then(|model| self.adapters.get_key_value(model));
        let lora = adapter.map(|(name, path)| LoraKey { name: name.clone(), path: path.clone() });
        // An empty salt is none, as in the engine.
        let cache_salt = cache_salt.filter(|salt| !salt.is_empty());
        ExtraKeys { lora, cache_salt, ..ExtraKeys::default() }
    }

    fn now(&self) -> Option<Now> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(Now { unix_s: since.as_secs().try_into().ok()?, utc_offset_s: self.utc_offset_s })
    }
}
