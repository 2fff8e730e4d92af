//! Going back in time: an engine is marked, used as if time went on, and rewound to the mark.
//!
//! So one can see what an engine would do with a request, from the engine itself, and decide otherwise. Work and memory are
//! proportional to the requests that are there and to what changes after the mark, not to the block pool: that keeps a
//! journal, all the rest is copied.

use kvroute_profile::StepModel;

use crate::config::EngineConfig;
use crate::engine::Engine;

/// The state of an engine at one time. It may be used again and again, for engines of any size, and keeps its memory.
#[derive(Debug, Default)]
pub struct Mark {
    /// The marked engine but for its block pool, with a pool of one block in its place.
    copy: Option<Engine>,
}

impl Mark {
    /// One that marks nothing yet.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine {
    /// Notes the engine's present state, to which [`Engine::rewind`] with the same `mark` brings it back.
    ///
    /// Until then it reports no cache events, and its inter-token times begin anew; nothing else differs from an engine
    /// without a mark. There is one mark at a time for each engine.
    pub fn mark(&mut self, mark: &mut Mark) {
        let copy = mark.copy.get_or_insert_with(|| Self::empty(self.step_model.clone()));
        copy.copy_from(self);
        std::mem::swap(&mut self.inter_token_ns, &mut copy.inter_token_ns);
        self.scheduler.config.kv_events = false;
        self.scheduler.pool.mark();
    }

    /// Back to the state at the mark, as if nothing had happened since; an engine that is not marked stays as it is.
    ///
    /// `mark` is the one it was marked with, or the engine becomes another.
    pub fn rewind(&mut self, mark: &mut Mark) {
        let Some(copy) = &mut mark.copy else { return };
        if !self.scheduler.pool.rewind() {
            return;
        }
        std::mem::swap(self, copy);
        std::mem::swap(&mut self.scheduler.pool, &mut copy.scheduler.pool);
    }

    /// An engine that nothing can run on.
    fn empty(step_model: StepModel) -> Self {
        Self::unchecked(EngineConfig { kv_blocks: 1, ..EngineConfig::default() }, step_model)
    }

    /// Becomes a copy of `other` but for the block pool and the inter-token times, keeping the memory it has.
    fn copy_from(&mut self, other: &Self) {
        let Self {
            scheduler,
            step_model,
            inputs,
            pipeline,
            front_end,
            drained,
            taken_in,
            slowdown,
            leap,
            inter_token_ns: _,
            spare_batches: _,
            fixed_s,
        } = other;
        self.scheduler.copy_from(scheduler);
        self.step_model.clone_from(step_model);
        self.inputs.clone_from(inputs);
        self.spare_batches.extend(self.pipeline.drain(..));
        for batch in pipeline {
            let mut copy = self.spare_batches.pop().unwrap_or_default();
            copy.copy_from(batch);
            self.pipeline.push_back(copy);
        }
        self.front_end = *front_end;
        self.drained = *drained;
        self.taken_in = *taken_in;
        self.slowdown = *slowdown;
        self.leap.clone_from(leap);
        self.fixed_s = *fixed_s;
    }
}
