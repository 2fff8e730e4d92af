//! What is remembered of sessions, first of all where they are: a table with a bound on its size and an expiry.

use hashbrown::HashMap;
use kvroute_types::Timestamp;
use rustc_hash::FxBuildHasher;

/// No entry.
const NIL: u32 = u32::MAX;

/// A value for each session that was seen lately. Every operation takes constant time.
///
/// Entries are linked in the order of their last use, the oldest first, so the next to expire is at hand.
#[derive(Clone, Debug)]
pub(crate) struct Sessions<V> {
    /// Looked up by key only: its order plays no part.
    ids: HashMap<u64, u32, FxBuildHasher>,
    entries: Vec<Entry<V>>,
    /// First of the entries not in use, linked by `newer`.
    free: u32,
    oldest: u32,
    newest: u32,
    capacity: usize,
    ttl_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry<V> {
    key: u64,
    value: V,
    used: Timestamp,
    older: u32,
    newer: u32,
}

impl<V: Copy> Sessions<V> {
    /// An empty table for at most so many sessions, at least 1, each kept for the time after its last use.
    pub(crate) fn new(capacity: u32, ttl_s: f64) -> Self {
        Self {
            ids: HashMap::default(),
            entries: Vec::new(),
            free: NIL,
            oldest: NIL,
            newest: NIL,
            capacity: capacity.max(1) as usize,
            ttl_ns: Timestamp::from_secs_f64(ttl_s).as_nanos(),
        }
    }

    /// The session's value, unless it is unknown, forgotten or expired. Looking is no use.
    pub(crate) fn get(&self, now: Timestamp, key: u64) -> Option<V> {
        let entry = &self.entries[*self.ids.get(&key)? as usize];
        (now.nanos_since(entry.used) < self.ttl_ns).then_some(entry.value)
    }

    /// The session has this value, and was used now. Returns the value that is not there any more: its own, or that of
    /// the oldest, which had to go for it.
    pub(crate) fn put(&mut self, now: Timestamp, key: u64, value: V) -> Option<V> {
        let mut gone = None;
        let id = if let Some(&id) = self.ids.get(&key) {
            self.unlink(id);
            gone = Some(self.entries[id as usize].value);
            id
        } else {
            if self.ids.len() == self.capacity {
                gone = self.remove(self.oldest);
            }
            let id = self.slot(value);
            self.ids.insert(key, id);
            id
        };
        let older = self.newest;
        self.entries[id as usize] = Entry { key, value, used: now, older, newer: NIL };
        match self.entries.get_mut(older as usize) {
            Some(older) => older.newer = id,
            None => self.oldest = id,
        }
        self.newest = id;
        gone
    }

    /// Forgets the oldest session if it has expired, and returns its value.
    pub(crate) fn expire_one(&mut self, now: Timestamp) -> Option<V> {
        let oldest = self.entries.get(self.oldest as usize)?;
        let is_expired = now.nanos_since(oldest.used) >= self.ttl_ns;
        if is_expired { self.remove(self.oldest) } else { None }
    }

    fn remove(&mut self, id: u32) -> Option<V> {
        let Entry { key, value, .. } = *self.entries.get(id as usize)?;
        self.unlink(id);
        self.ids.remove(&key);
        self.entries[id as usize].newer = self.free;
        self.free = id;
        Some(value)
    }

    fn unlink(&mut self, id: u32) {
        let Entry { older, newer, .. } = self.entries[id as usize];
        match self.entries.get_mut(older as usize) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer as usize) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    /// An entry not in use. A value stands in until it is written.
    fn slot(&mut self, value: V) -> u32 {
        if let Some(entry) = self.entries.get(self.free as usize) {
            return std::mem::replace(&mut self.free, entry.newer);
        }
        let unused = Entry { key: 0, value, used: Timestamp::ZERO, older: NIL, newer: NIL };
        self.entries.push(unused);
        u32::try_from(self.entries.len() - 1).unwrap_or(NIL)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kvroute_types::{InstanceId, mix64};

    use super::*;

    /// Against a map that is looked through from end to end.
    #[test]
    fn it_is_the_plain_map_with_an_oldest_and_an_expiry() {
        let mut sessions = Sessions::new(20, 1e-6); // 1,000 ns
        let mut plain: BTreeMap<u64, (Timestamp, u64, InstanceId)> = BTreeMap::new();
        for step in 0..20_000_u64 {
            let now = Timestamp::from_nanos(20 * step + 400 * (step / 100));
            let key = mix64(step) % 40;
            let oldest = |plain: &BTreeMap<u64, (Timestamp, u64, InstanceId)>| {
                plain.iter().min_by_key(|(_, (_, used, _))| *used).map(|(&key, &it)| (key, it))
            };
            while let Some(gone) = sessions.expire_one(now) {
                let (key, (used, _, instance)) = oldest(&plain).unwrap();
                assert!(now.nanos_since(used) >= 1_000);
                assert_eq!(gone, instance);
                plain.remove(&key);
            }
            assert!(plain.values().all(|(used, ..)| now.nanos_since(*used) < 1_000));
            assert_eq!(sessions.get(now, key), plain.get(&key).map(|it| it.2));
            if mix64(step ^ 7) > u64::MAX / 3 {
                let instance = InstanceId(u32::try_from(step % 7).unwrap());
                let mut gone = plain.insert(key, (now, step, instance)).map(|it| it.2);
                if plain.len() > 20 {
                    let (oldest, (_, _, instance)) = oldest(&plain).unwrap();
                    plain.remove(&oldest);
                    gone = Some(instance);
                }
                assert_eq!(sessions.put(now, key, instance), gone);
            }
        }
        assert!(sessions.entries.len() <= 20, "memory is bounded");
        assert!(plain.len() > 10, "and was used: {}", plain.len());
    }
}
