//! Text to token ids, as `transformers` makes a tokenizer of a model directory.
//!
//! # What is kept from one text to the next
//! A tokenizer first cuts a text at its added tokens (`<|im_start|>` and their kin, which chat templates put around
//! every message) and then works on each piece alone (`pieces.rs`). So the ids of a piece are kept by the piece's hash,
//! and a conversation that grows pays for its new pieces. Where a tokenizer does not work like that, the whole text is
//! tokenised each time.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value as Tree, json};
use tokenizers::{AddedToken, Encoding, Token};
use xxhash_rust::xxh3::xxh3_128_with_seed;

use crate::cache::Lists;
use crate::files::{ModelFiles, OpenError};
use crate::pieces::{Piece, Splitter};

/// The words of `Qwen2Tokenizer` (`transformers/models/qwen2/tokenization_qwen2.py`).
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// A text could not be turned into token ids.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the tokenizer failed: {message}")]
pub struct EncodeError {
    /// What the tokenizer library says.
    pub message: String,
}

impl From<tokenizers::Error> for EncodeError {
    fn from(error: tokenizers::Error) -> Self {
        Self { message: error.to_string() }
    }
}

/// A model's tokenizer, with the ids of recent texts. Shared between threads by reference.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// How texts are cut at added tokens; `None` if this tokenizer's texts must be taken whole.
    splitter: Option<Splitter>,
    /// The ids that `add_special_tokens` puts around a text; `None` if it does something else.
    around: Option<Around>,
    /// What a reader of the log should know.
    caveat: Option<String>,
    pieces: Lists<u32>,
}

#[derive(Debug, PartialEq, Eq)]
struct Around {
    before: Vec<u32>,
    after: Vec<u32>,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory: `tokenizer.json`, with what `tokenizer_config.json`,
    /// `special_tokens_map.json` and `config.json` change of it.
    ///
    /// At most `cache_bytes` go to the ids of recent texts.
    ///
    /// # Errors
    /// [`OpenError`], which names the file and the remedy.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, OpenError> {
        Self::from_files(&ModelFiles::read(dir)?, cache_bytes)
    }

    pub(crate) fn from_files(files: &ModelFiles, cache_bytes: u64) -> Result<Self, OpenError> {
        let failed =
            |message: String| OpenError::Tokenizer { path: files.tokenizer_path.clone(), message };
        let (library, caveat) = as_its_class_makes_it(files).map_err(&failed)?;
        let mut library = library;
        // Every request says itself how it is truncated; vLLM pads nothing.
        library.with_truncation(None).map_err(|error| failed(error.to_string()))?;
        library.with_padding(None);
        library.set_encode_special_tokens(files.flag("split_special_tokens").unwrap_or(false));
        add_tokens(&mut library, files).map_err(|error| failed(error.to_string()))?;
        let splitter = Splitter::of(&library);
        let around = around(&library);
        Ok(Self { inner: library, splitter, around, caveat, pieces: Lists::new(cache_bytes) })
    }

    /// What is not certain about this tokenizer; for the log.
    pub fn caveat(&self) -> Option<&str> {
        self.caveat.as_deref()
    }

    /// Whether the ids of a text's pieces are kept, so that a text that grows costs its new pieces only.
    pub fn is_piecewise(&self) -> bool {
        self.splitter.is_some()
    }

    /// The token ids of a text. `add_special_tokens` adds what the model wants around a text (`<s>`, say).
    ///
    /// # Errors
    /// [`EncodeError`] if the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, EncodeError> {
        self.encode_last(text, add_special_tokens, None)
    }

    /// [`Self::encode`], but of a text of more than `max` tokens the last `max` are kept, what is added among them:
    /// the library's truncation from the left.
    pub(crate) fn encode_last(
        &self,
        text: &str,
        add_special_tokens: bool,
        max: Option<usize>,
    ) -> Result<Vec<u32>, EncodeError> {
        let nothing = Around { before: Vec::new(), after: Vec::new() };
        let around = if add_special_tokens { self.around.as_ref() } else { Some(&nothing) };
        let Some(Around { before, after }) = around else {
            let ids = self.encode_whole(text, true)?;
            return match max {
                Some(max) if max < ids.len() => Err(EncodeError {
                    message: "truncation with this post-processor is not supported".to_owned(),
                }),
                _ => Ok(ids),
            };
        };
        let body = self.body(text)?;
        let room = match max.filter(|&max| max < before.len() + body.len() + after.len()) {
            None => body.len(),
            // The library counts below zero here.
            Some(max) => max.checked_sub(before.len() + after.len()).ok_or_else(|| {
                let message = "a text cut to less than what is added to it".to_owned();
                EncodeError { message }
            })?,
        };
        let kept = &body[body.len() - room.min(body.len())..];
        Ok([before, kept, after].concat())
    }

    /// The library's own answer, nothing kept: what [`Self::encode`] must equal.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_whole(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, EncodeError> {
        Ok(self.inner.encode_fast(text, add_special_tokens)?.get_ids().to_vec())
    }

    /// The text's own ids.
    fn body(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        let Some(splitter) = self.splitter.as_ref().filter(|_| !text.is_empty()) else {
            return self.encode_whole(text, false);
        };
        let mut ids = Vec::with_capacity(text.len() / 3);
        for piece in splitter.pieces(text) {
            match piece {
                Piece::Token(id) => ids.push(id),
                Piece::Text { text, is_first } => {
                    ids.extend_from_slice(&self.piece(splitter, text, is_first)?);
                }
            }
        }
        Ok(ids)
    }

    fn piece(
        &self,
        splitter: &Splitter,
        text: &str,
        is_first: bool,
    ) -> Result<Arc<[u32]>, EncodeError> {
        let key = xxh3_128_with_seed(text.as_bytes(), u64::from(is_first));
        if let Some(ids) = self.pieces.get(key) {
            return Ok(ids);
        }
        let ids: Arc<[u32]> = if is_first {
            self.inner.encode_fast(text, false)?.get_ids().into()
        } else {
            splitter.encode_after_token(&self.inner, text)?.into()
        };
        self.pieces.insert(key, Arc::clone(&ids));
        Ok(ids)
    }
}

/// The tokenizer of `tokenizer.json`, changed as the directory's tokenizer class changes it.
///
/// `transformers` 5 takes most tokenizers as `tokenizer.json` has them. Some classes keep only its vocabulary and build
/// the rest anew; the two most used of them are followed here.
fn as_its_class_makes_it(
    files: &ModelFiles,
) -> Result<(tokenizers::Tokenizer, Option<String>), String> {
    let as_in_file = || {
        tokenizers::Tokenizer::from_bytes(&files.tokenizer_json).map_err(|error| error.to_string())
    };
    let model_type = files.model_type.as_deref();
    let class = files.tokenizer_class();
    let rebuild: fn(&mut Tree, &ModelFiles) = match (class, model_type) {
        (Some("LlamaTokenizer"), Some("llama") | None) => llama,
        (Some("Qwen2Tokenizer"), _) | (_, Some("qwen2")) => qwen2,
        (None | Some("PreTrainedTokenizer" | "TokenizersBackend"), _) => {
            return Ok((as_in_file()?, None));
        }
        (Some(class), _) => {
            let caveat = format!(
                "the tokenizer is taken as tokenizer.json has it; whether `transformers` changes it for \
                 tokenizer_class {class} is not known"
            );
            return Ok((as_in_file()?, Some(caveat)));
        }
    };
    let mut tree: Tree =
        serde_json::from_slice(&files.tokenizer_json).map_err(|error| error.to_string())?;
    if tree["model"]["type"] != "BPE" {
        return Ok((as_in_file()?, None));
    }
    rebuild(&mut tree, files);
    let library = serde_json::from_value(tree).map_err(|error| error.to_string())?;
    Ok((library, None))
}

/// `transformers/models/llama/tokenization_llama.py`
fn llama(tree: &mut Tree, files: &ModelFiles) {
    let model = &mut tree["model"];
    (model["dropout"], model["unk_token"]) = (Tree::Null, Tree::Null);
    (model["fuse_unk"], model["byte_fallback"]) = (json!(true), json!(true));
    let scheme = match (files.flag("add_prefix_space"), files.flag("legacy")) {
        (Some(false), _) => "never",
        (_, Some(true)) => "always",
        (_, Some(false) | None) => "first",
    };
    tree["normalizer"] = Tree::Null;
    tree["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false});
}

/// `transformers/models/qwen2/tokenization_qwen2.py`
fn qwen2(tree: &mut Tree, files: &ModelFiles) {
    let model = &mut tree["model"];
    (model["dropout"], model["unk_token"]) = (Tree::Null, Tree::Null);
    (model["fuse_unk"], model["byte_fallback"]) = (json!(false), json!(false));
    let prefix_space = files.flag("add_prefix_space").unwrap_or(false);
    tree["normalizer"] = json!({"type": "NFC"});
    tree["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": QWEN2_WORDS}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": prefix_space, "trim_offsets": true, "use_regex": false},
    ]});
}

/// Adds the tokens that the other files have and `tokenizer.json` has not, or has with other flags.
fn add_tokens(
    library: &mut tokenizers::Tokenizer,
    files: &ModelFiles,
) -> Result<(), tokenizers::Error> {
    let named = files.named_tokens();
    let mut listed = files.added_tokens();
    for token in &mut listed {
        token.special |= named.iter().any(|(_, named)| named.content == token.content);
    }
    library.add_tokens(listed)?;
    let others = named.into_iter().map(|(_, token)| token).chain(files.extra_tokens());
    let known = library.get_added_vocabulary().get_vocab().clone();
    let missing: Vec<AddedToken> =
        others.filter(|token| !known.contains_key(&token.content)).collect();
    library.add_tokens(missing)?;
    Ok(())
}

/// What the post-processor puts around a text, if it leaves the text's own ids in one row.
fn around(library: &tokenizers::Tokenizer) -> Option<Around> {
    // Post-processors work on ids whatever they stand for; this one stands for no token.
    const TEXT: u32 = u32::MAX;
    let probe = Encoding::from_tokens(vec![Token::new(TEXT, String::new(), (0, 0))], 0);
    let processed = library.post_process(probe, None, true).ok()?;
    let ids = processed.get_ids();
    let at = ids.iter().position(|&id| id == TEXT)?;
    let (before, after) = (ids[..at].to_vec(), ids[at + 1..].to_vec());
    (!after.contains(&TEXT)).then_some(Around { before, after })
}
