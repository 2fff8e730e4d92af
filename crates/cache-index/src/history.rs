//! The directory of what was routed where.

mod tree;

#[cfg(test)]
mod tests;

use hashbrown::HashMap;
use kvroute_types::{BlockHash, InstanceId, Timestamp};
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, expiry_ns};
use crate::recency::{Links, Recency};
use crate::slab::{NIL, Slab};
use tree::{Node, Resident, Tree, block_count};

/// Bounds of a [`History`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistoryConfig {
    /// Most blocks that one instance is believed to hold; at least 1. Best the number of KV blocks
    /// of the instance (vLLM `num_gpu_blocks`). `None`: only `budget_bytes` bounds.
    ///
    /// Default `None`: the size is the engine's to tell.
    pub capacity_blocks: Option<u32>,
    /// Age in seconds at which a block no longer counts as held, unless a prompt touched it since;
    /// above 0. `None`: never.
    ///
    /// Default `None`: engines drop blocks for lack of space, not for age (vLLM `BlockPool`). Others
    /// use 120 s (Dynamo, approximate mode) or 1,200 s (`AIBrix`, prefix-cache routing).
    pub expiry_s: Option<f64>,
    /// Most bytes of memory for the whole directory; at least 65,536.
    ///
    /// Default 268,435,456 (256 MiB), some 30 million distinct blocks of long prompts (our choice).
    pub budget_bytes: usize,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self { capacity_blocks: None, expiry_s: None, budget_bytes: 256 << 20 }
    }
}

/// What each instance is believed to hold, inferred from the prompts that were routed to it.
///
/// The belief mirrors an engine's prefix cache: a prompt routed to an instance leaves all of its
/// blocks there; when the instance is full, the least recently used block goes; of the blocks of
/// one prompt the deepest counts as least recently used, so what an instance holds is closed under
/// prefixes at all times.
///
/// # Bounds
/// * `capacity_blocks`: over it the instance's least recently used blocks go, one by one.
/// * `expiry_s`: blocks older than that never match. Their memory is reclaimed by later inserts, a
///   bounded number of runs each.
/// * `budget_bytes`: over it the globally least recently used *run* goes (what one instance holds
///   of one edge of the tree), whole, whichever instance it belongs to. At most half of the budget
///   goes to tree nodes and recency lists, which never shrink, at most an eighth to instances, and
///   the rest is for hashes and lists of residents: a burst of tiny prompts cannot take the
///   room of long ones for good. A prompt of more than `budget_bytes / 32` blocks is cut to that
///   many. What the budget costs is counted ([`budget_lost_blocks`](Self::budget_lost_blocks)).
///
/// # Cost
/// With `n` edges on a prompt's path, of `b` blocks at most:
/// [`matches`](Self::matches) takes O(n log b), plus the residents of the edges after which an
/// instance drops out (with blocks that have expired and are not reclaimed: of all edges), and does
/// not allocate. [`insert`](Self::insert) takes the same for the path, plus the blocks that are new
/// to all instances, plus the residents of the at most one edge that it splits; what it evicts it
/// or an earlier insert has added. Edges that lose all but one child are not merged again.
#[derive(Debug)]
pub struct History {
    tree: Tree,
    /// One per (node, instance) with blocks: the units of the recency order.
    residencies: Slab<Residency>,
    /// All residencies.
    recency: Recency,
    /// The instances that hold anything.
    instances: Slab<Instance>,
    /// Id in `instances`. Looked up only, never iterated.
    instance_ids: HashMap<InstanceId, u32, FxBuildHasher>,
    /// Latest time seen: stamps never run backwards, so the recency order is also one of time.
    clock: Timestamp,
    /// Stamp of the least recently used residency; [`Timestamp::MAX`] if there is none.
    oldest_touched: Timestamp,
    capacity_blocks: u64,
    expiry_ns: u64,
    budget_bytes: usize,
    prompt_blocks_max: usize,
    budget_lost_blocks: u64,
}

impl History {
    /// Smallest budget, bytes: below it not even short prompts of a few instances fit.
    pub const BUDGET_BYTES_MIN: usize = 64 << 10;

    /// Most runs of expired blocks that one insert reclaims: enough to keep up, as an insert adds a
    /// few, and few enough that none takes long after an idle hour.
    const RECLAIMED_PER_INSERT: usize = 64;

    /// An empty directory with these bounds.
    ///
    /// # Errors
    /// If the capacity is zero, the expiry not a finite number of seconds above zero, or the budget
    /// below [`BUDGET_BYTES_MIN`](Self::BUDGET_BYTES_MIN).
    pub fn new(config: HistoryConfig) -> Result<Self, ConfigError> {
        let HistoryConfig { capacity_blocks, expiry_s, budget_bytes } = config;
        if capacity_blocks == Some(0) {
            return Err(ConfigError::ZeroCapacityBlocks);
        }
        if budget_bytes < Self::BUDGET_BYTES_MIN {
            return Err(ConfigError::BudgetTooSmall {
                budget_bytes,
                min_bytes: Self::BUDGET_BYTES_MIN,
            });
        }
        // Every node has a residency, so one limit holds for both.
        let residency_bytes = Tree::NODE_BYTES_MAX + Slab::<Residency>::SLOT_BYTES;
        let residencies = budget_bytes / 2 / residency_bytes;
        let instances = budget_bytes / 8 / Instance::BYTES_MAX;
        Ok(Self {
            tree: Tree::new(residencies),
            residencies: Slab::new(residencies),
            recency: Recency::default(),
            instances: Slab::new(instances),
            instance_ids: HashMap::default(),
            clock: Timestamp::ZERO,
            oldest_touched: Timestamp::MAX,
            capacity_blocks: capacity_blocks.map_or(u64::MAX, u64::from),
            expiry_ns: expiry_ns(expiry_s)?,
            budget_bytes,
            prompt_blocks_max: (budget_bytes / 32).min(u32::MAX as usize),
            budget_lost_blocks: 0,
        })
    }

    /// The request with this prompt was routed to `instance` at `now`: it will hold these blocks.
    ///
    /// `now` is taken as the latest time seen if it is before that.
    pub fn insert(&mut self, now: Timestamp, instance: InstanceId, blocks: &[BlockHash]) {
        self.clock = self.clock.max(now);
        self.reclaim_expired();
        let blocks = self.cut_to_bounds(blocks);

        let mut walk = Walk::default();
        while walk.depth < blocks.len() {
            let prompt = &blocks[walk.depth..];
            let step = self.next_step(walk.node, instance, prompt);
            if self.is_short_of_room(instance, &step, prompt) {
                // What was evicted may have been on the path, so look again. With prompts cut to
                // the bounds there is room once all else is gone; if not, the rest is lost.
                if self.evict_oldest(walk.residencies) {
                    continue;
                }
                self.budget_lost_blocks += prompt.len() as u64;
                break;
            }
            match step {
                Step::Split { node, at } => self.split(node, at),
                Step::Touch { node, blocks } | Step::Join { node, blocks } => {
                    let residency = self.hold(node, instance, blocks, walk.residency);
                    walk.advance(node, residency, blocks);
                }
                Step::Extend { node } => {
                    self.tree.extend(node, instance, prompt);
                    let slot = self.instance_ids[&instance];
                    self.instances[slot].blocks += prompt.len() as u64;
                    walk.depth = blocks.len();
                }
                Step::Branch { parent } => {
                    let node = self.tree.branch(parent, prompt);
                    let blocks = block_count(prompt.len());
                    let residency = self.hold(node, instance, blocks, walk.residency);
                    walk.advance(node, residency, blocks);
                }
            }
        }

        self.enforce_capacity(instance);
        while self.memory_bytes() > self.budget_bytes && self.evict_oldest(0) {}
        self.oldest_touched = self.find_oldest_touched();
    }

    /// Calls `found` for every instance that is believed, at `now`, to hold at least the first of
    /// these blocks, with the number of leading blocks it holds (1 or more).
    ///
    /// Once per instance. The order is a function of the calls before, so runs repeat, but is not
    /// otherwise defined. Looking does not count as use.
    #[inline]
    pub fn matches(
        &self,
        now: Timestamp,
        blocks: &[BlockHash],
        mut found: impl FnMut(InstanceId, u32),
    ) {
        let is_live = |resident: &&Resident| now.nanos_since(resident.touched) < self.expiry_ns;
        let all_are_live = now.nanos_since(self.oldest_touched) < self.expiry_ns;

        // The residents of an edge are among those of the edge above. So each is reported where it
        // drops out, and where nobody does there is nothing to do.
        let mut above: Option<(&Node, usize)> = None;
        let (mut parent, mut depth) = (NIL, 0);
        while depth < blocks.len()
            && let Some((id, shared)) = self.tree.find(parent, &blocks[depth..])
        {
            let node = self.tree.node(id);
            if let Some((above, above_depth)) = above
                && !(all_are_live && above.residents().len() == node.residents().len())
            {
                let mut staying = node.residents().iter().filter(is_live).peekable();
                for resident in above.residents().iter().filter(is_live) {
                    let stays =
                        staying.next_if(|next| next.instance == resident.instance).is_some();
                    if !stays {
                        found(resident.instance, block_count(above_depth) + resident.blocks);
                    }
                }
            }
            above = Some((node, depth));
            depth += shared;
            if shared < node.hashes().len() {
                break;
            }
            parent = id;
        }
        if let Some((node, node_depth)) = above {
            let shared = block_count(depth - node_depth);
            for resident in node.residents().iter().filter(is_live) {
                found(resident.instance, block_count(node_depth) + resident.blocks.min(shared));
            }
        }
    }

    /// The instance restarted or left: forgets everything it held.
    pub fn remove_instance(&mut self, instance: InstanceId) {
        while let Some(&slot) = self.instance_ids.get(&instance) {
            let oldest = self.instances[slot].recency.oldest();
            self.cut(oldest, u32::MAX);
        }
        self.oldest_touched = self.find_oldest_touched();
    }

    /// Blocks that `instance` is believed to hold, expired ones included until they are reclaimed.
    pub fn len_blocks(&self, instance: InstanceId) -> u64 {
        self.instance_ids.get(&instance).map_or(0, |&slot| self.instances[slot].blocks)
    }

    /// Blocks that at least one instance is believed to hold, each counted once; expired ones
    /// included until they are reclaimed.
    pub fn distinct_blocks(&self) -> u64 {
        self.tree.distinct_blocks()
    }

    /// Blocks, counted once per instance, that were forgotten or not taken in for lack of budget.
    pub fn budget_lost_blocks(&self) -> u64 {
        self.budget_lost_blocks
    }

    /// Bytes allocated, at most `budget_bytes` whenever no call is under way.
    ///
    /// Counts the capacities of all vectors and tables, and 16 bytes per allocation of a node for
    /// the allocator. Not counted: fragmentation, and the copy of a vector or table while it is
    /// being moved to a larger place. Within a call the budget can be passed by what that call adds
    /// to node slots and tables, before evicting makes up for it. (Resident memory under glibc came
    /// to between none and a quarter more than the count, the quarter when long prompts had taken
    /// the place of short ones: `tests/it`.)
    pub fn memory_bytes(&self) -> usize {
        self.tree.allocated_bytes()
            + self.residencies.allocated_bytes()
            + self.instances.allocated_bytes()
            + self.instance_ids.allocation_size()
    }

    /// The part of a prompt that can be held at all. A prompt larger than the capacity of an
    /// instance leaves its first blocks there, since the deepest go first.
    fn cut_to_bounds<'b>(&mut self, blocks: &'b [BlockHash]) -> &'b [BlockHash] {
        let capacity = usize::try_from(self.capacity_blocks).unwrap_or(usize::MAX);
        let wanted = blocks.len().min(capacity);
        let taken = wanted.min(self.prompt_blocks_max);
        self.budget_lost_blocks += (wanted - taken) as u64;
        &blocks[..taken]
    }

    /// What to do so that `instance`, which holds all blocks down to the end of `node`, also holds
    /// those of `prompt` that come next.
    fn next_step(&self, node: u32, instance: InstanceId, prompt: &[BlockHash]) -> Step {
        let Some((child, shared)) = self.tree.find(node, prompt) else {
            return if node != NIL && self.tree.is_leaf(node) {
                Step::Extend { node }
            } else {
                Step::Branch { parent: node }
            };
        };
        let blocks = block_count(shared);
        let edge = self.tree.node(child);
        let held = edge.resident(instance).map(|resident| resident.blocks);
        // Where a prompt ends inside an edge there is no need to split it, as long as the instance
        // holds nothing behind that would now be older than the rest.
        let parts = shared < prompt.len() || held.is_some_and(|held| held > blocks);
        if shared < edge.hashes().len() && parts {
            Step::Split { node: child, at: blocks }
        } else if held.is_some() {
            Step::Touch { node: child, blocks }
        } else {
            Step::Join { node: child, blocks }
        }
    }

    /// Whether this step would break the budget.
    fn is_short_of_room(&self, instance: InstanceId, step: &Step, prompt: &[BlockHash]) -> bool {
        let (residencies, bytes) = match *step {
            Step::Touch { .. } => return false,
            Step::Split { node, at } => {
                let residents = self.tree.node(node).residents().iter();
                let both = residents.filter(|resident| resident.blocks > at).count();
                (both, self.tree.split_bytes(node))
            }
            Step::Join { node, .. } => (1, self.tree.resident_bytes(node)),
            Step::Extend { node } => (0, self.tree.extend_bytes(node, prompt.len())),
            Step::Branch { .. } => (1, Tree::branch_bytes(prompt.len())),
        };
        self.residencies.len() + residencies > self.residencies.limit()
            || self.memory_bytes() + bytes > self.budget_bytes
            || (self.instances.len() == self.instances.limit()
                && !self.instance_ids.contains_key(&instance))
    }

    /// Cuts an edge in two. The order of recency stays exact: of each resident's two parts, the
    /// upper comes right before the lower.
    fn split(&mut self, lower: u32, at: u32) {
        let upper = self.tree.split(lower, at);
        for index in 0..self.tree.node(upper).residents().len() {
            let Resident { instance, residency, .. } = self.tree.node(upper).residents()[index];
            if self.tree.node(lower).resident(instance).is_none() {
                self.residencies[residency].node = upper;
                continue;
            }
            let Residency { slot, of_instance, of_all, .. } = self.residencies[residency];
            let new = Residency { node: upper, slot, ..Residency::default() };
            let new = self.residencies.insert(new);
            self.tree.resident_mut(upper, instance).residency = new;
            self.link(new, of_instance.newer, of_all.newer);
        }
    }

    /// Makes `instance` hold the first `blocks` blocks of a node, touched now and next in recency
    /// after the residency `newer` ([`NIL`]: the most recent of all). Returns the residency.
    fn hold(&mut self, node: u32, instance: InstanceId, blocks: u32, newer: u32) -> u32 {
        let (id, added) = if let Some(&resident) = self.tree.node(node).resident(instance) {
            self.unlink(resident.residency);
            let touched = self.clock;
            *self.tree.resident_mut(node, instance) = Resident { blocks, touched, ..resident };
            (resident.residency, blocks - resident.blocks)
        } else {
            let slot = self.slot(instance);
            let id = self.residencies.insert(Residency { node, slot, ..Residency::default() });
            let resident = Resident { instance, blocks, residency: id, touched: self.clock };
            self.tree.add_resident(node, resident);
            (id, blocks)
        };
        self.link(id, newer, newer);
        let slot = self.residencies[id].slot;
        self.instances[slot].blocks += u64::from(added);
        id
    }

    /// Takes up to `count` blocks from the end of a residency.
    fn cut(&mut self, residency: u32, count: u32) -> u32 {
        let Residency { node, slot, .. } = self.residencies[residency];
        let instance = self.instances[slot].id;
        let held = self.tree.node(node).resident(instance).map_or(0, |resident| resident.blocks);
        let count = count.min(held);
        self.instances[slot].blocks -= u64::from(count);
        if self.tree.cut(node, instance, count) == 0 {
            self.unlink(residency);
            self.residencies.remove(residency);
            if self.instances[slot].recency.is_empty() {
                self.instances.remove(slot);
                self.instance_ids.remove(&instance);
            }
        }
        count
    }

    /// Drops the least recently used residency for lack of budget, unless only the `spared` most
    /// recent ones are left.
    fn evict_oldest(&mut self, spared: usize) -> bool {
        let evicts = self.residencies.len() > spared;
        if evicts {
            let count = self.cut(self.recency.oldest(), u32::MAX);
            self.budget_lost_blocks += u64::from(count);
        }
        evicts
    }

    /// Drops the least recently used blocks of an instance that holds more than it can.
    fn enforce_capacity(&mut self, instance: InstanceId) {
        let Some(&slot) = self.instance_ids.get(&instance) else {
            return;
        };
        while self.instances[slot].blocks > self.capacity_blocks {
            let excess = self.instances[slot].blocks - self.capacity_blocks;
            let oldest = self.instances[slot].recency.oldest();
            self.cut(oldest, u32::try_from(excess).unwrap_or(u32::MAX));
        }
    }

    /// Drops expired residencies, a bounded number of them.
    fn reclaim_expired(&mut self) {
        for _ in 0..Self::RECLAIMED_PER_INSERT {
            if self.clock.nanos_since(self.oldest_touched) < self.expiry_ns {
                break;
            }
            self.cut(self.recency.oldest(), u32::MAX);
            self.oldest_touched = self.find_oldest_touched();
        }
    }

    fn find_oldest_touched(&self) -> Timestamp {
        if self.recency.is_empty() {
            return Timestamp::MAX;
        }
        let Residency { node, slot, .. } = self.residencies[self.recency.oldest()];
        let resident = self.tree.node(node).resident(self.instances[slot].id);
        resident.map_or(Timestamp::MAX, |resident| resident.touched)
    }

    /// The instance's slot, made if it has none.
    fn slot(&mut self, instance: InstanceId) -> u32 {
        *self.instance_ids.entry(instance).or_insert_with(|| {
            self.instances.insert(Instance { id: instance, ..Instance::default() })
        })
    }

    /// Enters a residency into its instance's order and into that of all.
    fn link(&mut self, id: u32, newer_of_instance: u32, newer_of_all: u32) {
        let slot = self.residencies[id].slot;
        let of_instance = &mut self.instances[slot].recency;
        of_instance.add_behind(
            &mut self.residencies,
            Residency::of_instance,
            newer_of_instance,
            id,
        );
        self.recency.add_behind(&mut self.residencies, Residency::of_all, newer_of_all, id);
    }

    /// Takes a residency out of both orders.
    fn unlink(&mut self, id: u32) {
        let slot = self.residencies[id].slot;
        let of_instance = &mut self.instances[slot].recency;
        of_instance.remove(&mut self.residencies, Residency::of_instance, id);
        self.recency.remove(&mut self.residencies, Residency::of_all, id);
    }
}

/// What an insert does next.
#[derive(Debug)]
enum Step {
    /// Cut this edge after `at` blocks.
    Split { node: u32, at: u32 },
    /// Renew, and perhaps lengthen, the residency in this node to its first `blocks` blocks.
    Touch { node: u32, blocks: u32 },
    /// Become resident in this node's first `blocks` blocks.
    Join { node: u32, blocks: u32 },
    /// Add the rest of the prompt to this leaf's edge.
    Extend { node: u32 },
    /// Add the rest of the prompt as a new child.
    Branch { parent: u32 },
}

/// How far an insert has come.
#[derive(Debug)]
struct Walk {
    /// Blocks held from the start of the prompt.
    depth: usize,
    /// The node they end at.
    node: u32,
    /// The residency there.
    residency: u32,
    /// Number of residencies on the path: the most recent ones of all.
    residencies: usize,
}

impl Default for Walk {
    fn default() -> Self {
        Self { depth: 0, node: NIL, residency: NIL, residencies: 0 }
    }
}

impl Walk {
    fn advance(&mut self, node: u32, residency: u32, blocks: u32) {
        self.depth += blocks as usize;
        self.node = node;
        self.residency = residency;
        self.residencies += 1;
    }
}

/// Place in the recency orders of what one instance holds of one node.
#[derive(Clone, Copy, Debug, Default)]
struct Residency {
    node: u32,
    /// Id in the history's `instances`.
    slot: u32,
    of_instance: Links,
    of_all: Links,
}

impl Residency {
    fn of_instance(&mut self) -> &mut Links {
        &mut self.of_instance
    }

    fn of_all(&mut self) -> &mut Links {
        &mut self.of_all
    }
}

/// An instance that holds something.
#[derive(Clone, Copy, Debug, Default)]
struct Instance {
    id: InstanceId,
    /// Its residencies.
    recency: Recency,
    blocks: u64,
}

impl Instance {
    /// Most bytes that one instance takes in the slab and in the table of ids (buckets as in
    /// [`Tree::NODE_BYTES_MAX`], of 8 bytes and 1 byte of tag each).
    const BYTES_MAX: usize = Slab::<Self>::SLOT_BYTES + (32 * 9_usize).div_ceil(7);
}
