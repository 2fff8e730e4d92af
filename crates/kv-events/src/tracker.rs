//! Which batches come next: gaps, duplicates and restarts by sequence number. No socket, no clock.
//!
//! vLLM numbers its batches from 0 in each life of the server and keeps the last ones for replay (R71-R73). Nothing
//! names the life, so after a reconnect the number alone does not tell whether the server is the same: the batch seen
//! last is asked for again, and only if it comes back byte for byte is this a continuation.

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

/// Where a publisher's stream stands: enough to go on after a restart of this process
/// ([`Subscription::resume`](crate::Subscription::resume)). Means the same to any build on any machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Number of the batch that comes next.
    next: u64,
    /// XXH3 (64 bits) of the payload of the batch before it; 0 if there is none.
    last_hash: u64,
}

impl Position {
    /// Before the first batch of a life.
    const BEGINNING: Self = Self { next: 0, last_hash: 0 };

    /// Number of the batch seen last, `None` at the beginning.
    const fn last(self) -> Option<u64> {
        self.next.checked_sub(1)
    }
}

/// Follows the sequence numbers of one publisher.
///
/// Its owner tells it of each connection and of each batch, live or replayed, and does what the [`Admission`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tracker {
    /// `None` before anything is known.
    position: Option<Position>,
    /// Whether the peer of this connection is known to be the one that `position` speaks of.
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

/// What a batch of a quiet check says of the peer that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recognition {
    /// It is the one of this connection: it repeated the batch seen last.
    Same,
    /// It is another, or no longer has that batch.
    Other,
    /// Nothing yet.
    Open,
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
    /// The connection was cut or this process restarted, and what happened meanwhile, a restart of the server even,
    /// cannot be told.
    Unverified,
    /// A batch came that could not be read.
    Unreadable,
}

impl Tracker {
    /// A tracker that has seen nothing.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// A tracker that has seen all before `position`.
    pub(crate) fn at(position: Position) -> Self {
        Self { position: Some(position), ..Self::default() }
    }

    /// Where the stream stands.
    pub(crate) fn position(&self) -> Option<Position> {
        self.position
    }

    /// A new connection to the publisher; who is at its other end is open.
    pub(crate) fn connected(&mut self) {
        self.is_verified = false;
        self.last_live = None;
    }

    /// Where a replay must start to fill what is missing, and to show whether the server is still the same.
    pub(crate) fn replay_start(&self) -> u64 {
        match self.position {
            Some(position) if self.is_verified => position.next,
            _ => self.check_start(),
        }
    }

    /// Where a replay must start that nothing on this connection gave rise to: at the batch seen last, whose bytes show
    /// whether the one who answers is still the one who was heard.
    pub(crate) fn check_start(&self) -> u64 {
        self.position.and_then(Position::last).unwrap_or(0)
    }

    /// Whether a quiet check has to recognise the peer before its batches may be offered to [`Tracker::replayed`],
    /// which does so itself while the peer of the connection is open.
    pub(crate) fn must_recognise(&self) -> bool {
        self.is_verified && self.position.is_some_and(|position| position.next > 0)
    }

    /// Whether a batch of a replay that began at [`Tracker::check_start`] shows who sent it.
    pub(crate) fn recognise(&self, seq: u64, payload: &[u8]) -> Recognition {
        let Some(position) = self.position else { return Recognition::Other };
        match position.last() {
            Some(last) if seq < last => Recognition::Open,
            Some(last) if seq == last && xxh3_64(payload) == position.last_hash => {
                Recognition::Same
            }
            _ => Recognition::Other,
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
            match self.position.and_then(Position::last) {
                None if seq == 0 => Admission::Take(None),
                None => Admission::Take(Some(Loss::Beginning { batches: seq })),
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
    /// `can_replay`: whether another may still bring what is missing; not if the last one had the same hole.
    pub(crate) fn replayed(&mut self, seq: u64, payload: &[u8], can_replay: bool) -> Admission {
        let admission = if self.is_verified {
            self.in_order(seq, can_replay)
        } else if self.position.and_then(Position::last).is_none() {
            Admission::Take((seq > 0).then_some(Loss::Beginning { batches: seq }))
        } else {
            match self.recognise(seq, payload) {
                Recognition::Same => {
                    self.is_verified = true;
                    Admission::Drop
                }
                Recognition::Open => Admission::Drop,
                Recognition::Other if seq == self.check_start() => {
                    self.begin_anew();
                    return Admission::Restarted;
                }
                // It no longer has the one seen last, if it ever had.
                Recognition::Other => Admission::Take(Some(Loss::Unverified)),
            }
        };
        self.note(admission, seq, payload)
    }

    /// The end of a replay. Returns whether it shows that the server began anew: then forget all and replay again.
    pub(crate) fn replay_ended(&mut self) -> bool {
        if self.is_verified {
            return false;
        }
        if self.position.is_some_and(|position| position.next > 0) {
            // Every server keeps its latest batch: this one has not come as far as the one seen.
            self.begin_anew();
            return true;
        }
        self.position = Some(Position::BEGINNING);
        self.is_verified = true;
        false
    }

    /// By number alone, the peer being known.
    fn in_order(&self, seq: u64, can_replay: bool) -> Admission {
        let next = self.position.map_or(0, |position| position.next);
        match seq.checked_sub(next) {
            None => Admission::Drop,
            Some(0) => Admission::Take(None),
            Some(_) if can_replay => Admission::Replay,
            Some(batches) => Admission::Take(Some(Loss::Gap { batches })),
        }
    }

    fn note(&mut self, admission: Admission, seq: u64, payload: &[u8]) -> Admission {
        if matches!(admission, Admission::Take(_)) {
            let next = seq.saturating_add(1);
            self.position = Some(Position { next, last_hash: xxh3_64(payload) });
            self.is_verified = true;
        }
        admission
    }

    /// Another life of the server, of which nothing is known.
    fn begin_anew(&mut self) {
        *self = Self::at(Position::BEGINNING);
    }
}

#[cfg(test)]
mod tests;
