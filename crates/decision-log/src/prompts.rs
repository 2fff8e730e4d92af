//! Prompts in few bytes: a chained hash names its whole prefix, so what was written before is named by its last block.

use std::fmt::Write as _;

use hashbrown::{HashMap, HashSet};
use kvroute_types::BlockHash;
use rustc_hash::FxBuildHasher;

/// Blocks the writer remembers, some 16 MB; then it starts again.
const REMEMBERED_MAX: usize = 1 << 20;
/// Hexadecimal digits of a hash.
const DIGITS: usize = 16;

/// The blocks a log has held.
#[derive(Default)]
pub(crate) struct Written {
    /// Closed under prefixes. Looked up only.
    blocks: HashSet<BlockHash, FxBuildHasher>,
}

impl Written {
    /// The last block of the prompt that the log has held, and the blocks after it as hexadecimal digits.
    pub(crate) fn abridge(&mut self, prompt: &[BlockHash]) -> (Option<String>, String) {
        if self.blocks.len() + prompt.len() > REMEMBERED_MAX {
            self.blocks.clear();
        }
        let known = prompt.partition_point(|block| self.blocks.contains(block));
        let (known, new) = prompt.split_at(known);
        self.blocks.extend(new);
        (known.last().map(|&last| digits(&[last])), digits(new))
    }
}

/// Blocks as hexadecimal digits.
pub(crate) fn digits(blocks: &[BlockHash]) -> String {
    let mut digits = String::with_capacity(DIGITS * blocks.len());
    for block in blocks {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{:016x}", block.0);
    }
    digits
}

/// The blocks that these digits name; `None` if they are no hashes.
pub(crate) fn blocks(digits: &str) -> Option<Vec<BlockHash>> {
    if !digits.is_ascii() || !digits.len().is_multiple_of(DIGITS) {
        return None;
    }
    (0..digits.len()).step_by(DIGITS).map(|at| hash(&digits[at..at + DIGITS])).collect()
}

/// The blocks that a reader has seen: each with the one before it, and how many there are before it.
#[derive(Default)]
pub(crate) struct Read {
    before: HashMap<BlockHash, (BlockHash, usize), FxBuildHasher>,
}

impl Read {
    /// The whole prompt; `None` if the digits are no hashes, or what they follow was not in the log.
    pub(crate) fn complete(&mut self, after: Option<&str>, new: &str) -> Option<Vec<BlockHash>> {
        let mut prompt = match after {
            Some(after) => self.chain_to(hash(after)?)?,
            None => Vec::new(),
        };
        for block in blocks(new)? {
            let parent = prompt.last().copied().unwrap_or_default();
            self.before.insert(block, (parent, prompt.len()));
            prompt.push(block);
        }
        Some(prompt)
    }

    fn chain_to(&self, last: BlockHash) -> Option<Vec<BlockHash>> {
        let &(_, depth) = self.before.get(&last)?;
        let mut chain = vec![last; depth + 1];
        let mut block = last;
        for at in (0..=depth).rev() {
            // Counting down to the root ends also where a damaged log goes round in circles.
            let &(parent, depth) = self.before.get(&block)?;
            if depth != at {
                return None;
            }
            chain[at] = block;
            block = parent;
        }
        Some(chain)
    }
}

fn hash(digits: &str) -> Option<BlockHash> {
    let is_whole = digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    is_whole.then(|| u64::from_str_radix(digits, 16).ok().map(BlockHash))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(hashes: &[u64]) -> Vec<BlockHash> {
        hashes.iter().copied().map(BlockHash).collect()
    }

    #[test]
    fn what_was_written_is_named_and_found_again() {
        let (mut written, mut read) = (Written::default(), Read::default());
        let mut pass = |hashes: &[u64]| {
            let (after, new) = written.abridge(&prompt(hashes));
            let new_blocks = new.len() / DIGITS;
            assert_eq!(read.complete(after.as_deref(), &new), Some(prompt(hashes)));
            (after, new_blocks)
        };
        assert_eq!(pass(&[]), (None, 0));
        assert_eq!(pass(&[1, 2, 3]), (None, 3));
        assert_eq!(pass(&[1, 2, 3]), (Some("0000000000000003".into()), 0));
        assert_eq!(pass(&[1, 2, u64::MAX, 5]), (Some("0000000000000002".into()), 2));
        assert_eq!(pass(&[1, 2, u64::MAX, 5, 6]), (Some("0000000000000005".into()), 1));
        assert_eq!(pass(&[7]), (None, 1));
    }

    #[test]
    fn damage_is_seen() {
        let mut read = Read::default();
        assert_eq!(read.complete(Some("0000000000000009"), ""), None, "never written");
        for bad in ["123", "000000000000000g", "00000000000000ä", "+000000000000001"] {
            assert_eq!(read.complete(None, bad), None, "{bad}");
        }
        // A block that follows itself.
        let circle = "0000000000000001".repeat(2);
        assert!(read.complete(None, &circle).is_some());
        assert_eq!(read.complete(Some("0000000000000001"), ""), None);
    }
}
