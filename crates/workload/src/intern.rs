//! From segments to blocks: every distinct prefix of whole blocks gets one dense key.
//!
//! The contents of a workload form a tree. A node is a segment in its context: the node before it
//! and the length at which that one ended (a cut-off segment and the full one lead to different
//! children). With block size `B`, block `i` ends after token `(i + 1) B` and belongs to the node
//! in which that token lies, so a block that straddles segments belongs to the last of them. A node
//! that starts after `s` tokens and is used up to `l` tokens owns `floor((s + l) / B) - floor(s /
//! B)` blocks, whose keys follow one another: two requests that use different lengths of it share
//! the keys they have in common. Numbering is in preorder, so a chain that nothing branches off is
//! one run.
//!
//! No block is ever hashed: the cost is one look-up per stored segment.

use std::sync::Arc;

use hashbrown::HashMap;
use kvroute_types::{BlockChain, BlockKey, BlockSize, KeyRun, RequestId};
use rustc_hash::FxBuildHasher;
use thiserror::Error;

use crate::workload::Content;
use crate::{Segment, SegmentId, Workload};

/// A workload cut into blocks.
///
/// Two requests have the same key for block `i` exactly if their first `(i + 1) * block_size`
/// tokens are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    block_size: BlockSize,
    chains: Vec<BlockChain>,
    distinct_keys: u32,
}

/// Why a workload cannot be cut into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// Block keys are 32-bit numbers.
    #[error(
        "the workload has {blocks} distinct blocks of {block_size} tokens, more than 32-bit keys can \
         name; take fewer requests or larger blocks"
    )]
    TooManyBlocks {
        /// Distinct blocks in the workload.
        blocks: u64,
        /// The block size asked for.
        block_size: BlockSize,
    },
}

impl Plan {
    /// Cuts `workload` into blocks of `block_size` tokens.
    ///
    /// # Errors
    /// If there are 2^32 or more distinct blocks.
    pub fn new(workload: &Workload, block_size: BlockSize) -> Result<Self, PlanError> {
        let mut tree = Tree::new(workload.segments.len());
        for request in &workload.requests {
            tree.insert(&workload.segments, request.content);
        }
        let (first_keys, distinct_keys) = tree.number(block_size)?;
        let chains = tree.chains(workload, block_size, &first_keys);
        Ok(Self { block_size, chains, distinct_keys })
    }

    /// Tokens per block.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The blocks of one request, prompt and output: at least the `floor((prompt + output) / B)` it
    /// fills. Turns of one session that extend one another share the chain of the longest, so use
    /// only the blocks that the request has tokens for.
    ///
    /// # Panics
    /// If the workload has no such request.
    pub fn chain(&self, request: RequestId) -> &BlockChain {
        &self.chains[request.index()]
    }

    /// All chains, indexed by [`RequestId`].
    pub fn chains(&self) -> &[BlockChain] {
        &self.chains
    }

    /// Number of keys in use: keys are `0..distinct_keys`.
    pub fn distinct_keys(&self) -> u32 {
        self.distinct_keys
    }
}

const ROOT: u32 = 0;
const UNSEEN: u32 = u32::MAX;

struct Node {
    parent: u32,
    /// Tokens before this node.
    start: u32,
    /// Tokens of the segment that its longest user has.
    reach: u32,
}

impl Node {
    /// Blocks that end within the node's first `tokens` tokens.
    fn blocks(&self, tokens: u32, block_size: BlockSize) -> u32 {
        (self.start + tokens) / block_size.get() - self.start / block_size.get()
    }
}

struct Tree {
    nodes: Vec<Node>,
    /// (node, length at which it ended, next segment) to next node.
    edges: HashMap<(u32, u32, SegmentId), u32, FxBuildHasher>,
    /// The node of each stored segment: contents that share storage are walked once.
    node_of: Vec<u32>,
    /// By first stored segment: the length of the longest content there.
    longest: HashMap<usize, usize, FxBuildHasher>,
}

impl Tree {
    fn new(segments: usize) -> Self {
        Self {
            nodes: vec![Node { parent: ROOT, start: 0, reach: 0 }],
            edges: HashMap::with_capacity_and_hasher(segments, FxBuildHasher),
            node_of: vec![UNSEEN; segments],
            longest: HashMap::default(),
        }
    }

    fn insert(&mut self, segments: &[Segment], content: Content) {
        let longest = self.longest.entry(content.start).or_default();
        let known = std::mem::replace(longest, content.len.max(*longest));
        for index in content.range().skip(known) {
            let (parent, length) = if index == content.start {
                (ROOT, 0)
            } else {
                (self.node_of[index - 1], segments[index - 1].tokens)
            };
            self.node_of[index] = self.visit(parent, length, segments[index]);
        }
    }

    fn visit(&mut self, parent: u32, length: u32, segment: Segment) -> u32 {
        let Self { nodes, edges, .. } = self;
        let node = *edges.entry((parent, length, segment.id)).or_insert_with(|| {
            let start = nodes[parent as usize].start + length;
            nodes.push(Node { parent, start, reach: 0 });
            u32::try_from(nodes.len() - 1).unwrap_or(UNSEEN)
        });
        let reach = &mut nodes[node as usize].reach;
        *reach = segment.tokens.max(*reach);
        node
    }

    /// The first key of each node, in preorder with children in order of appearance, and the number
    /// of keys.
    fn number(&self, block_size: BlockSize) -> Result<(Vec<u32>, u32), PlanError> {
        let own = |node: &Node| u64::from(node.blocks(node.reach, block_size));
        // A parent is older than its children: one pass backwards sums subtrees, one forwards
        // places them.
        let mut subtree: Vec<u64> = self.nodes.iter().map(own).collect();
        for index in (1..self.nodes.len()).rev() {
            subtree[self.nodes[index].parent as usize] += subtree[index];
        }
        let blocks = subtree[ROOT as usize];
        let total =
            u32::try_from(blocks).map_err(|_| PlanError::TooManyBlocks { blocks, block_size })?;

        let mut first = vec![0_u32; self.nodes.len()];
        let mut free = vec![0_u32; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().skip(1) {
            let place = &mut free[node.parent as usize];
            first[index] = *place;
            *place += u32::try_from(subtree[index]).unwrap_or(total);
            free[index] = first[index] + node.blocks(node.reach, block_size);
        }
        Ok((first, total))
    }

    fn chains(&self, workload: &Workload, block_size: BlockSize, first: &[u32]) -> Vec<BlockChain> {
        let mut shared: HashMap<usize, BlockChain, FxBuildHasher> =
            HashMap::with_capacity_and_hasher(self.longest.len(), FxBuildHasher);
        let mut runs = Vec::new();
        let chain_of = |content: Content| {
            let build = || {
                let content = Content { len: self.longest[&content.start], ..content };
                self.runs(&workload.segments, content, block_size, first, &mut runs);
                BlockChain::new(Arc::from(runs.as_slice()))
            };
            shared.entry(content.start).or_insert_with(build).clone()
        };
        workload.requests.iter().map(|request| request.content).map(chain_of).collect()
    }

    fn runs(
        &self,
        segments: &[Segment],
        content: Content,
        block_size: BlockSize,
        first: &[u32],
        runs: &mut Vec<KeyRun>,
    ) {
        runs.clear();
        for index in content.range() {
            let node = self.node_of[index] as usize;
            let len = self.nodes[node].blocks(segments[index].tokens, block_size);
            match runs.last_mut() {
                _ if len == 0 => {}
                Some(run) if run.start.0 + run.len == first[node] => run.len += len,
                _ => runs.push(KeyRun { start: BlockKey(first[node]), len }),
            }
        }
    }
}

#[cfg(test)]
mod tests;
