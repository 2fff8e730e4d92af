//! The compressed radix tree: prefixes, and who is resident in them.
//!
//! A node is an *edge*: a run of block hashes that continues its parent's. Each distinct block
//! stands in exactly one edge. A block hash names its whole prefix, so
//!
//! * two runs that agree at one position agree at all positions before it: comparing an edge with a
//!   prompt takes one look at the last hash, or a binary search for where they part;
//! * children need no table per node: one table for the whole tree finds a child by (parent, first
//!   hash).
//!
//! Hashes that break this promise make wrong matches, never a wrong tree.
//!
//! # Invariants
//! * An instance resident in a node is resident in all blocks of the node's parent.
//! * The longest residency of a node spans its edge. So a node has a resident, and a node with
//!   children has one that holds all of it.

use std::hash::BuildHasher;

use hashbrown::HashTable;
use kvroute_types::{BlockHash, InstanceId, Timestamp};
use rustc_hash::FxBuildHasher;

use crate::slab::{NIL, Slab};

/// Bytes added to every heap allocation for the allocator's header and rounding (glibc's `malloc`:
/// 8 bytes of header, sizes rounded up to 16).
const ALLOCATION_BYTES: usize = 16;

/// What an instance holds of one node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resident {
    pub(super) instance: InstanceId,
    /// How many of the edge's blocks, counted from its start; at least 1.
    pub(super) blocks: u32,
    /// Its place in the recency order: an id of the history's residencies.
    pub(super) residency: u32,
    /// When a prompt last covered these blocks.
    pub(super) touched: Timestamp,
}

/// An edge and its residents.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// `hashes[0]`, here so that finding a child touches one cache line.
    first: BlockHash,
    hashes: Vec<BlockHash>,
    /// In order of instance.
    residents: Vec<Resident>,
    parent: u32,
    /// Number of children.
    children: u32,
}

impl Node {
    pub(super) fn hashes(&self) -> &[BlockHash] {
        &self.hashes
    }

    pub(super) fn residents(&self) -> &[Resident] {
        &self.residents
    }

    /// The resident of this instance, if it is one.
    pub(super) fn resident(&self, instance: InstanceId) -> Option<&Resident> {
        self.position(instance).ok().map(|at| &self.residents[at])
    }

    fn position(&self, instance: InstanceId) -> Result<usize, usize> {
        self.residents.binary_search_by_key(&instance, |resident| resident.instance)
    }

    fn heap_bytes(&self) -> usize {
        vec_bytes::<BlockHash>(self.hashes.capacity())
            + vec_bytes::<Resident>(self.residents.capacity())
    }
}

/// The tree. The root is no node: a node at the top has the parent [`NIL`].
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Slab<Node>,
    /// Node by (parent, first hash). Looked up only, never iterated.
    child: HashTable<u32>,
    /// What the nodes have allocated outside the slab.
    heap_bytes: usize,
    /// Sum of the edges' lengths.
    distinct_blocks: u64,
}

impl Tree {
    /// Most bytes that one node takes in the slab and in the child table. The table's share: it
    /// doubles only when more than half of its 7/8 usable buckets are in use, so it has at most
    /// 32/7 buckets per node, of 4 bytes and 1 byte of tag each.
    pub(super) const NODE_BYTES_MAX: usize = Slab::<Node>::SLOT_BYTES + (32 * 5_usize).div_ceil(7);

    /// An empty tree for at most `limit` nodes.
    pub(super) fn new(limit: usize) -> Self {
        Self { nodes: Slab::new(limit), child: HashTable::new(), heap_bytes: 0, distinct_blocks: 0 }
    }

    pub(super) fn node(&self, node: u32) -> &Node {
        &self.nodes[node]
    }

    pub(super) fn distinct_blocks(&self) -> u64 {
        self.distinct_blocks
    }

    pub(super) fn allocated_bytes(&self) -> usize {
        self.nodes.allocated_bytes() + self.child.allocation_size() + self.heap_bytes
    }

    /// Whether prompts can be added to the end of this edge, so that it needs no child.
    pub(super) fn is_leaf(&self, node: u32) -> bool {
        self.nodes[node].children == 0
    }

    /// The child of `parent` that `prompt` (not empty) goes on with, and how many of its leading
    /// blocks the child's edge shares; at least 1.
    #[inline]
    pub(super) fn find(&self, parent: u32, prompt: &[BlockHash]) -> Option<(u32, usize)> {
        let first = prompt[0];
        let node = *self.child.find(key(parent, first), |&id| {
            let node = &self.nodes[id];
            node.first == first && node.parent == parent
        })?;
        Some((node, shared_len(&self.nodes[node].hashes, prompt)))
    }

    /// Bytes that [`branch`](Self::branch) with `blocks` blocks and a first resident will allocate,
    /// slab and table apart.
    pub(super) fn branch_bytes(blocks: usize) -> usize {
        vec_bytes::<BlockHash>(blocks) + vec_bytes::<Resident>(1)
    }

    /// Adds a child with these blocks. The caller adds its first resident.
    pub(super) fn branch(&mut self, parent: u32, hashes: &[BlockHash]) -> u32 {
        let node = Node {
            first: hashes[0],
            hashes: hashes.to_vec(),
            residents: Vec::new(),
            parent,
            children: 0,
        };
        self.heap_bytes += node.heap_bytes();
        self.distinct_blocks += hashes.len() as u64;
        let id = self.nodes.insert(node);
        self.link(id);
        if parent != NIL {
            self.nodes[parent].children += 1;
        }
        id
    }

    /// Bytes that [`extend`](Self::extend) by `blocks` blocks will allocate.
    pub(super) fn extend_bytes(&self, node: u32, blocks: usize) -> usize {
        let hashes = &self.nodes[node].hashes;
        let capacity = extended_capacity(hashes.len(), hashes.capacity(), blocks);
        vec_bytes::<BlockHash>(capacity) - vec_bytes::<BlockHash>(hashes.capacity())
    }

    /// Adds blocks to the end of a leaf, which `instance` holds all of and goes on to hold all of.
    pub(super) fn extend(&mut self, node: u32, instance: InstanceId, hashes: &[BlockHash]) {
        debug_assert!(self.is_leaf(node));
        self.change(node, |node| {
            let len = node.hashes.len();
            let capacity = extended_capacity(len, node.hashes.capacity(), hashes.len());
            node.hashes.reserve_exact(capacity - len);
            node.hashes.extend_from_slice(hashes);
            let at = node.position(instance).expect("the instance holds this node");
            node.residents[at].blocks = block_count(node.hashes.len());
        });
    }

    /// Bytes that [`split`](Self::split) will allocate, slab and table apart.
    pub(super) fn split_bytes(&self, node: u32) -> usize {
        vec_bytes::<BlockHash>(1) + vec_bytes::<Resident>(self.nodes[node].residents.len())
    }

    /// Cuts an edge in two after its first `at` blocks. The lower part keeps the id and the
    /// children; returns the upper part. Residents of both parts have the same residency id in
    /// both: the caller gives one of them a new one. Residents of the upper part alone keep theirs.
    pub(super) fn split(&mut self, node: u32, at: u32) -> u32 {
        let lower = &mut self.nodes[node];
        let (parent, first) = (lower.parent, lower.first);
        self.heap_bytes -= lower.heap_bytes();

        let tail = lower.hashes.split_off(at as usize);
        let mut hashes = std::mem::replace(&mut lower.hashes, tail);
        hashes.shrink_to_fit();
        lower.first = lower.hashes[0];
        let mut residents = lower.residents.clone();
        for resident in &mut residents {
            resident.blocks = resident.blocks.min(at);
        }
        lower.residents.retain_mut(|resident| {
            resident.blocks = resident.blocks.saturating_sub(at);
            resident.blocks > 0
        });
        shrink_residents(&mut lower.residents);
        self.heap_bytes += lower.heap_bytes();

        let upper = Node { first, hashes, residents, parent, children: 1 };
        self.heap_bytes += upper.heap_bytes();
        let upper = self.nodes.insert(upper);
        let slot = self.child.find_mut(key(parent, first), |&id| id == node);
        *slot.expect("every node is in the child table") = upper;
        self.nodes[node].parent = upper;
        self.link(node);
        upper
    }

    /// Bytes that one more resident will allocate.
    pub(super) fn resident_bytes(&self, node: u32) -> usize {
        let residents = &self.nodes[node].residents;
        if residents.len() < residents.capacity() {
            return 0;
        }
        let capacity = residents.len() + resident_growth(residents.len());
        vec_bytes::<Resident>(capacity) - vec_bytes::<Resident>(residents.capacity())
    }

    /// Adds a resident that is not one yet.
    pub(super) fn add_resident(&mut self, node: u32, resident: Resident) {
        self.change(node, |node| {
            let Err(at) = node.position(resident.instance) else {
                unreachable!("an instance is resident in a node once");
            };
            let len = node.residents.len();
            if len == node.residents.capacity() {
                node.residents.reserve_exact(resident_growth(len));
            }
            node.residents.insert(at, resident);
        });
    }

    /// What the instance holds of a node it is resident in, to be changed. `blocks` may grow up to
    /// the edge's length; to make it less, [`cut`](Self::cut).
    pub(super) fn resident_mut(&mut self, node: u32, instance: InstanceId) -> &mut Resident {
        let node = &mut self.nodes[node];
        let at = node.position(instance).expect("the instance is resident in this node");
        &mut node.residents[at]
    }

    /// Takes the last `count` blocks of a residency away and drops what nobody holds any more.
    /// Returns how many blocks are left to the instance; with 0 it is no resident any more.
    pub(super) fn cut(&mut self, node: u32, instance: InstanceId, count: u32) -> u32 {
        let (left, edge_left) = self.change(node, |node| {
            let at = node.position(instance).expect("the instance is resident in this node");
            let edge = block_count(node.hashes.len());
            let held = node.residents[at].blocks;
            let left = held - count;
            if left > 0 {
                node.residents[at].blocks = left;
            } else {
                node.residents.remove(at);
                shrink_residents(&mut node.residents);
            }
            // A node with children, or one whose longest residency was not touched, keeps its edge.
            if held < edge || node.children > 0 {
                return (left, edge);
            }
            let longest = node.residents.iter().map(|resident| resident.blocks).max();
            let longest = longest.unwrap_or(0);
            node.hashes.truncate(longest as usize);
            let len = node.hashes.len();
            if node.hashes.capacity() - len > len / 4 {
                node.hashes.shrink_to_fit();
            }
            (left, longest)
        });
        if edge_left == 0 {
            self.remove(node);
        }
        left
    }

    /// Removes a node that has neither residents nor blocks nor children.
    fn remove(&mut self, id: u32) {
        let node = self.nodes.remove(id);
        self.heap_bytes -= node.heap_bytes();
        let Node { first, parent, .. } = node;
        let Ok(slot) = self.child.find_entry(key(parent, first), |&other| other == id) else {
            unreachable!("every node is in the child table");
        };
        slot.remove();
        if parent != NIL {
            self.nodes[parent].children -= 1;
        }
    }

    /// Enters a node into the child table.
    fn link(&mut self, id: u32) {
        let nodes = &self.nodes;
        let rehash = |&id: &u32| key(nodes[id].parent, nodes[id].first);
        self.child.insert_unique(rehash(&id), id, rehash);
    }

    /// Changes a node and keeps account of its blocks and of what it has allocated.
    fn change<R>(&mut self, id: u32, change: impl FnOnce(&mut Node) -> R) -> R {
        let node = &mut self.nodes[id];
        self.heap_bytes -= node.heap_bytes();
        self.distinct_blocks -= node.hashes.len() as u64;
        let result = change(node);
        self.heap_bytes += node.heap_bytes();
        self.distinct_blocks += node.hashes.len() as u64;
        result
    }
}

/// The child table's hash. Not keyed: whoever chooses block hashes could make them collide, so hash
/// client input with a keyed hash before it becomes a [`BlockHash`].
fn key(parent: u32, first: BlockHash) -> u64 {
    FxBuildHasher.hash_one((first.0, parent))
}

/// How many leading blocks two runs share, given that they share the first and that blocks shared at
/// one position are shared at all before it.
#[inline]
fn shared_len(edge: &[BlockHash], prompt: &[BlockHash]) -> usize {
    let len = edge.len().min(prompt.len());
    if edge[len - 1] == prompt[len - 1] {
        return len;
    }
    let (mut shared, mut differing) = (1, len - 1);
    while shared < differing {
        let middle = shared.midpoint(differing);
        if edge[middle] == prompt[middle] {
            shared = middle + 1;
        } else {
            differing = middle;
        }
    }
    shared
}

/// A number of blocks of one prompt; the history cuts prompts so that it fits.
pub(super) fn block_count(blocks: usize) -> u32 {
    u32::try_from(blocks).expect("prompts have at most u32::MAX blocks")
}

/// Bytes that a vector of this capacity has allocated.
fn vec_bytes<T>(capacity: usize) -> usize {
    if capacity == 0 { 0 } else { capacity * size_of::<T>() + ALLOCATION_BYTES }
}

/// Capacity of an edge grown by `added` blocks: an eighth of slack, so that a session that grows by
/// small steps is not copied at each of them.
fn extended_capacity(len: usize, capacity: usize, added: usize) -> usize {
    if len + added <= capacity { capacity } else { len + added.max(len / 8) }
}

/// By how many a full list of residents grows: from one, as most nodes have one, by halves.
fn resident_growth(len: usize) -> usize {
    (len / 2).max(1)
}

/// Gives memory back once three quarters are unused.
fn shrink_residents(residents: &mut Vec<Resident>) {
    if residents.len() < residents.capacity() / 4 {
        residents.shrink_to(residents.len() * 2);
    }
}

#[cfg(test)]
impl Tree {
    /// Checks what must hold of the tree at any time, given the ids of all nodes with residents.
    pub(super) fn check(&self, ids: &std::collections::BTreeSet<u32>) {
        let (mut heap_bytes, mut distinct_blocks, mut nodes) = (0, 0, 0);
        for &id in ids {
            let node = &self.nodes[id];
            nodes += 1;
            heap_bytes += node.heap_bytes();
            distinct_blocks += node.hashes.len() as u64;
            assert_eq!(node.first, node.hashes[0]);
            assert_eq!(self.find(node.parent, &node.hashes), Some((id, node.hashes.len())));
            assert!(node.residents.is_sorted_by(|a, b| a.instance < b.instance));
            assert!(node.residents.iter().all(|resident| resident.blocks > 0));
            let longest = node.residents.iter().map(|resident| resident.blocks as usize).max();
            assert_eq!(longest, Some(node.hashes.len()));
            let children = ids.iter().filter(|&&child| self.nodes[child].parent == id).count();
            assert_eq!(node.children as usize, children);
            if node.parent != NIL {
                let parent = &self.nodes[node.parent];
                for resident in &node.residents {
                    let above = parent.resident(resident.instance).unwrap();
                    assert_eq!(above.blocks as usize, parent.hashes.len());
                    assert!(above.touched >= resident.touched);
                }
            }
        }
        assert_eq!(nodes, self.nodes.len());
        assert_eq!(nodes, self.child.len());
        assert_eq!(heap_bytes, self.heap_bytes);
        assert_eq!(distinct_blocks, self.distinct_blocks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_part_is_found_wherever_it_ends() {
        let edge: Vec<BlockHash> = (0..20).map(BlockHash).collect();
        for shared in 1..=20 {
            for len in shared..25 {
                let mut prompt = edge.clone();
                prompt.resize(len, BlockHash(1000));
                for (at, hash) in prompt.iter_mut().enumerate().skip(shared) {
                    *hash = BlockHash(100 + at as u64);
                }
                assert_eq!(shared_len(&edge, &prompt), shared);
            }
        }
    }

    #[test]
    fn a_node_is_one_cache_line() {
        assert_eq!(size_of::<Node>(), 64);
        assert_eq!(size_of::<Resident>(), 24);
    }
}
