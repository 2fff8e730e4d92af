//! The last instance chosen per key.

use hashbrown::HashMap;
use kvroute_types::{InstanceId, Timestamp};
use rustc_hash::FxBuildHasher;
use serde::{Deserialize, Serialize};

use crate::error::{ConfigError, expiry_ns};
use crate::recency::{Links, Recency};
use crate::slab::{NIL, Slab};

/// Bounds of a [`LastRoute`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LastRouteConfig {
    /// Most keys remembered; at least 1. Beyond it the key whose route is oldest goes.
    ///
    /// Default 65,536, about 5 MB: more sessions than a fleet of 64 instances holds in its caches
    /// (our choice).
    pub capacity_keys: u32,
    /// Age in seconds at which a route no longer counts; above 0. `None`: never.
    ///
    /// Default `None`, as in [`HistoryConfig::expiry_s`](crate::HistoryConfig::expiry_s).
    pub expiry_s: Option<f64>,
}

impl Default for LastRouteConfig {
    fn default() -> Self {
        Self { capacity_keys: 65_536, expiry_s: None }
    }
}

/// Where and when the last request of a key went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The instance chosen.
    pub instance: InstanceId,
    /// When it was chosen.
    pub at: Timestamp,
}

/// Remembers, per 64-bit key, the last [`Route`].
///
/// With a hash of the prompt's prefix, or of the session, as key this is the "last prefix match" or
/// "last session match" of affinity scores. Bounded by `capacity_keys`; every operation but
/// [`remove_instance`](Self::remove_instance) takes constant time.
#[derive(Debug)]
pub struct LastRoute {
    ids: HashMap<u64, u32, FxBuildHasher>,
    entries: Slab<Entry>,
    recency: Recency,
    expiry_ns: u64,
}

impl LastRoute {
    /// An empty map with these bounds.
    ///
    /// # Errors
    /// If the capacity is zero or the expiry is not a finite number of seconds above zero.
    pub fn new(config: LastRouteConfig) -> Result<Self, ConfigError> {
        let LastRouteConfig { capacity_keys, expiry_s } = config;
        if capacity_keys == 0 {
            return Err(ConfigError::ZeroCapacityKeys);
        }
        Ok(Self {
            ids: HashMap::default(),
            entries: Slab::new(capacity_keys as usize),
            recency: Recency::default(),
            expiry_ns: expiry_ns(expiry_s)?,
        })
    }

    /// A request with this key was routed to `instance` at `now`.
    pub fn insert(&mut self, now: Timestamp, key: u64, instance: InstanceId) {
        let route = Route { instance, at: now };
        let id = if let Some(&id) = self.ids.get(&key) {
            self.recency.remove(&mut self.entries, Entry::links, id);
            self.entries[id].route = route;
            id
        } else {
            if self.entries.len() == self.entries.limit() {
                self.forget(self.recency.oldest());
            }
            let id = self.entries.insert(Entry { key, route, links: Links::default() });
            self.ids.insert(key, id);
            id
        };
        self.recency.add_behind(&mut self.entries, Entry::links, NIL, id);
    }

    /// The last route of `key`, unless it is unknown, forgotten or, at `now`, expired.
    ///
    /// Looking does not count as use: the order in which keys are forgotten is that of their routes.
    pub fn get(&self, now: Timestamp, key: u64) -> Option<Route> {
        let route = self.entries[*self.ids.get(&key)?].route;
        (now.nanos_since(route.at) < self.expiry_ns).then_some(route)
    }

    /// The instance restarted or left: forgets every route to it. Takes time linear in [`len`](Self::len).
    pub fn remove_instance(&mut self, instance: InstanceId) {
        let mut id = self.recency.oldest();
        while id != NIL {
            let Entry { route, links, .. } = self.entries[id];
            if route.instance == instance {
                self.forget(id);
            }
            id = links.newer;
        }
    }

    /// Number of keys remembered, expired ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no key is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn forget(&mut self, id: u32) {
        self.recency.remove(&mut self.entries, Entry::links, id);
        self.ids.remove(&self.entries.remove(id).key);
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    key: u64,
    route: Route,
    links: Links,
}

impl Entry {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

impl Default for Entry {
    fn default() -> Self {
        let route = Route { instance: InstanceId(0), at: Timestamp::ZERO };
        Self { key: 0, route, links: Links::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn at(s: f64) -> Timestamp {
        Timestamp::from_secs_f64(s)
    }

    #[test]
    fn the_key_routed_longest_ago_goes_first() {
        let config = LastRouteConfig { capacity_keys: 2, expiry_s: None };
        let mut routes = LastRoute::new(config).unwrap();
        routes.insert(at(0.0), 1, InstanceId(10));
        routes.insert(at(1.0), 2, InstanceId(20));
        routes.insert(at(2.0), 1, InstanceId(11));
        routes.insert(at(3.0), 3, InstanceId(30));
        assert_eq!(routes.get(at(3.0), 2), None);
        assert_eq!(routes.get(at(3.0), 1), Some(Route { instance: InstanceId(11), at: at(2.0) }));
        assert_eq!(routes.len(), 2);
    }

    #[test]
    fn bad_bounds_are_refused() {
        let config = LastRouteConfig { capacity_keys: 0, expiry_s: None };
        assert_eq!(LastRoute::new(config).err(), Some(ConfigError::ZeroCapacityKeys));
        let config = LastRouteConfig { expiry_s: Some(0.0), ..Default::default() };
        assert_eq!(LastRoute::new(config).err(), Some(ConfigError::BadExpiry { expiry_s: 0.0 }));
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_map(
            ops in prop::collection::vec((0..12_u64, 0..4_u32, 0..3_u32, prop::bool::weighted(0.05)), 1..200),
            capacity_keys in 1..10_u32,
        ) {
            let config = LastRouteConfig { capacity_keys, expiry_s: Some(8.0) };
            let mut routes = LastRoute::new(config).unwrap();
            // key -> (order of its last insert, route)
            let mut model = BTreeMap::<u64, (usize, Route)>::new();
            let mut now_s = 0;
            for (order, (key, instance, step_s, removes)) in ops.into_iter().enumerate() {
                now_s += step_s;
                let (now, instance) = (at(f64::from(now_s)), InstanceId(instance));
                if removes {
                    routes.remove_instance(instance);
                    model.retain(|_, (_, route)| route.instance != instance);
                } else {
                    routes.insert(now, key, instance);
                    model.insert(key, (order, Route { instance, at: now }));
                    if model.len() > capacity_keys as usize {
                        let oldest = model.iter().min_by_key(|(_, (order, _))| *order);
                        let oldest = *oldest.unwrap().0;
                        model.remove(&oldest);
                    }
                }
                prop_assert_eq!(routes.len(), model.len());
                for key in 0..12 {
                    let expected = model.get(&key).map(|(_, route)| *route);
                    let expected = expected.filter(|route| now.as_secs_f64() - route.at.as_secs_f64() < 8.0);
                    prop_assert_eq!(routes.get(now, key), expected);
                }
            }
        }
    }
}
