//! Recency order as an intrusive list: who was used last, who first, all in constant time.

use crate::slab::{NIL, Slab};

/// An item's neighbours in one list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Links {
    /// The next more recently used item; [`NIL`] at the newest end.
    pub(crate) newer: u32,
    /// The next less recently used item; [`NIL`] at the oldest end.
    pub(crate) older: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { newer: NIL, older: NIL }
    }
}

/// The ends of a list whose links live in the items.
///
/// An item may be in several lists, so each call names the links it means: `links` maps an item to
/// its links in this list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recency {
    newest: u32,
    oldest: u32,
}

impl Default for Recency {
    fn default() -> Self {
        Self { newest: NIL, oldest: NIL }
    }
}

impl Recency {
    /// The least recently used item, or [`NIL`] if there is none.
    pub(crate) fn oldest(self) -> u32 {
        self.oldest
    }

    /// Whether the list has no item.
    pub(crate) fn is_empty(self) -> bool {
        self.oldest == NIL
    }

    /// Adds item `id` as the next older than `newer`, or as the newest of all if that is [`NIL`].
    pub(crate) fn add_behind<T: Default>(
        &mut self,
        items: &mut Slab<T>,
        links: impl Fn(&mut T) -> &mut Links,
        newer: u32,
        id: u32,
    ) {
        let older = if newer == NIL {
            std::mem::replace(&mut self.newest, id)
        } else {
            std::mem::replace(&mut links(&mut items[newer]).older, id)
        };
        if older == NIL {
            self.oldest = id;
        } else {
            links(&mut items[older]).newer = id;
        }
        *links(&mut items[id]) = Links { newer, older };
    }

    /// Takes item `id` out of the list.
    pub(crate) fn remove<T: Default>(
        &mut self,
        items: &mut Slab<T>,
        links: impl Fn(&mut T) -> &mut Links,
        id: u32,
    ) {
        let Links { newer, older } = std::mem::take(links(&mut items[id]));
        if newer == NIL {
            self.newest = older;
        } else {
            links(&mut items[newer]).older = older;
        }
        if older == NIL {
            self.oldest = newer;
        } else {
            links(&mut items[older]).newer = newer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_go_where_they_are_put() {
        let mut items = Slab::<Links>::new(10);
        let mut order = Recency::default();
        let [a, b, c, d] = [(); 4].map(|()| items.insert(Links::default()));
        order.add_behind(&mut items, |l| l, NIL, a);
        order.add_behind(&mut items, |l| l, NIL, b);
        order.add_behind(&mut items, |l| l, b, c);
        order.add_behind(&mut items, |l| l, a, d);
        let mut oldest_first = Vec::new();
        for removed in [b, d, a, c] {
            let mut id = order.oldest();
            while id != NIL {
                oldest_first.push(id);
                id = items[id].newer;
            }
            order.remove(&mut items, |l| l, removed);
        }
        assert_eq!(oldest_first, [d, a, c, b, d, a, c, a, c, c]);
        assert!(order.is_empty());
    }
}
