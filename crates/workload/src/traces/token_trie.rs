//! Real token ids as segments: a trie whose nodes are the segments.
//!
//! A request follows the trie as far as its tokens agree, and what is left becomes a new node. So
//! two requests share segments exactly as far as they share tokens, by comparison and not by hash.

use hashbrown::HashMap;
use rustc_hash::FxBuildHasher;

use crate::{Segment, SegmentId};

const ROOT: u32 = u32::MAX;

#[derive(Default)]
pub(crate) struct TokenTrie {
    nodes: Vec<Vec<u32>>,
    /// (node, tokens of it that were followed, next token) to node.
    children: HashMap<(u32, u32, u32), u32, FxBuildHasher>,
}

impl TokenTrie {
    /// The segments of a list of tokens.
    pub(crate) fn insert(&mut self, tokens: &[u32]) -> Vec<Segment> {
        let mut segments = Vec::new();
        let mut left = tokens;
        let mut at = (ROOT, 0);
        while let Some(&next) = left.first() {
            let nodes = &mut self.nodes;
            let node = *self.children.entry((at.0, at.1, next)).or_insert_with(|| {
                nodes.push(left.to_vec());
                count(nodes.len() - 1)
            });
            let common =
                self.nodes[node as usize].iter().zip(left).take_while(|(a, b)| a == b).count();
            segments.push(Segment { id: segment_id(node as usize), tokens: count(common) });
            at = (node, count(common));
            left = &left[common..];
        }
        segments
    }

    /// All segments with their tokens.
    pub(crate) fn into_literals(self) -> impl Iterator<Item = (SegmentId, Vec<u32>)> {
        self.nodes.into_iter().enumerate().map(|(node, tokens)| (segment_id(node), tokens))
    }
}

fn segment_id(node: usize) -> SegmentId {
    const TOKENS: u64 = 0x746f_6b65;
    SegmentId::derive(TOKENS, node as u64)
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_tokens_are_shared_segments() {
        let mut trie = TokenTrie::default();
        let whole = trie.insert(&[1, 2, 3, 4]);
        let shorter = trie.insert(&[1, 2]);
        let branch = trie.insert(&[1, 2, 9, 9]);
        let longer = trie.insert(&[1, 2, 3, 4, 5]);
        let lengths = |segments: &[Segment]| segments.iter().map(|s| s.tokens).collect::<Vec<_>>();
        assert_eq!((lengths(&whole), lengths(&shorter)), (vec![4], vec![2]));
        assert_eq!((lengths(&branch), lengths(&longer)), (vec![2, 2], vec![4, 1]));
        assert!([&shorter, &branch, &longer].iter().all(|s| s[0].id == whole[0].id));
        assert_ne!(branch[1].id, longer[1].id);
        assert_eq!(trie.insert(&[1, 2, 9, 9]), branch);
    }
}
