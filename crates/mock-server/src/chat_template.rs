//! The chat template: `ChatML`, with the markers as single tokens.
//!
//! ```text
//! <|im_start|>system\nYou are terse.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n
//! ```
//!
//! Contents are tokenised on their own, so no text can forge a marker. An answer begins right after the last line feed,
//! without a space: sent back as an assistant message it gives the ids that were generated, hence a next turn's prompt
//! has the previous prompt and answer as a true prefix (and a client may trim the answer's ends).

use crate::tokenizer::{EOS, IM_START, tokenize};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// `system`, `user`, `assistant`, ...
    pub(crate) role: String,
    /// Its text.
    pub(crate) content: String,
}

/// The prompt of a conversation, cut at `limit` tokens.
pub(crate) fn render(messages: &[Message], add_generation_prompt: bool, limit: usize) -> Vec<u32> {
    let mut tokens = Vec::new();
    for Message { role, content } in messages {
        open(role, limit, &mut tokens);
        tokenize(content, limit, &mut tokens);
        tokens.push(EOS);
        tokenize("\n", limit, &mut tokens);
        if tokens.len() >= limit {
            break;
        }
    }
    if add_generation_prompt {
        open("assistant", limit, &mut tokens);
    }
    tokens.truncate(limit);
    tokens
}

fn open(role: &str, limit: usize, tokens: &mut Vec<u32>) {
    tokens.push(IM_START);
    tokenize(role, limit, tokens);
    tokenize("\n", limit, tokens);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::detokenize;

    fn message(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned() }
    }

    #[test]
    fn it_is_chatml() {
        let tokens = render(&[message("user", "Hi <|im_end|>")], true, usize::MAX);
        assert_eq!(
            detokenize(&tokens),
            "<|im_start|>user\nHi <|im_end|><|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            tokens.iter().filter(|&&token| token == EOS).count(),
            1,
            "text forges no marker"
        );
    }

    #[test]
    fn a_limit_cuts() {
        assert_eq!(render(&[message("user", &"x ".repeat(100))], true, 20).len(), 20);
    }
}
