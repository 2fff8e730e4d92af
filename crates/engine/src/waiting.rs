//! The waiting queue under both policies (R39).

use std::collections::{BTreeMap, VecDeque};

use kvroute_types::{RequestId, Timestamp};

use crate::config::SchedulingPolicy;

/// Index of a request in the scheduler's slab.
pub(crate) type Slot = u32;

/// Order of a request under priority scheduling: lower first.
pub(crate) type PriorityKey = (i32, Timestamp, RequestId);

/// Requests that wait for admission, next first.
#[derive(Clone, Debug)]
pub(crate) enum WaitingQueue {
    Fcfs(VecDeque<Slot>),
    Priority(BTreeMap<PriorityKey, Slot>),
}

impl WaitingQueue {
    pub(crate) fn new(policy: SchedulingPolicy) -> Self {
        match policy {
            SchedulingPolicy::Fcfs => Self::Fcfs(VecDeque::new()),
            SchedulingPolicy::Priority => Self::Priority(BTreeMap::new()),
        }
    }

    /// Becomes a copy of `other`, keeping its memory where it can.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        match (self, other) {
            (Self::Fcfs(queue), Self::Fcfs(other)) => queue.clone_from(other),
            (queue, other) => *queue = other.clone(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Fcfs(queue) => queue.len(),
            Self::Priority(queue) => queue.len(),
        }
    }

    pub(crate) fn peek(&self) -> Option<Slot> {
        match self {
            Self::Fcfs(queue) => queue.front().copied(),
            Self::Priority(queue) => queue.first_key_value().map(|(_, &slot)| slot),
        }
    }

    pub(crate) fn pop(&mut self) -> Option<Slot> {
        match self {
            Self::Fcfs(queue) => queue.pop_front(),
            Self::Priority(queue) => queue.pop_first().map(|(_, slot)| slot),
        }
    }

    /// A new arrival.
    pub(crate) fn push(&mut self, slot: Slot, key: PriorityKey) {
        match self {
            Self::Fcfs(queue) => queue.push_back(slot),
            Self::Priority(queue) => {
                queue.insert(key, slot);
            }
        }
    }

    /// One that comes back: preempted, or passed over in this step.
    pub(crate) fn push_front(&mut self, slot: Slot, key: PriorityKey) {
        match self {
            Self::Fcfs(queue) => queue.push_front(slot),
            Self::Priority(_) => self.push(slot, key),
        }
    }

    pub(crate) fn remove(&mut self, slot: Slot, key: PriorityKey) {
        match self {
            Self::Fcfs(queue) => queue.retain(|&other| other != slot),
            Self::Priority(queue) => {
                queue.remove(&key);
            }
        }
    }
}
