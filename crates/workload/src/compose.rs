//! Workloads made of others: one after the other, a part of one, the same with other content.

use std::collections::BTreeMap;

use kvroute_types::{SessionId, Timestamp, mix64};
use thiserror::Error;

use crate::workload::{Content, in_order};
use crate::{Arrival, Segment, SegmentId, Workload, WorkloadRequest};

/// Why workloads cannot be put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConcatError {
    /// Two parts have the same segment with different token ids: readers number content from the start, so two traces do.
    #[error(
        "part {part} has other token ids for the same content as a part before it; give it content of its own (with_salt)"
    )]
    OtherTokens {
        /// The later part, from 0.
        part: usize,
    },
}

impl Workload {
    /// Several workloads in one, each beginning at its time, so that the same engines meet them one after the other (or at
    /// once, where they overlap).
    ///
    /// Content stays what it is: the same part given twice asks the same things twice, under the same routing keys, in new
    /// sessions. **Content is known by numbers that every reader and generator counts from the start.** Workloads of
    /// different seeds or traces therefore share content by accident, unless all but one of them get a salt
    /// ([`Workload::with_salt`]).
    ///
    /// The name is that of the parts, each once; the trace's granularity the coarsest of the parts'.
    ///
    /// # Errors
    /// [`ConcatError::OtherTokens`] if two parts have token ids and disagree about them.
    ///
    /// # Panics
    /// If there are 2^32 sessions or more.
    pub fn concat(parts: impl IntoIterator<Item = (Self, Timestamp)>) -> Result<Self, ConcatError> {
        let mut names: Vec<String> = Vec::new();
        let mut all = Self::default();
        for (number, (part, start)) in parts.into_iter().enumerate() {
            let Self { name, requests, sessions, segments, literals, trace_block_size, dropped } =
                part;
            let stored = all.segments.len();
            all.requests.extend(requests.into_iter().map(|request| WorkloadRequest {
                session: SessionId(all.sessions + request.session.0),
                arrival: moved(request.arrival, |at| at.plus_nanos(start.as_nanos())),
                content: Content { start: stored + request.content.start, ..request.content },
                ..request
            }));
            all.sessions = all.sessions.checked_add(sessions).expect("fewer than 2^32 sessions");
            all.segments.extend(segments);
            for (id, tokens) in literals {
                if all.literals.get(&id).is_some_and(|known| *known != tokens) {
                    return Err(ConcatError::OtherTokens { part: number });
                }
                all.literals.insert(id, tokens);
            }
            all.trace_block_size = all.trace_block_size.max(trace_block_size);
            all.dropped = all.dropped.saturating_add(dropped);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        (all.requests, all.sessions) = in_order(all.requests);
        Ok(Self { name: names.join("+"), ..all })
    }

    /// The same requests about other things: what was equal stays equal and what was different stays different, but nothing
    /// is equal to anything of a workload with another salt, or none. Routing keys are changed alike.
    ///
    /// Token ids of a trace are given up, since they are the content: [`Workload::tokens`] then makes them up.
    #[must_use]
    pub fn with_salt(mut self, salt: u64) -> Self {
        // Each space of numbers has its own salt, and within it the map is one to one.
        let salted = |space: u64, number: u64| mix64(number ^ mix64(salt ^ mix64(space)));
        let [content, session, prefix] = [0x636f_6e74, 0x7365_7373, 0x7072_6566];
        for Segment { id, .. } in &mut self.segments {
            *id = SegmentId(salted(content, id.0));
        }
        for request in &mut self.requests {
            request.session_key = salted(session, request.session_key);
            request.prefix_key = salted(prefix, request.prefix_key);
        }
        self.literals = BTreeMap::new();
        self
    }

    /// Requests `start..start + n` as a workload of their own. Its time begins when the last request before them was due
    /// by the clock (at time 0 if there is none), so that the first of them comes after a gap as before.
    ///
    /// A session that began earlier begins with its first turn in the window. A turn that waits for one that is not there
    /// has no time of its own, and is left out: there may be fewer than `n`.
    #[must_use]
    pub fn window(mut self, start: u32, n: u32) -> Self {
        let start = (start as usize).min(self.requests.len());
        let end = start.saturating_add(n as usize).min(self.requests.len());
        let at = |request: &WorkloadRequest| match request.arrival {
            Arrival::At(at) => Some(at),
            Arrival::AfterPrevious { .. } | Arrival::Paced { .. } => None,
        };
        let origin = self.requests[..start].iter().rev().find_map(at).unwrap_or(Timestamp::ZERO);
        let mut has_begun = vec![false; self.sessions as usize];
        self.requests.truncate(end);
        self.requests.drain(..start);
        self.requests.retain(|request| {
            let has_begun = &mut has_begun[request.session.index()];
            *has_begun |= at(request).is_some();
            *has_begun
        });
        for request in &mut self.requests {
            request.arrival =
                moved(request.arrival, |at| Timestamp::from_nanos(at.nanos_since(origin)));
        }
        (self.requests, self.sessions) = in_order(self.requests);
        self
    }
}

/// The arrival with its time, if it has one, on another clock.
fn moved(arrival: Arrival, time: impl Fn(Timestamp) -> Timestamp) -> Arrival {
    match arrival {
        Arrival::At(at) => Arrival::At(time(at)),
        relative @ (Arrival::AfterPrevious { .. } | Arrival::Paced { .. }) => relative,
    }
}

#[cfg(test)]
mod tests;
