//! Which physical block holds which content: block key -> blocks, earliest registered first (R6c, R16).

use hashbrown::HashMap;
use kvroute_types::BlockKey;
use rustc_hash::FxBuildHasher;

/// Keys per page; a power of two. A prompt's keys mostly count up, so one hash probe serves a page of them.
const PAGE: u32 = 32;
/// Set in an entry whose key has further copies in `duplicates`.
const HAS_DUPLICATES: u32 = 1 << 31;
/// No block: id 0 is the null block and never cached (R2).
const NONE: u32 = 0;

/// Map from block key to the physical blocks that hold it.
///
/// A page table: `key / 32` is hashed to a page, the rest indexes into it. Pages live only while they hold an entry,
/// so memory follows the blocks in the pool and not the keys of the workload.
#[derive(Debug)]
pub(crate) struct CachedBlocks {
    directory: HashMap<u32, u32, FxBuildHasher>,
    pages: Vec<Page>,
    free_pages: Vec<u32>,
    /// Further copies of a key beyond the first, in order of registration.
    duplicates: HashMap<u32, Vec<u32>, FxBuildHasher>,
    /// The page used last: `(page number, index into pages)`.
    last: Option<(u32, u32)>,
}

#[derive(Clone, Debug)]
struct Page {
    entries: [u32; PAGE as usize],
    live: u32,
}

impl CachedBlocks {
    pub(crate) fn new() -> Self {
        Self {
            directory: HashMap::default(),
            pages: Vec::new(),
            free_pages: Vec::new(),
            duplicates: HashMap::default(),
            last: None,
        }
    }

    /// Appends the blocks of the leading keys of `start, start + 1, …` (at most `len`) to `found`, up to the first
    /// key that is not cached; returns how many were found. The earliest registered copy stands for a key (R16).
    pub(crate) fn leading(&self, start: BlockKey, len: u32, found: &mut Vec<u32>) -> u32 {
        let mut key = start.0;
        let end = start.0 + len;
        while key < end {
            let Some(&page) = self.directory.get(&(key / PAGE)) else { break };
            let page = &self.pages[page as usize];
            let stop = end.min((key / PAGE + 1) * PAGE);
            let (from, to) = ((key % PAGE) as usize, (key % PAGE + (stop - key)) as usize);
            for &entry in &page.entries[from..to] {
                if entry == NONE {
                    return key - start.0;
                }
                found.push(entry & !HAS_DUPLICATES);
                key += 1;
            }
        }
        key - start.0
    }

    /// Registers `block` as a holder of `key`, behind any that hold it already.
    pub(crate) fn insert(&mut self, key: BlockKey, block: u32) {
        let page = self.page_or_new(key.0 / PAGE);
        let page = &mut self.pages[page as usize];
        let entry = &mut page.entries[(key.0 % PAGE) as usize];
        if *entry == NONE {
            *entry = block;
            page.live += 1;
        } else {
            *entry |= HAS_DUPLICATES;
            self.duplicates.entry(key.0).or_default().push(block);
        }
    }

    /// Registers `block` as a holder of `key` with `place` holders before it: undoes a [`CachedBlocks::remove`].
    pub(crate) fn insert_at(&mut self, key: BlockKey, block: u32, place: usize) {
        let page = self.page_or_new(key.0 / PAGE);
        let entry = &mut self.pages[page as usize].entries[(key.0 % PAGE) as usize];
        if *entry == NONE {
            return self.insert(key, block);
        }
        let copies = self.duplicates.entry(key.0).or_default();
        if place == 0 {
            copies.insert(0, *entry & !HAS_DUPLICATES);
            *entry = block | HAS_DUPLICATES;
        } else {
            copies.insert(place - 1, block);
            *entry |= HAS_DUPLICATES;
        }
    }

    /// Takes `block` out of the holders of `key`, where it must be; returns how many stood before it.
    pub(crate) fn remove(&mut self, key: BlockKey, block: u32) -> usize {
        let number = key.0 / PAGE;
        let index = self.page(number).expect("a registered block's key has a page");
        let page = &mut self.pages[index as usize];
        let entry = &mut page.entries[(key.0 % PAGE) as usize];
        if *entry == block {
            *entry = NONE;
            page.live -= 1;
            if page.live == 0 {
                self.directory.remove(&number);
                self.free_pages.push(index);
                self.last = None;
            }
            0
        } else {
            self.remove_duplicate(key, block, index)
        }
    }

    /// Number of distinct keys held.
    #[cfg(test)]
    pub(crate) fn distinct_keys(&self) -> usize {
        self.directory.values().map(|&page| self.pages[page as usize].live as usize).sum()
    }

    fn remove_duplicate(&mut self, key: BlockKey, block: u32, page: u32) -> usize {
        let copies = self.duplicates.get_mut(&key.0).expect("a flagged key has further copies");
        let entry = &mut self.pages[page as usize].entries[(key.0 % PAGE) as usize];
        let place = if *entry & !HAS_DUPLICATES == block {
            *entry = copies.remove(0) | HAS_DUPLICATES;
            0
        } else {
            let at = copies.iter().position(|&b| b == block).expect("the block holds the key");
            copies.remove(at);
            at + 1
        };
        if copies.is_empty() {
            *entry &= !HAS_DUPLICATES;
            self.duplicates.remove(&key.0);
        }
        place
    }

    fn page(&mut self, number: u32) -> Option<u32> {
        match self.last {
            Some((last, index)) if last == number => Some(index),
            _ => {
                let index = *self.directory.get(&number)?;
                self.last = Some((number, index));
                Some(index)
            }
        }
    }

    fn page_or_new(&mut self, number: u32) -> u32 {
        if let Some(index) = self.page(number) {
            return index;
        }
        let index = self.free_pages.pop().unwrap_or_else(|| {
            self.pages.push(Page { entries: [NONE; PAGE as usize], live: 0 });
            u32::try_from(self.pages.len() - 1).expect("fewer pages than block ids")
        });
        self.directory.insert(number, index);
        self.last = Some((number, index));
        index
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn leading(map: &CachedBlocks, start: u32, len: u32) -> Vec<u32> {
        let mut found = Vec::new();
        let n = map.leading(BlockKey(start), len, &mut found);
        assert_eq!(n as usize, found.len());
        found
    }

    proptest! {
        /// Against the plain thing: a map from key to the ordered list of its holders.
        #[test]
        fn agrees_with_a_plain_map(ops in prop::collection::vec((0u32..80, 0u32..5), 1..400)) {
            let mut map = CachedBlocks::new();
            let mut naive: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
            let mut next_block = 1;
            for (key, op) in ops {
                let holders = naive.entry(key).or_default();
                if op < 2 || holders.is_empty() {
                    map.insert(BlockKey(key), next_block);
                    holders.push(next_block);
                    next_block += 1;
                } else {
                    let place = (op as usize + next_block as usize) % holders.len();
                    let block = holders.remove(place);
                    prop_assert_eq!(map.remove(BlockKey(key), block), place);
                    if op == 3 {
                        map.insert_at(BlockKey(key), block, place);
                        holders.insert(place, block);
                    }
                }
                naive.retain(|_, holders| !holders.is_empty());
                prop_assert_eq!(map.distinct_keys(), naive.len());
                let expected: Vec<u32> =
                    (key..80).map_while(|k| naive.get(&k).map(|holders| holders[0])).collect();
                prop_assert_eq!(leading(&map, key, 80 - key), expected);
            }
        }
    }
}
