//! Prompts as engines see them: a request body to token ids, token ids to block hashes, exactly as vLLM 0.32.0 makes
//! them, so that a router can look up in its directory what an engine has cached.
//!
//! * [`PromptTokens`] holds a model's tokenizer and chat templates and turns the body of a chat or completion request
//!   into [`Tokens`], or says why their ids are not known ([`Unknown`]): it never guesses.
//! * [`BlockHashes`] turns token ids into the hashes of their full blocks.
//!
//! Both keep what they made of recent prompts, within a bound in bytes, so that the next turn of a conversation costs
//! its new text and not the whole of it. What they answer does not depend on what they keep.
//!
//! ```no_run
//! use std::num::NonZeroUsize;
//! use std::path::Path;
//!
//! use kvroute_prompt_tokens::{
//!     BlockHashes, Endpoint, HashSettings, PromptSettings, PromptTokens,
//! };
//! use kvroute_vllm_wire::{ExtraKeys, HashAlgo};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = PromptTokens::open(Path::new("models/some-model"), PromptSettings::default())?;
//! let block_size = NonZeroUsize::new(16).ok_or("no block size")?;
//! let settings = HashSettings { algo: HashAlgo::Sha256, block_size, pythonhashseed: None };
//! let hashes = BlockHashes::new(settings, 64 << 20);
//!
//! let body = br#"{"messages": [{"role": "user", "content": "Hello"}]}"#;
//! let tokens = model.from_body(Endpoint::Chat, body, None)?;
//! let keys = ExtraKeys { cache_salt: tokens.cache_salt, ..ExtraKeys::default() };
//! let blocks: Vec<u64> =
//!     hashes.of(&tokens.prompts[0], &keys).iter().map(|digest| digest.external_u64()).collect();
//! # Ok(())
//! # }
//! ```
//!
//! The crate is *not* a server and opens no socket: a model directory is read once, when it is opened, and nothing is
//! fetched. It has no clock; a template that asks for the time is told what the caller says. It does not look at images
//! or other media, whose tokens come from a model's own processor, and it does not check that a request is good: what
//! vLLM refuses may have tokens here.

mod blocks;
mod cache;
mod chat;
mod clock;
mod content_format;
mod files;
mod json;
mod pieces;
mod prompt;
mod request;
mod template;
mod tokenizer;
mod unknown;

pub use blocks::{BlockHashes, HashSettings};
pub use clock::Now;
pub use content_format::ContentFormat;
pub use files::OpenError;
pub use prompt::{Endpoint, PromptSettings, PromptTokens, Tokens};
pub use tokenizer::{EncodeError, Tokenizer};
pub use unknown::Unknown;
