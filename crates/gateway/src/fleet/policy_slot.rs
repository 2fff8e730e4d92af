//! A policy that can be exchanged under a running router, which keeps its table, its work in flight and its directory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvroute_policy::{Candidate, Decision, Event, Needs, Policy, RequestView, Scores};
use kvroute_types::Timestamp;

/// Lets the policy be exchanged while the router runs.
pub(super) struct PolicySlot(pub(super) Arc<Mutex<Box<dyn Policy>>>);

impl PolicySlot {
    fn policy(&self) -> MutexGuard<'_, Box<dyn Policy>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for PolicySlot {
    fn name(&self) -> &'static str {
        self.policy().name()
    }

    fn needs(&self) -> Needs {
        // Whatever comes later may read anything.
        Needs { index: true, load: true, kv_cache_usage: true }
    }

    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        self.policy().choose(now, request, candidates, scores)
    }

    fn observe(&mut self, event: Event<'_>) {
        self.policy().observe(event);
    }
}
