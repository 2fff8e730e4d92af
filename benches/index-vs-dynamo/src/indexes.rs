//! The indexes behind one face.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use dynamo_kv_router::indexer::{SyncIndexer, WorkerTask};
use dynamo_kv_router::protocols::{
    ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
};
use dynamo_kv_router::{ConcurrentRadixTreeCompressed, RadixTree};
use kvroute_cache_index::{ExactIndex, ExactIndexConfig, MatchBuffer};
use kvroute_types::InstanceId;

use crate::measure::{Cold, time_ns};
use crate::workload::{Event, Query};

/// Events in the form that an index takes.
pub enum Prepared<'w> {
    Plain(&'w [Event]),
    Dynamo(Vec<RouterEvent>),
}

pub trait Index {
    fn prepare<'w>(&self, events: &'w [Event]) -> Prepared<'w>;
    fn apply(&mut self, events: Prepared);
    /// Blocks by instance.
    fn answer(&self, query: &Query) -> BTreeMap<u32, u32>;
    /// Nanoseconds of each look-up; with `cold`, after a sweep through the caches.
    fn time(&self, queries: &[Query], cold: Option<&Cold>) -> Vec<f64>;
}

pub struct Ours {
    pub index: ExactIndex,
    buffer: RefCell<MatchBuffer>,
}

impl Default for Ours {
    fn default() -> Self {
        let config = ExactIndexConfig { budget_bytes: 1 << 30 };
        let index = ExactIndex::new(config).expect("the budget is large enough");
        Self { index, buffer: RefCell::default() }
    }
}

impl Ours {
    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes()
    }
}

pub fn apply_ours(index: &mut ExactIndex, event: &Event) {
    match event {
        Event::Stored { instance, parent, chained, .. } => {
            index.stored(InstanceId(*instance), *parent, chained);
        }
        Event::Removed { instance, block } => index.removed(InstanceId(*instance), &[*block]),
    }
}

impl Index for Ours {
    fn prepare<'w>(&self, events: &'w [Event]) -> Prepared<'w> {
        Prepared::Plain(events)
    }

    fn apply(&mut self, events: Prepared) {
        let Prepared::Plain(events) = events else { unreachable!("prepared by this index") };
        for event in events {
            apply_ours(&mut self.index, event);
        }
        assert_eq!(self.index.refused_blocks() + self.index.unknown_removals(), 0);
    }

    fn answer(&self, query: &Query) -> BTreeMap<u32, u32> {
        let mut answer = BTreeMap::new();
        self.index.matches(&mut self.buffer.borrow_mut(), &query.chained, |instance, blocks| {
            answer.insert(instance.0, blocks);
        });
        answer
    }

    fn time(&self, queries: &[Query], cold: Option<&Cold>) -> Vec<f64> {
        let mut buffer = self.buffer.borrow_mut();
        let mut time = |query: &Query| {
            if let Some(cold) = cold {
                cold.sweep();
            }
            time_ns(|| count_ours(&self.index, &mut buffer, query))
        };
        queries.iter().map(&mut time).collect()
    }
}

/// A look-up whose answer is used but not kept.
pub fn count_ours(index: &ExactIndex, buffer: &mut MatchBuffer, query: &Query) -> u64 {
    let mut sum = 0;
    index.matches(buffer, &query.chained, |instance, blocks| {
        sum += u64::from(instance.0 ^ blocks);
    });
    sum
}

#[derive(Default)]
pub struct Radix(RadixTree);

impl Index for Radix {
    fn prepare<'w>(&self, events: &'w [Event]) -> Prepared<'w> {
        Prepared::Dynamo(events.iter().map(dynamo_event).collect())
    }

    fn apply(&mut self, events: Prepared) {
        let Prepared::Dynamo(events) = events else { unreachable!("prepared by this index") };
        for event in events {
            self.0.apply_event(event).expect("the event is valid");
        }
    }

    fn answer(&self, query: &Query) -> BTreeMap<u32, u32> {
        scores(self.0.find_matches(dynamo_query(query), false))
    }

    fn time(&self, queries: &[Query], cold: Option<&Cold>) -> Vec<f64> {
        let time = |query| {
            // The tree takes the query for good, so the copy is made before and freed within.
            let query = dynamo_query(query);
            if let Some(cold) = cold {
                cold.sweep();
            }
            time_ns(|| self.0.find_matches(query, false))
        };
        queries.iter().map(time).collect()
    }
}

/// The tree and the one thread that its own worker loop runs on.
pub struct Concurrent {
    pub tree: Arc<ConcurrentRadixTreeCompressed>,
    pub tasks: flume::Sender<WorkerTask>,
    received: Option<flume::Receiver<WorkerTask>>,
    worker: Option<JoinHandle<()>>,
}

impl Default for Concurrent {
    fn default() -> Self {
        let (tasks, received) = flume::unbounded();
        let tree = Arc::new(ConcurrentRadixTreeCompressed::new());
        Self { tree, tasks, received: Some(received), worker: None }
    }
}

impl Index for Concurrent {
    fn prepare<'w>(&self, events: &'w [Event]) -> Prepared<'w> {
        Prepared::Dynamo(events.iter().map(dynamo_event).collect())
    }

    fn apply(&mut self, events: Prepared) {
        let Prepared::Dynamo(events) = events else { unreachable!("prepared by this index") };
        for event in events {
            self.tasks.send(WorkerTask::Event(event)).expect("the worker is there");
        }
        if let Some(received) = self.received.take() {
            let tree = Arc::clone(&self.tree);
            let work = move || drop(tree.worker(received, None));
            self.worker = Some(std::thread::spawn(work));
        }
        let (done, is_done) = tokio::sync::oneshot::channel();
        self.tasks.send(WorkerTask::Flush(done)).expect("the worker is there");
        is_done.blocking_recv().expect("the worker is there");
    }

    fn answer(&self, query: &Query) -> BTreeMap<u32, u32> {
        scores(self.tree.find_matches(&dynamo_query(query), false))
    }

    fn time(&self, queries: &[Query], cold: Option<&Cold>) -> Vec<f64> {
        let time = |query| {
            let query = dynamo_query(query);
            if let Some(cold) = cold {
                cold.sweep();
            }
            time_ns(|| self.tree.find_matches(&query, false))
        };
        queries.iter().map(time).collect()
    }
}

impl Drop for Concurrent {
    fn drop(&mut self) {
        let _ = self.tasks.send(WorkerTask::Terminate);
        // Or its last work would count as that of whoever is measured next.
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

pub fn dynamo_query(query: &Query) -> Vec<LocalBlockHash> {
    query.local.iter().map(|&local| LocalBlockHash(local)).collect()
}

pub fn dynamo_event(event: &Event) -> RouterEvent {
    let hash = |block: &kvroute_types::BlockHash| ExternalSequenceBlockHash(block.0);
    let (instance, data) = match event {
        Event::Stored { instance, parent, local, chained } => {
            let block = |(local, chained): (&u64, _)| KvCacheStoredBlockData {
                block_hash: hash(chained),
                tokens_hash: LocalBlockHash(*local),
                mm_extra_info: None,
            };
            let blocks = local.iter().zip(chained).map(block).collect();
            let parent_hash = parent.as_ref().map(hash);
            let data = KvCacheStoreData { parent_hash, start_position: None, blocks };
            (*instance, KvCacheEventData::Stored(data))
        }
        Event::Removed { instance, block } => {
            let data = KvCacheRemoveData { block_hashes: vec![hash(block)] };
            (*instance, KvCacheEventData::Removed(data))
        }
    };
    RouterEvent::new(u64::from(instance), KvCacheEvent { event_id: 0, data, dp_rank: 0 })
}

fn scores(scores: OverlapScores) -> BTreeMap<u32, u32> {
    let by_worker = |(worker, blocks): (dynamo_kv_router::protocols::WorkerWithDpRank, u32)| {
        (u32::try_from(worker.worker_id).expect("a worker is an instance"), blocks)
    };
    scores.scores.into_iter().map(by_worker).filter(|&(_, blocks)| blocks > 0).collect()
}
