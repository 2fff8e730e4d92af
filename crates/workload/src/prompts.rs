//! Requests given one by one as token ids, for a driver that knows exactly what it wants to ask.

use kvroute_types::{Timestamp, mix64};

use crate::traces::token_trie::TokenTrie;
use crate::workload::{Draft, WorkloadBuilder};
use crate::{Arrival, Segment, SegmentId, Workload};

/// A request with the token ids of its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenPrompt {
    /// When it is sent.
    pub arrival: Timestamp,
    /// Its prompt; at least one token.
    pub tokens: Vec<u32>,
    /// Tokens to be made; at least one. Their content is nobody else's.
    pub output_tokens: u32,
}

impl Workload {
    /// These requests, each a session of its own; they share content exactly as far as their token ids agree.
    ///
    /// # Panics
    /// If a prompt is empty or longer than `u32::MAX` tokens, or asks for no output.
    pub fn of_prompts(
        name: impl Into<String>,
        prompts: impl IntoIterator<Item = TokenPrompt>,
    ) -> Self {
        const OUTPUT: u64 = 0x6f75_7470;
        let mut builder = WorkloadBuilder::default();
        let mut trie = TokenTrie::default();
        for (session, TokenPrompt { arrival, tokens, output_tokens }) in (0_u32..).zip(prompts) {
            assert!(
                !tokens.is_empty() && output_tokens > 0,
                "a request has a prompt and an output"
            );
            let prompt_tokens = u32::try_from(tokens.len()).expect("prompts are below 2^32 tokens");
            let output =
                Segment { id: SegmentId::derive(OUTPUT, session.into()), tokens: output_tokens };
            let content = builder.content(trie.insert(&tokens).into_iter().chain([output]));
            let key = mix64(session.into());
            builder.push(Draft {
                session,
                arrival: Arrival::At(arrival),
                prompt_tokens,
                output_tokens,
                content,
                session_key: key,
                prefix_key: key,
            });
        }
        builder.literals = trie.into_literals().collect();
        builder.finish(name)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use kvroute_types::BlockSize;

    use super::*;
    use crate::{Plan, TokenStream};

    #[test]
    fn prompts_share_what_their_ids_share() {
        let prompt = |tokens: &[u32]| TokenPrompt {
            arrival: Timestamp::ZERO,
            tokens: tokens.to_vec(),
            output_tokens: 2,
        };
        let workload = Workload::of_prompts(
            "p",
            [&[1, 2, 3, 4][..], &[1, 2, 3, 4, 9, 9], &[1, 2, 3, 4]].map(prompt),
        );
        let stream = TokenStream::new(NonZeroU32::new(50).unwrap(), 0);
        let sent: Vec<Vec<u32>> = workload
            .requests()
            .iter()
            .map(|r| workload.tokens(r, &stream).take(r.prompt_tokens.0 as usize).collect())
            .collect();
        assert_eq!(sent, [vec![1, 2, 3, 4], vec![1, 2, 3, 4, 9, 9], vec![1, 2, 3, 4]]);
        assert_eq!(workload.sessions(), 3);
        let plan = Plan::new(&workload, BlockSize::new(2).unwrap()).unwrap();
        let blocks =
            |index: usize| plan.chain(workload.requests()[index].id).keys().collect::<Vec<_>>();
        assert_eq!(blocks(0)[..2], blocks(1)[..2]);
        assert_eq!(blocks(0)[..2], blocks(2)[..2]);
        assert_ne!(blocks(0)[2], blocks(2)[2], "the output is nobody else's");
    }
}
