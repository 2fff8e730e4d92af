//! One instance's audit.

use std::collections::VecDeque;

use hashbrown::HashMap;
use kvroute_types::{BlockHash, RequestId, Timestamp, TokenCount};
use kvroute_vllm_wire::{BlockRemoved, BlockStored};
use rustc_hash::FxBuildHasher;

use crate::config::{AuditConfig, Naming};
use crate::explain::{RootKind, Roots, explain_unconfirmed};
use crate::root::{RootCheck, RootName};
use crate::scrape::Scrape;
use crate::watch::{RecentRoots, Watches};
use crate::window::{Confirmation, Meanwhile, Outcome, Promise, Surplus, Tally, Tokens, Window};
use crate::{Cause, Verdict};

/// Most requests of one instance followed at a time; more are not audited.
///
/// Four times the running list of the largest GPUs (vLLM 0.32.0: 1,024 sequences from 160 GiB on).
pub(crate) const REQUESTS_MAX: usize = 4096;

/// How often something must have happened before it is no accident.
const SEVERAL: u64 = 3;

/// Most doublings of the good requests in a row that end a doubt.
const DOUBLINGS_MAX: u32 = 4;

/// What is known of a request when it is routed to the instance.
#[derive(Clone, Copy, Debug)]
pub struct Expectation<'a> {
    /// The request, by the number that [`Audit::ended`] and [`Audit::dropped`] are told.
    pub request: RequestId,
    /// Prompt tokens by our tokenizer, exact.
    pub prompt_tokens: TokenCount,
    /// Hashes of all full blocks of the prompt, as we name them.
    pub blocks: &'a [BlockHash],
    /// What the index, believed or not, holds of the prompt at this moment on the instance. More than the whole blocks
    /// before the last token counts as that many.
    pub predicted_cached_tokens: TokenCount,
    /// Whether something besides tokens went into `blocks`: a cache salt, an adapter.
    pub has_extra_keys: bool,
}

/// What the answer to a request says of its prompt (`usage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// `usage.prompt_tokens`.
    pub prompt_tokens: TokenCount,
    /// `usage.prompt_tokens_details.cached_tokens`; `None` where the server does not tell (vLLM tells with
    /// `--enable-prompt-tokens-details`).
    pub cached_tokens: Option<TokenCount>,
}

/// What an audit has counted.
///
/// The shares are of the window, which begins anew with each doubt and each recovery; the rest counts
/// since the audit began. Tokens are prompt tokens in full blocks, of requests whose cached tokens were reported.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Share of the predicted tokens that were cached; `None` if none were predicted.
    pub precision: Option<f64>,
    /// Share of the cached tokens that were predicted; `None` if none were cached.
    pub recall: Option<f64>,
    /// Precision without `evicted_tokens`: what is judged.
    pub fair_precision: Option<f64>,
    /// Recall without `told_later_tokens`: what is judged.
    pub fair_recall: Option<f64>,
    /// Requests that told something of the index.
    pub audited: u64,
    /// Tokens predicted to be cached.
    pub predicted_tokens: u64,
    /// Tokens reported as cached.
    pub reported_tokens: u64,
    /// Tokens predicted and cached.
    pub correct_tokens: u64,
    /// Tokens cached and not predicted, the news of which came after the routing.
    pub told_later_tokens: u64,
    /// Tokens predicted and not cached, since they were evicted after the routing (see [`Audit::evicted`]).
    pub evicted_tokens: u64,
    /// Requests that computed their last full prompt block, and no event told of it.
    pub unconfirmed: u64,
    /// Requests that found blocks cached of which no event had told.
    pub untold: u64,
    /// Removals of blocks that the index did not know.
    pub unknown_removals: u64,
    /// Requests whose prompt tokens the server counts otherwise.
    pub wrong_lengths: u64,
    /// First blocks in events that are named as we would name them.
    pub verified_roots: u64,
    /// First blocks in events that no recent request named; requests from elsewhere have such too.
    pub unexpected_roots: u64,
    /// Times the subscription told of a loss.
    pub losses: u64,
    /// Requests not followed since too many were under way.
    pub unaudited: u64,
    /// Times a doubt ended.
    pub recoveries: u64,
}

/// Watches one instance's index; see the crate's documentation.
#[derive(Debug)]
pub struct Audit {
    config: AuditConfig,
    confirm_ns: u64,
    block_size: u32,
    root_check: RootCheck,
    /// Requests routed and not yet counted. Looked up only.
    requests: HashMap<RequestId, Request, FxBuildHasher>,
    /// Number of the latest routed request, from 1.
    routed: u64,
    watches: Watches,
    recent_roots: RecentRoots,
    /// Ended requests that news is still awaited of, earliest end first.
    awaited: VecDeque<Awaited>,
    seen: Seen,
    /// Unexpected roots when the latest confirmed request was counted.
    roots_confirmed: Roots,
    /// Unknown removals were told since the last outcome.
    unknown_removals: bool,
    /// Removals are told.
    hears_removals: bool,
    scrape: Scrape,
    /// Whether the index was told everything since the cache was empty, as far as anybody knows.
    is_complete: bool,
    window: Window,
    verdict: Verdict,
    /// Good requests in a row since the index is doubted.
    trial: Tally,
    /// Doubts that ended in this life of the instance.
    recoveries: u32,
    totals: Figures,
}

/// A request under way.
#[derive(Clone, Copy, Debug)]
struct Request {
    /// Tells it from another of the same id.
    number: u64,
    prompt_tokens: u32,
    /// Prompt tokens in full blocks.
    full_tokens: u32,
    predicted: u32,
    has_extra_keys: bool,
    /// The last block that was predicted, if any: the first of them that an engine evicts (R9).
    last_predicted: Option<BlockHash>,
    /// The first block that was not predicted, `None` if all were.
    first_missing: Option<BlockHash>,
    /// The last full block.
    last: BlockHash,
    /// What events had come when it was routed.
    seen: Seen,
    /// It ended, and news is awaited.
    is_answered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Awaited {
    until: Timestamp,
    request: RequestId,
    number: u64,
    reported: Option<Reported>,
    /// What it came to without that news.
    outcome: Outcome,
}

/// What came in events so far.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// All.
    events: u64,
    /// Unexpected roots.
    roots: Roots,
}

impl Audit {
    /// An audit of an instance about which nothing is known yet.
    ///
    /// `config` is taken as it is: check it with [`AuditConfig::validate`] where it is read. A value out of range does
    /// no harm, but then nothing, or everything, is doubted.
    pub fn new(config: AuditConfig, naming: &Naming) -> Self {
        Self {
            config,
            confirm_ns: Timestamp::from_secs_f64(config.confirm_s).as_nanos(),
            block_size: naming.block_size.get(),
            root_check: RootCheck::new(naming),
            requests: HashMap::default(),
            routed: 0,
            watches: Watches::default(),
            recent_roots: RecentRoots::default(),
            awaited: VecDeque::new(),
            seen: Seen::default(),
            roots_confirmed: Roots::default(),
            unknown_removals: false,
            hears_removals: false,
            scrape: Scrape::default(),
            is_complete: true,
            window: Window::new(config.window_requests),
            verdict: Verdict::Learning,
            trial: Tally::default(),
            recoveries: 0,
            totals: Figures::default(),
        }
    }

    /// A request was routed here. [`ended`](Self::ended) or [`dropped`](Self::dropped) must follow.
    ///
    /// A prompt without a full block is not followed: nothing of it can be cached. Nor is one that more than 4,096
    /// are under way with.
    pub fn routed(&mut self, now: Timestamp, expected: &Expectation<'_>) {
        self.settle(now);
        self.forget(expected.request);
        let (Some(&root), Some(&last)) = (expected.blocks.first(), expected.blocks.last()) else {
            return;
        };
        self.recent_roots.add(root);
        if self.requests.len() >= REQUESTS_MAX {
            self.totals.unaudited += 1;
            return;
        }
        let prompt_tokens = expected.prompt_tokens.0;
        let blocks = u32::try_from(expected.blocks.len()).unwrap_or(u32::MAX);
        // The last token is always computed (R24).
        let cacheable = prompt_tokens.saturating_sub(1) / self.block_size;
        let predicted = expected.predicted_cached_tokens.0 / self.block_size;
        let predicted = predicted.min(cacheable).min(blocks);
        let block = |at: u32| expected.blocks.get(usize::try_from(at).ok()?).copied();
        self.routed += 1;
        let request = Request {
            number: self.routed,
            prompt_tokens,
            full_tokens: blocks.saturating_mul(self.block_size),
            predicted: predicted.saturating_mul(self.block_size),
            has_extra_keys: expected.has_extra_keys,
            last_predicted: predicted.checked_sub(1).and_then(block),
            first_missing: block(predicted),
            last,
            seen: self.seen,
            is_answered: false,
        };
        request.watched().for_each(|block| self.watches.add(block));
        self.requests.insert(expected.request, request);
    }

    /// A request was answered to its end; `None` if the answer has no usage.
    pub fn ended(&mut self, now: Timestamp, request: RequestId, reported: Option<Reported>) {
        self.settle(now);
        let Some(known) = self.requests.get(&request).filter(|known| !known.is_answered) else {
            return;
        };
        let (outcome, number) = (self.outcome(known, reported), known.number);
        let may_come = outcome.confirmation == Confirmation::Missing
            || matches!(outcome.surplus, Surplus::Untold | Surplus::Unknowable);
        if !may_come {
            self.forget(request);
            self.count(outcome, reported);
        } else if self.awaited.len() < REQUESTS_MAX {
            // The news may be behind the answer.
            let until = now.plus_nanos(self.confirm_ns);
            self.awaited.push_back(Awaited { until, request, number, reported, outcome });
            if let Some(known) = self.requests.get_mut(&request) {
                known.is_answered = true;
            }
        } else {
            self.forget(request);
            self.totals.unaudited += 1;
        }
    }

    /// A request failed, was abandoned or goes elsewhere: it is not audited. Of one that ended, this changes nothing.
    pub fn dropped(&mut self, request: RequestId) {
        if self.requests.get(&request).is_some_and(|known| !known.is_answered) {
            self.forget(request);
        }
    }

    /// The instance tells of stored blocks. To be told of every such event about its device's memory, at any time before
    /// or after the index is.
    pub fn stored(&mut self, now: Timestamp, event: &BlockStored) {
        self.settle(now);
        if event.group_idx.is_some_and(|group| group > 0) {
            return;
        }
        self.seen.events += 1;
        if event.block_size != self.block_size {
            let cause = Cause::BlockSize { ours: self.block_size, theirs: event.block_size };
            self.set_verdict(Verdict::Doubted(cause));
            return;
        }
        if event.parent_block_hash.is_none() {
            self.root_stored(event);
        }
        self.watches.stored(self.seen.events, event.hashes());
    }

    /// The instance tells of removed blocks; optional. If it is told of every such event, as [`stored`](Self::stored) is
    /// of the others, promises that an eviction broke on the way are not held against the index.
    pub fn evicted(&mut self, now: Timestamp, event: &BlockRemoved) {
        self.settle(now);
        if event.group_idx.is_some_and(|group| group > 0) {
            return;
        }
        self.seen.events += 1;
        self.hears_removals = true;
        self.watches.removed(self.seen.events, event.hashes());
    }

    /// The instance told that so many blocks are gone that the index did not know.
    pub fn removed(&mut self, unknown: u64) {
        self.totals.unknown_removals = self.totals.unknown_removals.saturating_add(unknown);
        // After a loss, blocks whose storing was lost go one by one.
        self.unknown_removals |= unknown > 0 && self.is_complete;
    }

    /// Events are missing for good, and the index of the instance was emptied.
    ///
    /// What the index learns from now on is true but not all; it is judged by its recall. Requests under way are not
    /// audited.
    pub fn lost(&mut self, now: Timestamp) {
        self.settle(now);
        self.totals.losses += 1;
        self.is_complete = false;
        self.forget_requests();
    }

    /// The index had no room for blocks that were stored. As after a loss, what it holds is true but not all.
    pub fn refused(&mut self) {
        self.is_complete = false;
        self.unknown_removals = false;
    }

    /// The instance cannot be heard: what requests under way store may be told late. They are not audited.
    pub fn interrupted(&mut self, now: Timestamp) {
        self.settle(now);
        self.forget_requests();
    }

    /// The instance's cache is empty: it restarted, or was reset.
    ///
    /// A doubt stays. Requests under way are not audited.
    pub fn cleared(&mut self, now: Timestamp) {
        self.settle(now);
        self.is_complete = true;
        self.recoveries = 0;
        self.recent_roots = RecentRoots::default();
        self.forget_requests();
    }

    /// A scrape of an instance whose answers do not tell their cached tokens: `predicted` is the sum of the predictions
    /// of requests routed since the last scrape, `hits` the increase of `vllm:prefix_cache_hits_total`, both in tokens.
    ///
    /// Requests are counted by the server when they are admitted, so a prediction has until the end of the next interval
    /// to come true. This gives precision only: hits beyond the predictions may be those of other clients.
    pub fn counted(&mut self, now: Timestamp, predicted: u64, hits: u64) {
        self.settle(now);
        self.scrape.counted(predicted, hits, self.config.precision_min);
    }

    /// Whether the index may be believed. Changes only if something was told, or the time for some event to come is over.
    pub fn verdict(&mut self, now: Timestamp) -> Verdict {
        self.settle(now);
        self.verdict
    }

    /// What was counted.
    pub fn figures(&self) -> Figures {
        let tokens = self.window.tally().tokens;
        Figures {
            precision: tokens.precision(),
            recall: tokens.recall(),
            fair_precision: tokens.fair_precision(),
            fair_recall: tokens.fair_recall(),
            unexpected_roots: self.seen.roots.total(),
            ..self.totals
        }
    }

    /// Counts the requests whose time for news is over.
    fn settle(&mut self, now: Timestamp) {
        while let Some(&Awaited { until, request, number, reported, outcome }) =
            self.awaited.front()
            && until < now
        {
            self.awaited.pop_front();
            if let Some(known) = self.requests.get(&request)
                && known.number == number
            {
                let late = self.outcome(known, reported);
                // What else came is compared between requests, so it must be of the same time for all.
                let Outcome { meanwhile, .. } = outcome;
                self.forget(request);
                self.count(Outcome { meanwhile, ..late }, reported);
            }
        }
    }

    fn forget(&mut self, request: RequestId) {
        if let Some(request) = self.requests.remove(&request) {
            request.watched().for_each(|block| self.watches.remove(block));
        }
    }

    fn forget_requests(&mut self) {
        self.requests.clear();
        self.watches.clear();
        self.awaited.clear();
        self.unknown_removals = false;
        self.scrape.forget_open();
    }

    /// A first block was stored, of the right size.
    fn root_stored(&mut self, event: &BlockStored) {
        let name = self.root_check.check(event);
        match name {
            RootName::Ours => {
                self.totals.verified_roots += 1;
                if self.verdict.cause().is_some_and(Cause::is_of_hashes) {
                    self.set_verdict(Verdict::Learning);
                }
            }
            RootName::OtherAlgo(theirs) => {
                self.set_verdict(Verdict::Doubted(Cause::HashAlgo { theirs }));
            }
            RootName::OtherSeed => self.set_verdict(Verdict::Doubted(Cause::HashSeed)),
            RootName::Unsure | RootName::Unknown => {}
        }
        let Some(root) = event.hashes().next() else { return };
        if !self.recent_roots.contains(BlockHash(root)) {
            let is_keyed = |event: &BlockStored| {
                let keys = event.extra_keys.as_ref().and_then(|blocks| blocks.first());
                keys.is_some_and(Option::is_some)
            };
            self.seen.roots.add(if event.lora_name.is_some() || event.lora_id.is_some() {
                RootKind::Lora
            } else if name == RootName::Unsure {
                RootKind::Unsure
            } else if is_keyed(event) {
                RootKind::Keyed
            } else {
                RootKind::Keyless
            });
        }
    }

    /// What a request that ended comes to by what is known now.
    fn outcome(&self, request: &Request, reported: Option<Reported>) -> Outcome {
        let Request { prompt_tokens, full_tokens, predicted, has_extra_keys, .. } = *request;
        let is_wrong_length =
            reported.is_some_and(|reported| reported.prompt_tokens.0 != prompt_tokens);
        let found = reported.and_then(|reported| reported.cached_tokens);
        let found = found.map(|tokens| tokens.0.min(full_tokens));
        let (watches, events) = (&self.watches, request.seen.events);
        let came = |block| watches.was_stored_after(events, block);
        let went = |block| watches.was_removed_after(events, block);
        let confirmation = if is_wrong_length || found.unwrap_or(predicted) >= full_tokens {
            Confirmation::NotDue
        } else if came(request.last) {
            Confirmation::Came
        } else {
            Confirmation::Missing
        };
        let promise = match (request.last_predicted, found) {
            (None, _) => Promise::None,
            (Some(_), None) if self.scrape.is_imprecise => Promise::Unlikely,
            (Some(_), None) => Promise::Kept,
            (Some(_), Some(found)) if found >= predicted => Promise::Kept,
            (Some(block), Some(_)) if went(block) => Promise::Evicted,
            (Some(_), Some(_)) => Promise::Broken,
        };
        let (mut tokens, mut surplus) = (Tokens::default(), Surplus::None);
        if let Some(found) = found {
            let correct = found.min(predicted);
            if found > predicted && !is_wrong_length {
                // News comes in order: what a request found was stored after its routing exactly if news of the first
                // block beyond the prediction comes after it.
                let is_told = request.first_missing.is_some_and(came);
                surplus = match (is_told, self.is_complete) {
                    (true, _) => Surplus::ToldLater,
                    (false, true) => Surplus::Untold,
                    (false, false) => Surplus::Unknowable,
                };
            }
            let counts = |is_so, tokens: u32| if is_so { tokens.into() } else { 0 };
            tokens = Tokens {
                predicted: predicted.into(),
                reported: found.into(),
                correct: correct.into(),
                told_later: counts(surplus == Surplus::ToldLater, found - correct),
                evicted: counts(promise == Promise::Evicted, predicted - correct),
            };
        }
        Outcome {
            tokens,
            confirmation,
            promise,
            surplus,
            is_wrong_length,
            unknown_removals: self.unknown_removals,
            has_extra_keys,
            meanwhile: Meanwhile {
                any: self.seen.events > request.seen.events,
                suspects: self.seen.roots.since(&request.seen.roots).suspects(has_extra_keys),
            },
        }
    }

    /// Counts a request, and judges.
    fn count(&mut self, mut outcome: Outcome, reported: Option<Reported>) {
        let is_reported = reported.is_some_and(|reported| reported.cached_tokens.is_some());
        let is_due = outcome.confirmation != Confirmation::NotDue;
        if !is_reported && !is_due && !outcome.is_wrong_length {
            return;
        }
        outcome.tokens += self.scrape.take();
        self.unknown_removals = false;

        let totals = &mut self.totals;
        totals.audited += 1;
        totals.predicted_tokens += outcome.tokens.predicted;
        totals.reported_tokens += outcome.tokens.reported;
        totals.correct_tokens += outcome.tokens.correct;
        totals.told_later_tokens += outcome.tokens.told_later;
        totals.evicted_tokens += outcome.tokens.evicted;
        totals.unconfirmed += u64::from(outcome.confirmation == Confirmation::Missing);
        totals.untold += u64::from(outcome.surplus == Surplus::Untold);
        totals.wrong_lengths += u64::from(outcome.is_wrong_length);

        if outcome.confirmation == Confirmation::Came {
            self.roots_confirmed = self.seen.roots;
        }
        self.window.push(outcome);
        match self.verdict {
            Verdict::Learning | Verdict::Believed => {
                if let Some(cause) = self.fault() {
                    self.set_verdict(Verdict::Doubted(cause));
                } else if self.window.tally().requests >= self.config.requests_min.into() {
                    self.verdict = Verdict::Believed;
                }
            }
            Verdict::Doubted(cause) if cause.is_of_hashes() => {}
            Verdict::Doubted(cause) => self.try_again(cause, &outcome),
        }
    }

    /// A request was counted while the index is doubted.
    fn try_again(&mut self, cause: Cause, outcome: &Outcome) {
        if let Some(better) = self.fault()
            && better.rank() > cause.rank()
        {
            self.set_verdict(Verdict::Doubted(better));
            return;
        }
        if outcome.confirmation == Confirmation::Missing
            || outcome.is_wrong_length
            || outcome.unknown_removals
            || outcome.surplus == Surplus::Untold
        {
            self.trial = Tally::default();
            return;
        }
        self.trial.add(outcome);
        let needed = u64::from(self.config.recover_requests) << self.recoveries.min(DOUBLINGS_MAX);
        if self.trial.requests < needed {
            return;
        }
        let Tally { tokens, confirmed, .. } = std::mem::take(&mut self.trial);
        let is_good = |share: Option<f64>, min| share.is_none_or(|share| share >= min);
        if is_good(tokens.fair_precision(), self.config.precision_min)
            && is_good(tokens.fair_recall(), self.config.recall_min)
            && (confirmed > 0 || tokens.correct > 0)
        {
            self.recoveries += 1;
            self.set_verdict(Verdict::Believed);
        }
    }

    fn set_verdict(&mut self, verdict: Verdict) {
        if verdict == self.verdict {
            return;
        }
        if self.verdict.cause().is_some() && verdict.cause().is_none() {
            self.totals.recoveries += 1;
        }
        self.verdict = verdict;
        // What was counted so far was about something else.
        self.window.clear();
        self.trial = Tally::default();
    }

    /// What the window speaks against the index, if anything.
    fn fault(&self) -> Option<Cause> {
        let AuditConfig { requests_min, precision_min, recall_min, missing_max, .. } = self.config;
        let (tally, requests_min) = (self.window.tally(), u64::from(requests_min));
        if tally.requests < requests_min {
            return None;
        }
        let is_above = |count: u64, max_share: f64, of: u64| count as f64 > max_share * of as f64;

        let are_lengths_wrong = tally.wrong_lengths >= SEVERAL;
        if are_lengths_wrong && is_above(tally.wrong_lengths, 1.0 - precision_min, tally.requests) {
            return Some(Cause::Tokenizer);
        }

        // With all events told there is none of these.
        let broken = if self.hears_removals { tally.broken_promises } else { 0 };
        let missing = tally.unconfirmed + tally.untold + tally.unknown_removals + broken;
        if missing >= SEVERAL && is_above(missing, missing_max, tally.requests) {
            return if tally.unconfirmed > 0 {
                let (latest, seen) = (self.window.latest(), &self.seen.roots);
                explain_unconfirmed(tally, latest, seen, &self.roots_confirmed)
            } else {
                Some(Cause::LostEvents)
            };
        }

        let is_low = |share: Option<f64>, min, bad, of| {
            of >= requests_min
                && share.is_some_and(|share| share < min)
                && is_above(bad, 1.0 - min, of)
        };
        let tokens = &tally.tokens;
        let is_imprecise = is_low(
            tokens.fair_precision(),
            precision_min,
            tally.broken_promises + tally.unlikely_promises,
            tally.with_promise,
        );
        let unforeseen = tally.untold + tally.unknowable;
        let is_forgetful = is_low(tokens.fair_recall(), recall_min, unforeseen, tally.with_hit);
        let has_lost = tally.unconfirmed > 0 || tally.unknown_removals > 0;
        if (is_imprecise || is_forgetful) && are_lengths_wrong {
            Some(Cause::Tokenizer)
        } else if is_forgetful && (has_lost || tally.unknowable > 0) || is_imprecise && has_lost {
            Some(Cause::LostEvents)
        } else if is_imprecise || is_forgetful {
            Some(Cause::Unexplained)
        } else {
            None
        }
    }
}

impl Request {
    /// The blocks whose events are waited for, each once.
    fn watched(&self) -> impl Iterator<Item = BlockHash> + use<> {
        let last = self.last;
        let others = self.last_predicted.into_iter().chain(self.first_missing);
        std::iter::once(last).chain(others.filter(move |block| *block != last))
    }
}

#[cfg(test)]
mod tests;
