//! Exact accounting of work in flight.

use kvroute_types::{InstanceId, RequestId, Timestamp};

/// A request in flight. Handed out by [`crate::Router::route`], given back to [`crate::Router::end`]; neither copied
/// nor cloned, so work can be released once and only once.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "give the ticket to Router::end, or the request stays in flight for ever"]
pub struct Ticket {
    pub(crate) slot: u32,
    pub(crate) request: RequestId,
}

impl Ticket {
    /// The request that was routed.
    pub const fn request(&self) -> RequestId {
        self.request
    }
}

/// What a ticket stands for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) instance: InstanceId,
    pub(crate) sent: Timestamp,
    /// Prompt tokens.
    pub(crate) prompt_tokens: u32,
    /// Those of them not believed cached.
    pub(crate) uncached_tokens: u32,
    /// Whether its first output token was seen.
    pub(crate) is_decoding: bool,
    /// Whether it was sent too late for the instance's latest load reading.
    pub(crate) is_unseen: bool,
    /// Distinguishes successive users of a slot.
    pub(crate) generation: u32,
}

/// Flights by slot; slots are reused, each time under the next generation.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    slots: Vec<Flight>,
    free: Vec<u32>,
}

impl Flights {
    pub(crate) fn insert(&mut self, mut flight: Flight) -> u32 {
        if let Some(slot) = self.free.pop() {
            flight.generation = self.slots[slot as usize].generation.wrapping_add(1);
            self.slots[slot as usize] = flight;
            slot
        } else {
            self.slots.push(flight);
            u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 requests in flight")
        }
    }

    pub(crate) fn get_mut(&mut self, slot: u32) -> &mut Flight {
        &mut self.slots[slot as usize]
    }

    pub(crate) fn generation(&self, slot: u32) -> u32 {
        self.slots[slot as usize].generation
    }

    /// The flight in a slot, if it is still the one of this generation and not seen by its instance yet.
    pub(crate) fn unseen(&mut self, (slot, generation): (u32, u32)) -> Option<&mut Flight> {
        let flight = self.slots.get_mut(slot as usize)?;
        (flight.generation == generation && flight.is_unseen).then_some(flight)
    }

    /// Ends a flight; its slot is free.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "taking the ticket is what forbids a second release"
    )]
    pub(crate) fn remove(&mut self, ticket: Ticket) -> Flight {
        let Ticket { slot, request: _ } = ticket;
        self.free.push(slot);
        let flight = &mut self.slots[slot as usize];
        let ended = *flight;
        flight.is_unseen = false;
        ended
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}
