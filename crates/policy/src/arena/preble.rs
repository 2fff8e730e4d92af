//! `preble`: exploit a long match, else explore by load, prefill and eviction (E2).
//!
//! ```text
//! exploit, if max over i of matched_i > p - matched_i:
//!     x = argmax matched_i, of equals the least W_i
//!     l = argmin W_i                      if W_x = max_j W_j and W_x > R * W_l     (rebalance, and so replicate)
//!     x                                   else
//! explore: argmin over i of  W_i + (p - matched_i) + E_i;    E_i = h_i * (p - matched_i)
//! ```
//!
//! * `p`: [`RequestView::prompt_tokens`]; `matched_i`: [`Candidate::matched_tokens`];
//! * `W_i`: uncached prompt tokens that this rule has sent to the instance in the last `H` seconds; `h_i`:
//!   the share of prompt tokens sent in that time that was believed cached, 0 if none was sent; over the
//!   eligible instances;
//! * `H`, `R`: [`PrebleConfig::window_s`], [`PrebleConfig::rebalance_ratio`]. All terms are in prefill
//!   tokens.
//!
//! Source: Preble (2024), its E2 algorithm: exploit if the cached part is longer than the rest; else the
//! least sum of the load of the last 3 minutes, the prefill of what is missing and the cost of what it
//! evicts; rebalance when a GPU has 1.5 times the load of another; hot prefixes are replicated.
//!
//! How we read it, and where ours differs: Preble's load also has the decode time by its cost model; a policy
//! here is not told of output lengths, so load is prefill. It weighs evicted prefixes by their hits, which a
//! gateway does not see: E takes every token that is computed to evict one, which the instance would have
//! used again with the odds `h_i` of its hits in the window (the cache is taken to be full). Replication is
//! what rebalancing does: the request that goes to the lightest leaves the prefix there too, and of equal
//! matches the lesser load is taken from then on. The window moves in steps of a sixteenth.

use std::time::Duration;

use kvroute_types::Timestamp;
use serde::{Deserialize, Serialize};

use crate::choice::{Best, eligible, record, scored, uncached_tokens};
use crate::config::Settings;
use crate::per_instance::PerInstance;
use crate::{
    Candidate, Decision, InvalidPolicy, LoadSignal, Needs, Policy, Reason, RequestView, Scores,
};

/// Parts of the window, each of which is forgotten as a whole.
const PARTS: usize = 16;

/// Parameters of `preble`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrebleConfig {
    /// Time over which load counts, s; above 0. Default 180 (Preble).
    pub window_s: f64,
    /// Ratio of the most to the least loaded from which on work is moved; at least 1. Default 1.5 (Preble).
    pub rebalance_ratio: f64,
}

impl Default for PrebleConfig {
    fn default() -> Self {
        Self { window_s: 180.0, rebalance_ratio: 1.5 }
    }
}

/// The `preble` policy.
#[derive(Clone, Debug)]
pub struct Preble {
    config: PrebleConfig,
    part_ns: u64,
    windows: PerInstance<Window>,
}

/// What was sent to one instance lately, in tokens.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    sent: Sent,
    /// Number of the newest part since the run began.
    newest: u64,
    parts: [Sent; PARTS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    uncached: u64,
    prompts: u64,
}

impl Window {
    /// Forgets what is older than the window; `newest` is the number of the part that it is now.
    fn advance(&mut self, newest: u64) {
        let steps = newest.saturating_sub(self.newest).min(PARTS as u64);
        for step in 0..steps {
            let part = &mut self.parts[index(newest - step)];
            self.sent.uncached -= part.uncached;
            self.sent.prompts -= part.prompts;
            *part = Sent::default();
        }
        self.newest = self.newest.max(newest);
    }

    fn add(&mut self, uncached: u32, prompt: u32) {
        for sent in [&mut self.sent, &mut self.parts[index(self.newest)]] {
            sent.uncached += u64::from(uncached);
            sent.prompts += u64::from(prompt);
        }
    }

    fn load(&self) -> f64 {
        self.sent.uncached as f64
    }

    fn hit_rate(&self) -> f64 {
        match self.sent.prompts {
            0 => 0.0,
            prompts => 1.0 - self.sent.uncached as f64 / prompts as f64,
        }
    }
}

/// Where a part is kept.
fn index(part: u64) -> usize {
    usize::try_from(part % PARTS as u64).unwrap_or(0)
}

impl Preble {
    fn new(config: PrebleConfig) -> Self {
        let part = Duration::from_secs_f64(config.window_s / PARTS as f64);
        let part_ns = u64::try_from(part.as_nanos()).unwrap_or(u64::MAX);
        Self { config, part_ns: part_ns.max(1), windows: PerInstance::default() }
    }

    fn decide(
        &self,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        let load = |position: usize| self.windows[position].load();
        let (mut longest, mut lightest) = (0_u32, Best::new(LoadSignal::InFlight));
        let mut most = 0.0_f64;
        for (position, candidate) in eligible(candidates) {
            longest = longest.max(candidate.matched_tokens);
            most = most.max(load(position));
            lightest.offer(0.0 - load(position), position, candidate);
        }
        let (_, lightest, _) = lightest.get()?;
        if longest > request.prompt_tokens.0.saturating_sub(longest) {
            let mut best = Best::new(LoadSignal::InFlight);
            for (position, candidate) in eligible(candidates) {
                if candidate.matched_tokens == longest {
                    best.offer(0.0 - load(position), position, candidate);
                }
            }
            let (_, position, _) = best.get()?;
            let is_heaviest = load(position) >= most;
            if is_heaviest && load(position) > self.config.rebalance_ratio * load(lightest) {
                record(candidates, scores, |position, _| 0.0 - load(position));
                return Some(Decision { position: lightest, reason: Reason::Rebalanced });
            }
            record(candidates, scores, |_, candidate| f64::from(candidate.matched_tokens));
            return Some(Decision { position, reason: Reason::LongestMatch });
        }
        let mut best = Best::new(LoadSignal::InFlight);
        for (position, candidate) in eligible(candidates) {
            let missing = f64::from(uncached_tokens(request, candidate));
            let window = &self.windows[position];
            let score = 0.0 - (window.load() + missing + window.hit_rate() * missing);
            scores.record(candidate.id, score);
            best.offer(score, position, candidate);
        }
        let (_, position, candidate) = best.get()?;
        Some(Decision { position, reason: scored(candidate) })
    }
}

impl Policy for Preble {
    fn name(&self) -> &'static str {
        self.config.name()
    }

    fn needs(&self) -> Needs {
        Needs { index: true, ..Needs::default() }
    }

    /// O(N). Scores are cached tokens of the prompt, or negated costs or loads in tokens, by what decided.
    fn choose(
        &mut self,
        now: Timestamp,
        request: &RequestView<'_>,
        candidates: &[Candidate],
        scores: &mut Scores,
    ) -> Option<Decision> {
        self.windows.follow(candidates);
        let newest = now.as_nanos() / self.part_ns;
        for window in self.windows.values_mut() {
            window.advance(newest);
        }
        let decision = self.decide(request, candidates, scores)?;
        let missing = uncached_tokens(request, &candidates[decision.position]);
        self.windows[decision.position].add(missing, request.prompt_tokens.0);
        Some(decision)
    }
}

impl Settings for PrebleConfig {
    fn name(&self) -> &'static str {
        "preble"
    }

    fn summary(&self) -> &'static str {
        "a match longer than the rest; else the least recent load, prefill and eviction (Preble's E2)"
    }

    fn parameters(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("window_s", "time over which load counts, s, above 0"),
            ("rebalance_ratio", "ratio of most to least loaded that moves work, at least 1"),
        ]
    }

    fn signals(&self) -> Vec<&'static str> {
        vec!["matched_tokens"]
    }

    fn validate(&self) -> Result<(), InvalidPolicy> {
        let ratio = self.rebalance_ratio;
        InvalidPolicy::unless_within(self.name(), "window_s", self.window_s, 1e-3..=1e6)?;
        InvalidPolicy::unless_within(self.name(), "rebalance_ratio", ratio, 1.0..=1e6)
    }

    fn policy(&self, _seed: u64) -> Box<dyn Policy> {
        Box::new(Preble::new(*self))
    }
}

#[cfg(test)]
mod tests {
    use kvroute_types::TokenCount;

    use super::*;
    use crate::fixtures::{assert_scores, choose, choose_scored, in_flight, ten_blocks};

    /// A policy that has sent these uncached tokens, of these prompt tokens, at time 0.
    fn policy<const N: usize>(sent: [(u32, u32); N]) -> Preble {
        let mut policy = Preble::new(PrebleConfig::default());
        policy.windows.follow(&in_flight([0; N], [0; N]));
        for (window, (uncached, prompts)) in policy.windows.values_mut().iter_mut().zip(sent) {
            window.add(uncached, prompts);
        }
        policy
    }

    #[test]
    fn exploring_by_hand() {
        // Matches of 80 of 165 tokens are no longer than the rest, 85: explore.
        let mut policy = policy([(100, 400), (90, 90), (0, 0)]);
        let table = in_flight([0; 3], [5, 1, 0]);
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        // 100 + 85 + 0.75 * 85 = 248.75;   90 + 149 + 0 * 149 = 239;   0 + 165 + 0.
        assert_scores(&scores, &[(10, -248.75), (20, -239.0), (30, -165.0)]);
        assert_eq!(choice, Some((2, Reason::LoadScore)));
        // Now 165 tokens of 165 were sent there: 165 + 165 + 0; 239 is the least.
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -248.75), (20, -239.0), (30, -330.0)]);
        assert_eq!(choice, Some((1, Reason::CacheScore)));
    }

    #[test]
    fn a_match_longer_than_the_rest_is_exploited() {
        // 6 blocks: 96 > 69. W 150 is the most, and not above 1.5 * 100.
        let table = in_flight([9, 0], [6, 0]);
        let mut policy = policy([(150, 150), (100, 100)]);
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, 96.0), (20, 0.0)]);
        assert_eq!(choice, Some((0, Reason::LongestMatch)));
        // Its 69 uncached tokens make it 219 > 150: the next one moves, and leaves 165 there.
        let (choice, scores) = choose_scored(&mut policy, &ten_blocks(), &table);
        assert_scores(&scores, &[(10, -219.0), (20, -100.0)]);
        assert_eq!(choice, Some((1, Reason::Rebalanced)));
        // Both hold it now: the lesser load, 219 against 265.
        let table = in_flight([9, 0], [6, 6]);
        assert_eq!(choose(&mut policy, &ten_blocks(), &table), Some((0, Reason::LongestMatch)));
    }

    #[test]
    fn only_the_heaviest_is_relieved() {
        let mut policy = policy([(150, 150), (200, 200), (10, 10)]);
        let choice = choose(&mut policy, &ten_blocks(), &in_flight([0; 3], [10, 0, 0]));
        assert_eq!(choice, Some((0, Reason::LongestMatch)));
    }

    #[test]
    fn load_is_forgotten_after_the_window() {
        let config = PrebleConfig { window_s: 16.0, ..PrebleConfig::default() };
        let mut policy = Preble::new(config);
        let request = RequestView { prompt_tokens: TokenCount(100), ..ten_blocks() };
        let table = in_flight([0; 1], [0; 1]);
        let mut load_at = |s: f64| {
            let now = Timestamp::from_secs_f64(s);
            policy.choose(now, &request, &table, &mut Scores::new(false));
            policy.windows[0].load()
        };
        // 100 more each time; what came in second 0 is forgotten in second 16, a whole part at once.
        assert!(
            [
                (0.0, 100.0),
                (0.9, 200.0),
                (15.9, 300.0),
                (16.0, 200.0),
                (31.5, 200.0),
                (500.0, 100.0)
            ]
            .into_iter()
            .all(|(s, load)| (load_at(s) - load).abs() < 1e-9)
        );
    }

    #[test]
    fn parameters_have_ranges() {
        for bad in ["window_s=0", "window_s=nan", "rebalance_ratio=0.5"] {
            assert!(format!("preble:{bad}").parse::<crate::PolicyConfig>().is_err(), "{bad}");
        }
    }
}
