//! A key's home: the instance that a stable hash gives it, among those eligible now.
//!
//! ```text
//! rendezvous:  home(k) = argmax over eligible i of  mix(k xor mix(id_i));   ties: the least id
//! modulo:      home(k) = the (k mod n)-th eligible instance in id order, counted from 0
//! ```
//!
//! * `k`: session or prefix key, a stable 64-bit hash;
//! * `id_i`: [`Candidate::id`]; `n`: number of eligible instances;
//! * `mix`: [`kvroute_types::mix64`].
//!
//! Rendezvous (highest random weight) hashing: Thaler and Ravishankar, "Using name-based mappings to
//! increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998. Each key ranks all instances in
//! its own random order, so an instance that joins takes 1 / N of the keys and moves no other, and one
//! that leaves gives its keys to the others evenly. Under `modulo` a change of `n` moves nearly all.
//!
//! Homes hang on the ids alone, so several routers agree on them if they number the instances alike.

use kvroute_types::{InstanceId, mix64};
use serde::{Deserialize, Serialize};

use crate::Candidate;

/// How a key picks its home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HashRule {
    /// Rendezvous hashing: a change of membership moves about 1 / N of the keys.
    #[default]
    Rendezvous,
    /// Key modulo the number of eligible instances, as in the original paper: a change moves nearly all keys.
    Modulo,
}

impl HashRule {
    /// What the parameter means, for [`crate::Parameter::about`].
    pub(crate) const ABOUT: &str =
        "rendezvous (a new instance moves 1 / N of the keys) or modulo (moves nearly all)";

    /// Position of the key's home; `None` if no candidate is eligible.
    pub(crate) fn home(self, key: u64, candidates: &[Candidate]) -> Option<usize> {
        match self {
            Self::Rendezvous => rendezvous(key, candidates),
            Self::Modulo => modulo(key, candidates),
        }
    }
}

fn eligible(candidates: &[Candidate]) -> impl Iterator<Item = (usize, &Candidate)> {
    candidates.iter().enumerate().filter(|(_, candidate)| candidate.eligible)
}

/// One pass: the comparison is a branch that is seldom taken (about ln N times), where an iterator's
/// `max` would carry weight, id and position along each time.
fn rendezvous(key: u64, candidates: &[Candidate]) -> Option<usize> {
    let mut best: Option<(u64, usize)> = None;
    for (position, candidate) in eligible(candidates) {
        let weight = weight(key, candidate.id);
        // In id order, so on equal weights the least id stays.
        if best.is_none_or(|(greatest, _)| weight > greatest) {
            best = Some((weight, position));
        }
    }
    best.map(|(_, position)| position)
}

fn modulo(key: u64, candidates: &[Candidate]) -> Option<usize> {
    let n = eligible(candidates).count() as u64;
    let rank = key.checked_rem(n)?;
    eligible(candidates).nth(usize::try_from(rank).ok()?).map(|(position, _)| position)
}

/// How much the key prefers the instance: the greatest weight is its home.
pub(crate) fn weight(key: u64, instance: InstanceId) -> u64 {
    mix64(key ^ mix64(u64::from(instance.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(ids: impl IntoIterator<Item = u32>) -> Vec<Candidate> {
        ids.into_iter().map(InstanceId).map(Candidate::new).collect()
    }

    fn homes(rule: HashRule, keys: u64, candidates: &[Candidate]) -> Vec<InstanceId> {
        (0..keys).map(|key| candidates[rule.home(mix64(key), candidates).unwrap()].id).collect()
    }

    #[test]
    fn modulo_counts_eligible_instances_in_id_order() {
        let mut candidates = table([3, 5, 8, 9]);
        assert_eq!(HashRule::Modulo.home(6, &candidates), Some(2), "6 mod 4 = 2");
        candidates[1].eligible = false;
        assert_eq!(HashRule::Modulo.home(7, &candidates), Some(2), "7 mod 3 = 1: 3, [8], 9");
        assert_eq!(HashRule::Modulo.home(u64::MAX, &candidates), Some(0), "2^64 - 1 = 0 mod 3");
    }

    #[test]
    fn rendezvous_takes_the_greatest_weight() {
        let candidates = table([0, 1, 2]);
        // Top 16 bits of the weights of ids 0, 1 and 2, computed with a Python SplitMix64.
        for (key, weights, home) in [
            (0, [0xa706, 0x5e41, 0x6468], 0),
            (1, [0x08b4, 0xe9fd, 0xe06d], 1),
            (2, [0xd7cc, 0xbcd9, 0x9678], 0),
            (3, [0xc810, 0x86d6, 0xb554], 0),
        ] {
            let actual = [0, 1, 2].map(|id| weight(key, InstanceId(id)) >> 48);
            assert_eq!(actual, weights, "key {key}");
            assert_eq!(HashRule::Rendezvous.home(key, &candidates), Some(home), "key {key}");
        }
    }

    #[test]
    fn nobody_eligible_means_no_home() {
        let mut candidates = table([1, 2]);
        for candidate in &mut candidates {
            candidate.eligible = false;
        }
        for rule in [HashRule::Rendezvous, HashRule::Modulo] {
            assert_eq!(rule.home(7, &candidates), None);
            assert_eq!(rule.home(7, &[]), None);
        }
    }

    #[test]
    fn a_new_instance_takes_its_share_of_the_keys_and_moves_no_other() {
        const KEYS: u64 = 100_000;
        let before = homes(HashRule::Rendezvous, KEYS, &table(0..9));
        let after = homes(HashRule::Rendezvous, KEYS, &table(0..10));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|(_, &after)| after == InstanceId(9)));
        // Binomial: 10,000 expected, standard deviation sqrt(100,000 * 0.1 * 0.9) = 95.
        let moved = moved.count();
        assert!((9_600..=10_400).contains(&moved), "{moved} keys moved");
    }

    #[test]
    fn a_lost_instance_scatters_its_keys_evenly() {
        const KEYS: u64 = 100_000;
        let mut candidates = table(0..10);
        let before = homes(HashRule::Rendezvous, KEYS, &candidates);
        candidates[4].eligible = false;
        let after = homes(HashRule::Rendezvous, KEYS, &candidates);
        let mut taken = [0_u32; 10];
        for (before, after) in before.into_iter().zip(after) {
            if before == InstanceId(4) {
                taken[after.index()] += 1;
            } else {
                assert_eq!(before, after, "only the lost instance's keys move");
            }
        }
        // About 10,000 keys over nine instances: 1,111 each, standard deviation 31.
        assert_eq!(taken[4], 0);
        assert!(
            taken.iter().enumerate().all(|(i, n)| i == 4 || (980..=1_240).contains(n)),
            "{taken:?}"
        );
    }

    #[test]
    fn modulo_moves_nearly_all_keys() {
        let before = homes(HashRule::Modulo, 10_000, &table(0..9));
        let after = homes(HashRule::Modulo, 10_000, &table(0..10));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(moved > 8_500, "{moved} of 10,000 keys moved; 9 in 10 expected");
    }
}
