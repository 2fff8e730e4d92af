//! Events and queries, the same for all indexes, from a fixed seed.

use std::collections::BTreeSet;

use kvroute_types::{BlockHash, mix64};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const EVENT_BLOCKS: usize = 128;
const SYSTEM_PROMPTS: u64 = 200;
const SYSTEM_BLOCKS: usize = 128;
const OWN_BLOCKS_MAX: usize = 8_064;
const LONG_SESSIONS: usize = 32;

/// Blocks by the hash of their own tokens (local) and of their whole prefix (chained).
#[derive(Clone, Default)]
pub struct Query {
    pub local: Vec<u64>,
    pub chained: Vec<BlockHash>,
}

impl Query {
    fn push(&mut self, local: u64) {
        let last = self.chained.last().map_or(0, |last| last.0);
        self.local.push(local);
        self.chained.push(BlockHash(mix64(last ^ mix64(local))));
    }

    fn of(local: impl IntoIterator<Item = u64>) -> Self {
        let mut query = Self::default();
        local.into_iter().for_each(|local| query.push(local));
        query
    }

    fn cut(&self, len: usize) -> Self {
        Self { local: self.local[..len].to_vec(), chained: self.chained[..len].to_vec() }
    }
}

pub enum Event {
    Stored { instance: u32, parent: Option<BlockHash>, local: Vec<u64>, chained: Vec<BlockHash> },
    Removed { instance: u32, block: BlockHash },
}

#[derive(Default)]
pub struct Workload {
    pub events: Vec<Event>,
    pub entries: usize,
    pub distinct: usize,
    pub queries: Vec<(&'static str, Vec<Query>)>,
    /// Only compared.
    pub checks: Vec<Query>,
    /// Deepest block first.
    pub removals: Vec<Event>,
    /// Sessions removed block by block and stored again: may be applied any number of times.
    pub churn: Vec<Event>,
    /// What each instance holds: to emit only what is new.
    held: BTreeSet<(u32, BlockHash)>,
    seen: BTreeSet<BlockHash>,
}

impl Workload {
    /// 200 system prompts of 128 blocks, Zipf 1.0; a session is one and 64 to 8,064 blocks of its
    /// own (the first 32 have 8,064) on a random instance; sessions until there are `entries`.
    pub fn sessions(instances: u32, entries: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut workload = Self::default();
        let mut sessions = Vec::new();
        let mut systems = BTreeSet::new();
        while workload.entries < entries {
            let own = if sessions.len() < LONG_SESSIONS {
                OWN_BLOCKS_MAX
            } else {
                rng.random_range(64..=OWN_BLOCKS_MAX)
            };
            let (system, instance) = (zipf(&mut rng), rng.random_range(0..instances));
            let query = session(system, sessions.len() as u64 + 1, own);
            let from = if systems.insert((instance, system)) { 0 } else { SYSTEM_BLOCKS };
            workload.store(instance, &query, from);
            workload.distinct += own;
            sessions.push((instance, query));
        }
        workload.distinct +=
            systems.iter().map(|&(_, system)| system).collect::<BTreeSet<_>>().len()
                * SYSTEM_BLOCKS;
        for (instance, query) in sessions.iter().skip(1).step_by(2) {
            workload.removals.extend(removed(*instance, &query.chained[SYSTEM_BLOCKS..]));
        }
        for (instance, query) in &sessions[LONG_SESSIONS..LONG_SESSIONS + 64] {
            let stored = stored(*instance, query, SYSTEM_BLOCKS);
            let removed = removed(*instance, &query.chained[SYSTEM_BLOCKS..]);
            workload.churn.extend(removed.chain(stored));
        }
        let full: Vec<Query> =
            sessions[..LONG_SESSIONS].iter().map(|(_, query)| query.clone()).collect();
        let prefix = (0..64).map(|id| session(id % 16, 1 << 40 | id, OWN_BLOCKS_MAX)).collect();
        let miss = (0..64).map(|id| session(1_000 + id, 1, OWN_BLOCKS_MAX)).collect();
        for (_, query) in &sessions {
            let len = rng.random_range(1..=query.local.len());
            workload.checks.push(query.cut(len));
            let mut parting = query.cut(len);
            (0..100).for_each(|block| parting.push(1 << 50 | block));
            workload.checks.push(parting);
        }
        workload.queries =
            vec![("full 8,192", full), ("prefix 128 of 8,192", prefix), ("miss", miss)];
        workload
    }

    /// Conversations that part everywhere: each request goes on from a random earlier one, cut at a
    /// random block, with 1 to 64 blocks of its own, on a random instance, which stores all of it
    /// that it does not hold.
    pub fn branching(instances: u32, entries: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mut workload = Self::default();
        let mut prompts: Vec<(u32, Query)> = Vec::new();
        while workload.entries < entries {
            let mut query = if prompts.len() < 256 {
                Query::default()
            } else {
                let (_, earlier) = &prompts[rng.random_range(0..prompts.len())];
                // Most go on from the end, as the next turn of a conversation does.
                let len = earlier.local.len();
                earlier.cut(if rng.random::<f64>() < 0.7 { len } else { rng.random_range(1..=len) })
            };
            let own = rng.random_range(1..=64_u64);
            (0..own).for_each(|block| query.push((prompts.len() as u64) << 20 | block));
            let instance = rng.random_range(0..instances);
            workload.store_new(instance, &query);
            prompts.push((instance, query));
        }
        workload.distinct = workload.seen.len();
        let step = prompts.len() / 64;
        workload.queries = vec![(
            "a whole prompt",
            prompts.iter().rev().step_by(step).map(|(_, query)| query.clone()).collect(),
        )];
        for (_, query) in prompts.iter().step_by(prompts.len() / 1_000 + 1) {
            let len = rng.random_range(1..=query.local.len());
            let mut parting = query.cut(len);
            (0..10).for_each(|block| parting.push(1 << 50 | block));
            workload.checks.push(parting);
        }
        workload
    }

    /// A prompt off which another branches every 128 blocks, on another instance each.
    pub fn trunk() -> Self {
        let mut workload = Self::default();
        let trunk = Query::of(0..8_192);
        for instance in 0..64_u32 {
            let mut query = trunk.cut((instance as usize + 1) * 128);
            (0..64).for_each(|block| query.push(u64::from(instance + 1) << 32 | block));
            workload.store_new(instance, &query);
        }
        workload.store_new(64, &trunk);
        workload.distinct = workload.seen.len();
        workload.queries = vec![("the trunk", vec![trunk.clone()])];
        for len in (1..8_192).step_by(61) {
            let mut parting = trunk.cut(len);
            parting.push(u64::MAX);
            workload.checks.push(parting);
        }
        workload
    }

    fn store(&mut self, instance: u32, query: &Query, from: usize) {
        self.entries += query.local.len() - from;
        self.events.extend(stored(instance, query, from));
    }

    fn store_new(&mut self, instance: u32, query: &Query) {
        let is_held = |block: &BlockHash| self.held.contains(&(instance, *block));
        let from = query.chained.iter().take_while(|block| is_held(block)).count();
        self.store(instance, query, from);
        self.seen.extend(&query.chained[from..]);
        self.held.extend(query.chained[from..].iter().map(|&block| (instance, block)));
    }
}

/// The blocks of a query from one on, in events of 128.
fn stored(instance: u32, query: &Query, from: usize) -> impl Iterator<Item = Event> {
    let len = query.local.len();
    (from..len).step_by(EVENT_BLOCKS).map(move |start| {
        let part = start..(start + EVENT_BLOCKS).min(len);
        Event::Stored {
            instance,
            parent: start.checked_sub(1).map(|at| query.chained[at]),
            local: query.local[part.clone()].to_vec(),
            chained: query.chained[part].to_vec(),
        }
    })
}

/// One event a block, the last block first, as vLLM sends them.
fn removed(instance: u32, blocks: &[BlockHash]) -> impl Iterator<Item = Event> {
    blocks.iter().rev().map(move |&block| Event::Removed { instance, block })
}

fn session(system: u64, name: u64, own: usize) -> Query {
    let own = (0..own as u64).map(|block| name << 20 | block);
    Query::of((0..SYSTEM_BLOCKS as u64).map(|block| 1 << 62 | system << 20 | block).chain(own))
}

/// The rank `r` (from 0) with a probability in proportion to `1 / (r + 1)`.
fn zipf(rng: &mut ChaCha8Rng) -> u64 {
    let weight = |rank: u64| 1.0 / (rank + 1) as f64;
    let mut left = rng.random::<f64>() * (0..SYSTEM_PROMPTS).map(weight).sum::<f64>();
    for rank in 0..SYSTEM_PROMPTS {
        left -= weight(rank);
        if left < 0.0 {
            return rank;
        }
    }
    SYSTEM_PROMPTS - 1
}
