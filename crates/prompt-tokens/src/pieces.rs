//! Where a text may be cut so that its pieces, tokenised alone, give the whole text's ids.
//!
//! The tokenizer library cuts a text at its added tokens before it does anything else
//! (`AddedVocabulary::find_matches` on the tokens with `normalized: false`), normalises and splits each piece alone, and
//! joins the ids. So these cuts are safe for every kind of normalizer, pre-tokenizer and model, but for two things:
//!
//! * a pre-tokenizer may look at whether a piece is the first (`Metaspace` with `prepend_scheme: "first"`): a later
//!   piece is therefore tokenised behind an added token, whose id is then dropped;
//! * a token that is only one where it stands as a word of its own (`single_word`) depends on the pieces around it, and
//!   `split_special_tokens` makes special tokens ordinary text: such tokenizers have no [`Splitter`].
//!
//! `tests/it/pieces.rs` holds cuts against whole texts for all kinds of tokenizers.

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::AddedToken;

use crate::tokenizer::EncodeError;

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece<'a> {
    /// An added token.
    Token(u32),
    /// Text between added tokens, not empty.
    Text { text: &'a str, is_first: bool },
}

/// Cuts texts at added tokens.
#[derive(Debug)]
pub(crate) struct Splitter {
    automaton: AhoCorasick,
    tokens: Vec<(u32, AddedToken)>,
    /// A token that stands for "something came before".
    lead: (u32, String),
}

impl Splitter {
    /// `None` if the tokenizer's texts must not be cut, or have nothing to be cut at.
    pub(crate) fn of(library: &tokenizers::Tokenizer) -> Option<Self> {
        if library.get_encode_special_tokens() {
            return None;
        }
        let added = library.get_added_vocabulary().get_added_tokens_decoder();
        let mut tokens: Vec<(u32, AddedToken)> = added
            .iter()
            .filter(|(_, token)| !token.normalized)
            .map(|(id, token)| (*id, token.clone()))
            .collect();
        tokens.sort_by_key(|(id, _)| *id);
        if tokens.iter().any(|(_, token)| token.single_word) {
            return None;
        }
        // With the lead in front of a piece, no longer token may begin where the lead does.
        let is_lead = |lead: &AddedToken| {
            let longer = |token: &AddedToken| {
                token.content != lead.content && token.content.starts_with(&lead.content)
            };
            !lead.rstrip && !tokens.iter().any(|(_, token)| longer(token))
        };
        let (id, lead) = tokens.iter().find(|(_, token)| is_lead(token))?;
        let lead = (*id, lead.content.clone());
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(tokens.iter().map(|(_, token)| &token.content))
            .ok()?;
        Some(Self { automaton, tokens, lead })
    }

    /// The pieces of a text, in order.
    pub(crate) fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut done = 0;
        for found in self.automaton.find_iter(text) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if token.lstrip {
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end += text[end..].len() - text[end..].trim_start().len();
            }
            if done < start {
                pieces.push(Piece::Text { text: &text[done..start], is_first: done == 0 });
            }
            pieces.push(Piece::Token(*id));
            done = end;
        }
        if done != text.len() {
            pieces.push(Piece::Text { text: &text[done..], is_first: done == 0 });
        }
        pieces
    }

    /// The ids of a piece that is not the first.
    pub(crate) fn encode_after_token(
        &self,
        library: &tokenizers::Tokenizer,
        piece: &str,
    ) -> Result<Vec<u32>, EncodeError> {
        let (id, lead) = &self.lead;
        let encoding = library.encode_fast([lead, piece].concat(), false)?;
        match encoding.get_ids().split_first() {
            Some((first, rest)) if first == id => Ok(rest.to_vec()),
            _ => Err(EncodeError { message: format!("added token {lead:?} was not found again") }),
        }
    }
}
