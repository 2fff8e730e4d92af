//! Which batches come next: gaps, duplicates and restarts by sequence number. No socket, no clock.
//!
//! vLLM numbers its batches from 0 in each life of the server and keeps the last ones for replay (R71-R73). Nothing
//! names the life, so after a reconnect the number alone does not tell whether the server is the same: the batch seen
//! last is asked for again, and only if it comes back byte for byte is this a continuation.

use std::hash::Hasher;

use rustc_hash::FxHasher;

/// Follows the sequence numbers of one publisher.
///
/// Its owner tells it of each connection and of each batch, live or replayed, and does what the [`Admission`] says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracker {
    /// Number of the batch that comes next, and the bytes' hash of the one before; `None` before any was seen.
    next: Option<(u64, u64)>,
    /// Whether the peer of this connection is known to be the one that `next` speaks of.
    is_verified: bool,
    /// Number of the latest live batch of this connection.
    last_live: Option<u64>,
}

/// What to do with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It is the next one: use it. If something is missing before it, say that first.
    Take(Option<Loss>),
    /// It was seen before.
    Drop,
    /// Batches before it are missing: replay from [`Tracker::replay_start`], then offer a live batch again.
    Replay,
    /// The server began anew and its cache with it: forget all, replay from [`Tracker::replay_start`] and offer a live
    /// batch again.
    Restarted,
}

/// Why what was said so far can no longer be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The first batches of the server's life were never seen: it is older than the subscription.
    Beginning {
        /// How many.
        batches: u64,
    },
    /// Batches in the middle are missing and could not be replayed.
    Gap {
        /// How many.
        batches: u64,
    },
    /// The connection was cut, and what happened meanwhile, a restart even, cannot be told.
    Unverified,
    /// A batch came that could not be read.
    Unreadable,
}

impl Tracker {
    /// A tracker that has seen nothing.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A new connection to the publisher; who is at its other end is open.
    pub(crate) fn connected(&mut self) {
        self.is_verified = false;
        self.last_live = None;
    }

    /// Where a replay must start to fill what is missing, and to show whether the server is still the same.
    pub(crate) fn replay_start(&self) -> u64 {
        match self.next {
            Some((next, _)) if self.is_verified => next,
            Some((next, _)) => next.saturating_sub(1),
            None => 0,
        }
    }

    /// A batch from the publisher. `can_replay`: whether a replay may still bring what is missing.
    pub(crate) fn live(&mut self, seq: u64, payload: &[u8], can_replay: bool) -> Admission {
        if self.last_live.is_some_and(|last| seq <= last) {
            // One connection never counts back: somebody in between changed the peer.
            self.begin_anew();
            return Admission::Restarted;
        }
        let admission = if self.is_verified {
            self.in_order(seq, can_replay)
        } else if can_replay {
            Admission::Replay
        } else {
            match self.next {
                None | Some((0, _)) if seq == 0 => Admission::Take(None),
                None | Some((0, _)) => Admission::Take(Some(Loss::Beginning { batches: seq })),
                Some(_) if seq == 0 => {
                    self.begin_anew();
                    return Admission::Restarted;
                }
                Some(_) => Admission::Take(Some(Loss::Unverified)),
            }
        };
        if matches!(admission, Admission::Take(_) | Admission::Drop) {
            self.last_live = Some(seq);
        }
        self.note(admission, seq, payload)
    }

    /// A batch of a replay that began at [`Tracker::replay_start`]. [`Admission::Replay`] means that the replay itself
    /// has a hole (a ROUTER drops what a slow reader leaves behind): begin another, as long as each brings something.
    pub(crate) fn replayed(&mut self, seq: u64, payload: &[u8]) -> Admission {
        let admission = match self.next {
            _ if self.is_verified => self.in_order(seq, true),
            None | Some((0, _)) if seq == 0 => Admission::Take(None),
            None | Some((0, _)) => Admission::Take(Some(Loss::Beginning { batches: seq })),
            Some((next, last)) if seq == next - 1 => {
                if hash(payload) != last {
                    self.begin_anew();
                    return Admission::Restarted;
                }
                self.is_verified = true;
                Admission::Drop
            }
            Some((next, _)) if seq < next => Admission::Drop,
            // It no longer has the one seen last, if it ever had.
            Some(_) => Admission::Take(Some(Loss::Unverified)),
        };
        self.note(admission, seq, payload)
    }

    /// The end of a replay. Returns whether it shows that the server began anew: then forget all and replay again.
    pub(crate) fn replay_ended(&mut self) -> bool {
        if self.is_verified {
            return false;
        }
        if self.next.is_some_and(|(next, _)| next > 0) {
            // Every server keeps its latest batch: this one has not come as far as the one seen.
            self.begin_anew();
            return true;
        }
        self.next = Some((0, 0));
        self.is_verified = true;
        false
    }

    /// By number alone, the peer being known.
    fn in_order(&self, seq: u64, can_replay: bool) -> Admission {
        let next = self.next.map_or(0, |(next, _)| next);
        match seq.checked_sub(next) {
            None => Admission::Drop,
            Some(0) => Admission::Take(None),
            Some(_) if can_replay => Admission::Replay,
            Some(batches) => Admission::Take(Some(Loss::Gap { batches })),
        }
    }

    fn note(&mut self, admission: Admission, seq: u64, payload: &[u8]) -> Admission {
        if matches!(admission, Admission::Take(_)) {
            self.next = Some((seq.saturating_add(1), hash(payload)));
            self.is_verified = true;
        }
        admission
    }

    /// Another life of the server, of which nothing is known.
    fn begin_anew(&mut self) {
        *self = Self { next: Some((0, 0)), ..Self::default() };
    }
}

fn hash(payload: &[u8]) -> u64 {
    let mut hasher = FxHasher::default();
    hasher.write(payload);
    hasher.finish()
}

#[cfg(test)]
mod tests;
