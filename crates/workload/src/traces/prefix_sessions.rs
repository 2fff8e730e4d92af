//! Sessions of a trace that does not name them, found from shared prefixes.
//!
//! Rule: request B continues request A if B's full blocks begin with all of A's full blocks and A
//! has at least two (in Mooncake everybody shares the first). Of several such A the longest counts,
//! of equally long ones the latest; each A is continued once, so of several candidates B the first
//! gets it. Otherwise B starts a session. One pass; chained 64-bit hashes stand for prefixes.

use hashbrown::HashMap;
use kvroute_types::mix64;
use rustc_hash::FxBuildHasher;

#[derive(Default)]
pub(super) struct PrefixSessions {
    /// Chained hash of the last request's full blocks, by session.
    tips: HashMap<u64, u32, FxBuildHasher>,
    sessions: u32,
}

impl PrefixSessions {
    /// The session of the next request, whose full blocks are `ids`.
    pub(super) fn assign(&mut self, ids: impl IntoIterator<Item = u64>) -> u32 {
        let mut chain = 0;
        let mut longest = None;
        let mut blocks = 0;
        for id in ids {
            chain = mix64(chain ^ mix64(id));
            blocks += 1;
            if blocks >= 2 && self.tips.contains_key(&chain) {
                longest = Some(chain);
            }
        }
        let session = longest.and_then(|tip| self.tips.remove(&tip)).unwrap_or_else(|| {
            self.sessions += 1;
            self.sessions - 1
        });
        if blocks >= 2 {
            self.tips.insert(chain, session);
        }
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_continues_the_longest_prefix_once() {
        let mut sessions = PrefixSessions::default();
        let mut assign = |ids: &[u64]| sessions.assign(ids.iter().copied());
        assert_eq!(assign(&[0, 1, 2]), 0);
        assert_eq!(assign(&[0, 7]), 1);
        assert_eq!(assign(&[0, 1, 2, 3]), 0, "extends all of the first");
        assert_eq!(assign(&[0, 1, 2, 4]), 2, "the first was already continued");
        assert_eq!(assign(&[0, 1]), 3, "shorter is not a continuation");
        assert_eq!(assign(&[0, 1, 2, 3, 9]), 0, "the longest prefix, not [0, 1]");
        assert_eq!(assign(&[0]), 4);
        assert_eq!(assign(&[0]), 5, "one shared block is not a session");
    }
}
